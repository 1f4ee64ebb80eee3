"""What a pipeline that samples is told of several judges, checked.

rewards/named_judges.py has the judges themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlhf_jax import schema
from rlhf_jax.rewards import named_judges
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError


def check(settings: Any, one: Sequence[str]) -> None:
  """Checks the judges that have names, and how they are combined.

  Args:
    settings: of a pipeline that samples.
    one: what is said of a judge alone, such as "reward='runs/reward'".

  Raises:
    UserError: value, rule and remedy.
  """
  named, method = settings.named_judges, settings.combination
  if not named:
    if method.name != "sum" or method.given:
      raise FieldError(
        f"combination.name={method.name!r}: there are no judges to combine. "
        "Set judges, or leave the section alone."
      )
    return
  if one:
    raise FieldError(
      f"{one[0]}: judges={', '.join(named)} judge already. Make it one of "
      "them, and set this to ''."
    )
  both = sorted(named.keys() & set(settings.monitors))
  if both:
    raise FieldError(
      f"monitors.{both[0]}: is one of judges too. Call it otherwise."
    )
  named_judges.judges_of(named, method)
  for name, found in named.items():
    with schema.as_field():
      found.bound(f"judges.{name}.reward_fn")


def check_folders(settings: Any) -> None:
  """Raises FieldError for a reward model among several judges without one."""
  for name, folder in settings.judge_folders.items():
    if not folder:
      raise FieldError(
        f"judges.{name}.reward is empty: name the --workdir of a finished "
        "configs/reward.py run."
      )


def origins(settings: Any) -> dict[str, str]:
  """Returns what a checkpoint must agree with; {} where one judges."""
  if not settings.named_judges:
    return {}
  folders = {f"judge_{k}": path for k, path in settings.judge_folders.items()}
  return stages.origins(**folders) | {
    "judges": ", ".join(settings.named_judges),
    "combination": settings.combination.name,
  }


def code(settings: Any) -> dict[str, str]:
  """Returns field -> what may be the import path of a user's own code."""
  found = {}
  for name, named in settings.named_judges.items():
    own = {"reward_fn": named.reward_fn} | named.verifier.code()
    found |= {f"judge_{name}_{field}": x for field, x in own.items() if x}
  if found or settings.named_judges:
    found["combination"] = settings.combination.name
  return found


def facts(settings: Any) -> dict[str, Any]:
  """Returns what stage.json says of several judges; {} where one judges."""
  if not settings.named_judges:
    return {}
  method = settings.combination
  return {
    "judges": {
      name: {
        "what": named.reward or named.verifier.name or named.reward_fn,
        "weight": named.weight,
      }
      for name, named in settings.named_judges.items()
    },
    "combination": {"name": method.name} | dataclasses.asdict(method.config),
  }
