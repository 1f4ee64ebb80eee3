"""Files of safetensors: which tensors a folder has, and rows of one of them.

The library safetensors checks each file. Rows are read here, because it gives
numpy no 8-bit floats and maps whole files, so that a process seems to hold all
that it has read. A map here lasts as long as its rows are used.
"""

from __future__ import annotations

import dataclasses
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.models.config_fields import COPY
from rlhf_jax.schema import UserError, absence

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
DAMAGED = "So a file of the model is damaged."
AGAIN = "Copy or download the model again."
POINTER = b"version https://git-lfs"  # how one begins
FLOAT8 = {
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
KINDS = {  # of tensors that are read
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  **FLOAT8,
}


class TensorFile:
  """One safetensors file; tensors: name -> Tensor.

  Raises:
    UserError: it is damaged, or another kind of file.
    FileNotFoundError: no file is there.
  """

  def __init__(self, path: str | Path) -> None:
    self.path = Path(path)
    _check(self.path)
    self._file = self.path.open("rb")
    (length,) = struct.unpack("<Q", self._file.read(8))
    try:
      header = strict_json.loads(self._file.read(length).decode())
    except ValueError as error:
      raise UserError(
        f"{self.path}: a file of the model is damaged (its header: {error}). "
        f"{AGAIN}"
      ) from error
    header.pop("__metadata__", None)
    self._begin = 8 + length
    self.tensors = {
      name: Tensor(
        self,
        name,
        entry["dtype"],
        tuple(entry["shape"]),
        *entry["data_offsets"],
      )
      for name, entry in header.items()
    }

  def mapped(self, first: int, length: int) -> np.ndarray:
    """Returns some bytes of the tensors, mapped while they are used."""
    at = self._begin + first
    before = at % mmap.ALLOCATIONGRANULARITY
    opened = mmap.mmap(
      self._file.fileno(),
      before + length,
      access=mmap.ACCESS_READ,
      offset=at - before,
    )
    return np.frombuffer(opened, np.uint8, length, before)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file.

  kind: a key of KINDS, or the name of another type.
  begin, end: of its bytes among those of the tensors.
  """

  file: TensorFile
  name: str
  kind: str
  shape: tuple[int, ...]
  begin: int
  end: int

  @property
  def place(self) -> str:
    """Where it is, for messages."""
    return f"{self.file.path}: tensor {self.name!r}"

  @property
  def size_bytes(self) -> int:
    return self.end - self.begin

  def rows(self, first: int, end: int) -> np.ndarray:
    """Returns some rows as they are stored.

    Args:
      first, end: of the first axis; there must be one, and a number in it.
    """
    stride = self.size_bytes // self.shape[0]
    begin = self.begin + first * stride
    flat = self.file.mapped(begin, (end - first) * stride)
    return flat.view(KINDS[self.kind]).reshape(end - first, *self.shape[1:])

  def whole(self) -> np.ndarray:
    """Returns a small tensor as float32."""
    if 0 in self.shape:
      return np.zeros(self.shape, np.float32)
    flat = self.file.mapped(self.begin, self.size_bytes).view(KINDS[self.kind])
    return flat.reshape(self.shape).astype(np.float32)


def _check(path: Path) -> None:
  """Raises UserError or FileNotFoundError unless it is such a file."""
  from safetensors import SafetensorError, safe_open

  if not path.is_file():
    raise FileNotFoundError(f"{path}: {absence(path)}. {AGAIN}")
  with path.open("rb") as file:
    if file.read(len(POINTER)) == POINTER:
      raise UserError(
        f"{path}: a pointer of Git LFS stands in place of the file. Fetch it "
        "with `git lfs pull`."
      )
  try:
    with safe_open(path, framework="np"):
      pass
  except (SafetensorError, ValueError, OSError) as error:
    raise UserError(
      f"{path}: a file of the model is damaged ({error}). {AGAIN}"
    ) from error


def read_json(path: Path) -> dict[str, Any]:
  """Returns an object of a model folder.

  Raises:
    FileNotFoundError: it is not there.
    UserError: it is no object.
  """
  if not path.is_file():
    remedy = "A Hugging Face model folder holds config.json and *.safetensors."
    if (path.parent / "adapter_config.json").exists():
      remedy = (
        "This is an adapter (LoRA): name its base model here, and this folder "
        "in init_from."
      )
    raise FileNotFoundError(f"{path}: {absence(path)}. {remedy}")
  return strict_json.read_object(path, f"{DAMAGED} {COPY}")


def of_folder(folder: Path) -> dict[str, Tensor]:
  """Returns {name: tensor} of one file, or of an indexed set.

  Tensors that an index leaves out are there too: who reads them may refuse.

  Raises:
    FileNotFoundError: a file is not there.
    UserError: a file is damaged, or the index is wrong about one.
  """
  index, path = folder / INDEX, folder / WEIGHTS
  if not index.exists():
    if not path.is_file():
      raise FileNotFoundError(
        f"{path}: {absence(path)}, and no {INDEX} beside it. Save the model in "
        "the safetensors format."
      )
    return TensorFile(path).tensors
  weight_map, size = _read_index(index)
  if path.exists() and set(weight_map.values()) != {WEIGHTS}:
    raise UserError(
      f"{folder}: holds both {WEIGHTS} and {INDEX}, which names other "
      "files: two models, or one of them is old. Move one of the two away."
    )
  files = {
    name: TensorFile(folder / name) for name in sorted(set(weight_map.values()))
  }
  _check_index(index, weight_map, files, size)
  return {
    name: tensor
    for file in files.values()
    for name, tensor in file.tensors.items()
  }


def shard_names(index: Path) -> list[str]:
  """Returns the files that an index names; raises as `of_folder` does."""
  return sorted(set(_read_index(index)[0].values()))


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
  """Returns {tensor: file in the same folder}, and bytes of all, if given."""
  content = read_json(index)
  weight_map = content.get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise UserError(
      f"{index}: 'weight_map' is {str(weight_map)[:60]}, not an object of "
      f"tensors and files. {COPY}"
    )
  for name, file in weight_map.items():
    if not isinstance(file, str) or Path(file).name != file or file == "..":
      raise UserError(
        f"{index}: {name!r} is in {str(file)[:60]!r}; must be the name of a "
        f"file in the same folder. {COPY}"
      )
  metadata = content.get("metadata", {})
  size = metadata.get("total_size") if isinstance(metadata, dict) else metadata
  if size is not None and (
    isinstance(size, bool) or not isinstance(size, int | float)
  ):
    raise UserError(
      f"{index}: metadata.total_size is {str(size)[:60]!r}, not a number of "
      f"bytes. {COPY}"
    )
  return weight_map, size


def _check_index(
  index: Path,
  weight_map: Mapping[str, str],
  files: Mapping[str, TensorFile],
  size: float | None,
) -> None:
  """Raises UserError where an index and its files disagree.

  Args:
    index: the file.
    weight_map: tensor -> name of the file that has it.
    files: all of them by name.
    size: bytes of all tensors that it names, if it says.
  """
  for name, file in weight_map.items():
    if name not in files[file].tensors:
      others = [other for other, x in files.items() if name in x.tensors]
      where = f" It is in {others[0]}." if others else ""
      raise UserError(
        f"{files[file].path}: no tensor {name!r}, which {INDEX} looks for "
        f"there.{where} {AGAIN}"
      )
  first: dict[str, str] = {}
  for file, opened in files.items():
    for name in opened.tensors:
      if first.setdefault(name, file) != file:
        raise UserError(
          f"{opened.path}: holds {name!r}, and {first[name]} does too: which "
          f"of the two is the model's? Take one of them out. {AGAIN}"
        )
  total = sum(
    files[file].tensors[name].size_bytes for name, file in weight_map.items()
  )
  if size is not None and size != total:
    raise UserError(
      f"{index}: metadata.total_size={size:.0f}, and the tensors that it names "
      f"have {total} bytes: the index is of other weights. Copy the model "
      "again; if its files are right, correct the number or take it out."
    )
