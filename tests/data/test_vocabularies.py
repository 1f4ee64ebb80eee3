"""Vocabularies of GGUF files and SentencePiece models against their makers.

vocabularies.json has what llama.cpp makes of the same tiny files; the oracle of
a *.model is SentencePiece itself.
"""

import json
import os
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rlhf_jax.data import streams
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.exports import tokenizer_files
from rlhf_jax.schema import UserError
from tests.oracles import vocabularies
from tests.oracles.make_vocabulary_goldens import PRE, SPM
from tests.tiny import tiny_sentencepiece

ORACLES = Path(__file__).parent.parent / "oracles"
GOLDENS = json.loads((ORACLES / "vocabularies.json").read_text())
TEXTS = (
  "the cat sat", " the  cat ", "What is 12 + 345?\n", "naïve 日本 🎬",
  "a<tag>b <tag>", "", "\n\n", "x" * 40,
)  # fmt: skip


@pytest.mark.parametrize("pre", PRE)
def test_splits_are_those_of_llama_cpp(tmp_path, pre):
  tokenizer = load_tokenizer(vocabularies.byte_level(tmp_path / "a.gguf", pre))
  wrong = {
    text: (found, golden)
    for text, golden in zip(
      vocabularies.TEXTS, GOLDENS[pre]["ids"], strict=True
    )
    if (found := tokenizer.encode(text)) != golden
    # llama.cpp's expressions for these two only approximate the models' own.
    if text.isascii() or pre not in ("tekken", "gpt-4o")
  }
  assert not wrong
  assert list(tokenizer.first_ids) == GOLDENS[pre]["first"]


def test_the_texts_tell_splits_apart():
  spelt = {json.dumps(GOLDENS[pre]["ids"]) for pre in PRE}
  assert len(spelt) == 8


@pytest.mark.parametrize("n", range(len(SPM)))
def test_sentencepiece_in_gguf_is_read_as_llama_cpp_does(tmp_path, n):
  path = vocabularies.sentencepiece(tmp_path / "a.gguf", **SPM[n])
  tokenizer, golden = load_tokenizer(path), GOLDENS[f"spm {n}"]
  for text, ids in zip(vocabularies.SPM_TEXTS, golden["ids"], strict=True):
    # Behind a user-defined piece llama.cpp marks a word's start, and the mark
    # of a text's start is no part of one; SentencePiece has it otherwise.
    if "<tag>" not in text and (n == 1 or not text.startswith("  ")):
      assert tokenizer.encode(text) == ids, text
  assert list(tokenizer.first_ids) == golden["first"]
  assert tokenizer.added_tokens.keys() == {"<tag>", "   "}
  for text in ("the  cat <tag>", "naïve 🎬"):
    assert tokenizer.decode(tokenizer.encode(text)) == text
  folder = tmp_path / "written"
  folder.mkdir()
  tokenizer_files.write_made(tokenizer, folder)
  again = load_tokenizer(folder)
  assert again.fingerprint == tokenizer.fingerprint
  assert list(again.first_ids) == golden["first"]
  assert again.is_legacy == tokenizer.is_legacy
  assert (again.eos_id, again.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)


def written(proto, path):
  """Writes a SentencePiece model as llama.cpp's converter does."""
  model = sentencepiece.SentencePieceProcessor(model_proto=proto)
  kinds, tokens = [], []
  for i in range(model.get_piece_size()):
    is_own = model.piece_to_id(model.id_to_piece(i)) == i
    kind = 1 if is_own else 1
    kind = 2 if model.is_unknown(i) else kind
    kind = 3 if model.is_control(i) else kind
    kind = 5 if model.is_unused(i) else kind
    kind = 6 if model.is_byte(i) else kind
    piece = model.id_to_piece(i)
    if piece in ("<tag>", "▁▁"):
      kind, piece = 4, piece.replace("▁", " ")
    kinds.append(kind)
    tokens.append(piece)
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_tokenizer_model("llama")
  writer.add_token_list(tokens)
  writer.add_token_scores([model.get_score(i) for i in range(len(tokens))])
  writer.add_token_types(kinds)
  writer.add_bos_token_id(model.bos_id())
  writer.add_eos_token_id(model.eos_id())
  writer.add_unk_token_id(model.unk_id())
  return vocabularies.closed(writer, path)


