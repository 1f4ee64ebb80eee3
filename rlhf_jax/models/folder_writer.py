"""Parameters -> a Hugging Face folder: config.json and safetensors.

The name tables of `load` (huggingface.py) serve here the other way round.
Weights come one tensor at a time: a leaf of the tree may be an array, or
anything that becomes one when it is read (stored.Unread).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.models import families, safetensors_writer, transformer, trees
from rlhf_jax.models.family_names import Stored
from rlhf_jax.models.safetensors_writer import CODES, Tensor
from rlhf_jax.schema import UserError, check_choice

DTYPES = tuple(CODES)
MOST_BYTES = 5 * 10**9  # of the tensors of a file
SCORE = "score.weight"  # of a model that classifies
_PIECE = 1 << 20  # numbers that are turned and rounded at a time

_FIELDS = dataclasses.fields(transformer.Config)
_OF_A_RUN = {  # fields of a Config that no file says, and their defaults
  field.name: field.default
  for field in _FIELDS[[f.name for f in _FIELDS].index("empty_rows") :]
}


def _llama_entries(config: transformer.Config) -> dict[str, Any]:
  """Returns config.json of a model of the llama family that has none."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "num_hidden_layers": config.n_layers,
    "num_attention_heads": config.n_heads,
    "num_key_value_heads": config.n_kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp_width,
    "rms_norm_eps": config.norm_epsilon,
    "rope_theta": config.rope_theta,
    "max_position_embeddings": config.max_length,
    "tie_word_embeddings": config.tie_embeddings,
    "hidden_act": "silu",
  }


