"""What ends an answer: tokens that files and settings name, and strings."""

import json

import numpy as np
import pytest

from rlhf_jax.data import stops, tokenizers
from rlhf_jax.data.tokenizers import load_tokenizer
from tests.letters import Letters
from tests.tiny import LLAMA_TEMPLATE, tiny_llama, tiny_tokenizer_json

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}"
)


def write(folder, name, value):
  (folder / name).write_text(json.dumps(value))


def test_trap_37_all_end_tokens_of_the_folder_are_found(tmp_path):
  folder = tiny_tokenizer_json(tmp_path / "a", eos_token="<|endoftext|>")
  assert stops.end_ids(load_tokenizer(folder)) == (0, 2)  # ChatML has its own
  write(folder, "config.json", {"text_config": {"eos_token_id": 7}})
  write(folder, "generation_config.json", {"eos_token_id": [5, 0]})
  tokenizer = load_tokenizer(folder)
  assert tokenizers.end_ids(tokenizer) == (0, 5, 7)
  assert stops.end_ids(tokenizer, ("<|im_start|>", "?")) == (
    0,
    5,
    7,
    2,
    1,
    *tokenizer.encode("?"),
  )
  with pytest.raises(ValueError, match="'12 cats' is . tokens"):
    stops.end_ids(tokenizer, ("12 cats",))


def test_the_end_of_turn_of_a_template_ends_an_answer(tmp_path):
  folder = tiny_tokenizer_json(
    tmp_path / "a", eos_token="<|endoftext|>", chat_template=CHATML
  )
  assert stops.end_ids(load_tokenizer(folder)) == (0, 2)
  llama = tiny_llama(tmp_path / "b", chat_template=LLAMA_TEMPLATE)
  assert stops.end_ids(load_tokenizer(llama)) == (2,)


@pytest.mark.parametrize("value", ["</s>", True, [1, "2"], {"a": 1}, -1, 1.0])
def test_end_tokens_that_are_no_ids_are_refused(tmp_path, value):
  folder = tiny_tokenizer_json(tmp_path / "a")
  write(folder, "generation_config.json", {"eos_token_id": value})
  with pytest.raises(ValueError, match="generation_config.json: eos_token_id="):
    load_tokenizer(folder)


def ends_of(table, ids):
  """Returns after which tokens a string is complete."""
  state, found = 0, []
  for n, i in enumerate(ids):
    value = int(table[state, i])
    state, is_complete = value % len(table), value >= len(table)
    found += [n] if is_complete else []
  return found


STRINGS = ("\n\n", "stop now", "top", "né", "aab")
TEXTS = ("a\n\nb", "a\n b\n", "st stop now", "ne née", "aaaab", "topp\n\n\n")


@pytest.mark.parametrize("kind", ["byte level", "llama"])
@pytest.mark.parametrize("text", TEXTS)
def test_strings_are_found_in_whatever_tokens_they_come(
  tokenizer, tmp_path, kind, text
):
  if kind == "llama":
    tokenizer = load_tokenizer(tiny_llama(tmp_path / "llama"))
  rows = tokenizer.vocab_size + 3
  table = stops.string_table(tokenizer, STRINGS, rows)
  assert table.shape == (1 + sum(len(s.encode()) for s in STRINGS), rows)
  pieces = tokenizer.pieces()
  ids = tokenizer.encode_inside(text)
  assert b"".join(pieces[i] for i in ids) == text.encode()
  expected, said = [], b""
  for n, i in enumerate(ids):
    before, said = said, said + pieces[i]
    if any(
      s.encode() in said[max(len(before) - len(s.encode()) + 1, 0) :]
      for s in STRINGS
    ):
      expected.append(n)
  assert ends_of(table, ids) == expected
  np.testing.assert_array_equal(  # rows without a token change no state
    table[:, tokenizer.vocab_size :], np.arange(len(table))[:, None] + [0, 0, 0]
  )


def test_a_tokenizer_that_tells_no_bytes_is_refused():
  assert stops.string_table(Letters(), (), 9) is None
  with pytest.raises(ValueError, match="stop_strings=.'x',.: letters"):
    stops.string_table(Letters(), ("x",), 9)


def test_rows_without_a_token(tokenizer, tmp_path):
  size = tokenizer.vocab_size
  assert tokenizers.empty_rows(tokenizer, size) == ()
  assert tokenizers.empty_rows(tokenizer, size + 4) == ((size, size + 4),)
  folder = tiny_tokenizer_json(tmp_path / "gap")
  state = json.loads((folder / "tokenizer.json").read_text())
  vocabulary = state["model"]["vocab"]
  state["model"]["merges"] = []
  state["model"]["vocab"] = {
    token: i + 3 * (i > 10) for token, i in vocabulary.items() if len(token) < 2
  }
  state["added_tokens"] = []
  (folder / "tokenizer.json").write_text(json.dumps(state))
  write(folder, "tokenizer_config.json", {"eos_token": "!"})
  found = load_tokenizer(folder)
  known = set(state["model"]["vocab"].values())
  ranges = tokenizers.empty_rows(found, found.vocab_size + 2)
  empty = {i for start, end in ranges for i in range(start, end)}
  assert empty == set(range(found.vocab_size + 2)) - known
  assert len(ranges) == 3 and ranges[-1][1] == found.vocab_size + 2
