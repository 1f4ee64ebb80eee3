"""Tokenizers from SentencePiece, tokenizer.json and GGUF files: one protocol.

Text is data, never markup: `encode` turns every string, even one that spells
a special token, into ordinary tokens, and adds neither begin nor end token.
Special ids come only from code that puts them there (a chat template's own
text, an end token appended to a demonstration), so no user text can close a
turn. `fingerprint` tells whether two models share a vocabulary.

A file that names no padding token pads with its end token: masks travel
explicitly (rlhf_jax/types.py), so the padding id carries no meaning.

Left out: SentencePiece-kind vocabularies inside GGUF files, and GGUF
pre-tokenisers other than those in GGUF_PRE_TOKENIZERS; both are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gguf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rlhf_jax import strict_json
from rlhf_jax.data import gguf_files
from rlhf_jax.data.tokenizer_backends import (
  HuggingFaceTokenizer,
  SentencePieceTokenizer,
)
from rlhf_jax.schema import UserError, absence

# Values of tokenizer.ggml.token_type.
GGUF_CONTROL = gguf.TokenType.CONTROL
GGUF_USER_DEFINED = gguf.TokenType.USER_DEFINED
GGUF_UNUSED = gguf.TokenType.UNUSED

# tokenizer.ggml.pre -> what splits text before the merges apply.
GGUF_PRE_TOKENIZERS: dict[str, Callable] = {
  "smollm": lambda: pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  ),
  "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


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

  What follows, and `encode_inside` and `pieces` of tokenizer_backends.py, a
  tokenizer of another kind may leave out:

  first_ids: what the tokenizer's post-processor puts before a plain text.
  named_ends: end tokens that the model's files name beside eos_id.
  prompt_end: where prompts of dialogues end, PROMPT_ENDS in chat.py.
  unused_ids: those below vocab_size that no token has.
  has_given_template: the chat template is not its own.
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
      Face folder: tokenizer.json with tokenizer_config.json or
      special_tokens_map.json (end, begin, padding) and chat_template.jinja.
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
    tokenizer = SentencePieceTokenizer(path, special_tokens)
    tokenizer.named_ends = read_ends(path.parent)
    return tokenizer
  if special_tokens:
    raise UserError(
      f"special_tokens={list(special_tokens)} applies to SentencePiece models "
      f"only; {path} names its own. Leave it empty."
    )
  if path.suffix == ".gguf":
    return _load_gguf(path)
  if path.is_dir() or path.suffix == ".json":
    return _load_huggingface(path)
  raise UserError(
    f"{path}: unknown kind of tokenizer. Give a *.model, a *.gguf, a "
    "tokenizer.json or a folder that holds one."
  )


def _read_json(path: Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  return strict_json.read_object(path, "Download the file again.")


def _named(config: dict[str, Any], key: str, folder: Path) -> str | None:
  """Returns the text of a token that a folder's files name, or None."""
  value = config.get(key)
  text = value.get("content") if isinstance(value, dict) else value
  if text is None and not isinstance(value, dict):
    return None
  if not isinstance(text, str) or not text:
    raise UserError(
      f"{folder}: {key} is {str(value)[:60]} in tokenizer_config.json or "
      "special_tokens_map.json. Give one token: its text, or an object whose "
      "'content' is that."
    )
  return text


def _template(config: dict[str, Any], folder: Path) -> str | None:
  """Returns the chat template of a folder, or None.

  Raises:
    UserError: it is no text, or there are several and none is "default".
  """
  file = folder / "chat_template.jinja"
  if file.is_file():
    try:
      return strict_json.decode(file.read_bytes())
    except ValueError as error:
      raise UserError(f"{file}: {error}. Download the file again.") from error
  given = config.get("chat_template")
  if isinstance(given, list):
    names = [t.get("name") if isinstance(t, dict) else t for t in given]
    if names.count("default") != 1:
      raise UserError(
        f"{folder}: chat_template in tokenizer_config.json holds templates "
        f"named {names}. Name exactly one of them 'default'."
      )
    given = given[names.index("default")].get("template")
    given = [] if given is None else given
  if given is not None and not isinstance(given, str):
    raise UserError(
      f"{folder}: chat_template in tokenizer_config.json is a "
      f"{type(given).__name__}. Give the text of a Jinja template."
    )
  return given


def encode_inside(text: str, tokenizer: Tokenizer) -> list[int]:
  """Returns the ids of text that goes on after other text."""
  return getattr(tokenizer, "encode_inside", tokenizer.encode)(text)


