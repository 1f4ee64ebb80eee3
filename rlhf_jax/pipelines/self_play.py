"""Rounds of self-play fine-tuning (SPIN): demonstrations in, a policy out.

    each round:  the policy so far answers the prompts of the demonstrations
                 it learns to prefer the demonstration to its own answer

Chen et al. 2024, arXiv:2401.01335, algorithm 1. The policy of the round before
is opponent and reference at once (algorithms/preference/spin.py says where that
settles: at the distribution of the demonstrations, and nowhere else). A round
trains on its own comparisons and on those of the round before (`rounds.pool`),
the last one with another lambda and learning rate, as in the paper.

Each round is a folder: answers/ is a generate_answers run, comparisons.jsonl
what is made of it, policy/ a run of preference.py. A finished part is not
repeated; the same command goes on with the one that was interrupted. The policy
of the last round is that of the whole run; round_N/policy is one of a round.

An answer that repeats the demonstration, or is empty, is no comparison: it is
counted and left out. Left out too: prompts of their own in each round.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, schema, strict_json
from rlhf_jax.algorithms.preference import spin
from rlhf_jax.data import dataset
from rlhf_jax.data.examples import Demonstration
from rlhf_jax.models import roles
from rlhf_jax.pipelines import generate_answers, labelled_rounds, results
from rlhf_jax.pipelines import preference as preference_pipeline
from rlhf_jax.programs import pipeline
from rlhf_jax.programs.pipeline import (
  Job,
  Pipeline,
  stage_field,
  stage_of_run,
)
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.schema import FieldError, check_least

NAME = "self_play"
COMPARISONS, LOST = "comparisons.jsonl", "lost.json"  # of a round
STAGES = ("sampling", "training")
# What the run itself fills in, and what stands there before.
_GIVEN = {
  "seed": (0, 1),
  "policy": ("",),
  "init_from": ("",),
  "reference": ("",),
  "choose": ("",),
}


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How often, and what a round trains on."""

  count: int = 3  # rounds
  pool: int = 2  # newest rounds whose comparisons a round trains on; 1: its own
  last_beta: float | None = None  # lambda of the last round; None: as the
  # others; 5 in Chen et al. 2024
  last_learning_rate: float | None = None  # of the last round; None: as the
  # others; 1e-7 there, in the round before it too, after 5e-7

  def __post_init__(self) -> None:
    check_least(self, count=1, pool=1)


