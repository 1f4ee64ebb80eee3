"""Tokenizers from SentencePiece, tokenizer.json and GGUF files: one protocol.

Text is data, never markup: `encode` turns every string, even one that spells
a special token, into ordinary tokens, and adds neither begin nor end token.
Special ids come only from code that puts them there (a chat template's own
text, an end token appended to a demonstration), so no user text can close a
turn. `fingerprint` tells whether two models share a vocabulary.

A file that names no padding token pads with its end token: masks travel
explicitly (rlhf_jax/types.py), so the padding id carries no meaning.

Which tokens are special is read as transformers reads it (token_files.py); of
GGUF files see gguf_vocabularies.py.

Left out: tokenizers that are code of their own, tiktoken files and tekken.json.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

from rlhf_jax.data import (
  gguf_vocabularies,
  sentencepiece_backend,
  token_files,
)
from rlhf_jax.data.tokenizer_backends import Base, HuggingFaceTokenizer
from rlhf_jax.schema import UserError, absence

SENTENCEPIECE_FILE = "tokenizer.model"  # of a folder without tokenizer.json
# Classes of transformers that put the begin token before a text by themselves.
BEGINNING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


class Tokenizer(Protocol):
  """What the rest of the package knows of a tokenizer.

  name: where it came from, for messages.
  vocab_size: largest id + 1; the model may have more rows, never fewer.
  bos_id: begin token, or None; `encode` never adds it.
  eos_id: end token: what ends a response.
  pad_id: may equal eos_id.
  chat_template: Jinja source, or None.
  special_tokens: text -> id of every token that plain text cannot produce.
  fingerprint: sha256 hex over vocabulary, merges and special tokens.

  What follows, and what else tokenizer_backends.Base has, a tokenizer of
  another kind may leave out:

  first_ids: what the tokenizer's post-processor puts before a plain text.
  named_ends: end tokens that the model's files name beside eos_id.
  prompt_end: where prompts of dialogues end, PROMPT_ENDS in chat.py.
  unused_ids: those below vocab_size that no token has.
  takes_spaces: text of a special token -> whether white space before it, and
    after it, is part of it.
  """

  name: str
  vocab_size: int
  bos_id: int | None
  eos_id: int
  pad_id: int
  chat_template: str | None
  special_tokens: dict[str, int]
  fingerprint: str

  def encode(self, text: str) -> list[int]: ...

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


def load_tokenizer(
  path: str | Path, *, special_tokens: Sequence[str] = ()
) -> Tokenizer:
  """Loads a tokenizer by what its path is.

  Args:
    path: a SentencePiece *.model, a *.gguf, a tokenizer.json, or a Hugging
      Face folder: tokenizer.json, else tokenizer.model, with
      tokenizer_config.json or special_tokens_map.json (special tokens) and
      chat_template.jinja.
    special_tokens: user-defined SentencePiece pieces that are markup.

  Raises:
    ValueError: the file is missing, of an unknown kind, or names no end token.
  """
  path = Path(path).expanduser()
  if not os.path.isdir(path) and not os.path.isfile(path):
    raise UserError(
      f"{path}: no such tokenizer ({absence(path)}). Give an existing path."
    )
  if path.suffix == ".model":
    return _load_sentencepiece(path, special_tokens)
  if special_tokens:
    raise UserError(
      f"special_tokens={list(special_tokens)} applies to SentencePiece models "
      f"only; {path} names its own. Leave it empty."
    )
  if path.suffix == ".gguf":
    return gguf_vocabularies.load(path)
  if path.is_dir() or path.suffix == ".json":
    return _load_huggingface(path)
  raise UserError(
    f"{path}: unknown kind of tokenizer. Give a *.model, a *.gguf, a "
    "tokenizer.json or a folder that holds one."
  )


def encode_inside(text: str, tokenizer: Tokenizer) -> list[int]:
  """Returns the ids of text that goes on after other text."""
  return getattr(tokenizer, "encode_inside", tokenizer.encode)(text)


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the ids that end an answer: of the tokenizer and of its files.

  The end of turn of its chat template comes in data/stops.py.
  """
  return tuple(
    dict.fromkeys((tokenizer.eos_id, *getattr(tokenizer, "named_ends", ())))
  )


