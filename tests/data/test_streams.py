"""Prompts and answers as tokens: joins, beginnings, markup in plain text."""

import json

import pytest

from rlhf_jax.data import dataset, encode, streams
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Comparison, Demonstration, Labelled, Prompt
from rlhf_jax.data.tokenizers import load_tokenizer
from tests.letters import Letters
from tests.tiny import tiny_llama, tiny_sentencepiece

SCHEMES = ("prepend", "always", "first")


@pytest.fixture(params=SCHEMES)
def llama(tmp_path, request):
  return load_tokenizer(tiny_llama(tmp_path / "llama", request.param))


def spell(ids, tokenizer):
  """Writes tokens one by one; a space in one is _."""
  return [
    tokenizer.decode([i], skip_special=False).replace(" ", "_") for i in ids
  ]


def test_an_answer_in_plain_text_starts_no_word(llama):
  row = encode.encode_demonstration(
    Demonstration("f:1", "2+2=", "4"), llama, 20
  )
  assert spell(row["tokens"], llama) == ["<s>", "_2", *"+2=4", "</s>"]
  assert row["loss_mask"].tolist() == [0] * 5 + [1, 1]
  pair = encode.encode_comparison(
    Comparison("f:1", "2+2=", "4", " 5"), llama, 20
  )
  assert spell(pair["chosen"]["tokens"], llama)[-3:] == ["=", "4", "</s>"]
  assert spell(pair["rejected"]["tokens"], llama)[-3:] == ["=", "_5", "</s>"]
  labelled = encode.encode_labelled(Labelled("f:1", "2+2=", "4", 1.0), llama, 9)
  assert labelled["answer"]["tokens"].tolist() == row["tokens"].tolist()
  prompt = encode.encode_prompt(Prompt("f:1", "2+2="), llama)
  assert row["tokens"].tolist()[:5] == prompt


def test_a_text_without_a_prompt_starts_a_word(llama):
  pair = encode.encode_comparison(Comparison("f:1", "", "4", "5"), llama, 20)
  assert spell(pair["chosen"]["tokens"], llama) == ["<s>", "_4", "</s>"]


def test_what_begins_a_text_is_not_cut(llama):
  row = encode.encode_demonstration(Demonstration("f:1", "2+2=", "4"), llama, 5)
  assert spell(row["tokens"], llama) == ["<s>", *"2=4", "</s>"]


def test_word_starts_of_sentencepiece(tmp_path):
  path = tiny_sentencepiece(tmp_path / "dummy.model", add_dummy_prefix=True)
  tokenizer = load_tokenizer(path)
  row = encode.encode_demonstration(
    Demonstration("f:1", "the cat sat", "yes"), tokenizer, 30
  )
  ids = row["tokens"].tolist()
  count = int(row["loss_mask"].argmax())
  pieces = [tokenizer._model.id_to_piece(i) for i in ids]
  assert pieces[0].startswith("▁")
  assert "".join(pieces[count:-1]) == "yes"
  assert tokenizer.decode(ids) == "the cat satyes"


def test_a_byte_level_tokenizer_adds_nothing(tokenizer):
  assert streams.text_prompt("the cat", tokenizer) == tokenizer.encode(
    "the cat"
  )
  for text in ("4", " 4", "\n4"):
    assert tokenizer.encode_inside(text) == tokenizer.encode(text)
  assert not tokenizer.marks_after("<|im_end|>")


def test_rated_texts_start_a_word_once(llama):
  before, text = streams.rated("Review:", "good", llama)
  assert spell(before + text, llama) == [
    "<s>",
    "_R",
    *"eview:",
    "_g",
    *"ood",
  ]
  assert spell(streams.rated("", "good", llama)[1], llama) == ["_g", *"ood"]


@pytest.mark.parametrize(
  "prompt, chat, mark",
  [
    ("<e>hi", False, "<e>"),
    ("[INST] hi [/INST]", True, "[/INST]"),
    ("\n\nHuman: hi\n\nAssistant:", True, "\n\nAssistant:"),
    ("\n\nHuman: hi\n\nAssistant:", False, None),
    ("if a < b: [x]", True, None),
  ],
)
def test_rendered_text_in_a_plain_field_is_noticed(
  tmp_path, prompt, chat, mark
):
  tokenizer = Letters()
  tokenizer.chat_template = (
    "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
  )
  path = tmp_path / "prompts.jsonl"
  rows = [{"prompt": "plain"}, {"prompt": prompt}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = Data(source=str(path), format="prompt", chat=chat)
  found, dropped = dataset.records(data, tokenizer)
  assert len(found) == 2  # it stays
  if mark is None:
    assert not dropped
    return
  ((reason, count),) = dropped.items()
  assert count == 1 and f"{mark!r} at {path}:2" in reason


@pytest.mark.parametrize("mark", [True, False])
def test_white_space_before_what_goes_on_is_kept(tmp_path, mark):
  path = tiny_sentencepiece(
    tmp_path / "a.model", add_dummy_prefix=mark, remove_extra_whitespaces=True
  )
  tokenizer = load_tokenizer(path)
  before = streams.text_prompt("Question:", tokenizer)
  after = streams.continued(" yes", tokenizer, before)
  assert tokenizer.decode(before + after) == "Question: yes"
  assert tokenizer.marks_after("</s>") == mark
