"""What a judge thinks of the beginnings of an answer, as rewards of its tokens.

  potential   r'_t = r_t + Phi(s_{t+1}) - Phi(s_t),   Phi(end) = 0
  raw         r'_t = r_t + v_t  where the judge has a value, but at the end

Phi(s) is the judge's latest value of the text so far: of each prefix for a
reward model, of the last step that ended for a process reward model, and 0 (the
mean of the reference) before there is any. With discount 1 the sum over an
answer changes by -Phi(s_0), a constant of the prompt, so the optimal policy is
the same one (Ng, Harada and Russell 1999, theorem 1); what changes is how soon
a token hears of its merit. Raw values are rewards of their own: an answer of
many good steps earns more than one of few, and the optimum moves (Uesato et
al. 2022, arXiv:2211.14275, and Wang et al. 2024, arXiv:2312.08935, reward steps
so). The score stays the reward of the last token in both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.types import Array, Rollout

MODES = ("none", "potential", "raw")


def potentials(values: Array, mask: Array) -> Array:
  """Returns [N, L], Phi of the state before each token.

  Args:
    values: [N, L], of the text up to and with token t.
    mask: [N, L], 1 where there is a value, perhaps before the answer too.
  """
  columns = jnp.arange(mask.shape[1])[None, :]
  latest = jax.lax.cummax(jnp.where(mask > 0, columns, -1), axis=1)
  latest = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  found = jnp.take_along_axis(
    ops.neutral(values, mask), jnp.maximum(latest, 0), axis=1
  )
  return jnp.where(latest >= 0, found, 0.0)


def of_rollout(rollout: Rollout, mode: str, coefficient: float) -> Array:
  """Returns [N, L], what is added to the rewards; 0 off the response.

  Args:
    rollout: unpacked, with prefix_values and prefix_mask.
    mode: "potential" or "raw".
    coefficient: scale of the values.

  Raises:
    ValueError: the judge said nothing of prefixes.
  """
  if rollout.prefix_values is None or rollout.prefix_mask is None:
    raise ValueError(
      f"token_rewards={mode!r}: rollout.prefix_values is None. Let a reward "
      "model judge with a plan that reads prefixes, or set 'none'."
    )
  mask, columns = rollout.response_mask, jnp.arange(rollout.tokens.shape[1])
  is_last = columns[None, :] == ops.last_index(mask)[:, None]
  if mode == "raw":
    values = ops.neutral(rollout.prefix_values, rollout.prefix_mask)
    found = jnp.where(is_last, 0.0, values)
  else:
    before = potentials(rollout.prefix_values, rollout.prefix_mask)
    after = jnp.pad(before[:, 1:], ((0, 0), (0, 1)))
    found = jnp.where(is_last, 0.0, after) - before
  return jnp.where(mask > 0, coefficient * found, 0.0)