@pytest.mark.slow
def test_real_vocabularies_with_the_texts_that_llama_cpp_is_tested_with():
  folder = Path(os.environ.get("LLAMA_CPP_MODELS", ""))
  paths = [p for p in folder.glob("*.gguf") if Path(f"{p}.out").exists()]
  if not os.environ.get("LLAMA_CPP_MODELS") or not paths:
    pytest.skip(
      "set LLAMA_CPP_MODELS to the folder models/ of llama.cpp's source, which "
      "has ggml-vocab-*.gguf with texts and ids"
    )
  count = 0
  for path in paths:
    try:
      tokenizer = load_tokenizer(path)
    except UserError:  # of a kind or split that is not read
      continue
    with open(f"{path}.inp", encoding="utf-8", newline="") as file:
      texts = file.read().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=False):
      assert tokenizer.encode(text) == list(map(int, line.split())), path.name
    count += 1
  assert count >= 12


LLAMA_2 = {
  "byte_fallback": True,
  "vocab_size": 520,
  "add_dummy_prefix": True,
  "user_defined_symbols": ["<tag>", "▁▁"],
}


def test_a_model_its_file_and_gguf_are_one_tokenizer(tmp_path):
  path = tiny_sentencepiece(tmp_path / "tokenizer.model", **LLAMA_2)
  oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
  of_file = load_tokenizer(path)
  of_gguf = load_tokenizer(written(path.read_bytes(), tmp_path / "a.gguf"))
  (tmp_path / "b.model").write_bytes(of_gguf.to_model())
  again = load_tokenizer(tmp_path / "b.model")
  for text in TEXTS:
    ids = oracle.encode(text)
    assert of_file.encode(text) == of_gguf.encode(text) == ids
    assert again.encode(text) == ids
    assert of_file.decode(ids) == oracle.decode(ids) == of_gguf.decode(ids)
  assert of_file.special_tokens == of_gguf.special_tokens
  assert of_file.pieces() == of_gguf.pieces()
  assert of_gguf.first_ids == (1,) and of_file.first_ids == ()


def test_t5_style(tmp_path):
  path = tiny_sentencepiece(
    tmp_path / "tokenizer.model",
    model_type="unigram",
    normalization_rule_name="nmt_nfkc",
    remove_extra_whitespaces=True,
    add_dummy_prefix=True,
    user_defined_symbols=[],
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    vocab_size=200,
  )
  config = {"extra_ids": 4, "eos_token": "</s>", "tokenizer_class": "T5"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
  size = oracle.get_piece_size()
  tokenizer = load_tokenizer(tmp_path)  # the folder
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 0)
  assert tokenizer.vocab_size == size + 4 and not tokenizer.first_ids
  assert tokenizer.special_tokens["<extra_id_0>"] == size + 3  # the last one
  assert tokenizer.special_tokens["<extra_id_3>"] == size
  for text in (*TEXTS, "ﬁne ½ Ａ"):
    assert tokenizer.encode(text) == oracle.encode(text)
  ids = tokenizer.encode("a <extra_id_0> b")
  assert max(ids) < size
  spelt = tokenizer.decode([*ids, size + 3], skip_special=False)
  assert spelt.endswith("<extra_id_0>")
  assert len(tokenizer.pieces()) == size + 4


