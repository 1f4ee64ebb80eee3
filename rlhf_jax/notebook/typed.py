"""What a person at a terminal sees of a talk, and how one stops an answer."""

from __future__ import annotations

import signal
from typing import Any

from rlhf_jax.data import retold


class Stopping:
  """Ctrl-C while an answer is drawn only asks; the second one ends all."""

  def __init__(self) -> None:
    self.is_asked = False

  def _ask(self, number: int, frame: Any) -> None:
    del number, frame
    if self.is_asked:
      raise KeyboardInterrupt
    self.is_asked = True

  def __enter__(self) -> Stopping:
    self._before = signal.signal(signal.SIGINT, self._ask)
    return self

  def __exit__(self, *_: object) -> None:
    signal.signal(signal.SIGINT, self._before)


def visible(text: str) -> str:
  """Returns a text whose control characters are seen and not obeyed."""

  def one(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or not (code < 32 or 127 <= code < 160):
      return character
    return chr(0x2400 + code) if code < 32 else retold.UNFINISHED

  return "".join(map(one, text))
