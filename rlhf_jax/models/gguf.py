"""GGUF files (llama.cpp) -> config and parameters, dequantised to float32.

GGUF stores the rotary halves of q and k interleaved; they are put back into
the two-halves layout that `layers.rotate` uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.models import families, transformer, trees
from rlhf_jax.schema import UserError


def _metadata(reader: Any, key: str, default: Any = None) -> Any:
  field = reader.get_field(key)
  if field is None:
    if default is None:
      raise UserError(
        f"no metadata {key!r} in this GGUF file: it is not a complete model. "
        "Use a file exported with its hyperparameters."
      )
    return default
  return field.contents()


def _config(reader: Any) -> transformer.Config:
  architecture = _metadata(reader, "general.architecture")
  if architecture != "llama":
    raise UserError(
      f"GGUF architecture {architecture!r}: only 'llama' is implemented. "
      "Use a llama-architecture file or extend rlhf_jax/models/gguf.py."
    )

  def get(key: str, default: Any = None) -> Any:
    return _metadata(reader, f"llama.{key}", default)

  width, heads = int(get("embedding_length")), int(get("attention.head_count"))
  names = {tensor.name for tensor in reader.tensors}
  if "token_embd.weight" not in names:
    raise UserError(
      "no tensor 'token_embd.weight' in this GGUF file: it is damaged or "
      "holds no language model. Fetch it again."
    )
  embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
  head_dim = int(get("attention.key_length", width // heads))
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
    n_layers=int(get("block_count")),
    n_heads=heads,
    n_kv_heads=int(get("attention.head_count_kv", heads)),
    head_dim=head_dim,
    mlp_width=int(get("feed_forward_length")),
    norm_epsilon=float(get("attention.layer_norm_rms_epsilon")),
    rope_theta=float(get("rope.freq_base", 10_000.0)),
    max_length=int(get("context_length")),
    tie_embeddings="output.weight" not in names,
  )


def read_config(path: str | Path) -> transformer.Config:
  """Returns the architecture of a GGUF file; its weights are not read.

  Raises:
    ValueError: for another architecture.
  """
  import gguf

  return _config(gguf.GGUFReader(str(path)))


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
  """Returns [out, in] with each head's interleaved pairs as two halves."""
  out, width = weight.shape
  pairs = weight.reshape(heads, out // heads // 2, 2, width)
  return pairs.swapaxes(1, 2).reshape(out, width)


def load(path: str | Path) -> tuple[transformer.Config, dict]:
  """Returns (config, parameter tree of float32 numpy arrays) of a GGUF file.

  Raises:
    ValueError: for another architecture, or a tensor that is missing,
      misshapen or unknown (for example the factors of scaled rotary
      positions).
    FileNotFoundError: when there is no such file.
  """
  import gguf

  if not Path(path).is_file():
    raise FileNotFoundError(f"{path}: no such GGUF file. Check the path.")
  reader = gguf.GGUFReader(str(path))
  config = _config(reader)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  flat: dict[str, np.ndarray] = {}
  table = families.names_of_layers(families.LLAMA_GGUF_NAMES, config)
  unread = sorted(set(tensors) - {theirs for theirs, _ in table.values()})
  if unread:
    raise UserError(
      f"{path}: {len(unread)} tensors have no place in the llama family, the "
      f"first is {unread[0]!r}. Extend rlhf_jax/models/families.py."
    )
  for ours, (theirs, transposed) in table.items():
    if theirs not in tensors:
      raise UserError(
        f"{path}: no tensor {theirs!r}; the file is damaged or of another "
        "architecture. Fetch it again."
      )
    tensor = tensors[theirs]
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    weight = np.asarray(weight, np.float32)
    if ours.endswith("q_proj/kernel"):
      weight = _halves(weight, config.n_heads)
    elif ours.endswith("k_proj/kernel"):
      weight = _halves(weight, config.n_kv_heads)
    flat[ours] = np.ascontiguousarray(weight.T) if transposed else weight
  families.check_shapes(flat, config, str(path))
  return config, trees.unflatten(flat)
