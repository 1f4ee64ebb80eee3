"""The two kinds of tokenizer: SentencePiece and the tokenizers library.

Both keep the rule of rlhf_jax/data/tokenizers.py: plain text never becomes a
special token. The libraries skip most of them by themselves; where a
vocabulary still yields one (a Unigram piece that spells "</s>", a user-defined
chat marker), the text is cut inside the marker and encoded in parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import sentencepiece
import tokenizers

from rlhf_jax.data import word_starts
from rlhf_jax.schema import UserError


class EncodingError(ValueError):
  """A text that the vocabulary cannot spell without losing something."""


def fingerprint(
  vocabulary: dict[str, int], merges: Sequence[str], special: dict[str, int]
) -> str:
  """Returns the sha256 hex digest that names a vocabulary.

  Args:
    vocabulary: token text -> id.
    merges: "left right", in order of rank; empty where there are none.
    special: special token text -> id.
  """
  parts = [sorted(vocabulary.items()), list(merges), sorted(special.items())]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _split_inside(text: str, names: Sequence[str]) -> list[str]:
  """Cuts `text` after the first character of every occurrence of a name."""
  cuts = {
    match.start() + 1
    for name in names
    for match in re.finditer(re.escape(name), text)
  }
  borders = [0, *sorted(cuts), len(text)]
  return [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]


def _without_special(
  pieces: list[bytes], special: dict[str, int]
) -> list[bytes]:
  hidden = set(special.values())
  return [b"" if i in hidden else piece for i, piece in enumerate(pieces)]


class _Base:
  """Encoding without special ids and range checks, shared by both kinds."""

  name: str
  vocab_size: int
  special_tokens: dict[str, int]
  first_ids: tuple[int, ...] = ()
  named_ends: tuple[int, ...] = ()
  prompt_end: str = "template"
  is_marked_after_special: bool = False
  takes_spaces: Mapping[str, tuple[bool, bool]] = MappingProxyType({})

  def _encode_raw(self, text: str, is_inside: bool) -> list[int]:
    raise NotImplementedError

  def _decode_raw(self, ids: list[int]) -> str:
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Returns the ids of plain text; never a special id, no begin, no end.

    Raises:
      EncodingError: the vocabulary cannot spell the text.
    """
    return self._encode(text, is_inside=False)

  def encode_inside(self, text: str) -> list[int]:
    """Returns the ids of plain text that goes on after other text.

    They differ from those of `encode` where a vocabulary marks the start of a
    text (word_starts.py).

    Raises:
      EncodingError: the vocabulary cannot spell the text.
    """
    return self._encode(text, is_inside=True)

  def _encode(self, text: str, is_inside: bool) -> list[int]:
    ids = self._encode_raw(text, is_inside)
    found = self._forbidden(ids)
    if not found:
      return ids
    first, *rest = _split_inside(text, found)
    ids = self._encode_raw(first, is_inside)
    ids += [i for part in rest for i in self._encode_raw(part, True)]
    found = self._forbidden(ids)
    if found:
      raise EncodingError(
        f"{self.name}: {text[:80]!r} encodes to special tokens {found} "
        "however it is split. Remove that string from the text."
      )
    return ids

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """Returns the text of ids.

    Args:
      ids: each in [0, vocab_size).
      skip_special: False writes special tokens as their text.

    Raises:
      ValueError: an id is out of range.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size:
        raise UserError(
          f"token id {i} is outside [0, {self.vocab_size}) of {self.name}. "
          "Decode with the tokenizer that encoded."
        )
    names = {i: name for name, i in self.special_tokens.items()}
    texts, run = [], []
    for i in ids:
      if i not in names:
        run.append(i)
      elif not skip_special:
        texts += [self._decode_raw(run), names[i]]
        run = []
    return "".join([*texts, self._decode_raw(run)])

  def _forbidden(self, ids: list[int]) -> list[str]:
    present = set(ids)
    return [name for name, i in self.special_tokens.items() if i in present]


class SentencePieceTokenizer(_Base):
  """A *.model file.

  Control pieces are special. A model made for chat may hold its turn markers
  as user-defined pieces, which are indistinguishable from other such pieces
  ("\\n", runs of spaces): name them in `special_tokens`, or plain text can
  produce them.
  """

  def __init__(self, path: Path, special_tokens: Sequence[str] = ()):
    try:
      model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
      raise UserError(
        f"{path}: not a SentencePiece model ({error}). Give the *.model file."
      ) from error
    size = model.get_piece_size()
    pieces = [model.id_to_piece(i) for i in range(size)]
    special = {
      piece: i for i, piece in enumerate(pieces) if model.is_control(i)
    }
    for piece in special_tokens:
      if piece not in pieces:
        raise UserError(
          f"special_tokens: {piece!r} is not a piece of {path}. Train the "
          "model with it in user_defined_symbols, or leave it out."
        )
      special[piece] = pieces.index(piece)
    if model.eos_id() < 0:
      raise UserError(
        f"{path}: the model has no end token, so no response could end. "
        "Train it with eos_id >= 0."
      )
    self.name = str(path)
    self.vocab_size = size
    self.bos_id = model.bos_id() if model.bos_id() >= 0 else None
    self.eos_id = model.eos_id()
    self.pad_id = model.pad_id() if model.pad_id() >= 0 else self.eos_id
    self.chat_template = None
    self.special_tokens = special
    scores = [f"{model.get_score(i):.9g}" for i in range(size)]
    self.fingerprint = fingerprint(
      {piece: i for i, piece in enumerate(pieces)}, scores, special
    )
    self.unused_ids = frozenset(i for i in range(size) if model.is_unused(i))
    self._model = model
    self._inner = word_starts.of_sentencepiece(model)
    self.is_marked_after_special = word_starts.has_mark(model)

  def serialized(self) -> bytes:
    """Returns the contents of its *.model file."""
    return self._model.serialized_model_proto()

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for; none for special tokens."""
    found = []
    for i in range(self.vocab_size):
      if self._model.is_byte(i):
        found.append(bytes([int(self._model.id_to_piece(i)[3:-1], 16)]))
      else:
        found.append(self._model.id_to_piece(i).replace("▁", " ").encode())
    return _without_special(found, self.special_tokens)

  def _encode_raw(self, text: str, is_inside: bool) -> list[int]:
    model = self._inner if is_inside and self._inner else self._model
    return model.encode(text)

  def _decode_raw(self, ids: list[int]) -> str:
    return self._model.decode(ids)