def entries(
  config: transformer.Config, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the entries of config.json that mean an architecture.

  Args:
    config: of the weights.
    original: of the folder that they come from, kept as it is; None for a
      model that comes from none, which only the llama family can write.

  Raises:
    UserError: they would mean another architecture.
  """
  found = dict(original) if original is not None else _llama_entries(config)
  plain = dataclasses.replace(config, **_OF_A_RUN)
  name = found.get("model_type")
  again = families.FAMILIES[name].config(name, found)
  differing = [
    field.name
    for field in dataclasses.fields(plain)
    if getattr(plain, field.name) != getattr(again, field.name)
  ]
  if differing:
    field = differing[0]
    raise UserError(
      f"{field}={getattr(plain, field)!r}: only the llama family can be "
      "exported without a config.json of before, and it has "
      f"{getattr(again, field)!r}. Start from a Hugging Face folder of the "
      f"{config.family} family, or train a model of the llama family."
    )
  return found


def save(
  folder: str | Path,
  config: transformer.Config,
  params: dict,
  *,
  dtype: str = "float32",
  original: Mapping[str, Any] | None = None,
  further: Mapping[str, Any] | None = None,
  score: np.ndarray | None = None,
  most_bytes: int = MOST_BYTES,
  is_writing: bool = True,
) -> list[str]:
  """Writes config.json and safetensors that transformers reads.

  Args:
    folder: created when absent.
    config: architecture.
    params: the tree under "params", LoRA factors already merged; layers
      stacked when config.scan_layers.
    dtype: of the tensors, one of DTYPES.
    original: see `entries`.
    further: entries of config.json beside the architecture's; None takes one
      out.
    score: [labels, width] in the place of the unembedding; None for a model
      that generates.
    most_bytes: of the tensors of a file.
    is_writing: False only reads, see safetensors_writer.write.

  Returns:
    names of the files.

  Raises:
    UserError: an architecture that config.json would not mean, or a number
      that the dtype cannot hold.
  """
  check_choice("dtype", dtype, DTYPES)
  said = entries(config, original)
  folder = Path(folder)
  if is_writing:
    folder.mkdir(parents=True, exist_ok=True)
    said.pop("dtype", None)  # its newer name, which few versions read
    said |= {"torch_dtype": dtype} | ({} if further is None else dict(further))
    said = {name: value for name, value in said.items() if value is not None}
    text = json.dumps(said, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
  leaves = _leaves(config, params)
  table = _table(config, is_headless=score is not None)
  tensors = [
    Tensor(name, _shape(parts, leaves)) for name, parts in table.items()
  ]
  if score is not None:
    tensors.append(Tensor(SCORE, score.shape))

  def pieces(tensor: Tensor) -> Iterator[np.ndarray]:
    if tensor.name == SCORE:
      return iter([score])
    return _pieces(table[tensor.name], leaves)

  files = safetensors_writer.write(
    folder,
    tensors,
    pieces,
    dtype=dtype,
    most_bytes=most_bytes,
    is_writing=is_writing,
  )
  return ["config.json", *files]


def _table(
  config: transformer.Config, *, is_headless: bool
) -> dict[str, dict[str, Stored]]:
  """Returns tensor -> the weights of ours in it, layer after layer."""
  if is_headless:
    config = dataclasses.replace(config, tie_embeddings=True)
  family = families.FAMILIES[config.family]
  found: dict[str, dict[str, Stored]] = {}
  for ours, stored in families.names_of_layers(family.names, config).items():
    found.setdefault(stored.name, {})[ours] = stored

  def order(name: str) -> list[tuple[bool, int, str]]:
    return [
      (x.isdigit(), int(x) if x.isdigit() else 0, x)
      for x in re.split(r"\.", name)
    ]

  return {name: found[name] for name in sorted(found, key=order)}


class _Layer:
  """One layer's weight out of a stack of all layers'."""

  def __init__(self, stack: Any, index: int) -> None:
    self._stack, self._index = stack, index
    self.shape = tuple(stack.shape[1:])

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    i = self._index
    if isinstance(self._stack, np.ndarray):
      found = self._stack[i]
    else:
      rest = (slice(None),) * len(self.shape)
      found = np.asarray(self._stack[(slice(i, i + 1), *rest)])[0]
    return found if dtype is None else found.astype(dtype)


def _leaves(config: transformer.Config, params: dict) -> dict[str, Any]:
  """Returns path -> weight, layers unstacked; nothing is read."""
  flat = trees.flatten(params)
  if not config.scan_layers:
    return flat
  found = {}
  for path, leaf in flat.items():
    if path.startswith("layers/"):
      rest = path.removeprefix("layers/")
      for i in range(config.n_layers):
        found[f"layer_{i}/{rest}"] = _Layer(leaf, i)
    else:
      found[path] = leaf
  return found


def _shape(
  parts: Mapping[str, Stored], leaves: Mapping[str, Any]
) -> tuple[int, ...]:
  """Returns the shape of a stored tensor."""
  shapes = [tuple(leaves[ours].shape) for ours in parts]
  whole = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
  is_turned = next(iter(parts.values())).is_transposed
  return whole[::-1] if is_turned else whole


def _pieces(
  parts: Mapping[str, Stored], leaves: Mapping[str, Any]
) -> Iterator[np.ndarray]:
  """Yields a stored tensor as rows of it, float32.

  At most one weight is in memory, and where a tensor holds several the tensor
  beside it.
  """
  first = next(iter(parts.values()))
  if first.part is None:
    whole = _float32(leaves[next(iter(parts))])
  else:
    whole = _joined(parts, leaves)
  if first.is_transposed:
    whole = whole.T
  if whole.ndim < 2:
    yield whole
    return
  rows = max(1, _PIECE // max(1, whole[0].size))
  for start in range(0, len(whole), rows):
    yield np.ascontiguousarray(whole[start : start + rows])


def _float32(leaf: Any) -> np.ndarray:
  """Returns a weight; what is float32 already is not copied."""
  return np.asarray(np.asarray(leaf), np.float32)


def _joined(
  parts: Mapping[str, Stored], leaves: Mapping[str, Any]
) -> np.ndarray:
  """Returns a stored tensor, [in, out], of the weights that it holds."""
  shapes = [tuple(leaves[ours].shape) for ours in parts]
  outputs = sum(shape[-1] for shape in shapes)
  whole = np.empty((*shapes[0][:-1], outputs), np.float32)
  for ours, stored in parts.items():
    weight, part = _float32(leaves[ours]), stored.part
    for mine, theirs in part.pieces(0, part.size):
      whole[..., theirs] = weight[..., mine]
  return whole
