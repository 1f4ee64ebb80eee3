"""Several samples in a row: the work follows the tokens, not the padding.

Samples end at different lengths, so a rollout [N, L] is largely padding. A
Packing places them in R rows of S tokens, where attention stays inside a
sample (segment ids) and positions restart. Losses that are sums over tokens
do not change; only the number of rows does. Rows are placed on the host, under
two capacities: tokens, and response tokens (which bounds the logits of a row).
First-fit decreasing says how many are needed; samples are then spread evenly
over them, so that minibatches of rows hold alike many. R is rounded up to a
multiple, a sixteenth of the most rows there can be unless told otherwise, and
stays what it was while it is enough, so that few shapes ever compile. Answers
to one prompt may share it (groups_in_rows.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import groups_in_rows
from rlhf_jax.types import Array, Rollout, Samples

# Fields of a rollout that are not one array [N, L, ...] to be packed.
_OTHERWISE = frozenset(
  "score finish_reason further components hidden segment_ids positions "
  "branch_ids".split()
)


SHARING = ("auto", "always", "never")


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape of packed rows."""

  row_tokens: int | None = (
    None  # S, tokens of a row; None: those of two answers
  )
  # at their longest, of one where rows are few; 0 does not pack
  row_targets: int = 0  # response tokens of a row at most; 0: no bound
  row_multiple: int | None = (
    None  # R, the number of rows, is a multiple of this
  )
  # (and so of minibatches); None: about a sixteenth of the most rows

  def __post_init__(self) -> None:
    tokens = 0 if self.row_tokens is None else self.row_tokens
    multiple = 1 if self.row_multiple is None else self.row_multiple
    if tokens < 0 or self.row_targets < 0 or multiple < 1:
      raise ValueError(
        f"row_tokens={self.row_tokens}, row_targets={self.row_targets}, "
        f"row_multiple={self.row_multiple}: need >= 0, >= 0 and >= 1."
      )
    if self.row_targets and not tokens:
      raise ValueError(
        f"row_targets={self.row_targets}: bounds rows whose size is given, and "
        f"row_tokens={self.row_tokens}. Set row_tokens, or row_targets=0."
      )

  def together(
    self,
    samples: int,
    unit: int,
    new: int,
    groups: groups_in_rows.Groups = groups_in_rows.ALONE,
  ) -> int:
    """Returns how many answers at their longest share a row of usual size.

    2 where an eighth of these rows is a multiple of unit, else 1; 0 where
    each answer has a row because there are too few. See Groups for those that
    share a prompt.

    Args:
      samples: N.
      unit: what R must be a multiple of.
      new: response tokens of a sample at most.
      groups: of answers that share a prompt.
    """
    unit = unit if self.row_multiple is None else self.row_multiple
    if groups.answers > 1:
      return groups.together(samples, unit, new)
    if samples // 2 >= 8 * unit:
      return 2
    return 1 if samples >= 4 * unit else 0

  def shares(
    self,
    samples: int,
    unit: int,
    new: int,
    groups: groups_in_rows.Groups = groups_in_rows.ALONE,
  ) -> bool:
    """Says whether answers share rows; see `together`."""
    if self.row_tokens is None:
      return self.together(samples, unit, new, groups) > 0
    return self.row_tokens > 0

  def targets(
    self,
    samples: int,
    unit: int,
    new: int,
    groups: groups_in_rows.Groups = groups_in_rows.ALONE,
  ) -> int:
    """Returns how many response tokens a row holds, packed or not.

    Args:
      samples, unit, new, groups: see `together`.
    """
    if self.row_tokens is None:
      return max(self.together(samples, unit, new, groups), 1) * new
    if not self.row_tokens:
      return new
    return self.row_targets if self.row_targets else self.row_tokens


