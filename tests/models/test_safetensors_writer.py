"""Files written tensor by tensor are those of the library, cut as its are."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import safetensors_writer
from rlhf_jax.models.safetensors_writer import Tensor
from rlhf_jax.schema import UserError

RANDOM = np.random.default_rng(0)
TENSORS = {
  name: RANDOM.standard_normal(shape).astype(np.float32)
  for name, shape in (("a", (6, 4)), ("b", (3,)), ("c", (2, 5)), ("d", ()))
}


def write(folder, tensors=TENSORS, dtype="float32", most_bytes=10**9):
  specs = [Tensor(name, x.shape) for name, x in tensors.items()]
  rows = lambda x: [x] if x.ndim < 2 else list(x)  # noqa: E731
  return safetensors_writer.write(
    folder,
    specs,
    lambda tensor: rows(tensors[tensor.name]),
    dtype=dtype,
    most_bytes=most_bytes,
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_is_byte_for_byte_that_of_the_library(dtype, tmp_path):
  assert write(tmp_path, dtype=dtype) == ["model.safetensors"]
  stored = safetensors_writer.numpy_dtype(dtype)
  rounded = {name: x.astype(stored) for name, x in TENSORS.items()}
  save_file(rounded, tmp_path / "theirs", metadata={"format": "pt"})
  ours = (tmp_path / "model.safetensors").read_bytes()
  assert ours == (tmp_path / "theirs").read_bytes()


def test_files_are_cut_before_they_grow_too_large(tmp_path):
  names = write(tmp_path, most_bytes=60)
  count = 3  # 96 bytes alone; 12 + 40; 4 more fit
  assert names[-1] == safetensors_writer.INDEX_FILE and len(names) == count
  index = json.loads((tmp_path / names[-1]).read_text())
  assert index["weight_map"] == {
    "a": "model-00001-of-00002.safetensors",
    **dict.fromkeys("bcd", "model-00002-of-00002.safetensors"),
  }
  size = sum(x.nbytes for x in TENSORS.values())
  assert index["metadata"]["total_size"] == size
  for tensor, file in index["weight_map"].items():
    found = load_file(tmp_path / file)[tensor]
    np.testing.assert_array_equal(found, TENSORS[tensor])


def test_what_a_dtype_cannot_hold_is_refused(tmp_path):
  large = {"w": np.asarray([1.0, -7e4], np.float32)}
  with pytest.raises(UserError, match="w holds 70000, which float16 cannot"):
    write(tmp_path, large, "float16")
  write(tmp_path, large, "bfloat16")
  found = load_file(tmp_path / "model.safetensors")["w"]
  assert found.dtype == ml_dtypes.bfloat16
  with pytest.raises(UserError, match="w: holds NaN or infinity"):
    write(tmp_path, {"w": np.asarray([np.nan], np.float32)}, "bfloat16")


def test_sizes_are_read_as_transformers_does():
  assert safetensors_writer.parse_size("5GB", "x") == 5 * 10**9
  assert safetensors_writer.parse_size(" 20 mb", "x") == 20 * 10**6
  for text in ("5", "0GB", "-1GB", "1.5GB", "GB", "5GiB"):
    with pytest.raises(UserError, match="x=.*whole number and one of KB"):
      safetensors_writer.parse_size(text, "x")
