"""Tokens one by one as text that is never taken back."""

import pytest

from rlhf_jax.data import retold
from rlhf_jax.data.pieces import Pieces
from rlhf_jax.data.tokenizers import load_tokenizer
from tests.tiny import tiny_llama, tiny_tokenizer_json

TEXTS = ("The cat sat.", " naïve ✓ 🙂", "日本\n\n語", "x", "�a", "a  b ")


@pytest.fixture(scope="module", params=["bytes", "llama"])
def tokenizer(request, tmp_path_factory):
  """Both spell 🙂 in four tokens, the latter as byte-fallback pieces."""
  make = {"bytes": tiny_tokenizer_json, "llama": tiny_llama}[request.param]
  return load_tokenizer(make(tmp_path_factory.mktemp(request.param)))


def told(pieces, ids, *, has_ended=True):
  shown = [pieces.add(i) for i in ids]
  said, rest = pieces.finish(has_ended=has_ended)
  return said, [*shown, rest]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_shown_is_the_text_in_whole_characters(tokenizer, text):
  prompt = tokenizer.encode("Say:")
  inside = getattr(tokenizer, "encode_inside", tokenizer.encode)
  ids = [*inside(text), tokenizer.eos_id]
  assert len(ids) > len(text) or text.isascii()
  pieces = Pieces(tokenizer, prompt, (tokenizer.eos_id,))
  said, shown = told(pieces, ids)
  assert "".join(shown) == text == said.text and said.has_end
  if retold.UNFINISHED not in text:
    assert not any(retold.UNFINISHED in part for part in shown)


def test_a_character_that_is_cut_is_not_shown(tokenizer):
  ids = tokenizer.encode("a🙂")[:-1]
  said, shown = told(Pieces(tokenizer, ids[:1]), ids, has_ended=False)
  assert said.text.strip() == "".join(shown).strip() == "a"


def test_each_token_is_shown_as_soon_as_it_can_be(tokenizer):
  prompt = tokenizer.encode("Say:")
  pieces = Pieces(tokenizer, prompt)
  inside = getattr(tokenizer, "encode_inside", tokenizer.encode)
  shown = [pieces.add(i) for i in inside("xyz 1")]
  assert all(shown) and "".join(shown) == "xyz 1"


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("One.\nUser: two", "One."),
    ("One.\nUse it", "One.\nUse it"),
    ("\nUser:", ""),
    ("a\nUs", "a\nUs"),
  ],
)
def test_a_stop_string_is_not_shown(tokenizer, text, expected):
  prompt = tokenizer.encode("Say:")
  inside = getattr(tokenizer, "encode_inside", tokenizer.encode)
  pieces = Pieces(tokenizer, prompt, stops=("\nUser:", "###"))
  said, shown = told(pieces, inside(text))
  assert "".join(shown) == expected == said.text and not said.has_end


def test_white_space_of_a_template_is_not_shown(tokenizer):
  prompt, end = tokenizer.encode("Say:"), tokenizer.eos_id
  inside = getattr(tokenizer, "encode_inside", tokenizer.encode)
  pieces = Pieces(tokenizer, prompt, (end,), around=(" ", " "))
  said, shown = told(pieces, [*inside(" yes it is "), end])
  assert "".join(shown) == "yes it is" == said.text
  pieces = Pieces(tokenizer, prompt, (end,), around=(" ", " "))
  said, shown = told(pieces, inside(" yes "), has_ended=False)
  assert "".join(shown) == "yes " == said.text  # its own, as it was cut


class Odd:
  """A decoder that changes what it wrote: what no tokenizer should do."""

  name, vocab_size, eos_id = "odd", 9, 0

  def decode(self, ids, skip_special=True):
    return "".join("ab"[len(ids) % 2] for _ in ids)


def test_a_decoder_that_changes_its_mind_is_shown_in_the_end():
  said, shown = told(Pieces(Odd(), [], (0,)), [1, 2, 3])
  assert said.text == "bbb" and "".join(shown).endswith("bbb")