@dataclasses.dataclass(frozen=True)
class GroupConfig(Config):
  """Shape of packed rows of answers, several to a prompt."""

  share_prompts: str = "auto"  # whether the prompt of several answers stands
  # in a row once: auto where attention can, always, or never

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.share_prompts not in SHARING:
      raise ValueError(
        f"share_prompts={self.share_prompts!r}: must be one of {SHARING}."
      )


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of packed rows: S, response tokens of a row, R at most, and its step.

  group: answers that share their prompt, 1 for none.
  """

  tokens: int
  targets: int
  most: int
  multiple: int
  group: int = 1


def shape_of(
  config: Config,
  samples: int,
  length: int,
  new: int,
  unit: int = 1,
  groups: groups_in_rows.Groups = groups_in_rows.ALONE,
) -> Shape | None:
  """Returns the shape of packed rows, None where each sample has its own.

  Args:
    config: as set.
    samples: N.
    length: tokens of a sample at most.
    new: response tokens of a sample at most.
    unit: what R must be a multiple of: parts of an update, ways of a mesh.
    groups: of answers that share a prompt.
  """
  each = config.together(samples, unit, new, groups)
  tokens, group = config.row_tokens, groups.answers
  if tokens is None:
    tokens = each * length if group == 1 else each and length + (each - 1) * new
  if not tokens:
    return None
  targets = config.targets(samples, unit, new, groups)
  each = tokens // length if group == 1 else (tokens - length) // new + 1
  each = max(min(each, targets // new), 1)
  most = -(-samples // each)
  if group > 1:
    most = samples // group * -(-group // each)
  multiple = config.row_multiple
  if multiple is None:
    multiple = -(-most // (16 * unit)) * unit
  most = -(-most // multiple) * multiple
  return Shape(tokens, targets, most, multiple, group)


def describe(shape: Shape | None, samples: int) -> str:
  """Returns in words how the samples of a rollout lie."""
  if shape is None:
    return f"{samples} answers of a rollout, a row each"
  shared = ""
  if shape.group > 1:
    shared = f"; {shape.group} to a prompt share that too"
  return (
    f"{samples} answers of a rollout share {shape.multiple} to {shape.most} "
    f"rows, in steps of {shape.multiple}{shared}"
  )


@flax.struct.dataclass
class Packing:
  """Where each token goes.

  cell: [R, S] int32, which of the N * L tokens stands here, N * L for none.
  place: [N, L] int32, which of the R * S cells holds this token, R * S for
    padding.
  segment_ids, positions: [R, S] int32 of the packed rows.
  branch_ids: [R, S] int32 where samples that begin alike share what they begin
    with (types.TokenBatch), or None. Of a shared token `cell` names one sample.
  """

  cell: Array
  place: Array
  segment_ids: Array
  positions: Array
  branch_ids: Array | None = None


def plan(samples: Samples, shape: Shape, usual: int = 0) -> Packing:
  """Returns where every valid token of the samples goes, on the host.

  Args:
    samples: [N, L].
    shape: of the rows.
    usual: R of the samples before these, kept where it is enough and at most
      half as much again: another number is another program.

  Raises:
    ValueError: a sample is longer than a row.
  """
  valid = np.asarray(samples.valid_mask) > 0
  response = np.asarray(samples.response_mask) > 0
  sizes = np.stack([valid.sum(1), response.sum(1)], axis=1)
  capacity = np.asarray([shape.tokens, shape.targets])
  too_long = np.flatnonzero((sizes > capacity).any(1))
  if too_long.size:
    n = int(too_long[0])
    raise ValueError(
      f"sample {n} has {sizes[n, 0]} tokens, {sizes[n, 1]} of them response: "
      f"more than row_tokens={capacity[0]} or row_targets={capacity[1]}. Raise "
      "packing.row_tokens and packing.row_targets."
    )
  if shape.group > 1:
    return _plan_groups(samples, shape, usual, capacity)
  bins = ops.first_fit(sizes, capacity)
  count = -(-len(bins) // shape.multiple) * shape.multiple
  count = usual if count <= usual <= 1.5 * count else count
  even = _spread_evenly(sizes, capacity, count)
  bins = bins if even is None else even
  alone = [[((n,), 0) for n in members] for members in bins]
  return jax.tree.map(jnp.asarray, fill(alone, valid, count, shape.tokens))


def _plan_groups(
  samples: Samples, shape: Shape, usual: int, capacity: np.ndarray
) -> Packing:
  """Returns `plan` where answers share their prompt."""
  valid = np.asarray(samples.valid_mask) > 0
  response = np.asarray(samples.response_mask) > 0
  groups = groups_in_rows.measure(
    np.asarray(samples.tokens), valid, response, shape.group
  )
  counts = range(shape.multiple, shape.most + 1, shape.multiple)
  bins, count = groups_in_rows.place(groups, capacity, counts)
  if count < usual <= 1.5 * count:
    even, count = groups_in_rows.spread(groups, capacity, usual), usual
    bins = bins if even is None else even
  layout = fill(bins, valid, count, shape.tokens, has_branches=True)
  return jax.tree.map(jnp.asarray, layout)


def _spread_evenly(
  sizes: np.ndarray, capacity: np.ndarray, rows: int
) -> list[list[int]] | None:
  """Returns the samples of each row, alike full; None where they do not fit.

  The longest sample goes first, into the row with the fewest tokens that has
  room for it (Graham 1969: the fullest has at most 4/3 of the least possible).

  Args:
    sizes: [N, 2] tokens and response tokens of each sample.
    capacity: [2] of a row.
    rows: R.
  """
  bins: list[list[int]] = [[] for _ in range(rows)]
  load = np.zeros((rows, 2), sizes.dtype)
  for n in np.argsort(-sizes[:, 0], kind="stable"):
    has_room = (load + sizes[n] <= capacity).all(axis=1)
    if not has_room.any():
      return None
    row = int(np.argmin(np.where(has_room, load[:, 0], capacity[0] + 1)))
    bins[row].append(int(n))
    load[row] += sizes[n]
  return bins


def fill(
  bins: Sequence[Sequence[tuple[Sequence[int], int]]],
  valid: np.ndarray,
  rows: int,
  width: int,
  *,
  has_branches: bool = False,
) -> Packing:
  """Returns where the tokens of samples go, on the host.

  Args:
    bins: of each row its segments: samples, and how many first tokens they
      share, which stand once (data/branches.py).
    valid: [N, L] bool, which tokens there are.
    rows, width: R and S.
    has_branches: whether samples may share tokens.
  """
  samples, length = valid.shape
  cell = np.full((rows, width), samples * length, np.int32)
  place = np.full((samples, length), rows * width, np.int32)
  segment_ids = np.zeros((rows, width), np.int32)
  branch_ids = np.zeros((rows, width), np.int32)
  positions = np.zeros((rows, width), np.int32)
  for row, segments in enumerate(bins):
    start = 0
    for segment, (members, shared) in enumerate(segments, 1):
      end = start + shared
      for branch, n in enumerate(members, 1):
        columns = np.flatnonzero(valid[n])
        span = np.arange(columns.size) + start
        span[shared:] += end - start - shared
        cell[row, span] = n * length + columns
        place[n, columns] = row * width + span
        segment_ids[row, span] = segment
        branch_ids[row, span[shared:]] = branch
        positions[row, span] = np.arange(columns.size)
        end += columns.size - shared
      start = end
  branches = branch_ids if has_branches else None
  return Packing(cell, place, segment_ids, positions, branches)


def pack(x: Array, packing: Packing) -> Array:
  """Returns [R, S, ...] of x [N, L, ...], 0 where no token stands."""
  flat = x.reshape(-1, *x.shape[2:])
  return jnp.take(flat, packing.cell, axis=0, mode="fill", fill_value=0)


def unpack(x: Array, packing: Packing) -> Array:
  """Returns [N, L, ...] of x [R, S, ...], 0 on padding."""
  flat = x.reshape(-1, *x.shape[2:])
  return jnp.take(flat, packing.place, axis=0, mode="fill", fill_value=0)


def pack_rollout(rollout: Rollout, packing: Packing) -> Rollout:
  """Returns the rollout with every per-token field packed.

  score, components and finish_reason stay one a sample. Shape rewards and
  compute advantages before: they need whole samples, and use `further` up.
  """
  per_token = {
    name: pack(value, packing)
    for name, value in vars(rollout).items()
    if value is not None and name not in _OTHERWISE
  }
  return rollout.replace(
    **per_token,
    hidden={k: pack(v, packing) for k, v in rollout.hidden.items()},
    segment_ids=packing.segment_ids,
    positions=packing.positions,
    branch_ids=packing.branch_ids,
  )
