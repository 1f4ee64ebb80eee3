"""What the package computes in a faster way, written plainly."""

import jax
import jax.numpy as jnp


def logprobs_of_logits(logits, tokens):
  """Returns log softmax(logits)[tokens] in float32.

  Args:
    logits: [..., V], any float dtype; cast to float32 before the reduction.
    tokens: [...] int32, the tokens these logits predict (already aligned).
  """
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return picked - jax.nn.logsumexp(logits, axis=-1)


def weighted(apply):
  """Returns the `apply` of SFT, of one that gives log-probabilities alone."""

  def total(params, frozen, batch, weights):
    logprobs, entropies = apply(params, frozen, batch)
    kept = jnp.where(weights > 0, logprobs, 0.0)
    return jnp.sum(weights * kept), logprobs, entropies

  return total
