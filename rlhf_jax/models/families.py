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

LAYERS = ("num_hidden_layers", "llama.block_count")
MOST_LAYERS, MOST, MOST_NUMBER = 1_000, 2**31 - 1, 1e30
COPY = "Copy the file again from where the weights come from."

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
    UserError: for a size that is not given or no number, or a setting that
      this family is not implemented with.
  """
  sizes = {
    field: whole(hf, field)
    for field in (
      "vocab_size",
      "hidden_size",
      "num_hidden_layers",
      "num_attention_heads",
      "intermediate_size",
    )
  }
  rope = _rope(hf)
  rope_type = rope.get("rope_type", "default")
  whole_head = rope.get("partial_rotary_factor", 1.0)
  for field, found, allowed in (
    ("quantization_config", hf.get("quantization_config"), None),
    ("compression_config", hf.get("compression_config"), None),
    ("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0), 1.0),
    ("partial_rotary_factor", whole_head, 1.0),
    ("rope type", rope_type, "default"),
    ("hidden_act", hf.get("hidden_act", "silu"), "silu"),
    ("mlp_bias", hf.get("mlp_bias", False), False),
    ("attention_bias", hf.get("attention_bias", False), False),
  ):
    if found != allowed:
      raise UserError(
        f"{field}={found!r:.60}: the llama family is implemented for "
        f"{allowed!r} only. Convert the model or extend "
        "rlhf_jax/models/families.py."
      )
  heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
  head_dim, kv_heads = width // heads, heads
  if hf.get("head_dim") is not None:
    head_dim = whole(hf, "head_dim")
  elif width % heads:
    raise UserError(
      f"hidden_size={width}: no multiple of num_attention_heads={heads}, and "
      f"head_dim is not given. {COPY}"
    )
  if hf.get("num_key_value_heads") is not None:
    kv_heads = whole(hf, "num_key_value_heads")
  is_tied = hf.get("tie_word_embeddings", False)
  if not isinstance(is_tied, bool):
    raise UserError(
      f"tie_word_embeddings={is_tied!r}: must be true or false. {COPY}"
    )
  return transformer.Config(
    vocab_size=sizes["vocab_size"],
    width=width,
    n_layers=sizes["num_hidden_layers"],
    n_heads=heads,
    n_kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_width=sizes["intermediate_size"],
    norm_epsilon=positive(hf, "rms_norm_eps", 1e-6),
    rope_theta=positive(rope, "rope_theta", 10_000.0),
    max_length=whole(hf, "max_position_embeddings", 2048),
    tie_embeddings=is_tied,
  )


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
  """Returns what config.json says of rotary positions, in the newer form."""
  found: dict[str, Any] = {}
  is_newer = isinstance(hf.get("rope_parameters"), dict)
  if "rope_theta" in hf and not (is_newer and hf["rope_theta"] is None):
    found["rope_theta"] = hf["rope_theta"]
  for field in ("rope_scaling", "rope_parameters"):
    given = hf.get(field)
    if given is None:
      continue
    if not isinstance(given, dict):
      raise UserError(f"{field}={str(given)[:60]!r}: must be an object. {COPY}")
    given = dict(given)
    if "type" in given:  # the older name
      given.setdefault("rope_type", given.pop("type"))
    for name in sorted(set(given) & set(found)):
      if given[name] != found[name]:
        raise UserError(
          f"{field} says {name}={given[name]!r:.40}, and {found[name]!r:.40} "
          f"stands beside it in config.json. {COPY}"
        )
    found |= given
  return found


def whole(
  values: Mapping[str, Any], field: str, usual: int | None = None
) -> int:
  """Returns a size of a model, a whole number.

  Args:
    values: of config.json, or the metadata of a GGUF file.
    field: its key there.
    usual: where it is not given; None if it must be.

  Raises:
    UserError: it is not given, no whole number, or no size of a model.
  """
  if field not in values and usual is not None:
    return usual
  if field not in values:
    raise UserError(
      f"config.json names no {field!r}: it is not a complete llama config. "
      f"{COPY}"
    )
  value = values[field]
  most = MOST_LAYERS if field in LAYERS else MOST
  if type(value) is not int or not 1 <= value <= most:
    raise UserError(
      f"{field}={value!r:.60}: must be a whole number from 1 to {most}. {COPY}"
    )
  return value


def positive(values: Mapping[str, Any], field: str, usual: float) -> float:
  """Returns a number of a model that is positive and finite; see `whole`."""
  value = values.get(field, usual)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0.0 < value < MOST_NUMBER:
    raise UserError(f"{field}={value!r:.60}: must be a positive number. {COPY}")
  return float(value)


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
