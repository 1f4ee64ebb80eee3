"""What kinds of tokenizer share, and that of the tokenizers library.

All keep the rule of rlhf_jax/data/tokenizers.py: plain text never becomes a
special token. The libraries skip most of them by themselves; where a
vocabulary still yields one (a Unigram piece that spells "</s>", perhaps written
in full-width letters before it was normalised), its id gives way to those of
its characters.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

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


def without_special(
  pieces: list[bytes], special: dict[str, int]
) -> list[bytes]:
  hidden = set(special.values())
  return [b"" if i in hidden else piece for i, piece in enumerate(pieces)]


class Base:
  """Encoding without special ids and range checks, shared by all kinds.

  added_tokens: text -> id of tokens that text yields whole though no merge
    makes them, such as "<think>"; none of them is special.
  named_tokens: "bos_token" and the like -> text, as a chat template sees them.
  tool_template: Jinja source for dialogues with tools, None for the only one.
  template_day: an ISO date that strftime_now of a template writes; None has it
    refused.
  template_variables: what else a chat template is given.
  """

  name: str
  vocab_size: int
  special_tokens: dict[str, int]
  first_ids: tuple[int, ...] = ()
  named_ends: tuple[int, ...] = ()
  prompt_end: str = "template"
  takes_spaces: Mapping[str, tuple[bool, bool]] = MappingProxyType({})
  added_tokens: Mapping[str, int] = MappingProxyType({})
  named_tokens: Mapping[str, str] = MappingProxyType({})
  tool_template: str | None = None
  template_day: str | None = None
  template_variables: Mapping[str, Any] = MappingProxyType({})

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
    special = self._special_ids
    if special.isdisjoint(ids):
      return ids
    return [j for i in ids for j in (self._spelled(i) if i in special else [i])]

  @property
  def _special_ids(self) -> frozenset[int]:
    return frozenset(self.special_tokens.values())

  def _spelled(self, i: int) -> list[int]:
    """Returns ordinary tokens for a special one that a text has yielded."""
    name = next(n for n, j in self.special_tokens.items() if i == j)
    ids = [
      j
      for part in (name[:1], name[1:])
      if part
      for j in self._encode_raw(part, True)
    ]
    if not self._special_ids.isdisjoint(ids):
      raise EncodingError(
        f"{self.name}: a text yields the special token {name!r}, however it is "
        "split. Remove that string from the text."
      )
    return ids

  def with_control(self, names: Collection[str]) -> Base:
    """Returns the tokenizer for which some added tokens are special too.

    Args:
      names: keys of added_tokens; plain text yields none of them any more.
    """
    other = copy.copy(self)
    further = {name: self.added_tokens[name] for name in names}
    other.special_tokens = {**self.special_tokens, **further}
    other.added_tokens = {
      name: i for name, i in self.added_tokens.items() if name not in further
    }
    other._hide(frozenset(names))
    return other

  def _hide(self, names: frozenset[str]) -> None:
    raise NotImplementedError

  def marks_after(self, name: str) -> bool:
    """Says whether a text right after a token starts as a whole text does.

    Args:
      name: of a special or added token.
    """
    raise NotImplementedError

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


class HuggingFaceTokenizer(Base):
  """A `tokenizers.Tokenizer` with its end, begin and padding tokens.

  Args:
    backend: the tokenizer; added tokens that are marked special, and the
      three below, are special here.
    name: for messages.
    eos, bos, pad: token texts; None for bos means none, for pad means eos.
    chat_template: Jinja source or None.
    special: texts of more tokens that are special; those that the vocabulary
      lacks are left out.
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
    special: Collection[str] = (),
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
    added = backend.get_added_tokens_decoder()
    flagged = {*special, *(t.content for t in added.values() if t.special)}
    flagged.discard(_unknown(model))  # plain text may yield it
    flagged |= {token for token in named.values() if token is not None}
    special = {
      token: vocabulary[token]
      for token in sorted(flagged, key=lambda t: vocabulary.get(t, -1))
      if token in vocabulary
    }
    self.takes_spaces = {
      token.content: (token.lstrip, token.rstrip)
      for token in added.values()
      if token.lstrip or token.rstrip
    }
    self.added_tokens = {
      token.content: i
      for i, token in added.items()
      if token.content not in special and token.content != _unknown(model)
    }
    self.named_tokens = {
      f"{role}_token": token for role, token in named.items() if token
    }
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
    self._marks: dict[str, bool] = {}
    self._missing = _missing_bytes(backend, model, vocabulary)

  def to_json(self) -> str:
    """Returns the text of its tokenizer.json."""
    return self._backend.to_str(pretty=True)

  def _hide(self, names: frozenset[str]) -> None:
    state = json.loads(self._backend.to_str())
    for token in state["added_tokens"]:
      token["special"] |= token["content"] in names
    self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    self._backend.encode_special_tokens = True
    self._inner = word_starts.of_backend(self._backend)
    self._marks = {}

  def marks_after(self, name: str) -> bool:
    if self._inner is None:
      return False
    if name not in self._marks:
      self._marks[name] = word_starts.marks_after(
        self._backend, self._inner, name
      )
    return self._marks[name]

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
    return without_special(found, self.special_tokens)

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


def _unknown(model: dict[str, Any]) -> str | None:
  """Returns the text of a vocabulary's unknown token, None if it has none."""
  i = model.get("unk_id")
  return model.get("unk_token") if i is None else model["vocab"][i][0]


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