def _spin() -> Any:
  """Returns the stage that trains, with SPIN where nobody says another."""
  settings = preference_pipeline.Settings()
  method = schema.Method("spin", spin, spin.Config())
  settings = dataclasses.replace(settings, algorithm=method)
  return dataclasses.field(
    default=Job(preference_pipeline.PIPELINE, settings),
    metadata={
      "leaves": preference_pipeline.PIPELINE.leaves,
      "fields": ("init_from", "reference", "data"),
    },
  )


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Self-play fine-tuning in rounds that sample for themselves."""

  seed: int = 0  # of the first stage; each other one has its own
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  rounds: Rounds = Rounds()
  # the policy's own answers; its prompts are the demonstrations
  sampling: Job = stage_of_run(generate_answers.PIPELINE, "policy", "choose")
  # what learns from them, in each round
  training: Job = _spin()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    training, sampling = self.training.settings, self.sampling.settings
    if training.is_unpaired:
      raise FieldError(
        f"training.algorithm.name={training.algorithm.name!r}: a "
        "demonstration is compared with a sample, and this reads single "
        "answers. Set 'spin'."
      )
    if training.model != sampling.model:
      raise FieldError(
        f"sampling.model.source={sampling.model.source!r} and training.model."
        f"source={training.model.source!r}: the policy that samples is the one "
        "that trains. Set all of both sections alike."
      )
    if sampling.generate.num_samples != 1:
      raise FieldError(
        f"sampling.generate.num_samples={sampling.generate.num_samples}: each "
        "demonstration meets one sample. Set 1."
      )
    if training.data.source:
      raise FieldError(
        f"training.data.source={training.data.source!r}: the run makes its "
        "comparisons. Set '', and name demonstrations as sampling.prompts."
      )
    if self.rounds.last_beta is not None:
      self.last()

  @property
  def asked(self) -> dict[str, float]:
    """What stage.json keeps of the length, see stages.asks_for_more."""
    return {"rounds": self.rounds.count}

  @property
  def planned(self) -> dict[str, Job]:
    """The stages, the second with the comparisons that come to be."""
    return {
      "sampling": self.sampling,
      "training": _with_data(self.training, f"round_1/{COMPARISONS}"),
    }

  def last(self) -> Job:
    """Returns the training of the last round."""
    job, rounds = self.training, self.rounds
    method, rate = job.settings.algorithm, rounds.last_learning_rate
    if rounds.last_beta is not None:
      if not hasattr(method.config, "beta"):
        raise FieldError(
          f"rounds.last_beta={rounds.last_beta}: {method.name!r} has no beta. "
          "Set None."
        )
      with schema.as_field("rounds.last_beta: "):
        config = dataclasses.replace(method.config, beta=rounds.last_beta)
      job = _with(job, algorithm=dataclasses.replace(method, config=config))
    if rate is not None:
      optimizer = job.settings.optimizer
      optimizer = dataclasses.replace(optimizer, learning_rate=rate)
      job = _with(job, optimizer=optimizer)
    return job

  def job(self, number: int) -> Job:
    """Returns the training of a round, counted from 1."""
    return self.last() if number == self.rounds.count else self.training


def _with(job: Job, **changes: Any) -> Job:
  """Returns a job with other settings, checked as those of a file are."""
  with schema.located(job.prefix):
    settings = dataclasses.replace(job.settings, **changes)
  return dataclasses.replace(job, settings=settings)


def _with_data(job: Job, source: str, **changes: Any) -> Job:
  """Returns a job that trains on comparisons in files."""
  data = dataclasses.replace(
    job.settings.data, source=source, format="comparison"
  )
  return _with(job, data=data, **changes)


def connect(values: Any, name: str, workdir: Path) -> Any:
  """Tells each stage its seed, and refuses what the run itself sets.

  Args:
    values: tree of the whole run; it is changed.
    name: where it stands, "".
    workdir: of the run.

  Raises:
    UserError: something is set that the run itself sets.
  """
  del workdir
  dotted = f"config.{name}." if name else "config."
  if any(stage not in values for stage in STAGES):
    return values  # schema.read says so
  for offset, stage in enumerate(STAGES):
    for field, usual in _GIVEN.items():
      found = values[stage].get(field, usual[0])
      if found not in usual:
        raise schema.UserError(
          f"{dotted}{stage}.{field}={found!r}: the run itself sets it, in each "
          f"round. Leave it at {usual[0]!r}; {dotted}init_from names the start."
        )
    if type(values.seed) is int and 0 <= values.seed < schema.SEED_LIMIT:
      values[stage].seed = values.seed + 1000 * offset
  return values


def check(settings: Settings, world: World) -> None:
  """Checks both stages, before the first one begins."""
  for name, job in settings.planned.items():
    with schema.located(f"{name}."):
      pipeline.check_models(job.settings)
      job.pipeline.check(job.settings, job.open(world.workdir))
  with schema.located("sampling."):
    pipeline.check_data(settings.sampling.settings)


def _folder(workdir: Path, number: int) -> Path:
  return workdir / f"round_{number}"


def _policy(settings: Settings, workdir: Path, number: int) -> str:
  """Returns the folder of the policy after a round; 0 for the start."""
  if number == 0:
    return settings.init_from
  return str(_folder(workdir, number) / "policy")


def _write_comparisons(settings: Settings, world: World, number: int) -> None:
  """Writes the comparisons of a round out of its answers, and says so.

  Raises:
    FieldError: no comparison is left, or a record is no demonstration.
  """
  folder, job = _folder(world.workdir, number), settings.sampling.settings
  if (folder / COMPARISONS).is_file() or not distributed.is_first():
    return
  tokenizer = world.base(job.model).tokenizer  # it may leave long ones out
  records, _ = dataset.records(job.prompts, tokenizer)
  if not isinstance(records[0], Demonstration):
    raise FieldError(
      f"sampling.prompts.format={job.prompts.format!r}: holds no "
      "demonstrations. Use 'demonstration' or 'messages'."
    )
  answers = strict_json.read_rows(
    folder / "answers" / generate_answers.ANSWERS_FILE,
    {},
    "Delete the folder; the same command makes it again.",
  )
  rows, lost = [], {"equal to the demonstration": 0, "empty": 0}
  for i, answer in enumerate(answers):
    record = records[(job.skip + i) % len(records)]
    row = _comparison(record, answer)
    if not row["rejected"].strip():
      lost["empty"] += 1
    elif row["rejected"].strip() == row["chosen"].strip():
      lost["equal to the demonstration"] += 1
    else:
      rows.append(row)
  if not rows:
    raise FieldError(
      f"rounds.count={settings.rounds.count}: in round {number} no answer "
      f"differs from its demonstration ({lost}), so there is nothing to learn. "
      "Lower it."
    )
  said = ", ".join(f"{count} {why}" for why, count in lost.items() if count)
  print(
    f"self_play: round {number}: {len(rows)} comparisons"
    + (f"; left out: {said}" if said else "")
  )
  (folder / LOST).write_text(json.dumps(lost) + "\n")
  temporary = folder / f"{COMPARISONS}.tmp"
  results.write_rows(temporary, rows)
  temporary.replace(folder / COMPARISONS)


def _comparison(record: Demonstration, answer: dict) -> dict[str, Any]:
  """Returns a record of the format "comparison"."""
  chosen = record.response
  if record.messages is not None:
    chosen = record.messages[-1]["content"]
  if "messages" in answer:
    *prompt, last = answer["messages"]
    return {"prompt": prompt, "chosen": chosen, "rejected": last["content"]}
  rejected = answer["response"]
  return {"prompt": answer["prompt"], "chosen": chosen, "rejected": rejected}


def _round(settings: Settings, world: World, number: int) -> dict[str, Any]:
  """Samples, compares and trains, what of that is not done; returns facts."""
  folder, workdir = _folder(world.workdir, number), world.workdir
  before = _policy(settings, workdir, number - 1)
  job = settings.sampling
  seed = job.settings.seed + 2000 * (number - 1)
  sampling = _with(job, policy=before, seed=seed)
  labelled_rounds.run_stage(sampling, folder / "answers", world)
  _write_comparisons(settings, world, number)
  distributed.barrier(f"{NAME}/comparisons")
  first = max(1, number - settings.rounds.pool + 1)
  source = ",".join(
    str(_folder(workdir, n) / COMPARISONS) for n in range(first, number + 1)
  )
  job = settings.job(number)
  seed = job.settings.seed + 2000 * (number - 1)
  training = _with_data(job, source, init_from=before, seed=seed)
  labelled_rounds.run_stage(training, folder / "policy", world)
  info = stages.need_stage(folder / "policy", stages.POLICY)
  return {
    "comparisons": info["examples"],
    "left_out": json.loads((folder / LOST).read_text()),
    "accuracy": info["heldout"]["preference/accuracy"],
    "margin": info["heldout"]["preference/margin"],
  }


def run(settings: Settings, world: World) -> dict:
  """Runs all rounds; returns stage.json. A finished run is not repeated."""
  workdir, count = world.workdir, settings.rounds.count
  base = world.base(settings.training.settings.model)
  info = stages.finished(workdir, NAME, base, asked=settings.asked)
  if info is not None:
    return info
  workdir.mkdir(parents=True, exist_ok=True)
  found = [_round(settings, world, n) for n in range(1, count + 1)]
  last = _policy(settings, workdir, count)
  stage = stages.load(last, stages.POLICY, base, world)
  params, _ = roles.split(stage.role, stage.variables)
  with checkpoint.Checkpoints(str(workdir / "checkpoints")) as saved:
    if saved.latest() != count:
      saved.save(
        count, {"train": {"params": params}}, base.identity, is_final=True
      )
  return stages.write_stage(
    workdir,
    NAME,
    base,
    stage.role,
    asked=settings.asked,
    steps=count,
    rounds=found,
    init_from=settings.init_from,
    merged_from=str(stages.merged_folder(last, stage.info)),
  )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phases of a round."""
  found = []
  for name, job in settings.planned.items():
    with schema.located(f"{name}."):
      there = world.beside(job.settings.mesh, world.workdir / "round_1" / name)
    found += [
      dataclasses.replace(phase, name=name) for phase in job.phases(there)
    ]
  return found


def _results(settings: Settings, workdir: Path) -> list[tuple[str, Path]]:
  """Returns (prefix of its fields, file that marks it done) of each stage."""
  found = []
  for number in range(1, settings.rounds.count + 1):
    for name, place in zip(STAGES, ("answers", "policy"), strict=True):
      result = settings.planned[name].pipeline.result
      found.append((f"{name}.", _folder(workdir, number) / place / result))
  return found


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=lambda settings: f"{settings.rounds.count} rounds of self-play",
  label=lambda settings: "SPIN",
  connect=connect,
  stages=lambda settings: settings.planned,
  results=_results,
)
