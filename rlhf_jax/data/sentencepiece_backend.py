"""SentencePiece vocabularies: *.model files, and those inside GGUF files.

Pieces are special by what they are, not by what they spell: a special piece is
a control piece of the model that encodes, and no text matches one, normalised
or not. A vocabulary may go on behind the model's own pieces (the sentinels of
T5, tokens that a chat model added): those are special too.

Kudo and Richardson 2018, arXiv:1808.06226.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rlhf_jax.data import word_starts
from rlhf_jax.data.tokenizer_backends import (
  Base,
  fingerprint,
  without_special,
)
from rlhf_jax.schema import UserError

Proto = sentencepiece_model_pb2.ModelProto
_Piece = Proto.SentencePiece


def read_model(path: Path) -> Proto:
  """Returns a *.model file.

  Raises:
    UserError: it is none.
  """
  proto = Proto()
  try:
    sentencepiece.SentencePieceProcessor(model_file=str(path))
    proto.ParseFromString(path.read_bytes())
  except (RuntimeError, OSError) as error:
    raise UserError(
      f"{path}: not a SentencePiece model ({error}). Give the *.model file."
    ) from error
  return proto


def _special_of(
  proto: Proto, name: str, special_tokens: Sequence[str]
) -> dict[str, int]:
  """Returns piece -> id of control pieces and of those that are named."""
  ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
  special = {
    piece.piece: i
    for i, piece in enumerate(proto.pieces)
    if piece.type == _Piece.CONTROL
  }
  for piece in special_tokens:
    if piece not in ids:
      raise UserError(
        f"special_tokens: {piece!r} is not a piece of {name}. Train the "
        "model with it in user_defined_symbols, or leave it out."
      )
    special[piece] = ids[piece]
  return special


class SentencePieceTokenizer(Base):
  """A SentencePiece model.

  Control pieces are special. A model made for chat may hold its turn markers
  as user-defined pieces: those that its chat template writes are special in
  dialogues (controls.py); name them in `special_tokens`, and they are special
  in plain texts too.

  Args:
    proto: the model.
    name: of the file, for messages.
    special_tokens: user-defined pieces that are markup.
    further: text -> id of special tokens behind the model's own pieces.
    eos, bos, pad: texts of tokens, None for those of the model.
    marks_after: texts right behind a special token start as whole texts do, as
      Llama's first tokenizer has it.
  """

  def __init__(
    self,
    proto: Proto,
    name: str,
    special_tokens: Sequence[str] = (),
    *,
    further: Mapping[str, int] = MappingProxyType({}),
    eos: str | None = None,
    bos: str | None = None,
    pad: str | None = None,
    marks_after: bool = True,
  ):
    special = _special_of(proto, name, special_tokens)
    self._size = len(proto.pieces)
    self._load(proto, frozenset(special))
    model = self._model
    special |= further
    own = (model.eos_id(), model.bos_id(), model.pad_id())
    ids = [
      (i if i >= 0 else None) if text is None else special.get(text)
      for text, i in zip((eos, bos, pad), own, strict=True)
    ]
    self.eos_id, self.bos_id, pad_id = ids
    if self.eos_id is None:
      raise UserError(
        f"{name}: the model has no end token {eos or ''}, so no response could "
        "end. Train it with eos_id >= 0, or correct tokenizer_config.json."
      )
    self.pad_id = self.eos_id if pad_id is None else pad_id
    self.name = name
    self.vocab_size = max([self._size - 1, *special.values()]) + 1
    self.chat_template = None
    self.special_tokens = special
    names = {i: text for text, i in special.items()}
    self.named_tokens = {
      role: names[i]
      for role, i in zip(
        ("eos_token", "bos_token", "pad_token"), ids, strict=True
      )
      if i is not None
    }
    self.added_tokens = {
      piece.piece.replace("▁", " "): i
      for i, piece in enumerate(proto.pieces)
      if piece.type == _Piece.USER_DEFINED and piece.piece not in special
    }
    pieces = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    scores = [f"{piece.score:.9g}" for piece in proto.pieces]
    self.fingerprint = fingerprint(pieces | further, scores, special)
    self.unused_ids = frozenset(
      i for i, p in enumerate(proto.pieces) if p.type == _Piece.UNUSED
    ) | frozenset(range(self._size, self.vocab_size)).difference(names)
    self._hidden: frozenset[str] = frozenset()
    self._marks_after = marks_after and proto.normalizer_spec.add_dummy_prefix

  def _load(self, proto: Proto, special: frozenset[str]) -> None:
    """Sets what encodes: no text matches one of the special pieces."""
    self._proto = Proto()
    self._proto.CopyFrom(proto)
    for piece in self._proto.pieces:
      if piece.piece in special:
        piece.type = _Piece.CONTROL
    self._model = sentencepiece.SentencePieceProcessor(
      model_proto=self._proto.SerializeToString()
    )
    self._inner = word_starts.of_sentencepiece(self._proto)

  @property
  def is_legacy(self) -> bool:
    """Whether texts right behind a special token start as whole texts do."""
    return self._marks_after

  def to_model(self) -> bytes:
    """Returns the content of its *.model file."""
    return self._proto.SerializeToString()

  def _hide(self, names: frozenset[str]) -> None:
    pieces = {name.replace(" ", "▁") for name in names}
    self._load(self._proto, frozenset(pieces))
    self._hidden = names

  def marks_after(self, name: str) -> bool:
    # SentencePiece goes on with the same text behind a user-defined piece.
    return self._marks_after and name not in self._hidden

  def pieces(self) -> list[bytes]:
    """Returns the bytes that each id stands for; none for special tokens."""
    found = [b""] * self.vocab_size
    for i in range(self._size):
      piece = self._model.id_to_piece(i)
      if self._model.is_byte(i):
        found[i] = bytes([int(piece[3:-1], 16)])
      else:
        found[i] = piece.replace("▁", " ").encode()
    return without_special(found, self.special_tokens)

  def _encode_raw(self, text: str, is_inside: bool) -> list[int]:
    model = self._inner if is_inside and self._inner else self._model
    return model.encode(text)

  def _decode_raw(self, ids: list[int]) -> str:
    return self._model.decode([i for i in ids if i < self._size])
