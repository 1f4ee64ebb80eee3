"""What rounds of labels tell their stages, and what nobody else may set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.pipelines import whole_run
from rlhf_jax.pipelines.constitution import REVISIONS_FILE as REVISIONS
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.schema import UserError

STAGES = (
  *("sft", "gold", "sampling", "reward", "policy", "late_policy"),
  *("evaluation", "judge", "constitution"),
)
REUSABLE = ("sft", "gold")
# What the run itself fills in, and what stands there before.
_GIVEN = {
  "seed": (0, 1),
  "init_from": ("",),
  "reference": ("",),
  "reference_samples": ("",),
  "reward": ("",),
  "gold": ("",),
  "policy": ("",),
  "skip": (0,),
}


def connect(
  values: Any, name: str, workdir: Path, usual: Mapping[str, Job]
) -> Any:
  """Tells each stage its seed, and refuses what the run itself sets.

  Args:
    values: tree of the whole run; it is changed.
    name: where it stands, "".
    workdir: of the run.
    usual: stage -> as it is where nobody changes it.

  Raises:
    UserError: something is set that the run itself sets, or `reuse_stages` are
      no stages that can be taken over.
  """
  dotted = f"config.{name}." if name else "config."
  if any(stage not in values for stage in (*STAGES, "reuse", "reuse_stages")):
    return values  # schema.read says so
  starts = {"reward": ("init_from",), "gold": ("init_from",)}
  whole_run.refuse_given(
    values,
    STAGES,
    _GIVEN,
    starts,
    dotted,
    f", in each round ({dotted}rounds says how). Leave it at {{usual}}.",
  )
  _give_revisions(values, workdir)
  for stage, is_read, how in (
    ("late_policy", bool(values.rounds.get("late_from")), "rounds.late_from"),
    (
      "judge",
      values.labels.get("by") == iterated_settings.JUDGE,
      "labels.by='judge'",
    ),
    (
      "constitution",
      bool(values.constitution.prompts.get("source")),
      "constitution.prompts.source",
    ),
  ):
    if not is_read and _is_changed(values[stage], usual[stage]):
      raise UserError(
        f"{dotted}{stage}: nothing reads it. Set {dotted}{how}, or leave it as "
        "it is."
      )
  whole_run.reused_stages(values, REUSABLE, dotted)
  first = Path(workdir) / "round_1"
  sft = Path(values.reuse or workdir).expanduser() / "sft"
  objectives = tuple(values.labels.get("objectives", ()))

  def folder(name: str) -> str:  # as in the first round, for the checks
    by = name if name in objectives else ""
    return str(first / iterated.by_objective("reward", by))

  for stage in ("reward", "gold", "policy", "late_policy"):
    part = values[stage]
    whole_run.give(part, reference_samples=str(sft / "samples.npz"))
    if stage in ("policy", "late_policy") and "reward" in part:
      part.update(init_from=str(sft), reference=str(sft))
      whole_run.give_reward(part, folder)
  values.sampling.policy = str(sft)
  values.evaluation.update(
    init_from=str(sft),
    policy=str(first / "policy"),
    reward=folder(objectives[0] if objectives else ""),
  )
  whole_run.give_seeds(
    values, STAGES, lambda seed, stage: seed + 1000 * STAGES.index(stage)
  )
  return values


def _give_revisions(values: Any, workdir: Path) -> None:
  """Has SFT learn from revised answers, beside what it names itself."""
  if not values.constitution.prompts.get("source"):
    return
  end = ("constitution", REVISIONS)
  own = [
    x
    for x in values.sft.data.get("source", "").split(",")
    if x and Path(x).parts[-2:] != end  # of another reading
  ]
  values.sft.data.source = ",".join([str(Path(workdir, *end)), *own])


def _is_changed(values: Any, job: Job) -> bool:
  """Says whether the tree of a stage is not the usual one."""
  found, usual = values.to_dict(), job.as_tree().to_dict()
  for tree in (found, usual):
    tree.get("mesh", {}).clear()  # where it runs, and not what it does
  return found != usual
