"""Config, parameters and a tokenizer -> one GGUF file, for llama.cpp.

`write` names tensors and keys as llama.cpp's own converter does. Before it
writes, the keys are read back as the reader reads them: a model that
llama.cpp would compute otherwise is refused, with the setting that differs.

Gains, biases and learned positions stay float32. In q8_0, a map whose rows
are no multiple of 32 numbers is float16, as llama.cpp does it.

One tensor is in memory at a time.

Left out: quantisations that need statistics (K and I types): llama.cpp's own
llama-quantize makes them from what is written here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlhf_jax.data import gguf_vocabulary_writer
from rlhf_jax.models import (
  families,
  gguf_names,
  rotary,
  transformer,
  trees,
)
from rlhf_jax.models.gguf_configs import ARCHITECTURES, Architecture, grown
from rlhf_jax.models.gguf_metadata import Metadata
from rlhf_jax.schema import UserError, check_choice

DTYPES = {  # of matrices -> general.file_type
  "f32": gguf.LlamaFileType.ALL_F32,
  "f16": gguf.LlamaFileType.MOSTLY_F16,
  "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_TYPES = {
  "f32": gguf.GGMLQuantizationType.F32,
  "f16": gguf.GGMLQuantizationType.F16,
  "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_BLOCK = 32  # numbers of a row in a block of q8_0
_SHARED = {"mistral": "llama"}  # families whose files are of another's
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


def _numbers(config: transformer.Config, name: str) -> dict[str, Any]:
  """Returns the keys of an architecture, without its name."""
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
  return found


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


def _factors(config: transformer.Config, name: str) -> dict[str, np.ndarray]:
  """Returns the tensors of factors that divide rotary frequencies."""
  scaling = config.rope_scaling
  if config.positions != "rope" or scaling.kind not in ("llama3", "factors"):
    return {}
  size = config.rotary_size
  plain = rotary.frequencies(config.rope_theta, size)
  divided = rotary.frequencies(config.rope_theta, size, scaling)
  factors = (plain / divided).astype(np.float32)
  if name == "phi3":
    return {gguf_names.SHORT: factors, gguf_names.LONG: factors}
  return {gguf_names.FREQUENCIES: factors}


def _within_window(config: transformer.Config, name: str) -> transformer.Config:
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


def _check_read_back(
  config: transformer.Config,
  name: str,
  values: Mapping[str, Any],
  factors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Raises UserError where a file would mean another model.

  Args:
    config: that it is to mean.
    name: of the architecture.
    values: with the name before each key.
    factors, shapes: of tensors.
  """
  architecture = ARCHITECTURES[name]
  metadata = Metadata(
    name, values, shapes, lambda key: factors[key], config.tie_embeddings
  )
  entries = architecture.entries(metadata)
  again = families.FAMILIES[architecture.family].config(
    architecture.family, entries
  )
  for tensor in factors:
    if tensor not in metadata.tensors_read:
      raise _refusal("rope_scaling", config, "no factors", name)
  for field, theirs in differing(config, again).items():
    raise _refusal(field, config, theirs, name)


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
    tables[0].shape == tables[1].shape and np.allclose(*tables, rtol=1e-6)
  )


