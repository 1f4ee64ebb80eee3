"""Chat templates against transformers: texts, ids, masks; plain texts.

chat.json.gz has what transformers made of the conversations of
tests/oracles/conversations.py, with templates in the styles of the families.
"""

import pytest

from rlhf_jax.models import family_configs
from tests.oracles import chat_parity, chat_styles, conversations

CONVERSATIONS = conversations.every()


@pytest.mark.parametrize("style", chat_styles.STYLES)
def test_text_ids_and_masks_are_those_of_transformers(style):
  keys = [key for key in chat_parity.goldens()[style] if " " in key]
  found = {key: chat_parity.difference(style, key) for key in keys}
  wrong = {key: text for key, text in found.items() if text}
  assert not wrong, next(iter(wrong.items()))


def test_there_are_enough_of_every_kind():
  entries = {
    (style, key): golden
    for style, goldens in chat_parity.goldens().items()
    for key, golden in goldens.items()
    if " " in key
  }
  numbers = {int(key.split()[0]) for _, key in entries}
  assert len(numbers) == len(CONVERSATIONS) >= 40
  assert sum("mask" in golden for golden in entries.values()) > 60
  for mode in ("ask", "whole", "continue"):
    assert sum(mode in key for _, key in entries) > 100


def test_every_family_has_its_columns():
  assert set(chat_parity.TOKENIZERS) == set(family_configs.READERS)
  for family in chat_parity.TOKENIZERS:
    equal, count = chat_parity.tokenizers(family)
    assert equal == count >= 10
  assert chat_parity.templates("gpt2") is None
  assert chat_parity.templates("phi3") == (57, 57)


def test_a_difference_is_said(monkeypatch):
  golden = {"text": "?", "ids": []}
  key = "0 whole"
  monkeypatch.setitem(chat_parity.goldens()["phi3"], key, golden)
  assert chat_parity.difference("phi3", key).startswith("text '<|user|>")
  assert chat_parity.templates("phi3") == (56, 57)
