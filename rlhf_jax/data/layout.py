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

Candidates of a comparison begin alike: where it is less to compute, what they
share stands once (branches.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rlhf_jax import ops
from rlhf_jax.data import batches, branches, statistics
from rlhf_jax.data.encode import Row
from rlhf_jax.types import TokenBatch

MODES = ("auto", "batch", "all", "none")
PROMPTS = ("auto", "always", "never")  # whether candidates share one
WORTH = 0.85  # tokens of packed rows among those of padded ones, at most
LONGER = 0.95  # the same of longer rows, in which attention costs more
TRIED = 64  # batches, drawn to see how many rows they need
PORTION = 4096  # examples that are placed together
ROOM = 128  # tokens of a row of short examples that begin alike, at most


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of the rows of a batch.

  length: tokens of a row.
  targets: of a row at most, which bounds its logits.
  is_packed: whether several examples share a row.
  counts: rows of a batch whose examples share them, the usual number first,
    the last is enough for any; () where a batch has a row for each example.
  mean_rows, mean_tokens: of a batch whose examples share them.
  has_branches: whether what examples begin with stands once.
  """

  length: int
  targets: int
  is_packed: bool
  counts: tuple[int, ...] = ()
  mean_rows: float = 0.0
  mean_tokens: float = 0.0
  has_branches: bool = False

  @staticmethod
  def of(rows: Sequence[Row]) -> Shape:
    """Returns the shape of rows that are what they are."""
    sizes = statistics.sizes_of(rows)
    return Shape(
      batches.bucket_length(int(sizes[:, 0].max())),
      int(sizes[:, 1].max()),
      "segment_ids" in rows[0],
    )


def _shared(
  items: np.ndarray, batch_size: int, unit: int, length: int
) -> Shape:
  """Returns a shape of rows that batches share.

  Args:
    items: [N, K, 2] tokens and targets of the K rows of each example; 0 where
      it has fewer.
    batch_size: examples of a batch.
    unit: of the number of rows.
    length: tokens of a row.
  """
  targets = _targets(items, length)
  rng = np.random.default_rng(0)
  found, tokens = [], 0
  for _ in range(TRIED):
    chosen = rng.choice(len(items), batch_size, replace=len(items) < batch_size)
    sizes = items[chosen].reshape(-1, 2)
    sizes = sizes[sizes[:, 0] > 0]
    tokens += sizes[:, 0].sum()
    found.append(len(ops.first_fit(sizes, np.asarray([length, targets]))))
  needed = -(-np.asarray(found) // unit) * unit
  most = int(needed.max())
  costs = {
    int(n): float(np.mean(np.where(needed <= n, n, most))) for n in set(needed)
  }
  usual = min(costs, key=lambda n: (costs[n], -n))
  counts = tuple(sorted({usual, most, batch_size * items.shape[1]}))
  return Shape(
    length, targets, True, counts, costs[usual], float(tokens) / TRIED
  )


def choose(
  rows: Sequence[Row],
  batch_size: int,
  unit: int = 1,
  mode: str = "auto",
  pairs: np.ndarray | None = None,
  prompts: str = "never",
) -> Shape:
  """Returns how batches of these rows lie.

  Args:
    rows: an example each, or what pairs refer to.
    batch_size: examples of a batch, a multiple of unit.
    unit: what the number of rows must be a multiple of.
    mode: "auto", "batch" or "none".
    pairs: [N, K] the rows of each example, -1 for none.
    prompts: of PROMPTS; "auto" where it is less to compute, by as much as
      sharing rows must be.
  """
  padded = Shape.of(rows)
  sizes = statistics.sizes_of(rows)
  items = sizes[:, None] if pairs is None else _sizes(sizes, pairs)
  if mode == "none" or batch_size * items.shape[1] < 2:
    return padded
  best = min(
    (_shared(items, batch_size, unit, n * padded.length) for n in (1, 2)),
    key=_cost,
  )
  cost = batch_size * items.shape[1] * padded.length
  if mode == "batch" or _cost(best) < WORTH * cost:
    chosen, cost = best, _cost(best)
  else:
    chosen = padded
  if prompts == "never" or pairs is None:
    return chosen
  branched = _branched(rows, pairs, batch_size, unit)
  is_worth = prompts == "always" or _cost(branched) < WORTH * cost
  return branched if is_worth else chosen


def _sizes(sizes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
  """Returns [N, K, D] of the rows of comparisons, 0 where one is not there."""
  return np.where(pairs[..., None] < 0, 0, sizes[pairs])


def _cost(shape: Shape) -> float:
  return shape.mean_rows * shape.length


def _branched(
  rows: Sequence[Row], pairs: np.ndarray, batch_size: int, unit: int
) -> Shape:
  """Returns the best shape of rows where candidates share what they begin with.

  Args:
    rows, batch_size, unit, pairs: see `choose`; some of the pairs tell.
  """
  padded, rng = Shape.of(rows), np.random.default_rng(0)
  pairs = pairs[rng.permutation(len(pairs))[:PORTION]]
  most = branches.sizes(rows, pairs, pairs.size * padded.length)[..., 0].max()
  found = (
    _shared(branches.sizes(rows, pairs, length), batch_size, unit, length)
    for length in branches.lengths(padded.length, int(most))
  )
  best = _shortest(found, _cost)
  targets = max(best.targets, padded.targets)
  return dataclasses.replace(best, targets=targets, has_branches=True)


def _shortest(shapes: Iterable[Shape], cost: Callable[[Shape], float]) -> Shape:
  """Returns the best of shapes, whose rows are longer and longer."""
  best, *others = shapes
  for shape in others:
    if cost(shape) < LONGER * cost(best):
      best = shape
  return best


def describe(
  rows: Sequence[Row],
  batch_size: int,
  shape: Shape,
  pairs: np.ndarray | None = None,
) -> str:
  """Returns the layout in words, with how much of it is filled."""
  sizes = statistics.sizes_of(rows)[:, :1]
  items = sizes[:, None] if pairs is None else _sizes(sizes, pairs)
  count = batch_size * items.shape[1]
  tokens = float(np.mean(items)) * count
  padded = tokens / (count * Shape.of(rows).length)
  if not shape.counts:
    return f"{count} rows of {shape.length} tokens, {padded:.0%} filled"
  fill = shape.mean_tokens / _cost(shape)
  once = ", each prompt once" if shape.has_branches else ""
  return (
    f"{count} examples share {shape.counts[0]} rows of {shape.length} tokens, "
    f"{fill:.0%} filled{once} (one a row: {padded:.0%})"
  )


def whole(rows: Sequence[Row], prompts: str = "never") -> Shape:
  """Returns the shape of rows that a data set shares in a pass over all of it.

  They are as long as its longest example, or longer where neighbours share what
  they begin with: twice that or ROOM at most, as attention costs the square,
  and all examples of a data set may begin alike. The targets that one may hold,
  and so its logits, are those of the mean row and some more.

  Args:
    rows: of the data set.
    prompts: see `choose`; the first rows tell whether it is less to compute.
  """
  alone, sizes = Shape.of(rows), statistics.sizes_of(rows)
  best = Shape(alone.length, _targets(sizes, alone.length), True)
  if prompts == "never":
    return best
  first, branched = rows[:PORTION], []
  most = max(2 * alone.length, ROOM)
  _, joined = branches.group(first, (most, most))
  for length in branches.lengths(alone.length, int(joined[:, 0].max())):
    _, joined = branches.group(first, (length, length))
    targets = max(_targets(joined, length), alone.targets)
    branched.append(Shape(length, targets, True, has_branches=True))
  chosen = _shortest(branched, lambda shape: _cells(first, shape))
  is_worth = _cells(first, chosen) < WORTH * _cells(first, best)
  return chosen if prompts == "always" or is_worth else best


def _cells(rows: Sequence[Row], shape: Shape) -> int:
  """Returns the cells of the rows that examples need."""
  return len(_placed(rows, shape)) * shape.length


def _placed(rows: Sequence[Row], shape: Shape) -> list[list[branches.Group]]:
  """Returns the segments of each row that examples share."""
  capacity = np.asarray([shape.length, shape.targets])
  if shape.has_branches:
    groups, sizes = branches.group(rows, capacity)
  else:
    groups, sizes = branches.alone(len(rows)), statistics.sizes_of(rows)
  bins = ops.first_fit(sizes, capacity)
  return [[groups[n] for n in members] for members in bins]


def _targets(sizes: np.ndarray, length: int) -> int:
  """Returns the targets of a shared row, enough for any of sizes [..., 2]."""
  share = sizes[..., 1].sum() / sizes[..., 0].sum()
  targets = batches.bucket_length(int(np.ceil(1.15 * share * length)))
  return int(np.clip(targets, sizes[..., 1].max(), length))


def in_order(
  rows: Sequence[Row], shape: Shape, size: int, pad_id: int
) -> Iterator[tuple[list[list[branches.Group]], TokenBatch]]:
  """Yields batches of `size` shared rows, and the segments of each row.

  Args:
    rows: every one of them is read once.
    shape: of `whole`.
    size: rows of a batch; the last batch has filler without loss.
    pad_id: fills tokens.
  """
  bins: list[list[branches.Group]] = []
  for start in range(0, len(rows), PORTION):
    part = _placed(rows[start : start + PORTION], shape)
    bins += [[g.moved(start) for g in groups] for groups in part]

  def segment(group: branches.Group) -> Row:
    members = [rows[n] for n in group.members]
    if shape.has_branches:
      return branches.join(members, group.shared)
    return members[0]

  for start in range(0, len(bins), size):
    chosen = bins[start : start + size]
    joined = [join([segment(group) for group in groups]) for groups in chosen]
    yield (
      chosen,
      batches.collate_tokens(joined, shape.length, pad_id, rows=size),
    )


def by_example(
  chosen: Sequence[Sequence[branches.Group]],
  batch: TokenBatch,
  values: np.ndarray,
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields the number of each example and the values of its targets.

  Args:
    chosen, batch: of `in_order`.
    values: [size, length], of the batch's tokens.
  """
  for row, groups in enumerate(chosen):
    for segment, group in enumerate(groups, 1):
      for branch, number in enumerate(group.members, 1):
        is_own = batch.segment_ids[row] == segment
        if batch.branch_ids is not None:
          is_own &= np.isin(batch.branch_ids[row], (0, branch))
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
  """Returns one row that holds examples, segments 1, 2, ... of it.

  Args:
    members: examples, or what branches.join makes of some.
  """
  masks = [member["loss_mask"].copy() for member in members]
  for mask in masks:
    mask[0] = 0.0
  counts = [len(mask) for mask in masks]
  row = {
    "tokens": np.concatenate([m["tokens"] for m in members]),
    "loss_mask": np.concatenate(masks),
    "segment_ids": np.repeat(
      np.arange(1, len(members) + 1, dtype=np.int32), counts
    ),
    "positions": np.concatenate(
      [np.arange(count, dtype=np.int32) for count in counts]
    ),
  }
  if "labels" in members[0]:
    row["labels"] = np.concatenate([member["labels"] for member in members])
  if "branch_ids" in members[0]:
    for name in ("positions", "branch_ids"):
      row[name] = np.concatenate([member[name] for member in members])
  return row


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
  bins = ops.first_fit(statistics.sizes_of(examples), capacity)
  count = next(n for n in shape.counts if n >= len(bins))
  rows = [join([examples[n] for n in members]) for members in bins]
  empty = {key: value[:0] for key, value in rows[0].items()}
  rows += [empty] * (count - len(rows))
  return batches.collate_tokens(rows, shape.length, pad_id)
