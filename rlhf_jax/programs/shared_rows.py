"""Candidates of comparisons that share rows: the work follows the tokens.

A batch of B comparisons stays what it is, [B, K, L]; where it has a Packing,
the network reads its tokens in R rows of S, several candidates in each, and
what it says of them is put back. Losses do not know of it. What the candidates
of a comparison begin with stands in a row once where that is less to compute
(data/branches.py): all of them then read what is said of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import branches, dataset, layout
from rlhf_jax.models import attention as attention_lib
from rlhf_jax.models import outputs, roles
from rlhf_jax.models.rows import Rows
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PreferenceBatch, TokenBatch


def choose(
  phase: str,
  data: dataset.Comparisons,
  batch_size: int,
  ways: int,
  microbatches: int,
  *,
  prompts: str = "auto",
  attention: str = "einsum",
) -> layout.Shape:
  """Returns how the candidates of a batch lie, and says it.

  Args:
    phase: name in the line.
    data: comparisons to train on.
    batch_size: comparisons of a batch.
    ways: parts that rows are split into over a mesh.
    microbatches: of a batch; only one that is not split (1) shares rows.
    prompts: data.share_prompts, whether a prompt stands once.
    attention: the model's kind.

  Raises:
    FieldError: a prompt is always to stand once, and cannot.
  """
  if prompts == "always":
    check_prompts(data, microbatches, attention)
  mode = "auto" if microbatches == 1 else "none"
  parts = data.rows, batch_size, ways, mode, data.pairs
  shape, note = layout.choose(*parts, prompts), ""
  if shape.has_branches and attention not in attention_lib.BRANCHING:
    shape = layout.choose(*parts)
    note = (
      f"; prompts stand in each row, as attention={attention!r} reads segments"
    )
  said = layout.describe(data.rows, batch_size, shape, data.pairs)
  print(f"{phase}: {said}{note}")
  return shape


def whole(
  rows: list[dict[str, np.ndarray]],
  batch_size: int,
  ways: int,
  *,
  prompts: str,
  attention: str,
) -> tuple[layout.Shape, int]:
  """Returns how candidates lie in a pass over all, and rows read at a time.

  Args:
    rows: a candidate each.
    batch_size: rows read at a time that are as long as the longest candidate;
      of longer ones fewer, with as many cells.
    ways: parts that rows are split into over a mesh.
    prompts, attention: see `choose`.
  """
  is_able = attention in attention_lib.BRANCHING
  shape = layout.whole(rows, prompts if is_able else "never")
  size = batch_size * layout.Shape.of(rows).length // shape.length
  return shape, max(size // ways, 1) * ways


def check_prompts(
  data: dataset.Comparisons, microbatches: int, attention: str
) -> None:
  """Checks that prompts of comparisons can stand once, as is asked.

  Args:
    data: comparisons to train on.
    microbatches: of a batch.
    attention: the model's kind.

  Raises:
    FieldError: they cannot.
  """
  why = ""
  if microbatches != 1:
    why = "each candidate of these batches has a row"
  elif attention not in attention_lib.BRANCHING:
    why = f"model.attention={attention!r} reads whole segments"
  elif not any(
    branches.common(*(data.rows[n] for n in pair[:2]))
    for pair in data.pairs
    if min(pair[:2]) >= 0
  ):
    why = "no two candidates begin with the same token"
  if why:
    raise FieldError(
      f"data.share_prompts='always': {why}. Leave it at 'auto', or set 'never'."
    )


def placed(batch: PreferenceBatch, shape: layout.Shape) -> PreferenceBatch:
  """Returns a batch on the host with its Packing, as it is without counts."""
  if not shape.counts:
    return batch
  valid = batch.valid_mask.reshape(-1, batch.valid_mask.shape[-1]) > 0
  targets = batch.loss_mask.reshape(valid.shape) > 0
  capacity = np.asarray([shape.length, shape.targets])
  groups, sizes = branches.alone(len(valid)), None
  if shape.has_branches:
    groups, sizes = _grouped(batch, capacity)
  else:
    sizes = np.stack([valid.sum(1), targets.sum(1)], axis=1)
  bins = ops.first_fit(sizes, capacity)
  count = next(n for n in shape.counts if n >= len(bins))
  found = packing.fill(
    [[groups[n] for n in members] for members in bins],
    valid,
    count,
    shape.length,
    has_branches=shape.has_branches,
  )
  place = found.place.reshape(batch.tokens.shape)
  return batch.replace(packing=found.replace(place=place))


def _grouped(
  batch: PreferenceBatch, capacity: np.ndarray
) -> tuple[list[branches.Group], np.ndarray]:
  """Returns the groups of all candidates of a batch, and their sizes."""
  count = batch.tokens.shape[1]
  groups: list[branches.Group] = []
  sizes = []
  for n, lengths in enumerate(np.sum(batch.valid_mask > 0, axis=-1)):
    rows = [
      {
        "tokens": batch.tokens[n, k, :length],
        "loss_mask": batch.loss_mask[n, k, :length],
      }
      for k, length in enumerate(lengths)
    ]
    found, counts = branches.group(rows, capacity)
    groups += [group.moved(n * count) for group in found]
    sizes.append(counts)
  return groups, np.concatenate(sizes)


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
    branch_ids=cells.branch_ids,
  )


def spread(x: Array, batch: PreferenceBatch) -> Array:
  """Returns [B, K, L] of what the network said of `tokens_of`."""
  if batch.packing is None:
    return x.reshape(batch.tokens.shape)
  return packing.unpack(x, batch.packing)


def scores(role: roles.Role, variables: dict, batch: PreferenceBatch) -> Array:
  """Returns all scores [B, K, C], read at the last token of each candidate."""
  length, place = batch.tokens.shape[-1], None
  if batch.packing is not None:
    place = batch.packing.place.reshape(-1, length)
  found = outputs.score(
    role,
    variables,
    Rows.of(tokens_of(batch)),
    batch.valid_mask.reshape(-1, length),
    place=place,
  )
  return found.reshape(*batch.tokens.shape[:2], -1)
