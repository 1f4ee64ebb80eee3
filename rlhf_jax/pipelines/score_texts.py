"""Texts in, scores out: of reward models, of their ensemble, of a verifier.

A record is a prompt with an answer ({"prompt", "response"} or {"messages"});
what a verifier judges against stands in its field "reference". Each reward
model reads text with the tokenizer and the model that its run had, so those of
several families score together. Scores are in units of each model's own
reference.

    ensemble = mean (or min, uwo) over the members of all reward models
    spread = their deviation on one text;  NAME_spread = that of one run's own

A run that was stopped goes on behind the last texts that are done.

What each member of an ensemble says stands in `members`. A large spread says
that the models were not taught about such texts (Coste et al. 2023,
arXiv:2310.02743). Left out: scores of the tokens inside a text.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import distributed, schema, terminal
from rlhf_jax.algorithms import ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.data import dataset, formats, retold, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Demonstration
from rlhf_jax.exports import opened
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results
from rlhf_jax.programs import answer_parts, build, sampled_settings
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import guard, rows, texts
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError

RESULT_FILE = "scores.json"
SCORES_FILE = "scores.jsonl"
VERIFIER, ENSEMBLE, SPREAD = "verifier", "ensemble", "spread"
CHUNK = 256  # texts between two lines of progress


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Scores of texts that are there already."""

  rewards: str = ""  # folders of finished reward runs, with commas between
  source: str = ""  # model under all of them; "": what their stage.json says
  combine: str = (
    "mean"  # of members: "mean", "min" or "uwo", as scoring.combine
  )
  uncertainty_weight: float | None = None  # of "uwo"
  verifier: texts.Verifier = texts.Verifier()  # what else judges
  reward_fn: str = ""  # import path of a function that judges, in its place
  data: Data = Data(format="demonstration")  # prompts with answers
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    with schema.as_field():
      _ = self.combination
    if self.verifier.name and self.reward_fn:
      raise FieldError(
        f"verifier.name={self.verifier.name!r} and reward_fn="
        f"{self.reward_fn!r}: one of them judges texts. Set the other to ''."
      )
    if len(self.named) < len(self.folders):
      raise FieldError(
        f"rewards={self.rewards!r}: one of them stands there twice. Leave it "
        "out."
      )

  @property
  def combination(self) -> Combination:
    """How the scores of members become one."""
    return Combination(self.combine, self.uncertainty_weight)

  @functools.cached_property
  def text_judge(self) -> Bound | None:
    """The verifier or function that judges, or None."""
    return sampled_settings.bound_judge(self.verifier, self.reward_fn)

  @property
  def folders(self) -> list[str]:
    """The folders of the reward models."""
    return results.listed(self.rewards)

  @property
  def named(self) -> dict[str, str]:
    """The folders by the shortest ends of their paths that differ."""
    return results.named(self.folders)


def check(settings: Settings, world: World) -> None:
  """Checks what scores, and what is scored."""
  del world
  build.check_needed(settings.data, "data")
  unread.check(settings.data, "data", unread.DEMONSTRATIONS, packs=False)
  for name in ("train_on_prompt", "last_answer_only"):
    if getattr(settings.data, name):
      raise FieldError(
        f"data.{name}=True: nothing trains here. Leave it at False."
      )
  if not settings.folders and settings.text_judge is None:
    raise FieldError(
      "rewards is empty: name folders of finished reward runs, or set "
      "verifier.name or reward_fn."
    )
  for folder in settings.folders:
    schema.check_local(folder, "rewards")
    stages.need_stage(folder, stages.REWARD, "config.rewards")


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def load_texts(
  settings: Settings,
) -> tuple[list[Demonstration], list[str], list[dict[str, Any]]]:
  """Returns the records, their answers, and the fields that they were read of.

  Raises:
    UserError: records without an answer.
  """
  found, dropped = dataset.records(settings.data, None)
  dataset.report_dropped("score", settings.data.source, len(found), dropped)
  if not isinstance(found[0], Demonstration):
    raise FieldError(
      f"data.format={settings.data.format!r}: holds no prompts with answers. "
      "Use 'demonstration' or 'messages'."
    )
  answers = []
  for record in found:
    text = record.response
    if record.messages is not None:
      last = record.messages[-1]
      if settings.folders and not settings.data.chat:
        raise UserError(
          f"{record.where}: a dialogue, and data.chat=False. Set data.chat="
          "True: reward models read it as their own chat templates write it."
        )
      if last["role"] != "assistant":
        raise UserError(
          f"{record.where}: ends with a turn of {last['role']!r}, so there is "
          "no answer to score. Remove it, or add the answer."
        )
      text = last["content"]
    answers.append(text)
  return found, answers, [dict(record.fields) for record in found]


