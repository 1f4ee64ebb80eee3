"""A tokenizer -> the tokenizer.* keys of a GGUF file, for llama.cpp.

Three kinds of vocabulary have them:

  gpt2    byte-level BPE: tokens, merges, and by name what splits a text
          beforehand. The name is found by splitting probes with each that we
          know: llama.cpp's own converter compares hashes of such a probe.
  llama   SentencePiece BPE: tokens and scores. A tokenizer.json of this kind
          has merges and no scores; the score of a token is minus the rank of
          its first merge, which orders merges as SentencePiece does.
  t5      SentencePiece Unigram, of a *.model.

llama.cpp normalises no text: one that is not in NFC is split otherwise there
by a byte-level vocabulary whose tokenizer.json asks for NFC. It marks every
text's start, as SentencePiece does; the Metaspace step of a tokenizer.json does
not mark one that starts with a space.

Left out: Unigram of a tokenizer.json, and WordPiece.
"""

from __future__ import annotations

import json
from typing import Any

import gguf
import tokenizers

from rlhf_jax.data import stops
from rlhf_jax.data.gguf_splits import SPLITS
from rlhf_jax.data.sentencepiece_backend import Proto, SentencePieceTokenizer
from rlhf_jax.data.tokenizer_backends import HuggingFaceTokenizer
from rlhf_jax.schema import UserError

Keys = dict[str, Any]
_REMEDY = "Export safetensors instead."
_CONTROL_SCORE = -1000.0  # as llama.cpp's converter
_PROBES = (
  "Hello, world! It's 12345 o'clock; WE'LL see 3.14159 and 1st.",
  "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nx\r\n y ",
  "don't DON'T I've i'M You'Re they'D he'LL",
  "Ünïcödé 漢字テスト한국어 русский עברית ไทย हिन्दी 🙂🙃👩‍🚀 ½² ١٢٣ Ⅷ",
  "a_b-c+d=e (f) [g] {h} <i> /j\\k |l| ~m `n` @o #p $q %r ^s &t *u",
  "camelCaseWord HTTPServer fooBAR _x __init__ 1a2b3c 100,000.00",
  "......!!!!!!??????  ``````'''''' \"\"\"\"  --- === ///\n// x",
)


def entries(tokenizer: Any, rows: int) -> Keys:
  """Returns the tokenizer.* keys of a GGUF file.

  Args:
    tokenizer: of data/tokenizers.py.
    rows: of the model's embedding; those that have no token are named so.

  Raises:
    UserError: a kind of vocabulary that llama.cpp does not have.
  """
  if isinstance(tokenizer, SentencePieceTokenizer):
    found = _sentencepiece(tokenizer)
  elif isinstance(tokenizer, HuggingFaceTokenizer):
    found = _library(tokenizer)
  else:
    raise UserError(
      f"{getattr(tokenizer, 'name', tokenizer)}: a tokenizer of another kind "
      f"has no GGUF vocabulary. {_REMEDY}"
    )
  count = len(found["tokenizer.ggml.tokens"])
  if count > rows:
    raise UserError(
      f"{tokenizer.name} has {count} tokens and the model {rows} rows: they do "
      "not belong together. Give the model's own tokenizer."
    )
  for i in range(count, rows):
    found["tokenizer.ggml.tokens"].append(f"[PAD{i}]")
    found["tokenizer.ggml.token_type"].append(int(gguf.TokenType.UNUSED))
    if "tokenizer.ggml.scores" in found:
      found["tokenizer.ggml.scores"].append(10 * _CONTROL_SCORE)
  return found | _special(tokenizer)


def _special(tokenizer: Any) -> Keys:
  """Returns begin, ends, padding and the chat template."""
  ends = stops.end_ids(tokenizer)
  if len(ends) > 3:
    print(
      f"GGUF has places for 3 end tokens and {tokenizer.name} has {len(ends)}: "
      f"{list(ends[3:])} are left out"
    )
  names = ("eos", "eot", "eom")
  ids = dict(zip(names, ends, strict=False)) | {"padding": tokenizer.pad_id}
  if tokenizer.bos_id is not None:
    ids["bos"] = tokenizer.bos_id
  first = getattr(tokenizer, "first_ids", ())
  keys: Keys = {
    f"tokenizer.ggml.{name}_token_id": int(i) for name, i in ids.items()
  }
  keys["tokenizer.ggml.add_bos_token"] = tokenizer.bos_id in first
  keys["tokenizer.ggml.add_eos_token"] = False
  if tokenizer.chat_template is not None:
    keys["tokenizer.chat_template"] = tokenizer.chat_template
  return keys


def _library(tokenizer: HuggingFaceTokenizer) -> Keys:
  state = json.loads(tokenizer.to_json())
  model = state["model"]
  if model["type"] != "BPE":
    raise UserError(
      f"{tokenizer.name}: a vocabulary of kind {model['type']} has no GGUF "
      f"form here, BPE has. {_REMEDY}"
    )
  if model.get("byte_fallback"):
    return _with_scores(tokenizer, state)
  return _byte_level(tokenizer, state)


def _tokens(
  tokenizer: HuggingFaceTokenizer, state: dict
) -> tuple[list[str], list[int]]:
  """Returns the text and the kind of every token, by id."""
  kinds = gguf.TokenType
  tokens = [f"[PAD{i}]" for i in range(tokenizer.vocab_size)]
  types = [int(kinds.UNUSED)] * tokenizer.vocab_size
  for token, i in state["model"]["vocab"].items():
    tokens[i], types[i] = token, int(kinds.NORMAL)
  special = set(tokenizer.special_tokens.values())
  for added in state["added_tokens"]:
    i = added["id"]
    is_control = added["special"] or i in special
    tokens[i] = added["content"]
    types[i] = int(kinds.CONTROL if is_control else kinds.USER_DEFINED)
  return tokens, types


