"""Tokens, one after the other, as text that may be shown.

What is shown is never taken back: bytes of a character that is not whole, the
begin of what may become a stop string, and white space that a chat template
writes behind an answer wait until it is known what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlhf_jax.data import retold
from rlhf_jax.data.tokenizers import Tokenizer

BEFORE = 8  # tokens of the prompt that an answer is decoded behind


def _waiting(text: str, marks: Sequence[str]) -> int:
  """Returns how many characters at the end may be the begin of a mark."""
  most = 0
  for mark in marks:
    for size in range(min(len(mark) - 1, len(text)), most, -1):
      if text.endswith(mark[:size]):
        most = size
        break
  return most


@dataclasses.dataclass
class Pieces:
  """An answer that comes token by token.

  tokenizer: of the model.
  prompt: ids before the answer.
  ends: ids that end an answer.
  stops: texts that end an answer, and are no part of what is shown.
  around: what a chat template writes before and after an answer.
  """

  tokenizer: Tokenizer
  prompt: Sequence[int]
  ends: Sequence[int] = ()
  stops: Sequence[str] = ()
  around: tuple[str, str] = ("", "")
  ids: list[int] = dataclasses.field(default_factory=list)
  _shown: str = ""

  def add(self, token: int) -> str:
    """Returns what can be shown now that one more token is drawn."""
    self.ids.append(int(token))
    text = self._decoded()
    before, after = self.around
    if before.startswith(text) and len(text) < len(before):
      return ""
    text = self._stopped(text.removeprefix(before))
    whole = text.rstrip(retold.UNFINISHED)
    marks = [*self.stops, *([after + " "] if after else [])]
    return self._show(whole[: len(whole) - _waiting(whole, marks)])

  def finish(self, *, has_ended: bool) -> tuple[retold.Said, str]:
    """Returns the answer, and what of it was not shown yet.

    Args:
      has_ended: by an end token or a stop string; False where it was cut.
    """
    said = retold.said(
      self.prompt[-BEFORE:],
      self.ids,
      self.tokenizer,
      self.ends,
      has_ended=has_ended,
      chat=False,
    )
    before, after = self.around
    text = self._stopped(said.text.removeprefix(before))
    text = text.removesuffix(after) if said.has_end else text
    rest = self._show(text)
    if text != self._shown:  # a decoder that changed what it had written
      rest, self._shown = f"\n{text}", text
    return dataclasses.replace(said, text=text), rest

  def _decoded(self) -> str:
    ids = self.ids
    if ids and ids[-1] in self.ends:
      ids = ids[:-1]
    return retold.continuation(self.prompt[-BEFORE:], ids, self.tokenizer)

  def _stopped(self, text: str) -> str:
    """Returns a text up to the first stop string."""
    places = [text.find(stop) for stop in self.stops]
    return text[: min((n for n in places if n >= 0), default=len(text))]

  def _show(self, text: str) -> str:
    """Returns what a text adds to what is shown; "" where it does not go on."""
    if not text.startswith(self._shown):
      return ""
    new = text[len(self._shown) :]
    self._shown = text
    return new
