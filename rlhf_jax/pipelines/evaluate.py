"""Before against after: two policies on held-out prompts, judged alike.

Both policies answer the same prompts. The proxy is the reward model that was
optimised, the gold one never trained the policy; both are in units of the
reference policy (mean 0, deviation 1 of its samples here). A verifier, or a
function, gives the scores it gives. Comparisons are paired by prompt; without
any judge there are KL, length and diversity.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax

from rlhf_jax import distributed, generate, imported, schema, strict_json
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import batches, dataset, overlap, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import comparison
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import actors, build, compared, scorers
from rlhf_jax.programs.answers import (
  SCORES,
  Answers,
  answer,
  check_sampling,
  summarise,
)
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import (
  Phase,
)
from rlhf_jax.programs.scorers import Scoring
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.runs import finite, stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PromptBatch

RESULT_FILE = "evaluation.json"
TEXTS_FILE = "texts.jsonl"
PIECES_FILE = "token_ratios.jsonl"  # of the answers after training
ORIGINS = "origins"  # in the result: fingerprints of the runs
_RUNS = ("policy", "init_from", "reward", "gold")  # fields that name them


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Two policies on held-out prompts."""

  seed: int = 1  # of the answers
  model: Model = Model()
  policy: str = stage_field(stages.POLICY)  # folder of the run that is judged
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the run that it is compared with
  reward: str = stage_field(stages.REWARD)  # folder of the reward model, or ""
  gold: str = stage_field(stages.REWARD)  # folder of a held-out one, or ""
  scoring: Scoring = Scoring()  # how reward models read answers
  verifier: texts.Verifier = texts.Verifier()  # what else judges
  reward_fn: str = ""  # import path of a function that judges, in its place
  prompts: Data = Data()  # held-out prompts that both answer
  generate: generate.Config = generate.Config()
  packing: packing.Config = packing.Config()  # several samples in a row
  count: int = 256  # prompts that are answered
  batch_size: int = 64  # prompts at a time
  mesh: mesh_lib.Config = mesh_lib.Config()
  lexicon: bool = False  # VADER sentiment of the answers too

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    schema.check_least(self, count=2, batch_size=1)
    build.check_room(self.prompts, self.generate)
    check_sampling(self.generate)
    if self.count % self.batch_size:
      raise FieldError(
        f"count={self.count}: must be a multiple (>= 2) of "
        f"batch_size={self.batch_size}."
      )
    if self.verifier.name and self.reward_fn:
      raise FieldError(
        f"verifier.name={self.verifier.name!r} and reward_fn="
        f"{self.reward_fn!r}: one of them judges texts. Set the other to ''."
      )

  @functools.cached_property
  def text_judge(self) -> Bound | None:
    """The verifier or function that judges, or None."""
    return actors.bound_judge(self.verifier, self.reward_fn)


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.prompts, "prompts")
  unread.check(settings.prompts, "prompts", unread.PROMPTS)
  if not settings.policy:
    raise FieldError(
      "policy is empty: name the --workdir of a finished policy run, "
      "--config.policy=runs/policy."
    )
  build.check_rows(world, settings.batch_size, "batch_size")
  build.check_portions(settings.batch_size, settings.generate, "batch_size")


def _read(folder: Path) -> dict:
  return strict_json.read_object(
    folder / RESULT_FILE,
    "Delete the folder and evaluate again.",
    allows_nan=True,
  )


def read_result(folder: Path) -> dict[str, float]:
  """Returns the numbers of a finished evaluation."""
  return {k: x for k, x in _read(folder).items() if k != ORIGINS}


def _origins(settings: Settings) -> dict[str, str]:
  """Returns the fingerprints of runs, "" for none, and of code that judges."""
  folders = {name: getattr(settings, name) for name in _RUNS}
  runs = {n: stages.stage_fingerprint(path) for n, path in folders.items()}
  code = {"reward_fn": settings.reward_fn} | settings.verifier.code()
  return runs | imported.fingerprints(**code)


def check_result(settings: Settings, folder: Path) -> None:
  """Checks that a finished evaluation is of the runs as they are now.

  Args:
    settings: of the pipeline.
    folder: with evaluation.json; older ones do not say.

  Raises:
    FieldError: another run is in a folder that was evaluated.
  """
  before = _read(folder).get(ORIGINS)
  if not isinstance(before, dict):
    return
  for name, digest in _origins(settings).items():
    if before.get(name, digest) != digest:
      said = f"{name}={getattr(settings, name)!r}" if name in _RUNS else name
      raise FieldError(
        f"{said}: it has changed since {folder / RESULT_FILE} was written. "
        "Delete that file to evaluate it "
        "again, or choose another --workdir."
      )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(world, settings.batch_size, "batch_size")
  return [compared.wire(settings, world, world.base(settings.model)).phase]


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
      "Lower count, or give more prompts; a prompt is not used twice."
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
  base = world.base(settings.model)
  world.workdir.mkdir(parents=True, exist_ok=True)
  wired = compared.wire(settings, world, base)
  prompt_batches = load_prompts(settings, base)
  verifier = texts.load(settings.text_judge, settings.prompts, base.tokenizer)
  answers = {}
  for number, (name, (sampler, params)) in enumerate(wired.samplers.items()):
    answers[name] = answer(
      sampler,
      params,
      wired.phase[f"{name} judge"],
      wired.weights,
      prompt_batches,
      jax.random.fold_in(jax.random.key(settings.seed), number),
      name=name,
      mesh=world.mesh,
      packed=settings.packing,
      verifier=verifier,
      readers=scorers.open_readers(
        wired.readers, settings.prompts, sampler, world.mesh
      ),
    )
  before, after = answers["before"], answers["after"]
  facts = summarise(before, after, settings.lexicon)
  finite.check_facts(RESULT_FILE, facts)
  if distributed.is_first():
    _write_texts(world.workdir / TEXTS_FILE, before, after)
    _write_pieces(world.workdir / PIECES_FILE, after)
    temporary = path.with_suffix(".tmp")
    record = facts | {ORIGINS: _origins(settings)}
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(RESULT_FILE)
  return facts


def _write_texts(path: Path, before: Answers, after: Answers) -> None:
  """Writes every prompt with both answers and their raw scores."""
  lines = []
  for i, prompt in enumerate(before.prompts):
    row = {
      "prompt": prompt,
      "before": before.texts[i],
      "after": after.texts[i],
      "kl": float(after.kl[i]),
    }
    for shown, name in SCORES.items():
      if name in before.scores:
        row[f"{shown}_before"] = float(before.scores[name][i])
        row[f"{shown}_after"] = float(after.scores[name][i])
    lines.append(json.dumps(row, ensure_ascii=False))
  path.write_text("\n".join(lines) + "\n")


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
