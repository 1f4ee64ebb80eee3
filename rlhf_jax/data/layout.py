"""How the examples of a batch lie in rows: one in each, or several in one.

Examples differ in length, so rows of one example each are largely padding.
Where several share a row, attention stays inside a segment, positions restart
at 0, and the first token of a segment is never a target (METHODS 1; Krell et
al. 2021, arXiv:2107.02027). A loss that is a sum over tokens does not change.

  none   an example a row, as wide as the longest of the data set
  batch  the examples of each batch share rows; batches hold the same examples
         as with "none", whatever the layout
  all    the whole data set is put into rows once; a batch counts rows
  auto   "batch" where that is less to compute, else "none"

Rows of "batch" have few shapes: as many rows as the examples of most batches
need, as those of nearly all, and one for each example, which is always enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_jax import ops
from rlhf_jax.data import batches
from rlhf_jax.data.encode import Row
from rlhf_jax.types import TokenBatch

MODES = ("auto", "batch", "all", "none")
WORTH = 0.85  # tokens of packed rows among those of padded ones, at most
TRIED = 64  # batches, drawn to see how many rows they need
PORTION = 4096  # examples that are placed together


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of the rows of a batch.

  length: tokens of a row.
  targets: of a row at most, which bounds its logits.
  is_packed: whether several examples share a row.
  counts: rows of a batch whose examples share them, the usual number first,
    the last is enough for any; () where a batch has a row for each example.
  mean_rows: of a batch whose examples share them.
  """

  length: int
  targets: int
  is_packed: bool
  counts: tuple[int, ...] = ()
  mean_rows: float = 0.0

  @staticmethod
  def of(rows: Sequence[Row]) -> Shape:
    """Returns the shape of rows that are what they are."""
    sizes = sizes_of(rows)
    return Shape(
      batches.bucket_length(int(sizes[:, 0].max())),
      int(sizes[:, 1].max()),
      "segment_ids" in rows[0],
    )


def sizes_of(rows: Sequence[Row]) -> np.ndarray:
  """Returns [N, 2]: tokens and targets of each row."""
  return np.asarray(
    [(len(row["tokens"]), int(np.sum(row["loss_mask"]))) for row in rows]
  ).reshape(-1, 2)


