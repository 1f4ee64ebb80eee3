"""Tokens with their log-ratios: texts add up, ratios add up."""

import numpy as np
import pytest

from rlhf_jax.programs import token_ratios
from rlhf_jax.types import Samples


class Bytes:
  """A tokenizer of UTF-8 bytes; 256 is an end without a text."""

  vocab_size = 257

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class Joined(Bytes):
  """One whose text of a token depends on all that follows."""

  def decode(self, ids):
    return super().decode(ids[::-1])


def test_characters_of_several_tokens_are_taken_together():
  ids = list("aé→".encode())
  ratios = [0.5, 0.25, -0.75, 1.0, 2.0, 4.0]
  assert token_ratios.pieces(Bytes(), ids, ratios) == [
    ("a", 0.5),
    ("é", -0.5),
    ("→", 7.0),
  ]


def test_an_end_token_and_a_broken_character_keep_their_ratio():
  found = token_ratios.pieces(Bytes(), [97, 256], [0.5, 1.5])
  assert found == [("a", 0.5), ("", 1.5)]
  found = token_ratios.pieces(Bytes(), [97, 0xE2], [0.5, 1.5])
  assert found == [("a", 0.5), ("\ufffd", 1.5)]
  assert token_ratios.pieces(Bytes(), [], []) == []


def test_texts_that_do_not_add_up_are_not_told():
  assert token_ratios.pieces(Joined(), [97, 98], [1.0, 1.0]) is None


def test_of_samples_masks_and_room():
  tokens = np.array([[9, 97, 98, 256], [9, 99, 100, 0], [9, 97, 0, 0]])
  mask = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]], np.float32)
  samples = Samples(
    tokens=tokens,
    response_mask=mask,
    valid_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=np.zeros(3, np.int32),
  )
  ratios = np.arange(12.0).reshape(3, 4)
  found = token_ratios.of_samples(Bytes(), samples, ratios, room=4)
  assert found == [[("a", 1.0), ("b", 2.0), ("", 3.0)], None, None]
  found = token_ratios.of_samples(Bytes(), samples, ratios, room=99)
  assert found[1:] == [[("c", 5.0), ("d", 6.0)], [("a", 9.0)]]
  for row, values, kept in zip(found, ratios, mask, strict=True):
    total = sum(ratio for _, ratio in row)
    assert total == pytest.approx(np.sum(values * kept))