def _merges(state: dict) -> list[tuple[str, str]]:
  return [
    tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair)
    for pair in state["model"]["merges"]
  ]


def _byte_level(tokenizer: HuggingFaceTokenizer, state: dict) -> Keys:
  normalizer = state["normalizer"]
  if normalizer is not None and normalizer["type"] != "NFC":
    raise UserError(
      f"{tokenizer.name}: its normaliser {normalizer['type']} is none that "
      f"llama.cpp has. {_REMEDY}"
    )
  if not state["model"]["merges"]:
    raise UserError(
      f"{tokenizer.name} has no merges, and llama.cpp loads no byte-level "
      f"vocabulary without them. {_REMEDY}"
    )
  tokens, types = _tokens(tokenizer, state)
  found: Keys = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": _splitter(tokenizer, state),
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(state)],
  }
  unknown = state["model"].get("unk_token")
  if unknown is not None:
    found["tokenizer.ggml.unknown_token_id"] = tokens.index(unknown)
  return found


def _splitter(tokenizer: HuggingFaceTokenizer, state: dict) -> str:
  """Returns llama.cpp's name of what splits a text before the merges."""
  given = tokenizers.Tokenizer.from_str(json.dumps(state)).pre_tokenizer
  is_mergeless = bool(state["model"].get("ignore_merges"))
  if given is not None:
    mine = [given.pre_tokenize_str(text) for text in _PROBES]
    for name, split in SPLITS.items():
      theirs = split.pre_tokenizer()
      if split.ignores_merges == is_mergeless and mine == [
        theirs.pre_tokenize_str(text) for text in _PROBES
      ]:
        return name
  raise UserError(
    f"{tokenizer.name}: it splits texts like none of "
    f"{', '.join(sorted(SPLITS))}, so llama.cpp would read them otherwise. "
    f"{_REMEDY}"
  )


def _with_scores(tokenizer: HuggingFaceTokenizer, state: dict) -> Keys:
  tokens, types = _tokens(tokenizer, state)
  kinds = gguf.TokenType
  for i, token in enumerate(tokens):
    is_byte = len(token) == 6 and token.startswith("<0x") and token[-1] == ">"
    if types[i] == kinds.NORMAL and is_byte:
      types[i] = int(kinds.BYTE)
  unknown = state["model"].get("unk_token")
  if unknown is not None:
    types[tokens.index(unknown)] = int(kinds.UNKNOWN)
  scores = {}
  for rank, pair in enumerate(_merges(state)):
    scores.setdefault("".join(pair), -float(rank))
  for token, kind in zip(tokens, types, strict=True):
    if kind == kinds.NORMAL and len(token) > 1 and token not in scores:
      raise UserError(
        f"{tokenizer.name}: no merge makes the token {token!r}, and llama.cpp "
        f"would make it from any two that spell it. {_REMEDY}"
      )
  usual = [0.0 if kind == kinds.BYTE else _CONTROL_SCORE for kind in types]
  keys: Keys = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": [
      scores.get(token, score) if kind == kinds.NORMAL else score
      for token, kind, score in zip(tokens, types, usual, strict=True)
    ],
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.add_space_prefix": _marks_start(state),
  }
  if unknown is not None:
    keys["tokenizer.ggml.unknown_token_id"] = tokens.index(unknown)
  return keys


def _marks_start(state: dict) -> bool:
  """Says whether a text gets "▁" before it."""
  steps = [state["normalizer"], state["pre_tokenizer"]]
  while steps:
    step = steps.pop()
    if step is None:
      continue
    if step["type"] == "Prepend":
      return True
    if step["type"] == "Metaspace" and step.get("prepend_scheme") != "never":
      return True
    steps += step.get("normalizers", []) + step.get("pretokenizers", [])
  return False


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> Keys:
  proto = Proto.FromString(tokenizer.to_model())
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  kind = {trainer.BPE: "llama", trainer.UNIGRAM: "t5"}.get(trainer.model_type)
  if kind is None:
    raise UserError(
      f"{tokenizer.name}: a SentencePiece vocabulary of words or characters "
      f"has no GGUF form. {_REMEDY}"
    )
  tokens, scores, types = [], [], []
  for piece in proto.pieces:
    is_own = piece.type == piece.USER_DEFINED  # llama.cpp has its spaces plain
    tokens.append(piece.piece.replace("▁", " ") if is_own else piece.piece)
    scores.append(piece.score)
    types.append(int(piece.type))  # numbered as GGUF's kinds are
  names = {i: name for name, i in tokenizer.special_tokens.items()}
  for i in range(len(tokens), tokenizer.vocab_size):
    tokens.append(names.get(i, f"[PAD{i}]"))
    scores.append(_CONTROL_SCORE)
    types.append(int(gguf.TokenType.UNUSED))
  for i in names:
    types[i] = int(gguf.TokenType.CONTROL)
  keys: Keys = {
    "tokenizer.ggml.model": kind,
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.scores": scores,
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.add_space_prefix": normalizer.add_dummy_prefix,
    "tokenizer.ggml.remove_extra_whitespaces": (
      normalizer.remove_extra_whitespaces
    ),
    "tokenizer.ggml.unknown_token_id": int(trainer.unk_id),
  }
  if normalizer.precompiled_charsmap:
    if kind == "llama":
      raise UserError(
        f"{tokenizer.name}: it normalises texts, which llama.cpp does not with "
        f"a vocabulary of this kind. {_REMEDY}"
      )
    charsmap = normalizer.precompiled_charsmap
    keys["tokenizer.ggml.precompiled_charsmap"] = charsmap
  return keys
