"""A policy objective that is not in the package, as a user writes one.

  S = -A (4 / tau) sigmoid(tau (rho - 1)),   dS / d log rho = -A rho w,
  w = 4 sigmoid (1 - sigmoid), 1 at rho = 1 and falling on both sides

The soft gate of SAPO (Gao et al. 2025, arXiv:2511.20347), with one slope for
both signs of A: no token loses its gradient at an edge.
"""

import jax
import jax.numpy as jnp


def soft_clip(log_ratio, advantages, config, *, slope=2.0):
  """Returns S per token [N, L]; slope is tau."""
  del config
  gate = jax.nn.sigmoid(slope * (jnp.exp(log_ratio) - 1.0))
  return -advantages * gate * 4.0 / slope