def _read(
  settings: Settings,
  world: World,
  found: list[Demonstration],
  answers: list[str],
  parts: answer_parts.Parts,
) -> dict[str, np.ndarray]:
  """Returns name -> [N, M] scores of each reward model's members, in turn."""
  scores = {}
  for name, folder in settings.named.items():
    info = stages.need_stage(folder, stages.REWARD, "config.rewards")
    base = world.base(opened.model_of(folder, info, settings.source))
    scorer, weights, _ = reward_model.load(folder, base, world)
    reader = Reader(name, scorer, weights, base.tokenizer)
    chat = settings.data.chat
    if chat:
      retold.check(found, reader.tokenizer, name)
    told = [
      reader.told(
        retold.of_record(record, reader.tokenizer, chat=chat, text=""),
        retold.Said(text, has_end=True),
      )
      for record, text in zip(found, answers, strict=True)
    ]
    for what in ("is_cut", "is_unspelled"):
      count = sum(getattr(row, what) for row in told)
      if count:
        print(f"score: {name}: {count} of {len(told)} texts: {_WHAT[what]}")
    scores[name] = _in_chunks(name, reader, told, world, parts)
  return scores


_WHAT = {
  "is_cut": "not all of them fits into its context, and the rest is not read",
  "is_unspelled": "it has no token for some characters, which are left out",
}


