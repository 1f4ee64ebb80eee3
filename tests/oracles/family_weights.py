"""The weights of the tiny models of families.json, the same on both sides."""

import zlib

import numpy as np


def weight(name: str, shape: list[int]) -> np.ndarray:
  """Returns float32 numbers that follow from a tensor's name.

  Args:
    name: of the tensor in a checkpoint.
    shape: of it; one axis is that of a norm or a bias.
  """
  random = np.random.default_rng(zlib.crc32(name.encode()))
  noise = random.standard_normal(shape)
  if len(shape) > 1:
    found = noise * shape[-1] ** -0.5
  elif name.endswith("bias"):
    found = 0.3 * noise
  else:
    found = 1.0 + 0.2 * noise
  return found.astype(np.float32)
