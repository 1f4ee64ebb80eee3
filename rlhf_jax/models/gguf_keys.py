"""Config -> the keys of a GGUF file, and tensors of its rotary frequencies.

Keys are those that llama.cpp's own converter writes, and those that llama.cpp
reads and the converter forgets. They are read back by gguf_configs.py before
anything is written: a model that llama.cpp would compute otherwise is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.models import families, gguf_names, rotary, transformer
from rlhf_jax.models.gguf_configs import ARCHITECTURES, grown
from rlhf_jax.models.gguf_metadata import Metadata
from rlhf_jax.schema import UserError

_SHARED = {"mistral": "llama"}  # families whose files are of another's
# Of what llama.cpp loads: heads are as wide together as the model, and maps
# other than those of queries, keys and values have biases.
_SQUARE = ("qwen2", "olmo2", "phi3")
_WITH_BIASES = ("llama", "gpt2", "gptneox")
_NOT_IN_FILES = (  # fields of a Config
  "family",
  "empty_rows",
  "dtype",
  "attention",
  "scan_layers",
  "remat",
  "lora_rank",
  "lora_scale",
  "lora_first_layer",
)


def architecture_of(family: str) -> str:
  """Returns the architecture of GGUF that a family is written as.

  Raises:
    UserError: llama.cpp has none.
  """
  family = _SHARED.get(family, family)
  for name, architecture in ARCHITECTURES.items():
    if architecture.family == family:
      return name
  raise UserError(
    f"the {family} family has no GGUF architecture here: "
    f"{', '.join(sorted(ARCHITECTURES))}. Export safetensors instead."
  )


def keys(config: transformer.Config, name: str) -> dict[str, Any]:
  """Returns the keys of a model, with the architecture's name before each.

  Args:
    config: its context within its window, see `within_window`.
    name: of the architecture.
  """
  rms = "_rms" if config.norm == "rms" else ""
  found: dict[str, Any] = {
    "vocab_size": config.vocab_size,
    "context_length": config.max_length,
    "embedding_length": config.width,
    "block_count": config.n_layers,
    "feed_forward_length": config.mlp_width,
    "attention.head_count": config.n_heads,
    "attention.head_count_kv": config.n_kv_heads,
    "attention.key_length": config.head_dim,
    "attention.value_length": config.head_dim,
    f"attention.layer_norm{rms}_epsilon": config.norm_epsilon,
  }
  if config.positions == "rope":
    found["rope.dimension_count"] = config.rotary_size
    found["rope.freq_base"] = config.rope_theta
    found |= _scaling(config)
  if config.window is not None and ARCHITECTURES[name].reads_window:
    found["attention.sliding_window"] = config.window
    found |= _pattern(config, name)
  elif name == "phi3":
    found["attention.sliding_window"] = 0
  if config.attention_cap is not None:
    found["attn_logit_softcapping"] = config.attention_cap
  if config.logit_cap is not None:
    found["final_logit_softcapping"] = config.logit_cap
  if config.local_rope_theta not in (None, 10_000.0):
    found["rope.freq_base_swa"] = config.local_rope_theta
  if name == "gptneox":
    found["use_parallel_residual"] = config.is_parallel
  return {f"{name}.{key}": value for key, value in found.items()}


def _pattern(config: transformer.Config, name: str) -> dict[str, Any]:
  """Returns which layers are local, where it is not the usual pattern."""
  period = {"gemma2": 2, "gemma3": 6}.get(name)
  if period is None:
    return {}
  local = [i in config.local_layers for i in range(config.n_layers)]
  usual = [(i + 1) % period != 0 for i in range(config.n_layers)]
  return {} if local == usual else {"attention.sliding_window_pattern": local}


def _scaling(config: transformer.Config) -> dict[str, Any]:
  """Returns the keys of how rotary frequencies are scaled."""
  scaling = config.rope_scaling
  if scaling.kind == "linear":
    return {
      "rope.scaling.type": "linear",
      "rope.scaling.factor": scaling.factor,
    }
  if scaling.kind == "yarn":
    found = {
      "rope.scaling.type": "yarn",
      "rope.scaling.factor": scaling.factor,
      "rope.scaling.original_context_length": int(scaling.first_length),
    }
    more = scaling.magnitude / grown(scaling.factor)
    if not np.isclose(more, 1.0, rtol=1e-6):
      found["rope.scaling.attn_factor"] = more
    return found
  if scaling.kind == "factors" and config.family == "phi3":
    return {
      "rope.scaling.original_context_length": config.max_length,
      "rope.scaling.attn_factor": scaling.magnitude,
    }
  return {}


def factors(config: transformer.Config, name: str) -> dict[str, np.ndarray]:
  """Returns the tensors of factors that divide rotary frequencies."""
  scaling = config.rope_scaling
  if config.positions != "rope" or scaling.kind not in ("llama3", "factors"):
    return {}
  size = config.rotary_size
  plain = rotary.frequencies(config.rope_theta, size)
  divided = rotary.frequencies(config.rope_theta, size, scaling)
  found = (plain / divided).astype(np.float32)
  if name == "phi3":
    return {gguf_names.SHORT: found, gguf_names.LONG: found}
  return {gguf_names.FREQUENCIES: found}


def within_window(config: transformer.Config, name: str) -> transformer.Config:
  """Returns a model whose context ends where its windows would matter."""
  if config.window is None or ARCHITECTURES[name].reads_window:
    return config
  longest = min(config.max_length, config.window)
  if longest < config.max_length:
    print(
      f"the file says a context of {longest} tokens and not "
      f"{config.max_length}: llama.cpp's {name} architecture reads no sliding "
      "window, and up to there it changes nothing"
    )
  return dataclasses.replace(
    config, max_length=longest, window=None, local_layers=()
  )


def check_read_back(
  config: transformer.Config,
  name: str,
  values: Mapping[str, Any],
  tables: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Raises UserError where a file would mean another model.

  Args:
    config: that it is to mean.
    name: of the architecture.
    values: with the name before each key.
    tables, shapes: of tensors.
  """
  architecture = ARCHITECTURES[name]
  metadata = Metadata(
    name, values, shapes, lambda key: tables[key], config.tie_embeddings
  )
  entries = architecture.entries(metadata)
  again = families.FAMILIES[architecture.family].config(
    architecture.family, entries
  )
  for tensor in tables:
    if tensor not in metadata.tensors_read:
      raise _refusal("rope_scaling", config, "no factors", name)
  for field, theirs in differing(config, again).items():
    raise _refusal(field, config, theirs, name)
  heads, width = config.n_heads * config.head_dim, config.width
  if name in _SQUARE and heads != width:
    raise _refusal("head_dim", config, width / config.n_heads, name)
  if name not in _WITH_BIASES:
    for field in ("output_bias", "mlp_bias"):
      if getattr(config, field):
        raise _refusal(field, config, False, name)


