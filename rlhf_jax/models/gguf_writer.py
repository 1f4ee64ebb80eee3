"""Config, parameters and a tokenizer -> one GGUF file, for llama.cpp.

Tensors have the names of gguf_names.py, keys those of gguf_keys.py, which
refuses a model that llama.cpp would compute otherwise.

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
  gguf_keys,
  gguf_names,
  transformer,
  trees,
)
from rlhf_jax.models.gguf_configs import ARCHITECTURES, Architecture
from rlhf_jax.schema import UserError, check_choice

DTYPES = {  # of matrices -> general.file_type
  "f32": gguf.LlamaFileType.ALL_F32,
  "f16": gguf.LlamaFileType.MOSTLY_F16,
  "bf16": gguf.LlamaFileType.MOSTLY_BF16,
  "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_TYPES = {
  "f32": gguf.GGMLQuantizationType.F32,
  "f16": gguf.GGMLQuantizationType.F16,
  "bf16": gguf.GGMLQuantizationType.BF16,
  "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_BLOCK = 32  # numbers of a row in a block of q8_0


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
  is_writing: bool = True,
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
    is_writing: False only reads, as the other processes of a run must, whose
      leaves come from devices of all of them.

  Raises:
    UserError: an architecture or a tokenizer that llama.cpp would read
      otherwise, or not at all.
    FileExistsError: the file is there.
  """
  check_choice("dtype", dtype, tuple(DTYPES))
  path = Path(path)
  if is_writing and path.exists():
    raise FileExistsError(f"{path} is there already. Name a new file.")
  name = gguf_keys.architecture_of(config.family)
  architecture = ARCHITECTURES[name]
  config = gguf_keys.within_window(config, name)
  keys, factors = gguf_keys.keys(config, name), gguf_keys.factors(config, name)
  leaves = _leaves(config, params)
  tensors = _tensors(config, architecture, leaves, dtype)
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  shapes |= {key: array.shape for key, array in factors.items()}
  gguf_keys.check_read_back(config, name, keys, factors, shapes)
  keys |= gguf_vocabulary_writer.entries(tokenizer, config.vocab_size)
  if not is_writing:
    for name, tensor in tensors.items():
      _numbers_of(name, tensor, leaves, architecture.norm_shift)
    return path
  writer = _header(name, dtype, general or {}, keys)
  part = path.with_name(path.name + ".part")
  _write_file(writer, part, tensors, factors, leaves, architecture.norm_shift)
  part.replace(path)
  return path


def _header(
  name: str, dtype: str, general: Mapping[str, str], keys: Mapping[str, Any]
) -> gguf.GGUFWriter:
  """Returns a writer that holds all keys of a file."""
  writer = gguf.GGUFWriter(None, name)
  writer.add_type("model")
  for key, value in general.items():
    writer.add_string(f"general.{key}", value)
  writer.add_file_type(DTYPES[dtype])
  if dtype == "q8_0":
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
  for key, value in keys.items():
    add(writer, key, value)
  return writer


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
