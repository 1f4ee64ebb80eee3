"""Texts that are nearly the same: most of their pieces of five words.

  J(A, B) = |A and B| / |A or B|,  A, B: the sets of pieces of two texts

A piece is SIZE words in a row, without case and punctuation; a shorter text is
one piece. Candidates are found by MinHash in bands (Broder 1997; sizes as in
Lee et al. 2022, arXiv:2107.06499, who call texts with J >= 0.8 near
duplicates), and J itself, not its estimate, decides. With 16 bands of 4, a
pair of J = 0.8 is missed once in 5,000 times.

Left out: edit distance; of texts that share a band with more than MOST others
(long boilerplate) only so many are compared.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import defaultdict

import numpy as np

SIZE = 5  # words of a piece
BANDS, ROWS = 16, 4
MOST = 64  # candidates of a band
# A word, or a character of a script that puts no spaces between words.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_PRIME = np.uint64(2**31 - 1)
_random = np.random.default_rng(0)
_FACTORS = _random.integers(1, 2**31 - 1, BANDS * ROWS, dtype=np.uint64)
_SHIFTS = _random.integers(0, 2**31 - 1, BANDS * ROWS, dtype=np.uint64)
_PLACES = _random.integers(1, 2**31 - 1, SIZE, dtype=np.uint64)


def pieces(text: str, words: dict[str, int] | None = None) -> np.ndarray:
  """Returns the pieces of a text as sorted distinct numbers, [n] uint64.

  Args:
    text: any; one without a word is one piece.
    words: word -> number, filled in; saves time where texts share words.
  """
  words = {} if words is None else words
  text = unicodedata.normalize("NFC", text).casefold()
  found = _WORD.findall(text) or [text.strip()]
  ids = np.empty(len(found), np.uint64)
  for i, word in enumerate(found):
    number = words.get(word)
    if number is None:
      number = words[word] = zlib.crc32(word.encode("utf-8", "replace")) >> 1
    ids[i] = number
  size = min(SIZE, len(ids))
  mixed = np.full(len(ids) - size + 1, size, np.uint64)
  for k in range(size):  # each step below 2**31, so that no product overflows
    part = ids[k : len(ids) - size + 1 + k]
    mixed = (mixed * _PLACES[k] + part) % _PRIME
  return np.unique(mixed)


def share(first: np.ndarray, second: np.ndarray) -> float:
  """Returns J of two sets of pieces, in [0, 1]."""
  both = len(np.intersect1d(first, second, assume_unique=True))
  return both / (len(first) + len(second) - both)


class Index:
  """Texts that were seen, to find one that a further text is near to."""

  def __init__(self, least: float) -> None:
    """Begins without texts.

    Args:
      least: J from which texts are near, in (0, 1].
    """
    self._least = least
    self._words: dict[str, int] = {}
    self._seen: list[tuple[tuple[np.ndarray, ...], str]] = []
    self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

  def find(self, texts: tuple[str, ...], where: str = "") -> str | None:
    """Returns the place of a near text, the first that was seen, or None.

    Args:
      texts: parts, all of which must be near: a prompt, and what answers it.
      where: place of this one, which is seen from now on unless it is near an
        earlier one; "" only asks.
    """
    parts = tuple(pieces(text, self._words) for text in texts)
    keys = self._keys(np.concatenate(parts))
    candidates = sorted({n for key in keys for n in self._bands.get(key, ())})
    for number in candidates:
      others, place = self._seen[number]
      if all(
        share(mine, other) >= self._least
        for mine, other in zip(parts, others, strict=True)
      ):
        return place
    if where:
      for key in keys:
        if len(self._bands[key]) < MOST:
          self._bands[key].append(len(self._seen))
      self._seen.append((parts, where))
    return None

  def _keys(self, found: np.ndarray) -> list[tuple[int, bytes]]:
    """Returns the bands of a set of pieces."""
    hashes = (found[:, None] * _FACTORS + _SHIFTS) % _PRIME
    least = hashes.min(axis=0).astype(np.uint32).reshape(BANDS, ROWS)
    return [(band, row.tobytes()) for band, row in enumerate(least)]


def indices(least: float) -> defaultdict[str, Index]:
  """Returns indices by name, each empty at first: texts apart are not compared.

  Args:
    least: see Index.
  """
  return defaultdict(lambda: Index(least))
