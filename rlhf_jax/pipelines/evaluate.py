"""Before against after: two policies on held-out prompts, judged alike.

Both policies answer the same prompts. The proxy is the reward model that was
optimised, the gold one never trained the policy; both are in units of the
reference policy (mean 0, deviation 1 of its samples here). A verifier, or a
function, gives the scores it gives, and where it says what is right there is
pass@k. Comparisons are paired by prompt; without any judge there are KL, length
and diversity. Greedy, truncated and forced answers have no KL.

evaluate_many.py takes one policy, or any number.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rlhf_jax import distributed, strict_json
from rlhf_jax.data import batches, dataset, overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import comparison, embeddings
from rlhf_jax.models.pretrained import Base
from rlhf_jax.pipelines import results
from rlhf_jax.programs import answer_parts, answered, build, compared
from rlhf_jax.programs.answer_numbers import SCORES, summarise
from rlhf_jax.programs.answers import Answers
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.runs import answerers, stages
from rlhf_jax.schema import FieldError, check_least
from rlhf_jax.types import PromptBatch

RESULT_FILE = "evaluation.json"
TEXTS_FILE = results.TEXTS
PIECES_FILE = "token_ratios.jsonl"  # of the answers after training
ORIGINS = results.ORIGINS
_RUNS = ("policy", "init_from", "reward", "gold")  # fields that name them


@dataclasses.dataclass(frozen=True)
class Settings(answered.Judged):
  """Two policies on held-out prompts."""

  policy: str = stage_field(
    stages.POLICY, answers=True
  )  # of the run that is judged; FOLDER@best_of=16: the best of so many
  init_from: str = stage_field(
    stages.POLICY, answers=True
  )  # folder of the run that it is compared with
  chooser: str = ""  # who chooses the best of several: "proxy" (the reward
  # model), "gold" or "verifier"; "": the reward model, or what judges texts
  lexicon: bool = False  # VADER sentiment of the answers too
  embeddings: str = ""  # folder of an ONNX sentence model: how far answers are
  # from one another

  @property
  def answering(self) -> list[str]:
    return [x for x in (self.policy, self.init_from) if x]

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, count=2, batch_size=1)
    if self.count % self.batch_size:
      raise FieldError(
        f"count={self.count}: must be a multiple (>= 2) of "
        f"batch_size={self.batch_size}."
      )


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  if not settings.policy:
    build.check_needed(settings.prompts, "prompts")
    raise FieldError(
      "policy is empty: name the --workdir of a finished policy run, "
      "--config.policy=runs/policy."
    )
  answered.check(settings, world)
  answered.check_draws(settings, _draws(settings))


def _draws(settings: Settings) -> dict[str, int]:
  """Returns of how many answers each policy says the best."""
  return {
    "before": answerers.split(settings.init_from, "init_from")[1],
    "after": answerers.split(settings.policy, "policy")[1],
  }


def read_result(folder: Path) -> dict[str, float]:
  """Returns the numbers of a finished evaluation."""
  return results.numbers(folder / RESULT_FILE)


def _folders(settings: Settings) -> dict[str, str]:
  return {
    name: answerers.split(getattr(settings, name), name)[0] for name in _RUNS
  }


def _origins(settings: Settings) -> dict[str, str]:
  """Returns the fingerprints of runs, "" for none, and of code that judges."""
  return results.origins(_folders(settings), settings.code())


def check_result(settings: Settings, folder: Path) -> None:
  """Checks that a finished evaluation is of the runs as they are now.

  Args:
    settings: of the pipeline.
    folder: with evaluation.json; older ones do not say.

  Raises:
    FieldError: another run is in a folder that was evaluated.
  """
  now = _origins(settings)
  results.check(folder / RESULT_FILE, now, _folders(settings))


def _wire(settings: Settings, world: World, base: Base) -> compared.Compared:
  policies = compared.load_policies(settings, world, base)
  return compared.wire(settings, world, base, policies, _draws(settings))


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(world, settings.batch_size, "batch_size")
  return [_wire(settings, world, world.base(settings.model)).phase]


def load_prompts(settings: Settings, base: Base) -> list[PromptBatch]:
  """Returns `count` held-out prompts in batches.

  Raises:
    FieldError: fewer prompts than wanted.
  """
  count, size, data = settings.count, settings.batch_size, settings.prompts
  room = data.max_length - settings.generate.max_new_tokens
  ids, dropped = dataset.prompts(data, base.tokenizer, room)
  lengths = {"prompt": [len(row) for row in ids]}
  dataset.report_dropped("evaluate", data.source, len(ids), dropped, lengths)
  overlap.say("evaluate", data, Data(), base.tokenizer)
  if len(ids) < count:
    raise FieldError(
      f"count={count}: only {len(ids)} prompts in {data.source}. "
      f"Lower count, a multiple of batch_size={size}, which may be lowered "
      "too, or give more prompts; a prompt is not used twice."
    )
  width = max(len(row) for row in ids[:count])
  return [
    batches.collate_prompts(
      ids[i : i + size], base.tokenizer.pad_id, width, index=range(i, i + size)
    )
    for i in range(0, count, size)
  ]


def run(settings: Settings, world: World) -> dict:
  """Evaluates a finished policy; returns the numbers of evaluation.json."""
  path = world.workdir / RESULT_FILE
  if path.is_file():
    check_result(settings, world.workdir)
    return read_result(world.workdir)
  embed = embeddings.load(settings.embeddings)
  base = world.base(settings.model)
  world.workdir.mkdir(parents=True, exist_ok=True)
  wired = _wire(settings, world, base)
  prompts = load_prompts(settings, base)
  origins = _origins(settings)
  content = answer_parts.content_of(prompts)
  parts = answer_parts.Parts(
    world.workdir, answer_parts.identity(settings, origins, content)
  )
  found = answered.answer(settings, wired, prompts, base, world.mesh, parts)
  before, after = found["before"], found["after"]
  right = texts.correct_above(settings.text_judge)
  facts = summarise(before, after, settings.lexicon, right, embed)
  if wired.draws["after"] > 1:
    facts["best_of_kl_bound"] = answerers.kl_bound(wired.draws["after"])
  facts |= answered.by_value(
    settings,
    found,
    base,
    lambda x: summarise(
      x["before"], x["after"], settings.lexicon, right, embed
    ),
  )
  if distributed.is_first():
    _write_pieces(world.workdir / PIECES_FILE, after)
  results.write(path, facts, origins, _rows(before, after))
  parts.done()
  return facts


def _rows(before: Answers, after: Answers) -> list[dict]:
  """Returns every prompt with both answers and their raw scores.

  Of several answers to a prompt the first of both stand in one row, and so on.
  """
  rows = []
  for i, prompt in enumerate(before.prompts):
    row = {
      "prompt": prompt,
      "before": before.texts[i],
      "after": after.texts[i],
    }
    if after.kl is not None:
      row["kl"] = float(after.kl[i])
    for shown, name in SCORES.items():
      if name in before.scores:
        row[f"{shown}_before"] = float(before.scores[name][i])
        row[f"{shown}_after"] = float(after.scores[name][i])
    rows.append(row)
  return rows


def read_texts(folder: Path) -> list[dict]:
  """Returns the rows of texts.jsonl."""
  return strict_json.read_rows(
    folder / TEXTS_FILE,
    {},
    "Delete the folder of the evaluation and run again.",
  )


def _write_pieces(path: Path, answers: Answers) -> None:
  """Writes tokens and log-ratios of answers, by their place in texts.jsonl."""
  lines = [
    json.dumps({"index": i, "pieces": pieces}, ensure_ascii=False) + "\n"
    for i, pieces in enumerate(answers.pieces)
    if pieces is not None
  ]
  path.write_text("".join(lines))


def read_pieces(folder: Path) -> dict[int, list]:
  """Returns [text, log-ratio in nats] of the tokens of answers, by place.

  Older evaluations have none.
  """
  path = folder / PIECES_FILE
  if not path.is_file():
    return {}
  rows = strict_json.read_rows(
    path,
    {"index": int, "pieces": list},
    "Delete the folder of the evaluation and run again.",
  )
  return {row["index"]: row["pieces"] for row in rows}


def tell(settings: Settings, workdir: Path) -> None:
  """Prints the table of an evaluation, and some answers."""
  found = read_result(workdir)
  start = settings.init_from if settings.init_from else "its start"
  print(
    f"\n{settings.policy} (after) against {start} (before), "
    f"{found['evaluation_prompts']} held-out prompts\n"
  )
  for value, numbers in found.get("by", {}).get("values", {}).items():
    wins = [
      f"{judge} wins {numbers[f'{judge}_win_rate']:.3f}"
      for judge in SCORES
      if f"{judge}_win_rate" in numbers
    ]
    said = ", ".join([f"{numbers['evaluation_prompts']} prompts", *wins])
    print(f"{found['by']['field']}={value}: {said}")
  rows = comparison.summary_rows(found, "trained", "other")
  comparison.show(rows, read_texts(workdir))


PIPELINE = Pipeline(
  name="evaluate",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: (
    f"{settings.count} held-out prompts, before and after"
  ),
  tell=tell,
)
