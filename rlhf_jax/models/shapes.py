"""Shapes of published decoders, for planning without their weights.

`shape:NAME` as config.model.source stands for one of these. Only the planner
reads them: there is nothing to train from.

Sources of the dimensions: Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783,
table 3, and the config.json of the releases, of Llama 3.2 too); Gemma (Gemma
Team 2024, arXiv:2403.08295, table 1); Gemma 3 270M (its GGUF file); SmolLM2
(Allal et al. 2025, arXiv:2502.02737, and the config.json of
SmolLM2-135M-Instruct).

Of the first Gemma the sizes are given and not its scaled embeddings and
(1 + gain) norms, which move no byte and no FLOP that counts.
"""

from __future__ import annotations

from rlhf_jax.models.transformer import Config
from rlhf_jax.schema import UserError

PREFIX = "shape:"

SHAPES: dict[str, Config] = {
  "smollm2_135m": Config(  # 134.5 million parameters
    vocab_size=49_152,
    width=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    rope_theta=100_000.0,
    max_length=8192,
  ),
  "llama32_1b": Config(  # 1.24 billion
    vocab_size=128_256,
    width=2048,
    n_layers=16,
    n_heads=32,
    n_kv_heads=8,
    head_dim=64,
    mlp_width=8192,
    rope_theta=500_000.0,
    max_length=8192,
  ),
  "gemma3_270m": Config(  # 268 million
    family="gemma3_text",
    vocab_size=262_144,
    width=640,
    n_layers=18,
    n_heads=4,
    n_kv_heads=1,
    head_dim=256,
    mlp_width=2048,
    norm_epsilon=1e-6,
    norm_offset=1.0,
    norm_place="around",
    qk_norm="head",
    query_scale=256**-0.5,
    activation="gelu_tanh",
    embedding_scale=640**0.5,
    rope_theta=1e6,
    local_rope_theta=1e4,
    local_layers=tuple(i for i in range(18) if i % 6 != 5),
    window=512,
    max_length=32_768,
  ),
  "gemma_2b": Config(  # 2.51 billion
    vocab_size=256_128,
    width=2048,
    n_layers=18,
    n_heads=8,
    n_kv_heads=1,
    head_dim=256,
    mlp_width=16_384,  # of each of the two gated branches
    activation="gelu_tanh",
    max_length=8192,
  ),
  "llama3_8b": Config(  # 8.03 billion
    vocab_size=128_256,
    width=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    mlp_width=14_336,
    rope_theta=500_000.0,
    max_length=8192,
    tie_embeddings=False,
  ),
  "llama3_70b": Config(  # 70.6 billion
    vocab_size=128_256,
    width=8192,
    n_layers=80,
    n_heads=64,
    n_kv_heads=8,
    head_dim=128,
    mlp_width=28_672,
    rope_theta=500_000.0,
    max_length=8192,
    tie_embeddings=False,
  ),
}

# Assets of data/assets.py whose shape is known without fetching them.
OF_ASSET = {
  "smollm2-135m-instruct": "smollm2_135m",
  "gemma-3-270m": "gemma3_270m",
}


def named(name: str) -> Config:
  """Returns the decoder shape of this name.

  Raises:
    ValueError: there is none.
  """
  if name not in SHAPES:
    raise UserError(
      f"model.source='{PREFIX}{name}': no such shape. Known: "
      f"{', '.join(SHAPES)}. Others go into rlhf_jax/models/shapes.py."
    )
  return SHAPES[name]
