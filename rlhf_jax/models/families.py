"""Model families as data: a name table and the settings that make the family.

A name table maps a path of our parameter tree, with {i} for the layer, to the
name in a Hugging Face checkpoint and whether the matrix is stored [out, in]
there (and so is transposed on the way in and out).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from rlhf_jax.models import transformer, trees
from rlhf_jax.schema import UserError

_LAYER = "model.layers.{i}."

LLAMA_NAMES: dict[str, tuple[str, bool]] = {
  "embedding/embedding": ("model.embed_tokens.weight", False),
  "final_norm/scale": ("model.norm.weight", False),
  "lm_head/kernel": ("lm_head.weight", True),
  "layer_{i}/attention_norm/scale": (_LAYER + "input_layernorm.weight", False),
  "layer_{i}/mlp_norm/scale": (
    _LAYER + "post_attention_layernorm.weight",
    False,
  ),
  **{
    f"layer_{{i}}/attention/{name}/kernel": (
      f"{_LAYER}self_attn.{name}.weight",
      True,
    )
    for name in ("q_proj", "k_proj", "v_proj", "o_proj")
  },
  **{
    f"layer_{{i}}/mlp/{name}/kernel": (f"{_LAYER}mlp.{name}.weight", True)
    for name in ("gate_proj", "up_proj", "down_proj")
  },
}

# GGUF tensor names of the same weights; matrices are stored [out, in].
LLAMA_GGUF_NAMES: dict[str, tuple[str, bool]] = {
  "embedding/embedding": ("token_embd.weight", False),
  "final_norm/scale": ("output_norm.weight", False),
  "lm_head/kernel": ("output.weight", True),
  "layer_{i}/attention_norm/scale": ("blk.{i}.attn_norm.weight", False),
  "layer_{i}/mlp_norm/scale": ("blk.{i}.ffn_norm.weight", False),
  "layer_{i}/attention/q_proj/kernel": ("blk.{i}.attn_q.weight", True),
  "layer_{i}/attention/k_proj/kernel": ("blk.{i}.attn_k.weight", True),
  "layer_{i}/attention/v_proj/kernel": ("blk.{i}.attn_v.weight", True),
  "layer_{i}/attention/o_proj/kernel": ("blk.{i}.attn_output.weight", True),
  "layer_{i}/mlp/gate_proj/kernel": ("blk.{i}.ffn_gate.weight", True),
  "layer_{i}/mlp/up_proj/kernel": ("blk.{i}.ffn_up.weight", True),
  "layer_{i}/mlp/down_proj/kernel": ("blk.{i}.ffn_down.weight", True),
}


def llama_config(hf: dict[str, Any]) -> transformer.Config:
  """Returns the Llama architecture that a Hugging Face config.json gives.

  Accepts the newer `rope_parameters` and the older `rope_theta`.

  Raises:
    ValueError: for a size that is not given, or a setting that this family
      is not implemented with.
  """
  for field in (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
  ):
    if field not in hf:
      raise UserError(
        f"config.json names no {field!r}: it is not a complete llama config. "
        "Copy it again from where the weights come from."
      )
  rope = hf.get("rope_parameters")
  if rope is None:
    rope = {"rope_theta": hf.get("rope_theta", 10_000.0)}
    scaling = hf.get("rope_scaling")
    rope |= {} if scaling is None else scaling
  theta = rope.get("rope_theta", hf.get("rope_theta", 10_000.0))
  # "type" is the older name of "rope_type"
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  for field, found, allowed in (
    ("rope type", rope_type, "default"),
    ("hidden_act", hf.get("hidden_act", "silu"), "silu"),
    ("mlp_bias", hf.get("mlp_bias", False), False),
    ("attention_bias", hf.get("attention_bias", False), False),
  ):
    if found != allowed:
      raise UserError(
        f"{field}={found!r}: the llama family is implemented for "
        f"{allowed!r} only. Convert the model or extend "
        "rlhf_jax/models/families.py."
      )
  heads = hf["num_attention_heads"]
  head_dim = hf.get("head_dim")
  kv_heads = hf.get("num_key_value_heads")
  return transformer.Config(
    vocab_size=hf["vocab_size"],
    width=hf["hidden_size"],
    n_layers=hf["num_hidden_layers"],
    n_heads=heads,
    n_kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=hf["hidden_size"] // heads if head_dim is None else head_dim,
    mlp_width=hf["intermediate_size"],
    norm_epsilon=hf.get("rms_norm_eps", 1e-6),
    rope_theta=float(theta),
    max_length=hf.get("max_position_embeddings", 2048),
    tie_embeddings=hf.get("tie_word_embeddings", False),
  )


# model_type -> (name table, config.json -> Config)
FAMILIES = {"llama": (LLAMA_NAMES, llama_config)}


def names_of_layers(
  table: dict[str, tuple[str, bool]], config: transformer.Config
) -> dict[str, tuple[str, bool]]:
  """Returns the table with {i} written out and tied weights left out."""
  names: dict[str, tuple[str, bool]] = {}
  for path, (name, transposed) in table.items():
    if path == "lm_head/kernel" and config.tie_embeddings:
      continue
    if "{i}" not in path:
      names[path] = (name, transposed)
      continue
    for i in range(config.n_layers):
      names[path.format(i=i)] = (name.format(i=i), transposed)
  return names


def check_shapes(
  flat: Mapping[str, Any], config: transformer.Config, source: str
) -> None:
  """Raises ValueError unless every weight has the shape that config gives.

  Args:
    flat: {path in our tree: array}.
    config: layers unrolled, as read from `source`.
    source: file or folder, for the message.
  """
  plain = dataclasses.replace(config, scan_layers=False, lora_rank=0)
  expected = jax.eval_shape(
    functools.partial(transformer.init, plain), jax.random.key(0)
  )
  for path, leaf in trees.flatten(expected["params"]).items():
    if flat[path].shape != leaf.shape:
      raise UserError(
        f"{source}: {path} has shape {flat[path].shape} where the config "
        f"gives {leaf.shape}. The weights do not belong to this config."
      )
