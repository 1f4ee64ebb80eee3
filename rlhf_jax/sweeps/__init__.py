"""Many runs of one experiment, with other values: what sweep() is written with.

    from rlhf_jax import sweeps

    def sweep():
      return sweeps.product(
        sweeps.grid({"optimizer.learning_rate": [1e-5, 3e-5, 1e-4]}),
        sweeps.zipped({"model.lora_rank": [8, 16], "model.lora_scale": [2, 1]}),
      )

`python -m rlhf_jax.sweep` runs what it returns; docs/sweeps.md.
"""

from rlhf_jax.sweeps.spaces import (
  Distribution,
  choice,
  grid,
  log_uniform,
  one_at_a_time,
  product,
  random_search,
  uniform,
  whole,
  zipped,
)

__all__ = [
  "Distribution",
  "choice",
  "grid",
  "log_uniform",
  "one_at_a_time",
  "product",
  "random_search",
  "uniform",
  "whole",
  "zipped",
]