def read_ends(folder: Path) -> tuple[int, ...]:
  """Returns the end tokens that generation_config.json and config.json name.

  Raises:
    UserError: an eos_token_id that is neither a number nor a list of them.
  """
  found: list[int] = []
  for name in ("generation_config.json", "config.json"):
    try:
      config = _read_json(folder / name)
    except UserError:
      if name != "config.json":
        raise
      config = None
    if not isinstance(config, dict):
      continue  # what reads the model says so
    nested = config.get("text_config")
    for part in (config, nested if isinstance(nested, dict) else {}):
      ends = part.get("eos_token_id")
      ends = ends if isinstance(ends, list) else [ends]
      for end in ends:
        if end is None:
          continue
        if type(end) is not int or end < 0:
          raise UserError(
            f"{folder / name}: eos_token_id={part['eos_token_id']!r}: is the "
            "id of an end token, or a list of ids. Correct it there."
          )
        found.append(end)
  return tuple(dict.fromkeys(found))


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
  config = _read_json(folder / "special_tokens_map.json")
  config |= _read_json(folder / "tokenizer_config.json")
  eos = _named(config, "eos_token", folder)
  if eos is None:
    raise UserError(
      f"{folder}: no eos_token in tokenizer_config.json or "
      "special_tokens_map.json. Add one: training appends it to responses."
    )
  tokenizer = HuggingFaceTokenizer(
    backend,
    str(path),
    eos=eos,
    bos=_named(config, "bos_token", folder),
    pad=_named(config, "pad_token", folder),
    chat_template=_template(config, folder),
  )
  tokenizer.named_ends = read_ends(folder)
  return tokenizer


def _load_gguf(path: Path) -> Tokenizer:
  reader = gguf_files.open_file(path)

  def get(key: str) -> Any:
    return gguf_files.contents(reader, f"tokenizer.{key}", path)

  kind, pre = get("ggml.model"), get("ggml.pre")
  if kind != "gpt2":
    raise UserError(
      f"{path}: tokenizer.ggml.model={kind!r}; only 'gpt2' (byte-level BPE) "
      "is read. Give the model's *.model or tokenizer.json beside the weights."
    )
  if pre not in GGUF_PRE_TOKENIZERS:
    raise UserError(
      f"{path}: tokenizer.ggml.pre={pre!r} is not one of "
      f"{sorted(GGUF_PRE_TOKENIZERS)}; guessing would split text wrongly. "
      "Give the model's tokenizer.json instead."
    )
  tokens = _strings(reader, "ggml.tokens", path)
  kinds = get("ggml.token_type")
  try:
    backend = _byte_level(
      tokens, _strings(reader, "ggml.merges", path), kinds, pre
    )
  except Exception as error:  # the library raises bare Exception
    raise UserError(
      f"{path}: its vocabulary is damaged ({type(error).__name__}: {error}). "
      "Download the file again."
    ) from error

  def named(key: str) -> str | None:
    i = get(f"ggml.{key}_token_id")
    if i is not None and not (isinstance(i, int) and 0 <= i < len(tokens)):
      raise UserError(
        f"{path}: tokenizer.ggml.{key}_token_id={i!r}: there are "
        f"{len(tokens)} tokens. Download the file again."
      )
    return None if i is None else tokens[i]

  if named("eos") is None:
    raise UserError(
      f"{path}: the file names no end token (tokenizer.ggml.eos_token_id). "
      "Give the model's tokenizer.json instead."
    )
  tokenizer = HuggingFaceTokenizer(
    backend,
    str(path),
    eos=named("eos"),
    bos=named("bos"),
    pad=named("padding"),
    chat_template=get("chat_template"),
  )
  ends = (get(f"ggml.{name}_token_id") for name in ("eot", "eom"))
  tokenizer.named_ends = tuple(int(i) for i in ends if i is not None)
  if get("ggml.add_bos_token") and tokenizer.bos_id is not None:
    tokenizer.first_ids = (tokenizer.bos_id,)
  unused = (i for i, kind in enumerate(kinds) if kind == GGUF_UNUSED)
  tokenizer.unused_ids = frozenset(unused)
  return tokenizer


def _strings(reader: gguf.GGUFReader, key: str, path: Path) -> list[str]:
  """Returns a list of texts in the metadata of a GGUF file."""
  field = reader.fields.get(f"tokenizer.{key}")
  try:
    # One pass over the raw parts; contents() is ten times slower.
    return [bytes(field.parts[i]).decode() for i in field.data]
  except (AttributeError, ValueError) as error:
    raise UserError(
      f"{path}: tokenizer.{key} is not there, or no list of texts ({error}). "
      "Download the file again."
    ) from error


def _byte_level(
  tokens: list[str], merges: list[str], kinds: list[int], pre: str
) -> tokenizers.Tokenizer:
  """Returns the byte-level BPE of a GGUF file.

  Args:
    tokens: by id.
    merges: "left right", by rank.
    kinds: of each token, of tokenizer.ggml.token_type.
    pre: a key of GGUF_PRE_TOKENIZERS.
  """
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab={t: i for i, t in enumerate(tokens)},
      merges=[tuple(merge.split(" ", 1)) for merge in merges],
    )
  )
  backend.pre_tokenizer = GGUF_PRE_TOKENIZERS[pre]()
  backend.decoder = decoders.ByteLevel()
  for token, kind in zip(tokens, kinds, strict=True):
    if kind in (GGUF_CONTROL, GGUF_USER_DEFINED):
      is_special = kind == GGUF_CONTROL
      added = tokenizers.AddedToken(token, special=is_special, normalized=False)
      add = backend.add_special_tokens if is_special else backend.add_tokens
      add([added])
  return backend
