"""What runs of several stages share: what they fill in, take over, refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import schema
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError


def check_sampling(jobs: Mapping[str, Job], because: str) -> None:
  """Raises FieldError where stages sample from other policies.

  Args:
    jobs: the stages by name.
    because: the rest of a sentence, what would go wrong.
  """
  for field in ("temperature", "max_new_tokens"):
    values = {
      name: getattr(job.settings.generate, field)
      for name, job in jobs.items()
      if hasattr(job.settings, "generate")
    }
    if len(set(values.values())) > 1:
      shown = ", ".join(f"{k}.generate.{field}={v}" for k, v in values.items())
      raise FieldError(f"{shown}: must be equal. {because}")


def check_samples(settings: Any) -> None:
  """Raises FieldError where there is nothing to normalise rewards on."""
  count = settings.sft.settings.samples
  if count < 2:
    raise FieldError(
      f"sft.samples={count}: reward scores are normalised on samples of the "
      "SFT policy. Set 2 or more; 256 is usual."
    )


def check_reuse(settings: Any, folders: Collection[Path]) -> None:
  """Raises FieldError where stages that are taken over are not finished.

  Args:
    settings: with reuse.
    folders: of these stages.
  """
  schema.check_local(settings.reuse, "reuse")
  for folder in folders if settings.reuse else ():
    if stages.read_stage(folder) is None:
      raise FieldError(
        f"reuse={settings.reuse!r}: {folder} is not finished. "
        "Finish that run first, or set reuse=''."
      )


def refuse_given(
  values: Any,
  names: Collection[str],
  given: Mapping[str, tuple],
  kept: Mapping[str, Collection[str]],
  dotted: str,
  how: str,
) -> None:
  """Raises UserError for what is set that the run itself sets.

  Args:
    values: tree of the whole run.
    names: of its stages.
    given: field -> what may stand there.
    kept: stage -> fields of them that may be set there.
    dotted: where the tree stands, "config.".
    how: the rest of a sentence, what says it instead, and what else to do.
  """
  for stage in names:
    for field, usual in given.items():
      found = values[stage].get(field, usual[0])
      if found not in usual and field not in kept.get(stage, ()):
        raise UserError(
          f"{dotted}{stage}.{field}={found!r}: the run itself sets it"
          f"{how.format(usual=repr(usual[0]))}"
        )


def reused_stages(
  values: Any, reusable: tuple[str, ...], dotted: str
) -> tuple[str, ...]:
  """Returns which stages are taken over where `reuse` names a run.

  Raises:
    UserError: they are no such stages.
  """
  reused = tuple(values.reuse_stages)
  if "sft" not in reused or not set(reused) <= set(reusable):
    raise UserError(
      f"{dotted}reuse_stages={reused}: must hold 'sft', on whose samples the "
      f"others are normalised, and otherwise only some of {reusable}."
    )
  return reused


def give_seeds(
  values: Any, names: Collection[str], of_stage: Callable[[int, str], int]
) -> None:
  """Tells each stage its seed, where the run has one that can be one."""
  if type(values.seed) is int and 0 <= values.seed < schema.SEED_LIMIT:
    for stage in names:
      values[stage].seed = of_stage(values.seed, stage)


def give(stage: Any, **found: str) -> None:
  """Sets fields of a stage; what it lacks, the table of pipelines refuses."""
  stage.update({name: path for name, path in found.items() if name in stage})


def give_reward(policy: Any, folder: Callable[[str], str]) -> None:
  """Names the reward model of the run as the judge, or as one of several.

  Of several it is each whose reward is "".

  Args:
    policy: tree of the stage that is aligned.
    folder: name of the judge, "" of the only one -> its folder.
  """
  several = policy.get("judges")
  if not several:
    give(policy, reward=folder(""))
    return
  for name, judge in several.items():
    if hasattr(judge, "get") and judge.get("reward") == "":
      judge["reward"] = folder(name)
