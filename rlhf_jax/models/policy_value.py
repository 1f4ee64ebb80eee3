"""One forward pass of a policy-gradient update: policy and critic together.

The critic is a decoder of its own, or a head on the policy's last hidden state
("shared trunk"): then one pass through the trunk gives logits and values, and
one backward pass the gradient of both losses (Ziegler et al. 2019,
arXiv:1909.08593, share; Ouyang et al. 2022, arXiv:2203.02155, do not).
"""

from __future__ import annotations

import dataclasses

import jax

from rlhf_jax import ops
from rlhf_jax.models import outputs, trees
from rlhf_jax.models import targets as targets_lib
from rlhf_jax.models.roles import Role
from rlhf_jax.models.rows import Rows
from rlhf_jax.types import Array, PyTree, Rollout


def policy_and_value(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  policy: Role,
  value: Role | None,
  temperature: float,
  targets: int,
  is_unembedding_frozen: bool,
) -> tuple[Array, Array, Array | None]:
  """Returns log-probabilities, entropies and values [N, L] of a rollout.

  The `apply` of policy-gradient updates.

  Args:
    params: {"policy", "value"}, what trains.
    frozen: what does not, under the same keys.
    rollout: [N, L]; its `hidden` has the streams that enter frozen layers.
    policy: role.
    value: role of the critic; None without one, and for its values.
    temperature: of the sampler.
    targets: response tokens that a row has at most.
    is_unembedding_frozen: the cheaper path without gradients of entropies.
  """
  log_p, entropies = outputs.logprobs(
    policy,
    trees.merge(params["policy"], frozen["policy"]),
    Rows.of(rollout),
    rollout.response_mask,
    hidden=rollout.hidden.get("policy"),
    temperature=temperature,
    targets=targets,
    is_unembedding_frozen=is_unembedding_frozen,
  )
  if value is None:
    return log_p, entropies, None
  critic = params["value"], frozen["value"]
  values = value_only(*critic, rollout, role=value, targets=targets)
  return log_p, entropies, values


def shared_trunk(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  policy: Role,
  value: Role,
  temperature: float,
  targets: int,
  is_unembedding_frozen: bool,
  stops_gradient: bool,
) -> tuple[Array, Array, Array]:
  """Returns what `policy_and_value` does, of one pass through one trunk.

  Args:
    params, frozen: as there; params["value"] is {"head"} alone.
    rollout, policy, temperature, targets, is_unembedding_frozen: as there.
    value: role of the critic, the policy's with a scalar head.
    stops_gradient: the loss of the values trains the head alone.
  """
  variables = trees.merge(params["policy"], frozen["policy"])
  rows, mask = Rows.of(rollout), rollout.response_mask
  columns = targets_lib.Columns.of(mask, targets, rows.before())
  reads = columns.sources if value.head.pooling == "last" else None
  x = outputs.stream(
    policy, variables, rows, rollout.hidden.get("policy"), reads
  )
  read = ops.take_columns(x, columns.sources) if reads is None else x
  found = targets_lib.gather(
    policy.network, variables["params"], read, rows.tokens, columns
  )
  log_p, entropies = outputs.logprobs_at(
    found, temperature=temperature, is_unembedding_frozen=is_unembedding_frozen
  )
  x = jax.lax.stop_gradient(x) if stops_gradient else x
  head = params["value"]
  if reads is not None:
    return log_p, entropies, outputs.values_at(value, head, x, columns)
  at_the_end = dataclasses.replace(value, trainable="head")
  return log_p, entropies, outputs.values(at_the_end, head, rows, x)


def value_only(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  role: Role,
  stream: str = "value",
  targets: int | None = None,
) -> Array:
  """Returns values [N, L]: the `apply` of value pre-training.

  They are those of response tokens; elsewhere they may be anything.

  Args:
    params: of the critic, what trains.
    frozen: of the critic; the whole policy where they share a trunk.
    rollout: as above.
    role: of the critic.
    stream: whose entry of rollout.hidden the critic reads.
    targets: response tokens that a row has at most; None for L.
  """
  merged = trees.merge(params, frozen)
  return outputs.values(
    role,
    merged,
    Rows.of(rollout),
    rollout.hidden.get(stream),
    rollout.response_mask,
    targets,
  )
