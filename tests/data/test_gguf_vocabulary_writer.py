"""Vocabularies written as GGUF and read again: the same tokens of texts."""

import json

import gguf
import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from rlhf_jax.data import gguf_vocabulary_writer
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import gguf_writer
from rlhf_jax.schema import UserError
from tests import tiny

TEXTS = [
  "the cat sat on the mat",
  " 12 + 345 = 357, of course!  two  spaces",
  "line one\nline two\n\n",
  "Answer: yes",
  "plot",
  "<|im_end|> is text here, </s> too",
]


def written(tokenizer, path, rows):
  """Writes the vocabulary alone, and reads it."""
  writer = gguf.GGUFWriter(None, "llama")
  for key, value in gguf_vocabulary_writer.entries(tokenizer, rows).items():
    gguf_writer.add(writer, key, value)
  writer.write_header_to_file(path)
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return load_tokenizer(path)


def byte_level(root):
  return tiny.tiny_tokenizer_json(root, bos_token="<|endoftext|>")


def llama_prepend(root):
  return tiny.tiny_llama(root, "prepend")


def llama_metaspace(root):
  return tiny.tiny_llama(root, "first")


def sentencepiece_bpe(root):
  root.mkdir()
  return tiny.tiny_sentencepiece(root / "s.model", pad_id=3)


def sentencepiece_prefixed(root):
  root.mkdir()
  return tiny.tiny_sentencepiece(
    root / "s.model", add_dummy_prefix=True, byte_fallback=True, vocab_size=480
  )


def sentencepiece_unigram(root):
  root.mkdir()
  return tiny.tiny_sentencepiece(
    root / "s.model",
    model_type="unigram",
    normalization_rule_name="nmt_nfkc",
    vocab_size=160,
  )


@pytest.mark.parametrize(
  "make",
  [
    byte_level,
    llama_prepend,
    llama_metaspace,
    sentencepiece_bpe,
    sentencepiece_prefixed,
    pytest.param(sentencepiece_unigram, marks=pytest.mark.slow),
  ],
)
def test_a_vocabulary_is_read_as_it_was_written(make, tmp_path):
  tokenizer = load_tokenizer(make(tmp_path / "t"))
  tokenizer.chat_template = "{{ messages[0]['content'] }}"
  again = written(tokenizer, tmp_path / "v.gguf", tokenizer.vocab_size + 5)
  for text in TEXTS:
    if make is llama_metaspace:  # which marks no text that starts with a space
      text = text.lstrip()
    for one in ("encode", "encode_inside"):
      ids = getattr(tokenizer, one)(text)
      assert getattr(again, one)(text) == ids, (one, text)
    if not make.__name__.startswith("llama"):  # whose decoder keeps the mark
      assert again.decode(ids) == tokenizer.decode(ids)
  assert again.special_tokens == tokenizer.special_tokens
  for name in ("bos_id", "eos_id", "pad_id", "chat_template", "first_ids"):
    assert getattr(again, name) == getattr(tokenizer, name), name
  rows = range(tokenizer.vocab_size, tokenizer.vocab_size + 5)
  assert again.unused_ids == frozenset(rows) | tokenizer.unused_ids


def test_ends_have_places(tmp_path):
  tokenizer = load_tokenizer(tiny.tiny_tokenizer_json(tmp_path / "t"))
  tokenizer.named_ends = (0, 1)
  again = written(tokenizer, tmp_path / "v.gguf", tokenizer.vocab_size)
  assert again.eos_id == tokenizer.eos_id
  assert again.named_ends == (0, 1)


def changed(root, change):
  """Returns the byte-level tokenizer with another tokenizer.json."""
  tiny.tiny_tokenizer_json(root)
  state = json.loads((root / "tokenizer.json").read_text())
  backend = tokenizers.Tokenizer.from_str(json.dumps(change(state) or state))
  backend.save(str(root / "tokenizer.json"))
  return load_tokenizer(root)


def lowercase(state):
  state["normalizer"] = json.loads(normalizers.Lowercase().__getstate__())


def by_spaces(state):
  state["pre_tokenizer"] = json.loads(
    pre_tokenizers.Sequence(
      [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
    ).__getstate__()
  )


def whole_words(state):
  state["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lowercase, "its normaliser Lowercase is none that llama.cpp has"),
    (by_spaces, "it splits texts like none of"),
    (whole_words, "it splits texts like none of"),
  ],
)
def test_what_llama_cpp_would_split_otherwise_is_refused(
  change, words, tmp_path
):
  tokenizer = changed(tmp_path / "t", change)
  with pytest.raises(UserError, match=words):
    gguf_vocabulary_writer.entries(tokenizer, tokenizer.vocab_size)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
  tokenizer = load_tokenizer(tiny.tiny_tokenizer_json(tmp_path / "t"))
  with pytest.raises(UserError, match="340 tokens and the model 61 rows"):
    gguf_vocabulary_writer.entries(tokenizer, 61)
