"""Finished stages whose weights are drawn, not trained."""

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import pretrained
from rlhf_jax.runs import checkpoint, stages


def save_stage(folder, pipeline, base, role, trained, **facts):
  """Writes a finished stage with the given trainable tree."""
  with checkpoint.Checkpoints(str(folder / "checkpoints")) as saved:
    saved.save(1, {"train": {"params": trained}}, base.identity, is_final=True)
  stages.write_stage(folder, pipeline, base, role, **{"steps": 1} | facts)


def draw(role, part, seed, size):
  """Returns {part: drawn} of a role's "lora" or "head"."""
  rng = np.random.default_rng(seed)
  return {
    part: jax.tree.map(
      lambda leaf: jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype),
      pretrained.variable_shapes(role)[part],
    )
  }
