"""A tokenizer of one token a character, so that lengths are seen by eye."""

from __future__ import annotations

from collections.abc import Sequence


class Letters:
  """Characters as their code points; 2 ends a text and pads it (trap 1)."""

  name = "letters"
  fingerprint = "letters"
  vocab_size = 200
  bos_id = None
  eos_id = 2
  pad_id = 2
  chat_template = None
  special_tokens = {"<e>": 2}

  def encode(self, text: str) -> list[int]:
    return [ord(c) for c in text]

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    end = "" if skip_special else "<e>"
    return "".join(end if i == self.eos_id else chr(i) for i in ids)