def _refusal(field: str, config: Any, theirs: Any, name: str) -> UserError:
  return UserError(
    f"{field}={getattr(config, field)!r:.80}: llama.cpp's {name} architecture "
    f"has {theirs!r:.60} and no key for another, so the file would be another "
    "model. Export safetensors instead."
  )


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One weight of one layer, which stands in a stack where layer is a number.

  array: anything that numpy can index.
  """

  array: Any
  layer: int | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    skipped = 0 if self.layer is None else 1
    return tuple(self.array.shape[skipped:])

  def read(self) -> np.ndarray:
    """Returns it as float32."""
    if self.layer is None:
      return np.asarray(self.array, np.float32)
    rest = (slice(None),) * len(self.shape)
    one = self.array[(slice(self.layer, self.layer + 1), *rest)]
    return np.asarray(one, np.float32)[0]


def _leaves(config: transformer.Config, params: Any) -> dict[str, _Leaf]:
  """Returns path -> weight, layers unstacked; nothing is read."""
  found = {}
  for path, array in trees.flatten(params).items():
    if config.scan_layers and path.startswith("layers/"):
      for i in range(config.n_layers):
        found[path.replace("layers/", f"layer_{i}/", 1)] = _Leaf(array, i)
    else:
      found[path] = _Leaf(array)
  return found


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """One tensor to write; weights: paths of ours in it, with their rows."""

  shape: tuple[int, ...]
  kind: gguf.GGMLQuantizationType
  weights: Mapping[str, tuple[Any, np.ndarray | None]]


def _tensors(
  config: transformer.Config,
  architecture: Architecture,
  leaves: Mapping[str, _Leaf],
  dtype: str,
) -> dict[str, _Tensor]:
  """Returns {name: what to write}, in the order of our tree."""
  table = families.names_of_layers(architecture.names, config)
  found: dict[str, _Tensor] = {}
  for name in dict.fromkeys(stored.name for stored in table.values()):
    weights = {
      path: (
        stored,
        gguf_names.rows(path, stored, config, architecture.is_paired),
      )
      for path, stored in table.items()
      if stored.name == name
    }
    sizes = [
      leaves[path].shape[:: -1 if stored.is_transposed else 1]
      for path, (stored, _) in weights.items()
    ]
    shape = (sum(size[0] for size in sizes), *sizes[0][1:])
    found[name] = _Tensor(shape, _kind(name, shape, dtype), weights)
  if config.tie_embeddings and architecture.needs_head:
    found[gguf_names.HEAD] = found[gguf_names.EMBEDDING]
  return found


def _kind(
  name: str, shape: tuple[int, ...], dtype: str
) -> gguf.GGMLQuantizationType:
  """Returns the type of a tensor; see the module."""
  if len(shape) == 1 or name == "position_embd.weight":
    return _TYPES["f32"]
  if dtype == "q8_0" and shape[-1] % _BLOCK:
    return _TYPES["f16"]
  return _TYPES[dtype]


def _numbers_of(
  name: str,
  tensor: _Tensor,
  leaves: Mapping[str, _Leaf],
  shift: float,
) -> np.ndarray:
  """Returns a tensor as it is stored, not yet in its type."""
  whole = np.empty(tensor.shape, np.float32)
  for path, (stored, rows) in tensor.weights.items():
    weight = leaves[path].read()
    weight = weight.T if stored.is_transposed else weight
    if path.endswith("/scale") and shift:
      weight = weight + np.float32(shift)
    whole[slice(None) if rows is None else rows] = weight
  if not np.isfinite(whole).all():
    raise UserError(
      f"tensor {name!r} holds NaN or infinity: training went wrong before. "
      "Export an earlier step."
    )
  return whole


def _as_type(
  name: str, whole: np.ndarray, kind: gguf.GGMLQuantizationType
) -> np.ndarray:
  """Returns a tensor in the type that is written.

  Raises:
    UserError: a number is beyond float16.
  """
  with np.errstate(over="ignore"):
    found = gguf.quants.quantize(whole, kind)
  if kind == _TYPES["f16"] and not np.isfinite(found).all():
    raise UserError(
      f"tensor {name!r} holds numbers beyond float16 (65504). Set the type "
      "to f32."
    )
  return found


def write(
  path: str | Path,
  config: transformer.Config,
  params: Any,
  tokenizer: Any,
  dtype: str = "f16",
  *,
  general: Mapping[str, str] | None = None,
) -> Path:
  """Writes a model as one GGUF file; returns its path.

  Args:
    path: of a new file.
    config: architecture.
    params: the tree under "params", LoRA factors already merged; layers
      stacked when config.scan_layers. One leaf at a time is brought here.
    tokenizer: of the model, of data/tokenizers.py.
    dtype: of matrices, one of DTYPES.
    general: "name", "license" and others of general.* in the file.

  Raises:
    UserError: an architecture or a tokenizer that llama.cpp would read
      otherwise, or not at all.
    FileExistsError: the file is there.
  """
  check_choice("dtype", dtype, tuple(DTYPES))
  path = Path(path)
  if path.exists():
    raise FileExistsError(f"{path} is there already. Name a new file.")
  name = architecture_of(config.family)
  architecture = ARCHITECTURES[name]
  config = _within_window(config, name)
  values = {f"{name}.{k}": v for k, v in _numbers(config, name).items()}
  factors = _factors(config, name)
  leaves = _leaves(config, params)
  tensors = _tensors(config, architecture, leaves, dtype)
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  shapes |= {key: array.shape for key, array in factors.items()}
  _check_read_back(config, name, values, factors, shapes)
  vocabulary = gguf_vocabulary_writer.entries(tokenizer, config.vocab_size)
  writer = gguf.GGUFWriter(None, name)
  writer.add_type("model")
  for key, value in (general or {}).items():
    writer.add_string(f"general.{key}", value)
  writer.add_file_type(DTYPES[dtype])
  if dtype == "q8_0":
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
  for key, value in (values | vocabulary).items():
    add(writer, key, value)
  part = path.with_name(path.name + ".part")
  _write_file(writer, part, tensors, factors, leaves, architecture.norm_shift)
  part.replace(path)
  return path


def _write_file(
  writer: gguf.GGUFWriter,
  path: Path,
  tensors: Mapping[str, _Tensor],
  factors: Mapping[str, np.ndarray],
  leaves: Mapping[str, _Leaf],
  shift: float,
) -> None:
  """Writes the header of a file, then its tensors one by one."""
  for name, array in factors.items():
    writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
  for name, tensor in tensors.items():
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    count = int(np.prod(tensor.shape))
    writer.add_tensor_info(
      name,
      tensor.shape,
      np.dtype(np.float32),
      count // block * size,
      raw_dtype=tensor.kind,
    )
  try:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in factors.values():
      writer.write_tensor_data(array)
    for name, tensor in tensors.items():
      whole = _numbers_of(name, tensor, leaves, shift)
      writer.write_tensor_data(_as_type(name, whole, tensor.kind))
  except BaseException:
    path.unlink(missing_ok=True)
    raise
  finally:
    writer.close()


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
  """Adds a key with the type of GGUF that its value has."""
  if isinstance(value, bool):
    writer.add_bool(key, value)
  elif isinstance(value, str):
    writer.add_string(key, value)
  elif isinstance(value, float):
    writer.add_float32(key, value)
  elif isinstance(value, int):
    writer.add_uint32(key, value)
  else:
    writer.add_array(key, value)
