"""A small random model folder, made without compiling anything."""

import functools

import jax
import numpy as np

from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import huggingface, transformer
from tests import tiny
from tests.pipelines.tiny_runs import CHAT


def random_params(config, seed=0):
  """Returns float32 weights, norms near their gain of 1."""
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config), jax.random.key(0)
  )["params"]
  random = np.random.default_rng(seed)

  def draw(leaf):
    noise = random.standard_normal(leaf.shape)
    if len(leaf.shape) == 1:
      return (1.0 + 0.1 * noise).astype(np.float32)
    return (noise * leaf.shape[-1] ** -0.5).astype(np.float32)

  return jax.tree.map(draw, shapes)


def make(folder, **changes):
  """Writes a model of 2 layers and its tokenizer; returns the folder."""
  tiny.tiny_tokenizer_json(folder, chat_template=CHAT)
  tokenizer = load_tokenizer(folder)
  values = {
    "vocab_size": tokenizer.vocab_size + 12,
    "width": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 4,
    "mlp_width": 24,
    "max_length": 64,
  }
  config = transformer.Config(**(values | changes))
  huggingface.save(folder, config, random_params(config))
  return folder
