"""What a role computes of rows: streams, log-probabilities, values, scores.

Where layers below the first trainable one are frozen, the stream that enters
it does not change during training: `frozen_streams` computes it once a
rollout (or once a data set), and the other functions take it as `hidden`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import likelihood, ops
from rlhf_jax.models import heads, transformer
from rlhf_jax.models import members as members_lib
from rlhf_jax.models import targets as targets_lib
from rlhf_jax.models.roles import Role
from rlhf_jax.models.rows import Rows
from rlhf_jax.types import Array, PyTree


def frozen_streams(
  model: transformer.Config,
  params: PyTree,
  rows: Rows,
  taps: tuple[int, ...],
  known: dict[int, Array] | None = None,
) -> dict[int, Array]:
  """Returns {layer: [B, L, D] stream entering it}, one pass for all taps.

  Args:
    model: architecture.
    params: base parameters (LoRA factors are not applied: the streams below
      the first adapted layer do not depend on them).
    rows: tokens.
    taps: layers to tap, at least one.
    known: {layer: [B, L, D]} of streams that are there already: layers below
      the highest one that all other taps need do not run.
  """
  known = {} if known is None else known
  wanted = set(taps) - set(known)
  found = {layer: known[layer] for layer in taps if layer in known}
  if not wanted:
    return found
  net = transformer.Transformer(model)
  variables = {"params": params}
  start = max((n for n in known if n <= min(wanted)), default=0)
  if start in known:
    x = known[start]
  else:
    x = net.apply(variables, rows.tokens, rows.positions, method="embed")
  _, tapped, _ = net.apply(
    variables,
    x,
    rows.positions,
    rows.mask(model),
    start=start,
    stop=max(wanted),
    taps=tuple(sorted(wanted)),
    method="run_layers",
  )
  return found | tapped


def stream(
  role: Role,
  variables: dict,
  rows: Rows,
  hidden: Array | None,
  reads: Array | None = None,
) -> Array:
  """Returns the residual stream [B, L, D] at the end of the role's trunk.

  Args:
    role: which layers.
    variables: merged trainable and frozen trees.
    rows: tokens.
    hidden: [B, L, D] the stream that enters layer role.entrance, or None to
      compute it from the tokens.
    reads: [B, C] int32, the columns that are wanted: [B, C, D] of them.
  """
  weights = {k: v for k, v in variables.items() if k in ("params", "lora")}
  start = role.entrance
  x = hidden
  if hidden is None:
    start = 0
    x = role.network.apply(weights, rows.tokens, rows.positions, method="embed")
  if start == role.stop:
    return x if reads is None else ops.take_columns(x, reads)
  x, _, _ = role.network.apply(
    weights,
    x,
    rows.positions,
    rows.mask(role.model),
    start=start,
    stop=role.stop,
    reads=reads,
    method="run_layers",
  )
  return x


def targets_of(
  role: Role,
  variables: dict,
  rows: Rows,
  target_mask: Array,
  *,
  hidden: Array | None = None,
  targets: int | None = None,
) -> targets_lib.Targets:
  """Returns the states that predict the rows' targets; see `logprobs`."""
  columns = targets_lib.Columns.of(target_mask, targets, rows.before())
  x = stream(role, variables, rows, hidden, columns.sources)
  return targets_lib.gather(
    role.network, variables["params"], x, rows.tokens, columns
  )


def logprobs(
  role: Role,
  variables: dict,
  rows: Rows,
  target_mask: Array,
  *,
  hidden: Array | None = None,
  temperature: float = 1.0,
  targets: int | None = None,
  is_unembedding_frozen: bool = False,
) -> tuple[Array, Array]:
  """Returns log-probabilities and entropies [B, L] of the rows' own tokens.

  Entry [n, t] concerns tokens[n, t] given tokens[n, <t] (invariant 1) and is
  0 where target_mask is 0. Logits exist only for target positions.

  Args:
    role: a policy or reference.
    variables: merged trees.
    rows: tokens.
    target_mask: [B, L], 1 on tokens whose log-probability is wanted; never
      on the first token of a row.
    hidden: see `stream`.
    temperature: divides the logits, as in the sampler (METHODS N2).
    targets: at most how many targets a row has; None for L.
    is_unembedding_frozen: see likelihood.py; entropies have no gradient.
  """
  found = targets_of(
    role, variables, rows, target_mask, hidden=hidden, targets=targets
  )
  return logprobs_at(
    found, temperature=temperature, is_unembedding_frozen=is_unembedding_frozen
  )


