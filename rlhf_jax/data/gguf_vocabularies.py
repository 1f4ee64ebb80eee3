"""Tokenizers inside GGUF files: the kinds gpt2, llama and t5.

  gpt2: byte-level BPE; tokenizer.ggml.pre names what splits text before
    (gguf_splits.py).
  llama, t5: SentencePiece, BPE by scores and Unigram. The file has the pieces
    of the original model with their scores and kinds, so the model is built
    again, and SentencePiece encodes.

Left out, and refused by name: WordPiece, RWKV, PLaMo and Gemma 4 vocabularies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders, models, processors

from rlhf_jax.data import gguf_files
from rlhf_jax.data.gguf_splits import SPLITS
from rlhf_jax.data.sentencepiece_backend import Proto, SentencePieceTokenizer
from rlhf_jax.data.tokenizer_backends import Base, HuggingFaceTokenizer
from rlhf_jax.schema import UserError

_Kind = gguf.TokenType  # values of tokenizer.ggml.token_type
_Piece = Proto.SentencePiece
_PIECES = {
  _Kind.CONTROL: _Piece.CONTROL,
  _Kind.USER_DEFINED: _Piece.USER_DEFINED,
  _Kind.UNUSED: _Piece.UNUSED,
  _Kind.UNKNOWN: _Piece.UNUSED,  # but for the one that the file names
  _Kind.BYTE: _Piece.BYTE,
}


class _File:
  """The metadata below "tokenizer." of a GGUF file.

  tokens: by id.
  kinds: of each.
  """

  def __init__(self, path: Path):
    self.path = path
    self._reader = gguf_files.open_file(path)
    self.tokens = [
      token or f"[EMPTY_{i}]"  # as llama.cpp names it
      for i, token in enumerate(self.strings("ggml.tokens"))
    ]
    kinds = self.get("ggml.token_type")
    self.kinds = [_Kind.NORMAL] * len(self.tokens) if kinds is None else kinds
    if len(self.kinds) != len(self.tokens):
      raise self.damaged(
        f"{len(self.tokens)} tokens and {len(self.kinds)} kinds"
      )

  def get(self, key: str) -> Any:
    return gguf_files.contents(self._reader, f"tokenizer.{key}", self.path)

  def damaged(self, reason: str) -> UserError:
    return UserError(
      f"{self.path}: its vocabulary is damaged ({reason}). Download the file "
      "again."
    )

  def strings(self, key: str) -> list[str]:
    """Returns a list of texts."""
    field = self._reader.fields.get(f"tokenizer.{key}")
    try:
      # One pass over the raw parts; contents() is ten times slower.
      return [bytes(field.parts[i]).decode() for i in field.data]
    except (AttributeError, ValueError) as error:
      raise UserError(
        f"{self.path}: tokenizer.{key} is not there, or no list of texts "
        f"({error}). Download the file again."
      ) from error

  def id_of(self, role: str) -> int | None:
    """Returns the id of a named token ("eos"), None if the file names none."""
    i = self.get(f"ggml.{role}_token_id")
    if i is not None and not (isinstance(i, int) and 0 <= i < len(self.tokens)):
      raise UserError(
        f"{self.path}: tokenizer.ggml.{role}_token_id={i!r}: there are "
        f"{len(self.tokens)} tokens. Download the file again."
      )
    return i

  def named(self, role: str) -> str | None:
    """Returns the text of a named token."""
    i = self.id_of(role)
    return None if i is None else self.tokens[i]

  def begins(self, usual: bool) -> bool:
    """Says whether plain texts start with the begin token.

    Args:
      usual: what llama.cpp does where the file is silent.
    """
    given = self.get("ggml.add_bos_token")
    has_begin = self.id_of("bos") is not None
    return has_begin and bool(usual if given is None else given)


def load(path: Path) -> Base:
  """Returns the tokenizer of a GGUF file.

  Raises:
    UserError: a kind or a split of text that is not read, or a damaged file.
  """
  file = _File(path)
  kind = file.get("ggml.model")
  if kind not in ("gpt2", "llama", "t5"):
    raise UserError(
      f"{path}: tokenizer.ggml.model={kind!r}; only 'gpt2' (byte-level BPE), "
      "'llama' and 't5' (SentencePiece) are read. Give the model's *.model or "
      "tokenizer.json beside the weights."
    )
  if file.id_of("eos") is None:
    raise UserError(
      f"{path}: the file names no end token (tokenizer.ggml.eos_token_id). "
      "Give the model's tokenizer.json instead."
    )
  if kind == "gpt2":
    tokenizer = _byte_level(file)
  else:
    tokenizer = _sentencepiece(file, kind)
    if file.begins(kind == "llama"):
      tokenizer.first_ids = (tokenizer.bos_id,)
  tokenizer.chat_template = file.get("chat_template")
  ends = (file.id_of(role) for role in ("eot", "eom"))
  tokenizer.named_ends = tuple(i for i in ends if i is not None)
  tokenizer.unused_ids = frozenset(
    i for i, kind in enumerate(file.kinds) if kind == _Kind.UNUSED
  )
  return tokenizer


def _byte_level(file: _File) -> Base:
  """Returns a byte-level BPE."""
  pre = file.get("ggml.pre")
  if pre not in SPLITS:
    raise UserError(
      f"{file.path}: tokenizer.ggml.pre={pre!r} is not one of "
      f"{', '.join(sorted(SPLITS))}; guessing would split text wrongly. "
      "Give the model's tokenizer.json instead."
    )
  split = SPLITS[pre]
  merges = file.strings("ggml.merges")
  try:
    backend = tokenizers.Tokenizer(
      models.BPE(
        vocab={t: i for i, t in enumerate(file.tokens)},
        merges=[_pair(merge) for merge in merges],
        ignore_merges=split.ignores_merges,
      )
    )
  except Exception as error:  # the library raises bare Exception
    raise file.damaged(f"{type(error).__name__}: {error}") from error
  backend.pre_tokenizer = split.pre_tokenizer()
  backend.decoder = decoders.ByteLevel()
  control, others = [], []
  for token, kind in zip(file.tokens, file.kinds, strict=True):
    is_special = kind == _Kind.CONTROL
    if is_special or kind == _Kind.USER_DEFINED:
      added = tokenizers.AddedToken(token, special=is_special, normalized=False)
      (control if is_special else others).append(added)
  backend.add_special_tokens(control)
  backend.add_tokens(others)
  if file.begins(split.has_begin):
    begin = file.named("bos")
    backend.post_processor = processors.TemplateProcessing(
      single=[begin, "$A"], special_tokens=[(begin, file.id_of("bos"))]
    )
  return HuggingFaceTokenizer(
    backend,
    str(file.path),
    eos=file.named("eos"),
    bos=file.named("bos"),
    pad=file.named("padding"),
  )


def _pair(merge: str) -> tuple[str, str]:
  """Returns both tokens of "left right"; the left may begin with a space."""
  at = merge.find(" ", 1)
  if at < 0:
    raise ValueError(f"the merge {merge[:40]!r} names one token")
  return merge[:at], merge[at + 1 :]


def _sentencepiece(file: _File, kind: str) -> Base:
  """Returns the SentencePiece model whose pieces a file has."""
  scores = file.get("ggml.scores")
  if scores is None or len(scores) != len(file.tokens):
    raise file.damaged("not one score for each token")
  proto = Proto()
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  trainer.model_type = 2 if kind == "llama" else 1  # BPE, Unigram
  trainer.byte_fallback = _Kind.BYTE in file.kinds
  named = {
    role: file.id_of(key)
    for role, key in (
      ("unk", "unknown"),
      ("bos", "bos"),
      ("eos", "eos"),
      ("pad", "padding"),
    )
  }
  if named["unk"] is None:
    named["unk"] = 0 if kind == "llama" else 2  # as llama.cpp has it
  special = {i for role, i in named.items() if role != "unk"}
  for i, (token, score, of) in enumerate(
    zip(file.tokens, scores, file.kinds, strict=True)
  ):
    piece = proto.pieces.add(score=score)
    piece.type = _PIECES.get(of, _Piece.NORMAL)
    if i == named["unk"]:
      piece.type = _Piece.UNKNOWN
    elif i in special:
      piece.type = _Piece.CONTROL
    # llama.cpp writes spaces in user-defined pieces, the model "▁".
    is_own = piece.type == _Piece.USER_DEFINED
    piece.piece = token.replace(" ", "▁") if is_own else token
  for role, i in named.items():
    setattr(trainer, f"{role}_id", -1 if i is None else i)
    setattr(trainer, f"{role}_piece", "" if i is None else file.tokens[i])
  trainer.vocab_size = len(file.tokens)
  is_prefixed = file.get("ggml.add_space_prefix")
  normalizer.add_dummy_prefix = True if is_prefixed is None else is_prefixed
  normalizer.remove_extra_whitespaces = bool(
    file.get("ggml.remove_extra_whitespaces")
  )
  normalizer.escape_whitespaces = True
  charsmap = file.get("ggml.precompiled_charsmap")
  if charsmap is not None:
    normalizer.precompiled_charsmap = bytes(b & 255 for b in charsmap)
  try:
    return SentencePieceTokenizer(
      proto, str(file.path), bos=file.named("bos"), pad=file.named("padding")
    )
  except RuntimeError as error:
    raise file.damaged(str(error)) from error
