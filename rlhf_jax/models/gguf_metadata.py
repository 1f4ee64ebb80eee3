"""The entries of a GGUF file about its architecture, one by one.

As config_fields.py: a reader asks for each key that matters, and what nobody
asked for is refused. GGUF holds numbers in float32; one is read as the
shortest decimal that means it, so that 1e-6 is 1e-6 again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlhf_jax.models import config_fields
from rlhf_jax.models.gguf_names import EMBEDDING, HEAD
from rlhf_jax.schema import UserError

# Keys that change no number of a forward pass.
_HARMLESS = ("vocab_size", "rope.scaling.finetuned")
# Keys of older converters that say what we do anyway.
_USUAL = {
  "attention.causal": True,
  "expert_count": 0,
  "expert_used_count": 0,
  "pooling_type": 0,
  "tensor_data_layout": "Meta AI original pth",
}
_EXTEND = "Use a file without it or extend rlhf_jax/models/gguf_configs.py."


class Metadata:
  """What a file says; keys are without the name of the architecture.

  Args:
    architecture: its name, before each key.
    values: {key with that name: value}.
    shapes: {tensor: sizes of its axes, the outputs of a map first}.
    read: (name) -> [n] float array, of a small tensor.
    is_tied: the output head is the embedding.
  """

  def __init__(
    self,
    architecture: str,
    values: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    is_tied: bool,
  ) -> None:
    self.architecture, self.values = architecture, values
    self.shapes, self.is_tied = shapes, is_tied
    self.tensors_read: set[str] = set()
    self._read, self._seen = read, set()

  def name(self, key: str) -> str:
    """Returns a key as it stands in the file."""
    return f"{self.architecture}.{key}"

  def get(self, key: str, usual: Any = None) -> Any:
    """Returns an entry; `usual` where it is not there."""
    self._seen.add(self.name(key))
    value = self.values.get(self.name(key), usual)
    if isinstance(value, float | np.floating):
      return float(str(np.float32(value)))
    return value

  def _given(self, key: str, usual: Any) -> dict[str, Any]:
    value = self.get(key, usual)
    if value is None:
      raise UserError(
        f"no metadata {self.name(key)!r} in this GGUF file: it is not a "
        "complete model. Use a file exported with its hyperparameters."
      )
    return {self.name(key): value}

  def whole(self, key: str, usual: int | None = None) -> int:
    """Returns a size, a whole number from 1; None as `usual`: it must be there.

    Raises:
      UserError: it is not there, or something else.
    """
    return config_fields.whole(self._given(key, usual), self.name(key))

  def positive(self, key: str, usual: float | None = None) -> float:
    """Returns a positive number; see `whole`."""
    given = self._given(key, usual)
    return config_fields.positive(given, self.name(key), 0.0)

  def flag(self, key: str) -> bool:
    """Returns true or false; see `whole`."""
    value = self._given(key, None)[self.name(key)]
    if not isinstance(value, bool | np.bool_):
      raise UserError(
        f"{self.name(key)}={value!r:.60}: must be true or false. "
        f"{config_fields.COPY}"
      )
    return bool(value)

  def only(self, key: str, allowed: Any) -> None:
    """Raises UserError unless an entry is absent or `allowed`."""
    value = self.get(key, allowed)
    if value != allowed:
      raise UserError(
        f"GGUF {self.name(key)}={value!r:.60}: only {allowed!r} is "
        f"implemented. {_EXTEND}"
      )

  def read(self, tensor: str) -> np.ndarray:
    """Returns the numbers of a small tensor."""
    self.tensors_read.add(tensor)
    return self._read(tensor)

  def has(self, tensor: str) -> bool:
    """Says whether the file holds a tensor."""
    return tensor in self.shapes

  def embedding_rows(self) -> int:
    """Returns how many tokens the embedding has.

    Raises:
      UserError: the file has none, or a damaged one.
    """
    shape = self.shapes.get(EMBEDDING)
    if shape is None:
      raise UserError(
        f"no tensor {EMBEDDING!r} in this GGUF file: it is damaged or holds no "
        "language model. Fetch it again."
      )
    if len(shape) != 2:
      raise UserError(
        f"tensor {EMBEDDING!r} has {len(shape)} axes, not 2: the file is "
        "damaged. Fetch it again."
      )
    return int(shape[0])

  def check_all_seen(self) -> None:
    """Raises UserError for an entry that might matter and nobody asked for."""
    for key in _HARMLESS:
      self.get(key)
    for key, allowed in _USUAL.items():
      self.only(key, allowed)
    unread = sorted(set(self.values) - self._seen)
    if unread:
      raise UserError(
        f"GGUF {unread[0]}={self.values[unread[0]]!r:.60}: the "
        f"{self.architecture} architecture is read without it, and it may "
        f"change the numbers. {_EXTEND}"
      )


def tied(shapes: Mapping[str, Any], is_copy: bool) -> bool:
  """Says whether the output head is the embedding.

  Args:
    shapes: {tensor: anything} of a file.
    is_copy: its head holds the bytes of the embedding.
  """
  return HEAD not in shapes or is_copy
