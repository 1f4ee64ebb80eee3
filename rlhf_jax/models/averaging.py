"""The average of the weights of models that began as one.

Models that were fine-tuned from one start stay in one basin of the loss, so the
mean of their weights is a model, and one that is less led by what single runs
learnt by heart (WARM, Ramé et al. 2024, arXiv:2401.12187, section 3). Of two
starts it is neither: hidden units of the two do not correspond.

LoRA factors are not averaged each, as (A + A')(B + B') / 4 is not the mean of A
B and A' B'. They are put beside each other, which is exact: [A, A'][B; B'] / 2
has the sum of their ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from rlhf_jax.models import trees
from rlhf_jax.models.roles import Role
from rlhf_jax.types import PyTree

_A, _B = "lora_a", "lora_b"


def average(
  role: Role, trained: Iterable[PyTree], count: int
) -> tuple[Role, PyTree]:
  """Returns the role and the trained tree of the mean of weights.

  Whole weights are added up one model at a time, in float32.

  Args:
    role: of each of the models.
    trained: their trained trees; an iterator need not hold all at once.
    count: of them.
  """
  total: dict[str, jax.Array] = {}
  factors: dict[str, list[jax.Array]] = {}
  kinds: dict[str, jnp.dtype] = {}
  for tree in trained:
    for path, leaf in trees.flatten(tree).items():
      kinds[path] = leaf.dtype
      if path.endswith((_A, _B)):
        factors.setdefault(path, []).append(leaf)
      else:
        part = leaf.astype(jnp.float32) / count
        total[path] = total[path] + part if path in total else part
  for path, leaves in factors.items():
    is_a = path.endswith(_A)
    joined = jnp.concatenate(leaves, axis=-1 if is_a else -2)
    total[path] = joined if is_a else joined / count
  flat = {path: leaf.astype(kinds[path]) for path, leaf in total.items()}
  rank = role.model.lora_rank * (count if factors else 1)
  model = dataclasses.replace(role.model, lora_rank=rank)
  return dataclasses.replace(role, model=model), trees.unflatten(flat)
