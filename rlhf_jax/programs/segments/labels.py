"""All labels of a run, in arrays of one size: one program serves every turn."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from rlhf_jax.types import Array


@flax.struct.dataclass
class Labels:
  """The labels of a run so far; C of them fit.

  observation, action: [C, 2, T, ...].
  label: [C] float32, 1 where the first is better, 0 the second, 1/2 a tie.
  counts: [C, M] float32, how often each counts for a member (bootstrap).
  count: [] int32, labels that are there, the first of all.
  asked: [] int32, with those that could not be compared.
  """

  observation: Array
  action: Array
  label: Array
  counts: Array
  count: Array
  asked: Array

  @property
  def is_there(self) -> Array:
    """[C] bool, whether a place holds a label."""
    return jnp.arange(len(self.label)) < self.count
