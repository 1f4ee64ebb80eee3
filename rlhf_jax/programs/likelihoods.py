"""Log-likelihoods of texts behind other texts, as many as wanted, one shape.

  log p(after | before) = sum_t log p(token t of after | all tokens before it)

Pairs share rows, and what neighbours begin with stands once (data/layout.py),
so the choices of one question cost little more than one of them. All rows of a
call have one shape: it compiles once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import distributed, likelihood
from rlhf_jax.data import layout
from rlhf_jax.data.encode import Row
from rlhf_jax.models import attention, outputs, roles, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree, TokenBatch


class Pair(NamedTuple):
  """Ids whose likelihood is wanted, and what stands before them.

  before: at least one id.
  after: at least one id.
  where: FILE:LINE, for messages.
  """

  before: Sequence[int]
  after: Sequence[int]
  where: str = ""


class Read(NamedTuple):
  """What a policy makes of a pair.

  logprobs: float64 [n] nats, of each id of `after`.
  is_top: bool [n], whether it is the likeliest token there; None where nobody
    asked.
  """

  logprobs: np.ndarray
  is_top: np.ndarray | None = None

  @property
  def total(self) -> float:
    """Nats of the whole."""
    return float(np.sum(self.logprobs))


def read(
  params: PyTree,
  frozen: PyTree,
  batch: TokenBatch,
  *,
  role: roles.Role,
  targets: int,
  tells_top: bool,
) -> tuple[Array, Array | None]:
  """Returns log-probabilities [B, L] of a batch's targets, and the likeliest.

  Args:
    params, frozen: of the policy, split.
    batch: [B, L].
    role: the policy's.
    targets: of a row at most.
    tells_top: whether 1.0 is told [B, L] where a target is the likeliest token.
  """
  found = outputs.targets_of(
    role,
    trees.merge(params, frozen),
    Rows.of(batch),
    batch.loss_mask,
    targets=targets,
  )
  log_p, _ = outputs.logprobs_at(found)
  if not tells_top:
    return log_p, None
  top = likelihood.top_tokens(found.hidden, found.unembedding, **found.how)
  return log_p, found.spread((top == found.tokens).astype(log_p.dtype))


_read = jax.jit(read, static_argnames=("role", "targets", "tells_top"))


def windows(ids: Sequence[int], first: int, most: int) -> list[Pair]:
  """Returns pairs that cover a text once, each of at most `most` + 1 ids.

  The first begins behind `first`; the next ones behind one id of the text, the
  last behind as many as there is room for: the rolling windows of lm-eval
  (utils.get_rolling_token_windows with context_len=1).

  Args:
    ids: of the text, at least one.
    first: id that stands before it.
    most: ids that are predicted at a time.
  """
  head = min(most, len(ids))
  found = [Pair([first], list(ids[:head]))]
  done = head
  while done < len(ids):
    count = min(len(ids) - done, most)
    end = done + count
    start = max(end - most - 1, 0)
    found.append(Pair(list(ids[start:done]), list(ids[done:end])))
    done = end
  return found


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads pairs with a policy.

  role, frozen: of the policy.
  base: the model underneath.
  mesh: where it is.
  rows: read together; on a mesh a multiple of its parts is taken.
  tells_top: see Read.
  """

  role: roles.Role
  frozen: PyTree
  base: Base
  mesh: Any
  rows: int = 8
  tells_top: bool = False

  def __call__(self, params: PyTree, pairs: Sequence[Pair]) -> list[Read]:
    """Returns what the policy makes of each pair, in their order.

    Args:
      params: trained tree of the policy.
      pairs: pairs of one question should be neighbours.

    Raises:
      UserError: a pair with nothing on one side, or longer than the context.
    """
    if not pairs:
      return []
    with mesh_lib.current(self.mesh):
      return self._all(params, pairs)

  def _all(self, params: PyTree, pairs: Sequence[Pair]) -> list[Read]:
    rows = [self._row(pair) for pair in pairs]
    is_able = self.role.model.attention in attention.BRANCHING
    shape = layout.whole(rows, "auto" if is_able else "never")
    longest = self.role.model.max_length
    if shape.length > longest:
      shape = dataclasses.replace(shape, length=longest)
    ways = mesh_lib.row_ways(self.mesh)
    size, pad_id = -(-self.rows // ways) * ways, self.base.tokenizer.pad_id
    found: list[Read | None] = [None] * len(pairs)
    for chosen, batch in layout.in_order(rows, shape, size, pad_id):
      log_p, top = distributed.fetch(
        _read(
          params,
          self.frozen,
          mesh_lib.spread_batch(self.mesh, batch),
          role=self.role,
          targets=shape.targets,
          tells_top=self.tells_top,
        )
      )
      for n, values in layout.by_example(chosen, batch, log_p):
        found[n] = Read(np.asarray(values, np.float64))
      if top is not None:
        for n, values in layout.by_example(chosen, batch, top):
          found[n] = found[n]._replace(is_top=np.asarray(values) > 0)
    return found

  def _row(self, pair: Pair) -> Row:
    before, after = len(pair.before), len(pair.after)
    if not before or not after:
      raise UserError(
        f"{pair.where}: {before} tokens before and {after} after: a likelihood "
        "is of one token at least, behind one at least."
      )
    if before + after > self.role.model.max_length:
      raise UserError(
        f"{pair.where}: {before + after} tokens are more than the model's "
        f"context of {self.role.model.max_length}. Shorten the text, or take "
        "fewer shots."
      )
    return {
      "tokens": np.asarray([*pair.before, *pair.after], np.int32),
      "loss_mask": np.float32([0.0] * before + [1.0] * after),
    }
