"""Candidates of comparisons that share rows: the work follows the tokens.

A batch of B comparisons stays what it is, [B, K, L]; where it has a Packing,
the network reads its tokens in R rows of S, several candidates in each, and
what it says of them is put back. Losses do not know of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import dataset, layout
from rlhf_jax.models import roles
from rlhf_jax.types import Array, PreferenceBatch, TokenBatch


def choose(
  phase: str,
  data: dataset.Comparisons,
  batch_size: int,
  ways: int,
  microbatches: int,
) -> layout.Shape:
  """Returns how the candidates of a batch lie, and says it.

  Args:
    phase: name in the line.
    data: comparisons to train on.
    batch_size: comparisons of a batch.
    ways: parts that rows are split into over a mesh.
    microbatches: of a batch; only one that is not split (1) shares rows.
  """
  mode = "auto" if microbatches == 1 else "none"
  shape = layout.choose(data.rows, batch_size, ways, mode, data.pairs)
  print(f"{phase}: {layout.describe(data.rows, batch_size, shape, data.pairs)}")
  return shape


def placed(batch: PreferenceBatch, shape: layout.Shape) -> PreferenceBatch:
  """Returns a batch on the host with its Packing, as it is without counts."""
  if not shape.counts:
    return batch
  valid = batch.valid_mask.reshape(-1, batch.valid_mask.shape[-1]) > 0
  targets = batch.loss_mask.reshape(valid.shape) > 0
  sizes = np.stack([valid.sum(1), targets.sum(1)], axis=1)
  bins = ops.first_fit(sizes, np.asarray([shape.length, shape.targets]))
  count = next(n for n in shape.counts if n >= len(bins))
  found = packing.fill(bins, valid, count, shape.length)
  place = found.place.reshape(batch.tokens.shape)
  return batch.replace(packing=found.replace(place=place))


def tokens_of(batch: PreferenceBatch) -> TokenBatch:
  """Returns the rows that the network reads, [R, S] or [B K, L]."""
  length = batch.tokens.shape[-1]
  parts = {
    name: getattr(batch, name).reshape(-1, length)
    for name in ("tokens", "valid_mask", "loss_mask")
  }
  if batch.packing is None:
    return TokenBatch(**parts)
  cells: Any = batch.packing
  return TokenBatch(
    **{name: packing.pack(x, cells) for name, x in parts.items()},
    segment_ids=cells.segment_ids,
    positions=cells.positions,
  )


def spread(x: Array, batch: PreferenceBatch) -> Array:
  """Returns [B, K, L] of what the network said of `tokens_of`."""
  if batch.packing is None:
    return x.reshape(batch.tokens.shape)
  return packing.unpack(x, batch.packing)


def scores(role: roles.Role, variables: dict, batch: PreferenceBatch) -> Array:
  """Returns scores [B, K], read at the last token of each candidate."""
  length, place = batch.tokens.shape[-1], None
  if batch.packing is not None:
    place = batch.packing.place.reshape(-1, length)
  found = roles.score(
    role,
    variables,
    roles.Rows.of(tokens_of(batch)),
    batch.valid_mask.reshape(-1, length),
    place=place,
  )
  return found[:, 0].reshape(batch.tokens.shape[:2])
