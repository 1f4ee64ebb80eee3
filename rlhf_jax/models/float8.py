"""Weights that are stored as 8-bit floats with scales, in config.json's words.

  weight = stored * scale

with one scale a tensor, one an output, or one a block of outputs and inputs.
Two kinds of folders say so in `quantization_config`: "fp8" (transformers, whose
`weight_scale_inv` multiplies too, whatever its name says) and
"compressed-tensors" with 8-bit floats. Activations, which such folders may want
rounded as well, stay as they are here.

Left out: all other quantisations, which are refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.models.tensor_files import AGAIN, FLOAT8, KINDS, Tensor
from rlhf_jax.schema import UserError

SCALES = ("weight_scale_inv", "weight_scale")
# Of activations, which are not rounded here.
UNUSED = ("input_scale", "activation_scale")
_FP8 = frozenset(
  """
  quant_method activation_scheme fmt weight_block_size modules_to_not_convert
  ignored_layers scale_fmt dequantize
  """.split()
)
_COMPRESSED = frozenset(
  """
  quant_method format config_groups ignore quantization_status version
  global_compression_ratio kv_cache_scheme sparsity_config transform_config
  """.split()
)
_FORMATS = ("float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "block")


@dataclasses.dataclass(frozen=True)
class Float8:
  """How a folder scales its 8-bit floats.

  block: outputs and inputs that share a scale; None for tensors or outputs.
  """

  block: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Scale:
  """The scales of one tensor.

  values: float32, two axes.
  block: outputs and inputs that share one.
  """

  values: np.ndarray
  block: tuple[int, int]

  def of(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Returns what multiplies a piece; first and end of its axes as stored."""
    at = [
      np.arange(*bounds) // size
      for bounds, size in zip((rows, columns), self.block, strict=True)
    ]
    sizes = self.values.shape
    few = [x[:1] if size == 1 else x for x, size in zip(at, sizes, strict=True)]
    return self.values[np.ix_(*few)]


def read(config: Mapping[str, Any]) -> Float8 | None:
  """Returns how config.json scales 8-bit floats; None if it says nothing.

  Raises:
    UserError: it is another quantisation, or one that is not unambiguous.
  """
  given = config.get("quantization_config")
  if given is None:
    return None
  method = given.get("quant_method") if isinstance(given, dict) else None
  if method == "fp8":
    _only(given, _FP8)
    if given.get("fmt", "e4m3") not in ("e4m3", "e5m2"):
      raise _refused(given, f"fmt={given['fmt']!r:.60}")
    return Float8(_block(given, given.get("weight_block_size")))
  if method == "compressed-tensors":
    return _compressed(given)
  raise _refused(given, f"quant_method={method!r:.60}")


def _refused(given: Any, what: str) -> UserError:
  return UserError(
    f"quantization_config={given!r:.80}: {what} is not implemented: 8-bit "
    "floats with scales are read, of quant_method 'fp8' and "
    "'compressed-tensors'. Take the weights that were quantised, or a GGUF "
    "file."
  )


def _only(given: Mapping[str, Any], known: frozenset[str]) -> None:
  unknown = sorted(set(given) - known)
  if unknown:
    raise _refused(given, f"{unknown[0]}={given[unknown[0]]!r:.60}")


def _block(given: Any, sizes: Any) -> tuple[int, int] | None:
  if sizes is None:
    return None
  is_pair = isinstance(sizes, list) and len(sizes) == 2
  if not is_pair or any(type(x) is not int or x < 1 for x in sizes):
    raise _refused(given, f"a block of {sizes!r:.60}")
  return sizes[0], sizes[1]


def _compressed(given: Mapping[str, Any]) -> Float8:
  """Returns what the entries of compressed-tensors mean."""
  _only(given, _COMPRESSED)
  form = given.get("format")
  if form not in _FORMATS:
    raise _refused(given, f"format={form!r:.60}")
  for field in ("kv_cache_scheme", "sparsity_config", "transform_config"):
    if given.get(field):
      raise _refused(given, f"{field}={given[field]!r:.60}")
  groups = given.get("config_groups")
  if not isinstance(groups, dict) or not groups:
    raise _refused(given, f"config_groups={groups!r:.60}")
  blocks = set()
  for group in groups.values():
    weights = group.get("weights") if isinstance(group, dict) else None
    weights = weights if isinstance(weights, dict) else {}
    kind = [weights.get(x) for x in ("num_bits", "type", "strategy")]
    is_known = kind[:2] == [8, "float"] and kind[2] in _STRATEGIES
    if not is_known or not weights.get("symmetric", True):
      raise _refused(given, f"weights={weights!r:.60}")
    blocks.add(_block(given, weights.get("block_structure")))
  if len(blocks) > 1:
    raise _refused(given, "groups of several block_structures")
  return Float8(blocks.pop())


def scale_names(name: str) -> tuple[str, ...]:
  """Returns the names that the scales of a tensor may have."""
  stem = name.removesuffix("weight")
  return tuple(stem + end for end in SCALES) if stem != name else ()


def scale_of(
  tensors: Mapping[str, Tensor], name: str, how: Float8 | None
) -> Scale | None:
  """Returns the scales of a tensor; None for one that has none.

  Args:
    tensors: of the folder.
    name: of the weight.
    how: of the folder; None if its config.json speaks of no scales.

  Raises:
    UserError: scales are missing, twice, or of no shape that is known.
  """
  weight = tensors[name]
  there = [scale for scale in scale_names(name) if scale in tensors]
  is_small = weight.kind in FLOAT8
  if not there and (how is None or not is_small):
    return None
  if how is None:
    raise UserError(
      f"{weight.place} has a scale {there[0]!r}, and config.json has no "
      "quantization_config that says what it means. Copy config.json again "
      "from where the weights come from."
    )
  if not is_small or len(there) != 1:
    raise UserError(
      f"{weight.place} is {weight.kind} with the scales {there}: one scale to "
      "each 8-bit float, and none to others, is what quantization_config "
      f"means. {AGAIN}"
    )
  scale, shape, block = tensors[there[0]], weight.shape, how.block
  if scale.kind not in KINDS or len(shape) != 2:
    raise UserError(
      f"{scale.place} is {scale.kind} to a weight of {shape}: scales of "
      f"matrices are read, of the types {', '.join(KINDS)}. Convert the model."
    )
  values = scale.whole()
  if block is not None:
    expected = tuple(
      -(-size // step) for size, step in zip(shape, block, strict=True)
    )
  elif values.size == 1:
    values, expected, block = values.reshape(1, 1), (1, 1), shape
  else:
    values = values.reshape(-1, 1) if values.ndim == 1 else values
    expected, block = (shape[0], 1), (1, shape[1])
  if values.shape != expected:
    raise UserError(
      f"{scale.place} is {values.shape} to a weight of {shape}, where "
      f"quantization_config gives {expected}. {AGAIN}"
    )
  return Scale(values, block)
