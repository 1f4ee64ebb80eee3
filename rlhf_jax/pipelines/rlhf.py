"""The whole job: SFT, reward models, a policy, evaluation and report.

Each stage is its own pipeline in its own folder; a stage that is finished is
not repeated, one that was stopped goes on from its checkpoint. `reuse` takes
SFT and reward models (`reuse_stages`) from another finished run, to try
another policy stage on the same ones. The policy stage is any pipeline that
leaves a policy: config.policy.pipeline says which.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, schema, terminal
from rlhf_jax.algorithms import process
from rlhf_jax.data import overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.pipelines import (
  closing,
  evaluate,
  forecast,
  summary,
  whole_run,
)
from rlhf_jax.pipelines import policy as policy_pipeline
from rlhf_jax.pipelines import reward as reward_pipeline
from rlhf_jax.pipelines import sft as sft_pipeline
from rlhf_jax.programs import answers
from rlhf_jax.programs.pipeline import Job, Pipeline, stage_of_run
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import lock
from rlhf_jax.schema import FieldError, UserError

STAGES = ("sft", "reward", "gold", "policy", "evaluation")
REUSABLE = ("sft", "reward", "gold")
# What the run itself fills in, and what stands there before.
_GIVEN = {
  "seed": (0, 1),
  "init_from": ("",),
  "reference_samples": ("",),
  "reward": ("",),
  "gold": ("",),
  "policy": ("",),
}
_NOTES = {
  "reward": " (proxy reward model)",
  "gold": " (held-out reward model)",
}
_KEPT = {"reward": ("init_from",), "gold": ("init_from",)}  # may be set there


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """All stages in a row, each a complete configuration of its own."""

  title: str = "RLHF run"  # of the report
  seed: int = 0  # of the first stage; each other one has its own
  reuse: str = ""  # folder of another whole run whose stages are taken over
  reuse_stages: tuple = REUSABLE  # which of them
  # the policy at the start
  sft: Job = stage_of_run(sft_pipeline.PIPELINE, "samples")
  # what judges
  reward: Job = stage_of_run(reward_pipeline.PIPELINE, "reference_samples")
  # another reward model, which never trains the policy
  gold: Job = stage_of_run(reward_pipeline.PIPELINE, "reference_samples")
  # what is aligned, by any pipeline that leaves a policy
  policy: Job = stage_of_run(policy_pipeline.PIPELINE, "init_from")
  # both policies compared
  evaluation: Job = stage_of_run(
    evaluate.PIPELINE, "init_from", "policy", "reward", "gold"
  )
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  # of the report: name -> text
  caveats: tuple = ()  # of the report: what to keep in mind, a text each

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    whole_run.check_sampling(
      self.jobs,
      "It is part of what policy and reference are, so scores and KL would "
      "compare different policies.",
    )

  @property
  def jobs(self) -> dict[str, Job]:
    """The stages by name, in their order."""
    return {name: getattr(self, name) for name in STAGES}

  def folder(self, name: str, workdir: Path) -> Path:
    """Returns the folder of a stage, which may be another run's."""
    if self.reuse and name in self.reuse_stages:
      return Path(self.reuse).expanduser() / name
    return Path(workdir) / name


def stage_seed(seed: int, stage: str) -> int:
  """Returns the seed of a stage of a whole run.

  Args:
    seed: of the run.
    stage: of STAGES.
  """
  return seed + 1000 * STAGES.index(stage)


def connect(values: Any, name: str, workdir: Path) -> Any:
  """Tells each stage its seed and where the stages before it are.

  Args:
    values: tree of the whole run; it is changed.
    name: where it stands, "".
    workdir: of the run.

  Raises:
    UserError: something is set that the run itself sets, or `reuse_stages` are
      no stages that can be taken over.
  """
  dotted = f"config.{name}." if name else "config."
  if any(stage not in values for stage in (*STAGES, "reuse", "reuse_stages")):
    return values  # schema.read says so
  whole_run.refuse_given(
    values,
    STAGES,
    _GIVEN,
    _KEPT,
    dotted,
    " (seed and workdir say how). Leave it at {usual}; run the stages one by "
    "one to choose it.",
  )
  verifier = values.policy.get("verifier")
  if verifier is not None and verifier.get("name"):
    raise UserError(
      f"{dotted}policy.verifier.name={verifier.name!r}: this run "
      "trains a reward model to judge. Set '', or run the policy stage alone."
    )
  reused = whole_run.reused_stages(values, REUSABLE, dotted)
  _fill_in(values, reused if values.reuse else (), workdir)
  return values