class HuggingFaceTokenizer(_Base):
  """A `tokenizers.Tokenizer` with its end, begin and padding tokens.

  Args:
    backend: the tokenizer; added tokens that are marked special, and the
      three below, are special here.
    name: for messages.
    eos, bos, pad: token texts; None for bos means none, for pad means eos.
    chat_template: Jinja source or None.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    name: str,
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
    chat_template: str | None = None,
  ):
    named = {"eos": eos, "bos": bos, "pad": pad}
    for role, token in named.items():
      if token is not None and backend.token_to_id(token) is None:
        raise UserError(
          f"{name}: {role} token {token!r} is not in the vocabulary. Correct "
          "its name in tokenizer_config.json."
        )
    if not backend.get_vocab_size():
      raise UserError(f"{name}: no token in it. Download the file again.")
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    vocabulary = backend.get_vocab(with_added_tokens=True)
    model = json.loads(backend.to_str())["model"]
    special = {
      token.content: i
      for i, token in backend.get_added_tokens_decoder().items()
      if token.special and token.content != model.get("unk_token")
    }
    self.takes_spaces = {
      token.content: (token.lstrip, token.rstrip)
      for token in backend.get_added_tokens_decoder().values()
      if token.lstrip or token.rstrip
    }
    for token in named.values():
      if token is not None:
        special[token] = backend.token_to_id(token)
    merges = [
      pair if isinstance(pair, str) else " ".join(pair)
      for pair in model.get("merges", [])
    ]
    self.name = name
    self.vocab_size = max(vocabulary.values()) + 1
    self.bos_id = None if bos is None else special[bos]
    self.eos_id = special[eos]
    self.pad_id = self.eos_id if pad is None else special[pad]
    self.chat_template = chat_template
    self.special_tokens = special
    self.fingerprint = fingerprint(vocabulary, merges, special)
    self.unused_ids = frozenset(range(self.vocab_size)).difference(
      vocabulary.values()
    )
    self.first_ids = word_starts.first_ids(backend)
    self._backend = backend
    self._inner = word_starts.of_backend(backend)
    self.is_marked_after_special = (
      self._inner is not None
      and word_starts.marks_after(backend, self._inner, eos)
    )
    self._missing = _missing_bytes(backend, model, vocabulary)

  def to_json(self) -> str:
    """Returns the text of its tokenizer.json."""
    return self._backend.to_str(pretty=True)

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for; none for special tokens."""
    is_byte_level = "ByteLevel" in self._backend.to_str()
    letters = {c: b for b, c in enumerate(_byte_alphabet())}
    added = self._backend.get_added_tokens_decoder()
    found = [b""] * self.vocab_size
    for token, i in self._backend.get_vocab(with_added_tokens=True).items():
      if i in added:
        found[i] = token.encode()
      elif is_byte_level and all(c in letters for c in token):
        found[i] = bytes(letters[c] for c in token)
      elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        found[i] = bytes([int(token[3:-1], 16)])
      else:
        found[i] = token.replace("▁", " ").encode()
    return _without_special(found, self.special_tokens)

  def _encode_raw(self, text: str, is_inside: bool) -> list[int]:
    if self._missing:
      raw = text.encode()
      if len(raw.translate(None, self._missing)) != len(raw):
        lost = [c for c in text if set(c.encode()) & set(self._missing)]
        raise EncodingError(
          f"{self.name}: no token spells {lost[0]!r} (in {text[:80]!r}), and "
          "it would vanish. Remove that character from the text."
        )
    backend = self._inner if is_inside and self._inner else self._backend
    return backend.encode(text, add_special_tokens=False).ids

  def _decode_raw(self, ids: list[int]) -> str:
    return self._backend.decode(ids, skip_special_tokens=False)


def _byte_alphabet() -> list[str]:
  """Returns the character by which byte-level BPE writes each byte."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return [chr(b if b in printable else next(others)) for b in range(256)]


def _missing_bytes(backend, model: dict, vocabulary: dict[str, int]) -> bytes:
  """Returns the bytes that a byte-level BPE without unknown token drops."""
  description = str(json.loads(backend.to_str())["pre_tokenizer"])
  is_byte_level = "ByteLevel" in description and model["type"] == "BPE"
  if not is_byte_level or model.get("unk_token") is not None:
    return b""
  return bytes(b for b, c in enumerate(_byte_alphabet()) if c not in vocabulary)
