"""What must be finite at the end of a run: a run with NaN is not finished.

An update that is not finite is refused, and the third in a row ends a run
(METHODS N14). A short run may end before the third, and weights may become
infinite by an update whose gradient was finite; so the last state, the last
metrics and the numbers of stage.json are looked at too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import integrity
from rlhf_jax.types import Array, PyTree

_SHOWN = 3  # names in a message
_REMEDY = (
  "Lower the learning rate and go on from there in the same --workdir (or "
  "start in an empty one if the weights are spoilt already), or look at the "
  "data of these steps."
)


class NonFiniteError(RuntimeError):
  """Training diverged: NaN or inf where a run would end or go on."""


def bad_names(row: Mapping[str, float]) -> list[str]:
  """Returns "name=value" of the metrics that are not finite."""
  return [f"{k}={v}" for k, v in row.items() if not math.isfinite(v)]


def shown(names: list[str]) -> str:
  """Returns the first few names, for a message."""
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f"{', '.join(names[:_SHOWN])}{more}"


@jax.jit
def _are_finite(leaves: dict[str, Array]) -> dict[str, Array]:
  return {path: jnp.all(jnp.isfinite(x)) for path, x in leaves.items()}


def bad_arrays(tree: PyTree) -> list[str]:
  """Returns the paths of floating arrays that hold a NaN or an inf."""
  leaves = {
    path: leaf
    for path, leaf in integrity.named_leaves(tree).items()
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  found = jax.device_get(_are_finite(leaves))
  return [path for path, is_finite in found.items() if not is_finite]


def diverged(what: str, last_good: int | None) -> NonFiniteError:
  """Returns the error that ends a run.

  Args:
    what: a sentence without its end: what is not finite, and where.
    last_good: step of the newest checkpoint, None where there is none.
  """
  where = "none was saved" if last_good is None else f"step {last_good}"
  return NonFiniteError(f"{what}. Last good checkpoint: {where}. {_REMEDY}")


def check_end(
  phase: str,
  step: int,
  refused: int,
  row: Mapping[str, float],
  arrays: PyTree,
  last_good: int | None,
) -> None:
  """Checks the last step of a run, before it counts as finished.

  Args:
    phase: name in messages.
    step: steps done.
    refused: updates refused in a row up to now.
    row: metrics of that step, {} where nothing was left to do.
    arrays: the final state.
    last_good: step of the newest checkpoint, or None.

  Raises:
    NonFiniteError: the last update was refused, or a metric or an array of the
      final state is not finite.
  """
  found = bad_names(row)
  if refused:
    what = shown(found) if found else "the loss or its gradient"
    what = f"{what} at step {step}, the last: {refused} refused in a row"
    raise diverged(f"{phase}: {what}, not finite", last_good)
  if found:
    raise diverged(
      f"{phase}: {shown(found)} at step {step}, the last: not finite", last_good
    )
  spoilt = bad_arrays(arrays)
  if spoilt:
    raise diverged(
      f"{phase}: {shown(spoilt)} after step {step}, the last: not finite",
      last_good,
    )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
  if isinstance(value, Mapping):
    for key, part in value.items():
      yield from _numbers(part, f"{name}.{key}" if name else str(key))
  elif isinstance(value, list | tuple):
    for i, part in enumerate(value):
      yield from _numbers(part, f"{name}[{i}]")
  elif isinstance(value, float):
    yield name, value


def check_facts(what: str, facts: Mapping[str, Any]) -> None:
  """Checks the numbers that a finished run leaves.

  Args:
    what: file or folder, for the message.
    facts: JSON; None stands for a statistic that is not defined.

  Raises:
    NonFiniteError: a number is NaN or inf.
  """
  found = bad_names(dict(_numbers(facts, "")))
  if found:
    raise NonFiniteError(
      f"{what}: {shown(found)}: not finite, so the run is not finished. Lower "
      "the learning rate and start in an empty --workdir, or look at the data "
      "that this was computed on."
    )


def or_none(facts: Mapping[str, float]) -> dict[str, float | None]:
  """Returns statistics with None where they are not defined (NaN or inf)."""
  return {k: x if math.isfinite(x) else None for k, x in facts.items()}