def _fill_in(values: Any, reused: tuple, workdir: Path) -> None:
  folder = {
    stage: str(
      Path(values.reuse if stage in reused else workdir).expanduser() / stage
    )
    for stage in STAGES
  }
  whole_run.give_seeds(values, STAGES, stage_seed)
  samples = str(Path(folder["sft"]) / "samples.npz")
  whole_run.give(values.reward, reference_samples=samples)
  whole_run.give(values.gold, reference_samples=samples)
  # No reward where people's comparisons are the data.
  whole_run.give(values.policy, init_from=folder["sft"])
  whole_run.give_reward(values.policy, lambda name: folder["reward"])
  if "monitors" in values.policy:
    with values.unlocked():
      values.policy.monitors.gold = folder["gold"]
  whole_run.give(
    values.evaluation,
    init_from=folder["sft"],
    policy=folder["policy"],
    reward=folder["reward"],
    gold=folder["gold"],
  )


def check(settings: Settings, world: World) -> None:
  """Checks every stage, before the first one begins."""
  for name, job in settings.jobs.items():
    job.check(job.open(world.workdir / name), is_alone=False)
    if isinstance(getattr(job.settings, "loss", None), process.Config):
      raise FieldError(
        f"{name}.pipeline={job.pipeline.name!r}: learns from judged steps, and "
        "the report tells of comparisons. Run the stages one by one for it."
      )
  with schema.located(settings.evaluation.prefix):
    answers.check_sampling(settings.evaluation.settings.generate)
  whole_run.check_samples(settings)
  reused = settings.reuse_stages if settings.reuse else ()
  folders = [settings.folder(name, world.workdir) for name in reused]
  whole_run.check_reuse(settings, folders)


@contextmanager
def timed(workdir: Path, phase: str) -> Iterator[None]:
  """Appends the wall time of a phase, also of one that was interrupted."""
  begun = time.perf_counter()
  try:
    yield
  finally:
    row = {"phase": phase, "seconds": time.perf_counter() - begun}
    if distributed.is_first():
      with open(workdir / summary.TIMES_FILE, "a") as file:
        file.write(json.dumps(row) + "\n")


def run(settings: Settings, world: World) -> dict:
  """Runs all stages and writes summary.json and report.html."""
  workdir = world.workdir
  workdir.mkdir(parents=True, exist_ok=True)
  folders = {name: settings.folder(name, workdir) for name in STAGES}
  jobs = settings.jobs
  with timed(workdir, "load"):
    is_done = {
      name: job.is_finished(folders[name]) for name, job in jobs.items()
    }
    forecast.announce(settings.title, jobs, folders, is_done, world, _NOTES)
  for name, job in jobs.items():
    if job.is_finished(folders[name]):
      if name == "evaluation":
        with schema.located(job.prefix):
          evaluate.check_result(job.settings, folders[name])
      continue
    folders[name].mkdir(parents=True, exist_ok=True)
    with lock.held(folders[name]), timed(workdir, name):
      there = world.beside(job.settings.mesh, folders[name])
      begun = time.perf_counter()
      print(f"\n== {name}: {job.pipeline.describe(job.settings)}", flush=True)
      if name == "evaluation":
        _say_shared(settings, there)
      job.run(there)
      spent = terminal.format_seconds(time.perf_counter() - begun)
      found = closing.numbers(folders[name])
      print(f"{name}: done in {spent}{': ' if found else ''}{found}")
  if not distributed.is_first():
    return {}
  return summary.write(settings, workdir, folders)


def _say_shared(settings: Settings, world: World) -> None:
  """Says which held-out prompts a stage of this run was trained on."""
  job = settings.evaluation
  tokenizer = world.base(job.settings.model).tokenizer
  for name in ("sft", "reward", "policy"):
    for field in ("data", "prompts"):
      trained = getattr(settings.jobs[name].settings, field, None)
      if isinstance(trained, Data) and trained.source:
        with schema.located(job.prefix):
          label = f"evaluation against {name}"
          overlap.say_shared(label, trained, job.settings.prompts, tokenizer)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phases of all stages, in their order."""
  found = []
  for name, job in settings.jobs.items():
    folder = settings.folder(name, world.workdir)
    with schema.located(job.prefix):
      there = world.beside(job.settings.mesh, folder)
    found += [
      dataclasses.replace(phase, name=name) for phase in job.phases(there)
    ]
  return found


PIPELINE = Pipeline(
  name="rlhf",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=summary.SUMMARY_FILE,
  describe=lambda settings: settings.title,
  connect=connect,
  stages=lambda settings: settings.jobs,
)