def test_added_tokens_behind_and_inside_a_model(tmp_path):
  path = tiny_sentencepiece(
    tmp_path / "tokenizer.model",
    **{**LLAMA_2, "user_defined_symbols": ["<kept1>", "<turn>"]},
  )
  oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
  size, kept = oracle.get_piece_size(), oracle.piece_to_id("<kept1>")
  turn = oracle.piece_to_id("<turn>")
  added = {
    str(kept): {"content": "<call>", "special": True},
    str(turn): {"content": "<turn>", "special": True},
    str(size): {"content": "<|user|>", "special": True},
    str(size + 2): {"content": "<|end|>", "special": True},
  }
  config = {
    "tokenizer_class": "LlamaTokenizer",
    "added_tokens_decoder": added,
    "eos_token": "<|end|>",
    "bos_token": {"content": "<s>"},
    "legacy": False,
    "chat_template": "{{ bos_token }}<turn>{{ messages[0].content }}<|end|>",
  }
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  tokenizer = load_tokenizer(path)
  assert tokenizer.eos_id == size + 2 and tokenizer.first_ids == (1,)
  assert tokenizer.special_tokens["<call>"] == kept
  assert tokenizer.unused_ids == {size + 1}
  special = set(tokenizer.special_tokens.values())
  assert special.isdisjoint(tokenizer.encode("<call><turn><|user|><kept1>"))
  assert not tokenizer.marks_after("<|user|>")  # legacy: false
  prompt = streams.prompt([{"role": "user", "content": "the<turn>"}], tokenizer)
  assert prompt[:2] == [1, turn] and prompt[-1] == size + 2
  assert prompt.count(turn) == 1 and prompt.count(1) == 1
  config["eos_token"] = "<gone>"
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="no end token <gone>"):
    load_tokenizer(path)


MODELS = {
  "bpe": lambda: models.BPE(
    {c: i for i, c in enumerate("[]▁thecaisĠ012 \n")}, [], unk_token="["
  ),
  "words": lambda: models.WordLevel({"the": 0, "cat": 1, "[": 2}, "["),
  "pieces": lambda: models.WordPiece(
    {c: i for i, c in enumerate(["[", "th", "##e", "ca", "##t", "is"])},
    unk_token="[",
  ),
  "unigram": lambda: models.Unigram(
    [("[", 0.0), *((c, -2.0) for c in "▁thecaisĠ012 \n")], unk_id=0
  ),
}


def _pre_tokenizers():
  own = pre_tokenizers
  yield from (
    own.BertPreTokenizer(),
    own.ByteLevel(),
    own.CharDelimiterSplit("a"),
    own.Digits(),
    own.Metaspace(),
    own.Metaspace(prepend_scheme="first"),
    own.Punctuation(),
    own.Split(" ", "merged_with_next"),
    own.UnicodeScripts(),
    own.Whitespace(),
    own.WhitespaceSplit(),
    own.Sequence([own.WhitespaceSplit(), own.Punctuation()]),
  )
  if hasattr(own, "FixedLength"):  # of newer versions
    yield own.FixedLength(length=3)


DECODERS = (
  *(decoders.BPEDecoder(), decoders.ByteFallback(), decoders.ByteLevel()),
  *(decoders.CTC(), decoders.Fuse(), decoders.Metaspace()),
  *(decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)),
  decoders.WordPiece(),
  decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
)


def test_every_part_that_a_tokenizer_json_can_have(tmp_path):
  """Each is read back and does what the library does with it."""
  count = 0
  for make in MODELS.values():
    for split in _pre_tokenizers():
      for normalizer in (None, normalizers.NFKC()):
        backend = tokenizers.Tokenizer(make())
        backend.pre_tokenizer = split
        backend.decoder = DECODERS[count % len(DECODERS)]
        if normalizer is not None:
          backend.normalizer = normalizer
        backend.add_special_tokens(["<end>"])
        backend.save(str(tmp_path / "tokenizer.json"))
        path = tmp_path / "tokenizer_config.json"
        path.write_text('{"eos_token": "<end>"}')
        tokenizer = load_tokenizer(tmp_path)
        for text in ("the cat is 12", "  a\n\ncat, ", "ﬁ e"):
          wanted = backend.encode(text, add_special_tokens=False).ids
          assert tokenizer.encode(text) == wanted
          assert tokenizer.decode(wanted) == backend.decode(wanted)
        tokenizer.encode_inside("the cat")
        count += 1
  assert count >= 96
