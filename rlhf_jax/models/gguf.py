"""GGUF files (llama.cpp) -> config and parameters, dequantised to float32.

GGUF stores the rotary halves of q and k interleaved; they are put back into
the two-halves layout that `rotary.rotate` uses. A weight is dequantised when
it is read, so that the model is never there twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import gguf_files
from rlhf_jax.models import config_fields, families, transformer, trees
from rlhf_jax.models.family_names import LLAMA_GGUF
from rlhf_jax.models.stored import Unread, check_finite
from rlhf_jax.schema import UserError


def _metadata(reader: Any, path: Any, key: str, default: Any = None) -> Any:
  value = gguf_files.contents(reader, key, path)
  if value is None and default is None:
    raise UserError(
      f"{path}: no metadata {key!r} in this GGUF file: it is not a complete "
      "model. Use a file exported with its hyperparameters."
    )
  return default if value is None else value


def _config(reader: Any, path: Any) -> transformer.Config:
  architecture = _metadata(reader, path, "general.architecture")
  if architecture != "llama":
    raise UserError(
      f"{path}: GGUF architecture {architecture!r}: only 'llama' is "
      "implemented. Use a llama-architecture file or extend "
      "rlhf_jax/models/gguf.py."
    )
  try:
    return _llama(reader, path)
  except UserError as error:
    message = str(error).removeprefix(f"{path}: ")
    raise UserError(f"{path}: {message}") from error


def _llama(reader: Any, path: Any) -> transformer.Config:
  """Returns the architecture that the metadata of a file gives."""

  def get(key: str, default: Any = None) -> Any:
    return _metadata(reader, path, f"llama.{key}", default)

  def size(key: str, default: int | None = None) -> int:
    return config_fields.whole(
      {f"llama.{key}": get(key, default)}, f"llama.{key}"
    )

  def number(key: str, default: float | None = None) -> float:
    found = {f"llama.{key}": get(key, default)}
    return config_fields.positive(found, f"llama.{key}", 0.0)

  width, heads = size("embedding_length"), size("attention.head_count")
  names = {tensor.name for tensor in reader.tensors}
  if "token_embd.weight" not in names:
    raise UserError(
      "no tensor 'token_embd.weight' in this GGUF file: it is damaged or "
      "holds no language model. Fetch it again."
    )
  embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
  if len(embedding.shape) != 2:
    raise UserError(
      f"tensor 'token_embd.weight' has {len(embedding.shape)} axes, not 2: the "
      "file is damaged. Fetch it again."
    )
  head_dim = size("attention.key_length", max(width // heads, 1))
  for key, allowed in (
    ("rope.scaling.type", "none"),
    ("rope.dimension_count", head_dim),
    ("attention.value_length", head_dim),
  ):
    if get(key, allowed) != allowed:
      raise UserError(
        f"GGUF llama.{key}={get(key)!r}: only {allowed!r} is implemented. Use "
        "a file without it or extend rlhf_jax/models/gguf.py."
      )
  return transformer.Config(
    vocab_size=int(embedding.shape[1]),
    width=width,
    n_layers=size("block_count"),
    n_heads=heads,
    n_kv_heads=size("attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_width=size("feed_forward_length"),
    norm_epsilon=number("attention.layer_norm_rms_epsilon"),
    rope_theta=number("rope.freq_base", 10_000.0),
    max_length=size("context_length"),
    tie_embeddings="output.weight" not in names,
  )


def read_config(path: str | Path) -> transformer.Config:
  """Returns the architecture of a GGUF file; its weights are not read.

  Raises:
    ValueError: for another architecture.
  """
  return _config(gguf_files.open_file(path), path)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
  """Returns [out, in] with each head's interleaved pairs as two halves."""
  out, width = weight.shape
  pairs = weight.reshape(heads, out // heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)


class QuantisedWeight(Unread):
  """One tensor of an open GGUF file, read as in stored.py."""

  def __init__(
    self, tensor: Any, path: Any, *, is_transposed: bool, heads: int = 0
  ) -> None:
    self.tensor, self._path = tensor, path
    self.is_transposed, self.shift = is_transposed, 0.0
    self.rows = None
    if heads:
      rows = np.arange(int(tensor.shape[-1]))
      self.rows = _halves(rows[:, None], heads)[:, 0]
    stored = tuple(int(size) for size in reversed(tensor.shape))
    self.shape = stored[::-1] if is_transposed else stored

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns a piece of what is dequantised whole."""
    import gguf

    tensor = self.tensor
    try:
      weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except (ValueError, NotImplementedError) as error:
      raise UserError(
        f"{self._path}: tensor {tensor.name!r} of type "
        f"{tensor.tensor_type.name} cannot be read ({error}). Fetch the file "
        "again, or one of another type."
      ) from error
    weight = np.asarray(weight, np.float32)
    check_finite(weight, tensor.name, str(self._path))
    weight = weight if self.rows is None else weight[self.rows]
    weight = weight.T if self.is_transposed else weight
    return np.ascontiguousarray(weight[index])


def load(path: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, parameter tree of QuantisedWeight) of a GGUF file.

  Raises:
    ValueError: for another architecture, or a tensor that is missing,
      misshapen or unknown (for example the factors of scaled rotary
      positions).
    FileNotFoundError: when there is no such file.
  """
  reader = gguf_files.open_file(path)
  config = _config(reader, path)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  flat: dict[str, QuantisedWeight] = {}
  table = families.names_of_layers(LLAMA_GGUF, config)
  unread = sorted(set(tensors) - {found.name for found in table.values()})
  if unread:
    raise UserError(
      f"{path}: {len(unread)} tensors have no place in the llama family, the "
      f"first is {unread[0]!r}. Extend rlhf_jax/models/families.py."
    )
  for ours, found in table.items():
    theirs = found.name
    if theirs not in tensors:
      raise UserError(
        f"{path}: no tensor {theirs!r}; the file is damaged or of another "
        "architecture. Fetch it again."
      )
    turned = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}
    flat[ours] = QuantisedWeight(
      tensors[theirs],
      path,
      is_transposed=found.is_transposed,
      heads=turned.get(ours.split("/")[-2], 0),
    )
  families.check_shapes(flat, config, str(path))
  return config, trees.unflatten(flat)