def _in_chunks(
  name: str,
  reader: Reader,
  told: list[retold.Told],
  world: World,
  parts: answer_parts.Parts,
) -> np.ndarray:
  """Returns [N, M] scores; each chunk that is done is kept."""
  found = []
  with terminal.Progress(f"score {name}", len(told), unit="text") as progress:
    for first in range(0, len(told), CHUNK):
      part = told[first : first + CHUNK]
      kept = parts.read(f"reads {name}", first // CHUNK)
      if kept is None:
        ids = [row.ids for row in part]
        lengths = [row.answer for row in part]
        scores = reader.member_scores(ids, world.mesh, lengths)
        parts.write(f"reads {name}", first // CHUNK, {"scores": scores}, None)
      else:
        scores = kept[0]["scores"]
      found.append(scores)
      progress.update(min(first + CHUNK, len(told)))
  return np.concatenate(found)


def _verify(
  settings: Settings,
  found: list[Demonstration],
  answers: list[str],
  records: list[dict[str, Any]],
) -> dict[str, np.ndarray]:
  """Returns the scores [N] of a verifier, and those of its parts.

  Raises:
    UserError: a record without what it reads.
  """
  parts = settings.text_judge
  if parts is None:
    return {}
  if "token_ids" in parts.needs:
    raise FieldError(
      "verifier or reward_fn: reads token_ids, and texts have none. Take one "
      "that reads texts."
    )
  references = [record.get("reference") for record in records]
  for record, reference in zip(found, references, strict=True):
    if reference is None and "references" in parts.needs:
      raise UserError(
        f"{record.where}: has no field 'reference', and the verifier judges "
        "against one. Add it."
      )
  judged = rows.Answers(
    texts=answers,
    references=references,
    prompts=[formats.prompt_text(record) for record in found],
    records=records,
    has_ended=[True] * len(found),
  )
  try:
    if parts.prepare is not None:
      parts.prepare(references)
    first = dataclasses.replace(judged.take(range(1)), texts=[""])
    _, logged = parts(first)
  except rows.BadReference as error:
    raise UserError(f"{found[error.row].where}: {error}") from error
  except ValueError as error:
    raise UserError(f"{found[0].where}: {error}") from error
  guarded = guard.Guard(parts, tuple(logged))
  scores, logged = distributed.by_share(
    lambda share: guarded(judged.take(range(share.start, share.stop))),
    len(answers),
  )
  if np.all(logged[guard.RAISED]):
    raise UserError(
      f"the verifier raises on each of {len(answers)} texts: "
      f"{guarded.first_error or 'in another process'}"
    )
  named = {f"{texts.COMPONENT}{name}": x for name, x in logged.items()}
  return {VERIFIER: scores} | named


def run(settings: Settings, world: World) -> dict:
  """Scores texts; returns what scores.json holds."""
  path = world.workdir / RESULT_FILE
  folders = {f"rewards: {x}": x for x in settings.folders}
  code = {"reward_fn": settings.reward_fn} | settings.verifier.code()
  origins = results.origins(folders, code)
  if path.is_file():
    results.check(path, origins, folders)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  found, answers, records = load_texts(settings)
  made = answer_parts.identity(settings, origins, [*found, *answers])
  parts = answer_parts.Parts(world.workdir, made)
  kept = parts.read(VERIFIER, 0)
  columns = (
    _verify(settings, found, answers, records) if kept is None else kept[0]
  )
  if kept is None:
    parts.write(VERIFIER, 0, columns, None)
  read = _read(settings, world, found, answers, parts)
  columns = together(read, settings.combination) | columns
  several = {name: x for name, x in read.items() if x.shape[1] > 1}
  lines = [
    record
    | {"scores": {name: float(x[i]) for name, x in columns.items()}}
    | (
      {"members": {k: x[i].tolist() for k, x in several.items()}}
      if several
      else {}
    )
    for i, record in enumerate(records)
  ]
  right = texts.correct_above(settings.text_judge)
  facts = {"texts": len(found), "scores": summarise(columns, right)}
  results.write(path, facts, origins, lines, SCORES_FILE)
  parts.done()
  return facts


def together(
  members: dict[str, np.ndarray], how: Combination
) -> dict[str, np.ndarray]:
  """Returns scores [N] of each run, and of all where there are several.

  Args:
    members: name of a run -> [N, M] scores of its members.
    how: they are combined.

  Raises:
    FieldError: one model alone is to be combined.
  """
  found: dict[str, np.ndarray] = {}
  for name, scores in members.items():
    own = how if scores.shape[1] > 1 else Combination()
    found[name] = ensemble.combined(scores, own)
    if scores.shape[1] > 1:
      found[f"{name}_{SPREAD}"] = ensemble.deviation(np.float64(scores))
  if len(members) > 1:
    every = np.concatenate(list(members.values()), axis=1).astype(np.float64)
    found[ENSEMBLE] = ensemble.combined(every, how)
    found[SPREAD] = ensemble.deviation(every)
  elif how != Combination() and sum(x.shape[1] for x in members.values()) < 2:
    raise FieldError(
      f"combine={how.combine!r}: there is one reward model and nothing to "
      "combine. Name several in rewards, or set 'mean'."
    )
  return found


def summarise(
  columns: dict[str, np.ndarray], correct_above: float | None
) -> dict[str, dict[str, float]]:
  """Returns name of scores -> what is said of them.

  mean, std, min, median, max; correct: the share of texts that a verifier calls
  right, where that is known.

  Args:
    columns: name -> [N].
    correct_above: a verifier's score above it is right, or None.
  """
  found = {}
  for name, values in columns.items():
    values = np.asarray(values, np.float64)
    found[name] = {
      "mean": float(np.mean(values)),
      "std": float(np.std(values)),
      "min": float(np.min(values)),
      "median": float(np.median(values)),
      "max": float(np.max(values)),
    }
    if name == VERIFIER and correct_above is not None:
      found[name]["correct"] = float(np.mean(values > correct_above))
  return found


def tell(settings: Settings, workdir: Path) -> None:
  """Prints a table: a row a judge."""
  del settings
  facts = results.numbers(workdir / RESULT_FILE)
  heads = ["mean", "std", "min", "median", "max"]
  if any("correct" in x for x in facts["scores"].values()):
    heads.append("correct")
  cells = [
    [name, *(terminal.decimal(x[h], 3) if h in x else "" for h in heads)]
    for name, x in facts["scores"].items()
  ]
  print(f"\n{facts['texts']} texts\n")
  print(terminal.format_table(["", *heads], cells))


PIPELINE = Pipeline(
  name="score_texts",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: "texts are scored",
  tell=tell,
)