def differing(
  one: transformer.Config, other: transformer.Config
) -> dict[str, Any]:
  """Returns the fields by which two models compute differently.

  Numbers may differ by what float32 keeps of them; what is no part of a file
  is not compared.

  Returns:
    {field: its value in the other}.
  """
  found = {}
  for field in dataclasses.fields(one):
    mine, theirs = (getattr(x, field.name) for x in (one, other))
    if field.name in _NOT_IN_FILES:
      continue
    if field.name == "rope_scaling":
      is_same = one.positions != "rope" or _turns_alike(one, other)
    elif isinstance(mine, float) and isinstance(theirs, float):
      is_same = np.isclose(mine, theirs, rtol=1e-6, atol=0.0)
    else:
      is_same = mine == theirs
    if not is_same:
      found[field.name] = theirs
  return found


def _turns_alike(one: transformer.Config, other: transformer.Config) -> bool:
  magnitudes = one.rope_scaling.magnitude, other.rope_scaling.magnitude
  tables = rotary.tables(one)[0], rotary.tables(other)[0]
  return np.isclose(*magnitudes, rtol=1e-6) and (
    tables[0].shape == tables[1].shape
    and np.allclose(*tables, rtol=1e-6, atol=0.0)
  )


def _refusal(field: str, config: Any, theirs: Any, name: str) -> UserError:
  return UserError(
    f"{field}={getattr(config, field)!r:.80}: llama.cpp's {name} architecture "
    f"has {theirs!r:.60} and no key for another, so the file would be another "
    "model. Export safetensors instead."
  )