def _shared(
  items: np.ndarray, batch_size: int, unit: int, length: int
) -> Shape:
  """Returns a shape of rows that batches share.

  Args:
    items: [N, K, 2] tokens and targets of the K rows of each example.
    batch_size: examples of a batch.
    unit: of the number of rows.
    length: tokens of a row.
  """
  targets = _targets(items, length)
  rng = np.random.default_rng(0)
  found = []
  for _ in range(TRIED):
    chosen = rng.choice(len(items), batch_size, replace=len(items) < batch_size)
    sizes = items[chosen].reshape(-1, 2)
    found.append(len(ops.first_fit(sizes, np.asarray([length, targets]))))
  needed = -(-np.asarray(found) // unit) * unit
  most = int(needed.max())
  costs = {
    int(n): float(np.mean(np.where(needed <= n, n, most))) for n in set(needed)
  }
  usual = min(costs, key=lambda n: (costs[n], -n))
  counts = tuple(sorted({usual, most, batch_size * items.shape[1]}))
  return Shape(length, targets, True, counts, costs[usual])


def choose(
  rows: Sequence[Row],
  batch_size: int,
  unit: int = 1,
  mode: str = "auto",
  pairs: np.ndarray | None = None,
) -> Shape:
  """Returns how batches of these rows lie.

  Args:
    rows: an example each, or what pairs refer to.
    batch_size: examples of a batch, a multiple of unit.
    unit: what the number of rows must be a multiple of.
    mode: "auto", "batch" or "none".
    pairs: [N, K] the rows of each example.
  """
  padded = Shape.of(rows)
  sizes = sizes_of(rows)
  items = sizes[:, None] if pairs is None else sizes[pairs]
  if mode == "none" or batch_size * items.shape[1] < 2:
    return padded
  best = min(
    (_shared(items, batch_size, unit, n * padded.length) for n in (1, 2)),
    key=lambda shape: shape.mean_rows * shape.length,
  )
  alone = batch_size * items.shape[1] * padded.length
  is_worth = best.mean_rows * best.length < WORTH * alone
  return best if mode == "batch" or is_worth else padded


def describe(
  rows: Sequence[Row],
  batch_size: int,
  shape: Shape,
  pairs: np.ndarray | None = None,
) -> str:
  """Returns the layout in words, with how much of it is filled."""
  sizes = sizes_of(rows)[:, 0]
  items = sizes[:, None] if pairs is None else sizes[pairs]
  count = batch_size * items.shape[1]
  tokens = float(np.mean(items)) * count
  padded = tokens / (count * Shape.of(rows).length)
  if not shape.counts:
    return f"{count} rows of {shape.length} tokens, {padded:.0%} filled"
  fill = tokens / (shape.mean_rows * shape.length)
  return (
    f"{count} examples share {shape.counts[0]} rows of {shape.length} tokens, "
    f"{fill:.0%} filled (one a row: {padded:.0%})"
  )


def whole(rows: Sequence[Row]) -> Shape:
  """Returns the shape of rows that a data set shares in a pass over all of it.

  They are as long as its longest example; the targets that one may hold, and
  so its logits, are those of the mean row and some more.
  """
  alone, sizes = Shape.of(rows), sizes_of(rows)
  return Shape(alone.length, _targets(sizes, alone.length), True)


def _targets(sizes: np.ndarray, length: int) -> int:
  """Returns the targets of a shared row, enough for any of sizes [..., 2]."""
  share = sizes[..., 1].sum() / sizes[..., 0].sum()
  targets = batches.bucket_length(int(np.ceil(1.15 * share * length)))
  return int(np.clip(targets, sizes[..., 1].max(), length))


def in_order(
  rows: Sequence[Row], shape: Shape, size: int, pad_id: int
) -> Iterator[tuple[list[list[int]], TokenBatch]]:
  """Yields batches of `size` shared rows, and whose examples are in each row.

  Args:
    rows: every one of them is read once.
    shape: of `whole`.
    size: rows of a batch; the last batch has filler without loss.
    pad_id: fills tokens.
  """
  capacity = np.asarray([shape.length, shape.targets])
  bins: list[list[int]] = []
  for start in range(0, len(rows), PORTION):
    part = ops.first_fit(sizes_of(rows[start : start + PORTION]), capacity)
    bins += [[start + n for n in members] for members in part]
  for start in range(0, len(bins), size):
    chosen = bins[start : start + size]
    joined = [join([rows[n] for n in members]) for members in chosen]
    yield (
      chosen,
      batches.collate_tokens(joined, shape.length, pad_id, rows=size),
    )


def by_example(
  members: Sequence[Sequence[int]], batch: TokenBatch, values: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the number of each example and the values of its targets.

  Args:
    members, batch: of `in_order`.
    values: [size, length], of the batch's tokens.
  """
  for row, numbers in enumerate(members):
    for segment, number in enumerate(numbers, 1):
      is_own = batch.segment_ids[row] == segment
      yield number, values[row][is_own & (batch.loss_mask[row] > 0)]


def by_length(
  lengths: Sequence[int], size: int
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields the numbers of rows that are read together, and their width.

  Rows of like length go together; widths are one, two or four, as there are
  more batches: each is a program to compile.

  Args:
    lengths: tokens of each row.
    size: rows of a batch; the last one may have fewer.
  """
  lengths = np.asarray(lengths)
  order = np.argsort(lengths, kind="stable")
  parts = [order[i : i + size] for i in range(0, len(order), size)]
  ways = 1 if len(parts) < 8 else 2 if len(parts) < 32 else 4
  for group in np.array_split(np.arange(len(parts)), ways):
    width = batches.bucket_length(int(lengths[parts[group[-1]][-1]]))
    for number in group:
      yield parts[number], width


def join(members: Sequence[Row]) -> Row:
  """Returns one row that holds examples, segments 1, 2, ... of it."""
  masks = [member["loss_mask"].copy() for member in members]
  for mask in masks:
    mask[0] = 0.0
  counts = [len(mask) for mask in masks]
  return {
    "tokens": np.concatenate([m["tokens"] for m in members]),
    "loss_mask": np.concatenate(masks),
    "segment_ids": np.repeat(
      np.arange(1, len(members) + 1, dtype=np.int32), counts
    ),
    "positions": np.concatenate(
      [np.arange(count, dtype=np.int32) for count in counts]
    ),
  }


def pack_examples(
  examples: Sequence[Row], length: int
) -> tuple[list[Row], float]:
  """Puts a whole data set into rows of several examples, first-fit decreasing.

  Args:
    examples: tokens and loss_mask [n], n <= length.
    length: tokens of a row.

  Returns:
    rows with tokens, loss_mask, segment_ids (1, 2, ...) and positions, and
    the fill ratio in (0, 1].

  Raises:
    ValueError: no examples, or one longer than length.
  """
  sizes = [len(e["tokens"]) for e in examples]
  batches.padded_length(sizes, length)
  bins = ops.first_fit(np.asarray(sizes)[:, None], np.asarray([length]))
  rows = [join([examples[n] for n in members]) for members in bins]
  return rows, sum(sizes) / (len(rows) * length)


def collate(examples: Sequence[Row], shape: Shape, pad_id: int) -> TokenBatch:
  """Returns the rows that the examples of a batch share, filler at the end.

  Args:
    examples: of a whole batch.
    shape: with counts.
    pad_id: fills tokens.
  """
  capacity = np.asarray([shape.length, shape.targets])
  bins = ops.first_fit(sizes_of(examples), capacity)
  count = next(n for n in shape.counts if n >= len(bins))
  rows = [join([examples[n] for n in members]) for members in bins]
  empty = {key: value[:0] for key, value in rows[0].items()}
  rows += [empty] * (count - len(rows))
  return batches.collate_tokens(rows, shape.length, pad_id)
