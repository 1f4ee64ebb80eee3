"""Safetensors files, written one tensor at a time.

The library's own writer wants all tensors of a file in memory. The format is
a length, a header in JSON and the bytes in its order
(github.com/huggingface/safetensors, README, "Format"), so a file can be
written as its tensors come. Files are cut and named as transformers does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.schema import FieldError, UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_ALIGNMENT = 8  # of the first tensor


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that will be written: its name and shape in the file."""

  name: str
  shape: tuple[int, ...]

  def bytes_as(self, dtype: str) -> int:
    """Returns its size in bytes."""
    return math.prod(self.shape) * numpy_dtype(dtype).itemsize


Pieces = Callable[[Tensor], Iterable[np.ndarray]]


def numpy_dtype(dtype: str) -> np.dtype:
  """Returns the numpy type of a key of CODES."""
  import ml_dtypes

  return np.dtype(getattr(ml_dtypes, dtype, dtype))


def parse_size(text: str, field: str) -> int:
  """Returns bytes of a text such as "5GB": whole numbers of 1000s.

  Args:
    text: a number and a unit of UNITS.
    field: that gave it, for the message.
  """
  number, unit = text.strip()[:-2].strip(), text.strip()[-2:].upper()
  is_number = number.isascii() and number.isdigit() and int(number) > 0
  if unit not in UNITS or not is_number:
    raise FieldError(
      f"{field}={text!r}: must be a whole number and one of "
      f"{', '.join(UNITS)}, such as '5GB'."
    )
  return int(number) * UNITS[unit]


def cut(
  tensors: Sequence[Tensor], dtype: str, most_bytes: int
) -> list[list[Tensor]]:
  """Returns the tensors of each file, in order.

  A file is closed before it would exceed most_bytes; a tensor that is larger
  has a file of its own.

  Args:
    tensors: all of a model.
    dtype: of the files, a key of CODES.
    most_bytes: of the tensors of a file.
  """
  files: list[list[Tensor]] = []
  size = 0
  for tensor in tensors:
    more = tensor.bytes_as(dtype)
    if not files or size + more > most_bytes:
      files.append([])
      size = 0
    files[-1].append(tensor)
    size += more
  return files


def write(
  folder: Path,
  tensors: Sequence[Tensor],
  pieces: Pieces,
  *,
  dtype: str,
  most_bytes: int,
  is_writing: bool = True,
) -> list[str]:
  """Writes model.safetensors, or several files and last their index.

  Args:
    folder: exists.
    tensors: in the order of the files.
    pieces: tensor -> its numbers in row-major order, in any cuts; asked once
      for each, in order.
    dtype: a key of CODES; pieces are rounded to it.
    most_bytes: of the tensors of a file.
    is_writing: False only reads all pieces, as another process of the run
      must whose devices hold parts of them.

  Returns:
    names of the files.

  Raises:
    UserError: a number that the dtype cannot hold, NaN or infinity.
  """
  files = cut(tensors, dtype, most_bytes)
  names = [SINGLE_FILE]
  if len(files) > 1:
    count = len(files)
    names = [
      f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
  for name, own in zip(names, files, strict=True):
    if is_writing:
      _write_file(folder / name, own, pieces, dtype)
    else:
      for tensor in own:
        for _ in pieces(tensor):
          pass
  if len(files) == 1 or not is_writing:
    return names
  index = {
    "metadata": {
      "total_parameters": sum(math.prod(x.shape) for x in tensors),
      "total_size": sum(x.bytes_as(dtype) for x in tensors),
    },
    "weight_map": {
      tensor.name: name
      for name, own in zip(names, files, strict=True)
      for tensor in own
    },
  }
  text = json.dumps(index, indent=2)
  (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
  return [*names, INDEX_FILE]


def _write_file(
  path: Path, tensors: Sequence[Tensor], pieces: Pieces, dtype: str
) -> None:
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for tensor in tensors:
    start, end = end, end + tensor.bytes_as(dtype)
    header[tensor.name] = {
      "dtype": CODES[dtype],
      "shape": list(tensor.shape),
      "data_offsets": [start, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % _ALIGNMENT)
  stored = numpy_dtype(dtype)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
      before = file.tell()
      for piece in pieces(tensor):
        file.write(_rounded(piece, stored, tensor.name).tobytes())
      written = file.tell() - before
      if written != tensor.bytes_as(dtype):
        raise ValueError(
          f"{tensor.name}: {written} bytes of {tensor.bytes_as(dtype)}."
        )


def _rounded(piece: np.ndarray, stored: np.dtype, name: str) -> np.ndarray:
  """Returns a piece in the type of the file.

  Raises:
    UserError: something in it is not finite there.
  """
  with np.errstate(over="ignore"):
    rounded = piece.astype(stored)
  if np.isfinite(rounded.astype(np.float32)).all():
    return rounded
  if not np.isfinite(piece).all():
    raise UserError(
      f"{name}: holds NaN or infinity, so the model that was trained is no "
      "model. Export an earlier step, runs/x@STEP."
    )
  largest = float(np.abs(piece).max())
  raise UserError(
    f"dtype={str(stored)!r}: {name} holds {largest:g}, which {stored} cannot. "
    "Set dtype='bfloat16' or 'float32'."
  )
