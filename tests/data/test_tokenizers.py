"""Every kind of tokenizer file: round trips, special tokens, refusals."""

import json

import pytest

from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.data.tokenizers import load_tokenizer
from tests.tiny import (
  SPECIAL,
  tiny_gguf_vocabulary,
  tiny_sentencepiece,
  tiny_tokenizer_json,
)

TEXTS = [
  "Movie review: a  warm film,\n\n12345 times.\n",
  " leading and trailing ",
  "naïve 日本語 🎬\t\r\n",
  "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_round_trip(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_digits_are_single_tokens(tokenizer):
  assert len(tokenizer.encode("345")) == 3  # though "345" is in the corpus


def test_sentencepiece_keeps_newlines_and_double_spaces(sentencepiece_path):
  tokenizer = load_tokenizer(sentencepiece_path)
  text = "the cat  sat\n\non the mat \n"
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.bos_id == 1 and tokenizer.eos_id == 2
  assert tokenizer.pad_id == tokenizer.eos_id
  assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2}


def test_sentencepiece_padding_token(tmp_path):
  path = tiny_sentencepiece(tmp_path / "pad.model", pad_id=3)
  assert load_tokenizer(path).pad_id == 3


def test_sentencepiece_without_end_token_is_refused(tmp_path):
  path = tiny_sentencepiece(tmp_path / "end.model", eos_id=-1)
  with pytest.raises(ValueError, match="no end token"):
    load_tokenizer(path)


def test_text_never_becomes_a_special_token(tokenizer, sentencepiece_path):
  named = load_tokenizer(
    sentencepiece_path, special_tokens=["<|im_start|>", "<|im_end|>"]
  )
  for one in (tokenizer, named):
    for name in one.special_tokens:
      text = f"the{name} cat {name}{name}"
      ids = one.encode(text)
      assert not set(one.special_tokens.values()) & set(ids)
      assert one.decode(ids) == text


def test_unknown_characters_show_up_again(sentencepiece_path):
  tokenizer = load_tokenizer(sentencepiece_path)
  ids = tokenizer.encode("a 日 b")
  assert 0 in ids  # <unk>: plain text can produce it, so it is not special
  assert tokenizer.decode(ids) != "a  b"


def test_unigram_vocabulary_that_spells_its_end_token(tmp_path):
  path = tmp_path / "tokenizer.json"
  from tokenizers import Tokenizer, models

  pieces = [("</s>", 0.0), *((c, -1.0) for c in "</s>ab")]
  backend = Tokenizer(models.Unigram(pieces))
  assert backend.encode("a</s>b").tokens == ["a", "</s>", "b"]
  backend.save(str(path))
  path.with_name("tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  tokenizer = load_tokenizer(path)
  ids = tokenizer.encode("a</s>b")
  assert tokenizer.eos_id not in ids
  assert tokenizer.decode(ids).replace(" ", "") == "a</s>b"


def test_decode_shows_or_hides_special_tokens(tokenizer):
  ids = [1, *tokenizer.encode("hi"), 2]
  assert tokenizer.decode(ids) == "hi"
  assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"
  with pytest.raises(ValueError, match="outside"):
    tokenizer.decode([tokenizer.vocab_size])


def test_sentencepiece_decode_shows_special_tokens(sentencepiece_path):
  tokenizer = load_tokenizer(sentencepiece_path)
  ids = [1, *tokenizer.encode("the cat"), 2]
  assert tokenizer.decode(ids) == "the cat"
  assert tokenizer.decode(ids, skip_special=False) == "<s>the cat</s>"


def test_gguf_vocabulary_equals_tokenizer_json(tokenizer, tmp_path):
  other = load_tokenizer(tiny_gguf_vocabulary(tmp_path / "v.gguf"))
  for text in TEXTS:
    assert other.encode(text) == tokenizer.encode(text)
  assert other.special_tokens == {name: i for i, name in enumerate(SPECIAL)}
  assert (other.bos_id, other.eos_id, other.pad_id) == (1, 2, 2)
  assert other.chat_template == "{{ messages[0]['content'] }}"
  assert other.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
  "change, message",
  [({"pre": "unheard-of"}, "unheard-of"), ({"kind": "bert"}, "bert")],
)
def test_unknown_gguf_vocabularies_are_refused(tmp_path, change, message):
  path = tiny_gguf_vocabulary(tmp_path / "v.gguf", **change)
  with pytest.raises(ValueError, match=f"{message}.*tokenizer.json"):
    load_tokenizer(path)


def test_missing_bytes_are_refused_not_dropped(folder, tmp_path):
  state = json.loads((folder / "tokenizer.json").read_text())
  state["model"]["vocab"].pop("ð")  # byte 0xf0, which begins an emoji
  order = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
  state["model"]["vocab"] = {token: i for i, (token, _) in enumerate(order)}
  (tmp_path / "tokenizer.json").write_text(json.dumps(state))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.decode(tokenizer.encode("é")) == "é"
  with pytest.raises(EncodingError, match="🎬"):
    tokenizer.encode("a film 🎬 here")


def test_folder_names_tokens_and_templates(tmp_path):
  folder = tiny_tokenizer_json(
    tmp_path / "a",
    eos_token={"content": "<|im_end|>"},
    bos_token="<|im_start|>",
    pad_token="<|endoftext|>",
    chat_template=[{"name": "default", "template": "from config"}],
  )
  tokenizer = load_tokenizer(folder)
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
  assert tokenizer.chat_template == "from config"
  (folder / "chat_template.jinja").write_text("from file")
  assert load_tokenizer(folder / "tokenizer.json").chat_template == "from file"


def test_special_tokens_map_is_read(tmp_path):
  folder = tiny_tokenizer_json(tmp_path / "a")
  (folder / "tokenizer_config.json").unlink()
  with pytest.raises(ValueError, match="no eos_token"):
    load_tokenizer(folder)
  (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
  assert load_tokenizer(folder).eos_id == 2


def test_fingerprint_follows_the_vocabulary(folder, tokenizer, tmp_path):
  assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
  state = json.loads((folder / "tokenizer.json").read_text())
  state["model"]["merges"] = state["model"]["merges"][::-1]
  (tmp_path / "tokenizer.json").write_text(json.dumps(state))
  (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
  assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_errors_name_path_and_remedy(tmp_path, folder):
  with pytest.raises(ValueError, match="no such tokenizer"):
    load_tokenizer(tmp_path / "nothing.model")
  odd = tmp_path / "vocab.txt"
  odd.write_text("a")
  with pytest.raises(ValueError, match="unknown kind"):
    load_tokenizer(odd)
  broken = tmp_path / "broken.model"
  broken.write_bytes(b"not a model")
  with pytest.raises(ValueError, match="not a SentencePiece model"):
    load_tokenizer(broken)
  broken = tmp_path / "broken.gguf"
  broken.write_bytes(b"not a model")
  with pytest.raises(ValueError, match="not a GGUF file"):
    load_tokenizer(broken)
  with pytest.raises(ValueError, match="no tokenizer.json"):
    load_tokenizer(tmp_path)
  with pytest.raises(ValueError, match="SentencePiece models"):
    load_tokenizer(folder, special_tokens=["<|im_end|>"])
  with pytest.raises(ValueError, match="not in the vocabulary"):
    load_tokenizer(tiny_tokenizer_json(tmp_path / "b", eos_token="<end>"))
