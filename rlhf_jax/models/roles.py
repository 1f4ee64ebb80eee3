"""The four roles over one decoder: what trains, where it starts, its forward.

A role (policy, reference, reward, value) is a decoder, the range of layers it
uses and what of it is trainable:

  full  every weight from `first_layer` up (0: the embedding too)
  lora  low-rank factors from `first_layer` up; the base stays frozen
  head  only the scalar head on a frozen trunk

Its variables are one dict {"params", "lora", "head"}, split into a trainable
and a frozen tree with disjoint leaves; `trees.merge` of the two is what the
module is applied to. Frozen trees are arguments of an update, never closed
over. With `lora` all roles share one base, and the reference is the base with
the factors that the policy started from.

Where layers below the first trainable one are frozen, the stream that enters
it does not change during training: `frozen_streams` computes it once a
rollout (or once a data set), and the functions below take it as `hidden`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rlhf_jax import likelihood, ops
from rlhf_jax.models import heads, lora, quantised, transformer, trees
from rlhf_jax.models import members as members_lib
from rlhf_jax.models import targets as targets_lib
from rlhf_jax.models.rows import Rows
from rlhf_jax.schema import UserError, check_choice, check_least
from rlhf_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What trains of a model."""

  mode: str = "full"  # all weights, LoRA factors, or a head on frozen layers
  first_layer: int = 0  # layers below are frozen, their output computed once

  def __post_init__(self) -> None:
    check_choice("mode", self.mode, ("full", "lora", "head"))
    check_least(self, first_layer=0)


@dataclasses.dataclass(frozen=True)
class Role:
  """One use of a decoder."""

  model: transformer.Config
  trainable: str = "full"  # "full", "lora" or "head"
  first_layer: int = 0  # lowest layer that trains
  stop_layer: int | None = None  # the trunk ends before it; None: all layers
  head: heads.Config | None = None  # scalar head of reward and value roles
  members: int = 1  # reward models in one: heads, stacked on their first axis
  own_factors: bool = False  # each member has LoRA factors of its own too

  def __post_init__(self) -> None:
    layers = self.model.n_layers
    self._check_members()
    if self.trainable not in ("full", "lora", "head"):
      raise UserError(
        f"trainable={self.trainable!r}: must be 'full', 'lora' or 'head'."
      )
    if self.trainable == "head" and self.head is None:
      raise UserError(
        "trainable='head': this role has no scalar head; use 'full' or 'lora'."
      )
    if not 0 <= self.first_layer < layers:
      raise UserError(
        f"first_layer={self.first_layer}: must be in 0..{layers - 1}, the "
        f"model has {layers} layers."
      )
    if self.stop_layer is not None and not 0 < self.stop_layer <= layers:
      raise UserError(
        f"stop_layer={self.stop_layer}: must be in 1..{layers}, the model has "
        f"{layers} layers."
      )
    if self.trainable != "head" and self.first_layer >= self.stop:
      raise UserError(
        f"first_layer={self.first_layer} >= stop_layer={self.stop}: no layer "
        "would train. Lower first_layer or set trainable='head'."
      )
    if self.model.scan_layers and (self.first_layer or self.stop != layers):
      raise UserError(
        f"first_layer={self.first_layer}, stop_layer={self.stop} with "
        "scan_layers: scanned layers run as a whole. Set model.scan_layers="
        "False to train or read a part of the layers."
      )
    if self.trainable == "lora" and not self.model.lora_rank:
      raise UserError(
        "trainable='lora' with lora_rank=0: set lora_rank, for example 16."
      )

  def _check_members(self) -> None:
    if self.members < 1 or (self.members > 1 and self.head is None):
      raise UserError(
        f"members={self.members}: must be >= 1, and 1 without a head."
      )
    if self.own_factors and (self.members == 1 or self.trainable != "lora"):
      raise UserError(
        f"own_factors=True with members={self.members} and trainable="
        f"{self.trainable!r}: members have LoRA factors of their own. Set "
        "trainable='lora' and two members at least."
      )

  @property
  def alone(self) -> Role:
    """The role of one member."""
    return dataclasses.replace(self, members=1, own_factors=False)

  @property
  def stop(self) -> int:
    """The layer before which the trunk ends."""
    return self.model.n_layers if self.stop_layer is None else self.stop_layer

  @property
  def entrance(self) -> int:
    """The layer whose incoming stream is frozen; 0 when nothing below is."""
    return self.stop if self.trainable == "head" else self.first_layer

  @property
  def network(self) -> transformer.Transformer:
    """The Linen module."""
    return transformer.Transformer(self.model)


def is_trainable(role: Role, path: str) -> bool:
  """Says whether a leaf of {"params", "lora", "head"} trains in this role."""
  collection, _, rest = path.partition("/")
  if collection == "head":
    return True
  if role.trainable == "head":
    return False
  if collection == "lora":
    return role.trainable == "lora"
  if role.trainable == "lora":
    return False
  part = rest.split("/")[0]
  if part.startswith("layer_"):
    return role.first_layer <= int(part.removeprefix("layer_")) < role.stop
  if part in ("final_norm", "lm_head"):
    return role.head is None
  return role.first_layer == 0  # embeddings, scanned layers


def split(role: Role, variables: dict) -> tuple[PyTree, PyTree]:
  """Returns (trainable, frozen) trees of a role's variables.

  Raises:
    UserError: a weight of few bits would train.
  """
  parts = trees.split(variables, lambda path: is_trainable(role, path))
  quantised.check_none_trains(parts[0], role.trainable)
  return parts


def fresh_head(role: Role, key: Array) -> dict:
  """Returns the parameters of a head; those of members are stacked."""

  def make(key: Array) -> dict:
    return heads.init(role.head, role.model.width, key)

  if role.members == 1:
    return make(key)
  return members_lib.each(role.members, key, make)


def fresh_lora(role: Role, key: Array) -> dict:
  """Returns LoRA factors for the layers from first_layer to stop, B = 0.

  Those of members that have their own are stacked, as in `fresh_head`.
  """
  if role.own_factors:
    alone = functools.partial(fresh_lora, role.alone)
    return members_lib.each(role.members, key, alone)
  config = dataclasses.replace(role.model, lora_first_layer=role.first_layer)
  shapes = jax.eval_shape(lambda k: transformer.init(config, k), key)["lora"]
  return lora.init(lora.chosen(shapes, config.lora_targets, role.stop), key)


def sampling_params(role: Role, trainable: PyTree, frozen: PyTree) -> PyTree:
  """Returns the complete parameter tree that the sampler reads.

  With model.lora_merge=False factors stand beside their kernels in it.
  """
  variables = trees.merge(trainable, frozen)
  if "lora" not in variables:
    return variables["params"]
  if not role.model.lora_merge:
    return lora.beside(variables["params"], variables["lora"])
  return lora.merge(
    variables["params"], variables["lora"], role.model.lora_scale
  )


def trains_unembedding(role: Role) -> bool:
  """Says whether the (possibly tied) unembedding of a policy role trains."""
  name = "embedding/embedding" if role.model.tie_embeddings else "lm_head"
  return is_trainable(role, f"params/{name}")


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
