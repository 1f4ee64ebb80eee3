"""Tokenizers that mark the start of a word, without the mark of a text's start.

Llama-2-like vocabularies put "▁" before a text, so that its first word looks
like any other. A text that goes on after another one must not get it: "4" after
"2+2=" would become "2+2= 4". Both functions return the same vocabulary without
that step, or None where there is none.
"""

from __future__ import annotations

import json

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2


def _without(step: dict | None) -> dict | None:
  """Returns a normaliser or pre-tokeniser that puts nothing before a text."""
  if step is None or step["type"] == "Prepend":
    return None
  step = dict(step)
  if step["type"] == "Metaspace":
    step["prepend_scheme"] = "never"
    if "add_prefix_space" in step:  # of older files
      step["add_prefix_space"] = False
  elif step["type"] == "ByteLevel":
    step["add_prefix_space"] = False
  for name in ("normalizers", "pretokenizers"):
    if name in step:
      parts = [_without(part) for part in step[name]]
      step[name] = [part for part in parts if part is not None]
  return step


def of_backend(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
  """Returns a tokenizer of the `tokenizers` library without the mark."""
  state = json.loads(backend.to_str())
  changed = dict(state)
  for name in ("normalizer", "pre_tokenizer"):
    changed[name] = _without(state[name])
  if changed == state:
    return None
  other = tokenizers.Tokenizer.from_str(json.dumps(changed))
  other.encode_special_tokens = True
  return other


def of_sentencepiece(
  proto: sentencepiece_model_pb2.ModelProto,
) -> sentencepiece.SentencePieceProcessor | None:
  """Returns a SentencePiece model without the mark, None for the same one.

  It keeps white space at its ends, which is part of a text that goes on.
  """
  other = sentencepiece_model_pb2.ModelProto()
  other.CopyFrom(proto)
  spec = other.normalizer_spec
  if not spec.add_dummy_prefix and not spec.remove_extra_whitespaces:
    return None
  spec.add_dummy_prefix = spec.remove_extra_whitespaces = False
  return sentencepiece.SentencePieceProcessor(
    model_proto=other.SerializeToString()
  )


def marks_after(
  backend: tokenizers.Tokenizer, inner: tokenizers.Tokenizer, special: str
) -> bool:
  """Says whether a text right after a special token gets the mark too."""
  backend.encode_special_tokens = False
  after = backend.encode(special + "a", add_special_tokens=False).ids[1:]
  backend.encode_special_tokens = True
  return after != inner.encode("a", add_special_tokens=False).ids


def first_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Returns the ids that the post-processor puts before a text."""
  plain = backend.encode("a", add_special_tokens=False).ids
  whole = backend.encode("a", add_special_tokens=True).ids
  for start in range(len(whole) - len(plain) + 1):
    if whole[start : start + len(plain)] == plain:
      return tuple(whole[:start])
  return ()