def logprobs_at(
  found: targets_lib.Targets,
  *,
  temperature: float = 1.0,
  is_unembedding_frozen: bool = False,
) -> tuple[Array, Array]:
  """Returns log-probabilities and entropies [B, L] of gathered targets.

  Args:
    found: from `targets_of`.
    temperature, is_unembedding_frozen: see `logprobs`.
  """
  log_p, entropy = likelihood.token_logprobs(
    found.hidden,
    found.unembedding,
    found.tokens,
    temperature=temperature,
    is_unembedding_frozen=is_unembedding_frozen,
    **found.how,
  )
  return found.spread(log_p), found.spread(entropy)


def prefix_scores(
  role: Role, variables: dict, rows: Rows, hidden: Array | None = None
) -> Array:
  """Returns [B, L, K]: the head's score of every prefix, token t included.

  Of an ensemble [B, L, M K], see `head_scores`.
  """
  if role.own_factors:
    hidden = below(role, variables, rows, hidden)
    return members_lib.by_member(
      variables, lambda its: prefix_scores(role.alone, its, rows, hidden)
    )
  x = stream(role, variables, rows, hidden)
  features = rows.pooled(x, role.head.pooling)
  return head_scores(role, variables["head"], features)


def head_scores(role: Role, head: dict, features: Array) -> Array:
  """Returns [..., K], or [..., M K], scores of features [..., F].

  See members.head_scores.
  """
  return members_lib.head_scores(role.head, role.members, head, features)


def values(
  role: Role,
  variables: dict,
  rows: Rows,
  hidden: Array | None = None,
  mask: Array | None = None,
  targets: int | None = None,
) -> Array:
  """Returns [B, L]: the value of the state BEFORE each token (invariant 1).

  Args:
    role: of a critic.
    variables: merged trees.
    rows: tokens.
    hidden: see `stream`.
    mask: [B, L], 1 where a value is wanted, never on the first token of a row:
      elsewhere it may be anything. None for everywhere.
    targets: at most how many a row has; None for L.
  """
  if mask is not None and role.head.pooling == "last":
    columns = targets_lib.Columns.of(mask, targets, rows.before())
    x = stream(role, variables, rows, hidden, columns.sources)
    return values_at(role, variables, x, columns)
  scores = prefix_scores(role, variables, rows, hidden)[..., 0]
  before = rows.before()
  if before is not None:
    return jnp.take_along_axis(scores, before, axis=1)
  return jnp.pad(scores[:, :-1], ((0, 0), (1, 0)))


def values_at(
  role: Role, variables: dict, x: Array, columns: targets_lib.Columns
) -> Array:
  """Returns `values` where columns.mask is 1, else 0, for pooling "last".

  Args:
    role, variables: see `values`.
    x: [B, C, D] the stream at columns.sources.
    columns: of the tokens that are valued.
  """
  scores = head_scores(role, variables["head"], heads.unit_rms(x))
  return columns.spread(scores[..., 0])


def score(
  role: Role,
  variables: dict,
  rows: Rows,
  score_mask: Array,
  hidden: Array | None = None,
  place: Array | None = None,
) -> Array:
  """Returns [B, K] scores of examples, read at the last 1 of score_mask.

  Of an ensemble [B, M K], see `head_scores`.

  Args:
    role: a reward role.
    variables: merged trees.
    rows: tokens.
    score_mask: [B, L], the tokens that are judged; without the end token for
      a reward model that was trained without it.
    hidden: see `stream`.
    place: [B, L] int32, the cell of packed rows that holds each token.
  """
  if role.own_factors:
    hidden = below(role, variables, rows, hidden)
    return members_lib.by_member(
      variables,
      lambda its: score(role.alone, its, rows, score_mask, hidden, place),
    )
  x, kind = stream(role, variables, rows, hidden), role.head.pooling
  if place is None:
    features = heads.pool_last(x, score_mask, kind)
  else:
    features = heads.last_of(rows.pooled(x, kind), score_mask, place)
  return head_scores(role, variables["head"], features)


def below(
  role: Role, variables: dict, rows: Rows, hidden: Array | None
) -> Array | None:
  """Returns the stream into role.entrance, computed once for all members.

  None where nothing is frozen below.

  Args:
    role, variables, rows: see `stream`.
    hidden: where it is there already.
  """
  if hidden is not None or not role.entrance:
    return hidden
  plain = dataclasses.replace(role.model, lora_rank=0)
  taps = (role.entrance,)
  return frozen_streams(plain, variables["params"], rows, taps)[role.entrance]