def empty_rows(tokenizer: Tokenizer, rows: int) -> tuple[tuple[int, int], ...]:
  """Returns (start, end) of the rows of an embedding that have no token.

  Args:
    tokenizer: whose tokens.
    rows: of the embedding, at least the tokenizer's.
  """
  unused = getattr(tokenizer, "unused_ids", frozenset())
  ranges: list[tuple[int, int]] = []
  for i in (*sorted(unused), *range(tokenizer.vocab_size, rows)):
    if ranges and ranges[-1][1] == i:
      ranges[-1] = (ranges[-1][0], i + 1)
    else:
      ranges.append((i, i + 1))
  return tuple(ranges)


def _load_huggingface(path: Path) -> Tokenizer:
  folder = path if path.is_dir() else path.parent
  file = path / "tokenizer.json" if path.is_dir() else path
  if not file.exists():
    model = folder / SENTENCEPIECE_FILE
    if path.is_dir() and model.is_file():
      return _load_sentencepiece(model, ())
    raise UserError(
      f"{folder}: no tokenizer.json. For a SentencePiece model give the path "
      "of its *.model file."
    )
  try:
    backend = tokenizers.Tokenizer.from_file(str(file))
  except BaseException as error:  # the library raises these, and panics
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
      raise
    raise UserError(
      f"{file}: not a tokenizer.json ({error}). Give the file written by the "
      "tokenizers library."
    ) from error
  declared = token_files.read(folder)
  if "eos_token" not in declared.named:
    raise UserError(
      f"{folder}: no eos_token in tokenizer_config.json or "
      "special_tokens_map.json. Add one: training appends it to responses."
    )
  tokenizer = HuggingFaceTokenizer(
    backend,
    str(path),
    eos=declared.named["eos_token"],
    bos=declared.named.get("bos_token"),
    pad=declared.named.get("pad_token"),
    special=token_files.apply(declared, backend),
  )
  _describe(tokenizer, declared)
  return tokenizer


def _describe(tokenizer: Base, declared: token_files.Declared) -> None:
  """Sets what the files of a folder say beside the vocabulary."""
  tokenizer.chat_template = declared.template
  tokenizer.tool_template = declared.tool_template
  tokenizer.named_tokens = {**tokenizer.named_tokens, **declared.named}
  tokenizer.named_ends = token_files.read_ends(declared.folder)


def _load_sentencepiece(path: Path, special_tokens: Sequence[str]) -> Tokenizer:
  """Returns the tokenizer of a *.model file, with what stands beside it.

  Whether texts begin with the begin token is what tokenizer_config.json says,
  or what transformers' class of that name does; without one they do not.
  """
  declared = token_files.read(path.parent)
  config, named = declared.config, declared.named
  proto = sentencepiece_backend.read_model(path)
  size, count = len(proto.pieces), config.get("extra_ids", 0)
  if type(count) is not int or count < 0:
    raise UserError(
      f"{path.parent}: extra_ids is {count!r} in tokenizer_config.json. Give "
      "the number of sentinels behind the model's own pieces."
    )
  further = {f"<extra_id_{n}>": size + count - 1 - n for n in range(count)}
  marked = [*special_tokens]
  for i, token in declared.added.items():
    if i >= size:
      further[token.content] = i
    elif proto.pieces[i].piece != token.content and token.special:
      proto.pieces[i].piece = token.content  # a place kept for it
    if i < size and token.special:
      marked.append(token.content)
  own = {piece.piece: piece.type for piece in proto.pieces}
  marked += [
    text
    for key, text in named.items()
    if key != "unk_token" and text in own and text not in marked
  ]
  unknown = proto.trainer_spec.unk_piece
  tokenizer = sentencepiece_backend.SentencePieceTokenizer(
    proto,
    str(path),
    [text for text in marked if text != unknown],
    further=further,
    **{
      role: named[f"{role}_token"]
      for role in ("eos", "bos", "pad")
      if f"{role}_token" in named
    },
    marks_after=config.get("legacy") is not False,
  )
  _describe(tokenizer, declared)
  kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
  has_begin = config.get("add_bos_token", kind in BEGINNING)
  if has_begin and tokenizer.bos_id is not None:
    tokenizer.first_ids = (tokenizer.bos_id,)
  return tokenizer
