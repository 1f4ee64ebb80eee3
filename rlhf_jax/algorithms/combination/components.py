"""The scores of several judges, side by side, before they become one.

  conditioned   r_k <- r_k where r_hard >= t, else min(r_k, 0)
  standardised  z_k = (r_k - mean_k) / std_k

A conditioned reward counts only where a harder one holds (GDPO, Liu et al.
2026, arXiv:2601.05242, section 3.2: the easy reward becomes 0 there). A score
below 0 stays, so that a bad answer is never lifted.

A reward model comes standardised by its own normalisation (scale "own", METHODS
2.5). A verifier or a function is by the running moments of all its scores
so far (scale "running"), those of the batch at hand included, or stands as it
is ("none").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.types import Array, Components

SCALES = ("own", "running", "none")


@dataclasses.dataclass(frozen=True)
class Judge:
  """The static part of one of several judges.

  name: of its scores.
  weight: of its score among the others.
  scale: one of SCALES.
  requires: name of the judge whose score must hold; "" for none.
  requires_at: score of that judge, on its own scale, from which on it holds.
  is_model: a reward model, whose score is a logit of any size; else a number
    that a verifier or a function gives.
  """

  name: str
  weight: float = 1.0
  scale: str = "own"
  requires: str = ""
  requires_at: float = 1.0
  is_model: bool = True


Judges = tuple[Judge, ...]


def place(judges: Judges, name: str) -> int:
  """Returns the column of a judge.

  Raises:
    ValueError: there is none of that name.
  """
  names = [judge.name for judge in judges]
  if name not in names:
    raise ValueError(
      f"{name!r} is none of the judges {', '.join(names)}. Name one of them."
    )
  return names.index(name)


def check_unread(judges: Judges, fields: Sequence[str], why: str) -> None:
  """Raises ValueError for what judges are told and a combination ignores.

  Args:
    judges: all of them.
    fields: of Judge that nothing reads.
    why: the end of the message.
  """
  usual = {field.name: field.default for field in dataclasses.fields(Judge)}
  for judge in judges:
    own = "own" if judge.is_model else "none"
    for name in fields:
      default = own if name == "scale" else usual[name]
      if getattr(judge, name) != default:
        raise ValueError(
          f"judges.{judge.name}.{name}={getattr(judge, name)!r}: {why}"
        )


def conditioned(values: Array, mask: Array, judges: Judges) -> Array:
  """Returns [N, K] scores, easy ones taken away where a hard one fails.

  Where the hard judge does not judge, it holds.

  Args:
    values, mask: as in Components.
    judges: K.
  """
  columns = []
  for k, judge in enumerate(judges):
    column = values[:, k]
    if judge.requires:
      hard = place(judges, judge.requires)
      holds = (values[:, hard] >= judge.requires_at) | (mask[:, hard] == 0)
      column = jnp.where(holds, column, jnp.minimum(column, 0.0))
    columns.append(column * mask[:, k])
  return jnp.stack(columns, axis=1)


def init_moments(count: int) -> shaping.Moments:
  """Returns the moments [K] of judges that judged nothing yet."""
  zeros = jnp.zeros((count,), jnp.float32)
  return shaping.Moments(count=zeros, mean=zeros, m2=zeros)


def observe(
  moments: shaping.Moments, values: Array, mask: Array
) -> shaping.Moments:
  """Returns the moments [K] with scores [N, K] merged in, where mask is 1."""
  return jax.vmap(shaping.update_moments, in_axes=(0, 1, 1))(
    moments, values, mask
  )


def standardised(values: Array, moments: shaping.Moments) -> Array:
  """Returns [N] of values by moments []; as they are under none."""
  deviation = shaping.standard_deviation(moments)
  scaled = (values - moments.mean) / deviation
  return jnp.where(moments.count > 0, scaled, values)


def scaled(
  found: Components, moments: shaping.Moments, judges: Judges
) -> Array:
  """Returns [N, K] scores on scales that may be added, 0 where none judges.

  Args:
    found: conditioned.
    moments: [K].
    judges: K; their scales say which are standardised by the moments.
  """
  is_running = jnp.asarray([judge.scale == "running" for judge in judges])
  by_moments = jax.vmap(standardised, in_axes=(1, 0), out_axes=1)(
    found.values, moments
  )
  return jnp.where(is_running[None], by_moments, found.values) * found.mask


def weights(judges: Judges) -> Array:
  """Returns [K] float32."""
  return jnp.asarray([judge.weight for judge in judges], jnp.float32)
