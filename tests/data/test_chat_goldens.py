"""Chat templates against transformers: texts, ids, masks, masks of rows.

chat.json.gz has what transformers made of the conversations of
tests/oracles/conversations.py, with templates in the styles of the families.
"""

import gzip
import json
from pathlib import Path

import pytest

from rlhf_jax.data import chat
from rlhf_jax.data.tokenizers import load_tokenizer
from tests.oracles import chat_styles, conversations

GOLDENS = Path(__file__).parent.parent / "oracles" / "chat.json.gz"
CONVERSATIONS = conversations.every()


@pytest.fixture(scope="module")
def goldens():
  return json.loads(gzip.decompress(GOLDENS.read_bytes()))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """Returns a function that loads the tokenizer of a style, once."""
  kept = {}

  def loaded(name):
    if name not in kept:
      folder = tmp_path_factory.mktemp(name)
      kept[name] = load_tokenizer(chat_styles.write(name, folder))
      kept[name].template_day = chat_styles.DAY
    return kept[name]

  return loaded


def render(tokenizer, key):
  n, mode = key.split()
  conversation = CONVERSATIONS[int(n)]
  return chat.render(
    conversation.messages,
    tokenizer,
    tools=conversation.tools,
    documents=conversation.documents,
    add_generation_prompt=mode == "ask",
    continue_final_message=mode == "continue",
  )


@pytest.mark.parametrize("name", chat_styles.STYLES)
def test_text_ids_and_masks_are_those_of_transformers(goldens, load, name):
  tokenizer = load(name)
  wrong = {}
  for key, golden in goldens[name].items():
    try:
      found = render(tokenizer, key)
    except ValueError as error:
      wrong[key] = str(error)
      continue
    if found.text != golden["text"]:
      wrong[key] = ("text", found.text, golden["text"])
    elif found.ids != golden["ids"]:
      wrong[key] = ("ids", found.ids, golden["ids"], found.text)
    elif "mask" in golden and found.assistant_mask != golden["mask"]:
      wrong[key] = ("mask", found.assistant_mask, golden["mask"])
  assert not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)[:6000]


def test_there_are_enough_of_every_kind(goldens):
  keys = [key for entries in goldens.values() for key in entries]
  numbers = {int(key.split()[0]) for key in keys}
  assert len(numbers) == len(CONVERSATIONS) >= 40
  assert sum("mask" in e for v in goldens.values() for e in v.values()) > 60
  for mode in ("ask", "whole", "continue"):
    assert sum(mode in key for key in keys) > 100
