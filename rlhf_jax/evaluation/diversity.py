"""Diversity of sampled texts: distinct-n, self-BLEU, duplicates, repetition.

  distinct-n = U / C        U unique, C total n-grams   Li et al. 2016
  self-BLEU = mean_i BLEU-4(text_i | the other texts)   Zhu et al. 2018

Lower distinct-n, higher self-BLEU, duplicates and repetition mean less
diversity. All fall or rise with the number and the length of the texts: compare
policies at equal sample counts, under identical sampling settings, and cut to a
common length (`max_words`) where lengths differ.

Words come from one fixed rule, `words`: what stands between spaces, in lower
case, punctuation included. Left out: corrections for length (EAD, Liu et al.
2022, arXiv:2202.13587), embedding distances and cross-prompt similarity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

BLEU_ORDER = 4
SMOOTHING_EPSILON = 0.1  # method 1 of Chen & Cherry 2014

Words = tuple[str, ...]


def words(text: str) -> Words:
  """Returns the lower-case words of a text, split at white space."""
  return tuple(text.lower().split())


def _grams(tokens: Words, n: int) -> Counter[Words]:
  return Counter(tokens[i : i + n] for i in range(len(tokens) - n + 1))


def _check(texts: Sequence[str], n: int, at_least: int = 1) -> None:
  if isinstance(texts, str):
    raise ValueError(
      f"texts={texts[:30]!r}: one string is not a list of texts. Pass [text]."
    )
  if len(texts) < at_least:
    raise ValueError(
      f"{len(texts)} texts: at least {at_least} are needed. Sample more."
    )
  if n < 1:
    raise ValueError(f"n={n}: an n-gram has at least 1 word. Set n >= 1.")


def _cut(texts: Sequence[str], max_words: int | None) -> list[Words]:
  if max_words is not None and max_words < 1:
    raise ValueError(
      f"max_words={max_words}: nothing would be left. Set it >= 1 or None."
    )
  return [words(text)[:max_words] for text in texts]


def distinct_n(
  texts: Sequence[str], n: int, *, max_words: int | None = None
) -> float:
  """Returns unique / total n-grams of the whole corpus, in (0, 1].

  Args:
    texts: any number of texts; n-grams never cross from one to the next.
    n: words of an n-gram.
    max_words: cut every text to this many words first; None keeps all.

  Returns:
    The ratio, or NaN where no text holds n words.

  Raises:
    ValueError: no texts, or n or max_words below 1.
  """
  _check(texts, n)
  counts: Counter[Words] = Counter()
  for tokens in _cut(texts, max_words):
    counts.update(_grams(tokens, n))
  total = counts.total()
  return len(counts) / total if total else math.nan


def _best_two(
  counters: list[Counter[Words]],
) -> dict[Words, tuple[int, int, int]]:
  """Returns n-gram -> (largest count, its text, largest count elsewhere)."""
  best: dict[Words, tuple[int, int, int]] = {}
  for index, counter in enumerate(counters):
    for gram, count in counter.items():
      first, owner, second = best.get(gram, (0, -1, 0))
      if count > first:
        best[gram] = (count, index, first)
      elif count > second:
        best[gram] = (first, owner, count)
  return best


def _bleu(matches: list[int], length: int, closest: int) -> float:
  """Returns smoothed BLEU from clipped matches by order.

  Args:
    matches: clipped n-gram matches for n = 1.. up to the orders judged.
    length: words of the text, > 0.
    closest: words of the reference closest in length.
  """
  if matches[0] == 0:
    return 0.0
  mean_log = 0.0
  for order, matched in enumerate(matches):
    numerator = matched if matched > 0 else SMOOTHING_EPSILON
    mean_log += math.log(numerator / (length - order)) / len(matches)
  return math.exp(mean_log + min(0.0, 1.0 - closest / length))


def self_bleu(texts: Sequence[str]) -> float:
  """Returns the mean BLEU-4 of each text against all others; 1: all the same.

  Clipped n-gram precisions for n = 1..4 with equal weights, brevity penalty
  against the closest length (the shorter on a tie; Papineni et al. 2002), a
  precision of 0 out of m replaced by 0.1 / m (method 1, Chen & Cherry 2014).
  No common word at all gives 0. A text of fewer than 4 words is judged on the
  orders it has, so that two equal short texts score 1; an empty one scores 1
  against another empty one, else 0.

  Args:
    texts: at least 2; 8 or more samples of a prompt give a steady figure.

  Raises:
    ValueError: fewer than 2 texts.
  """
  _check(texts, 1, at_least=2)
  tokens = [words(text) for text in texts]
  lengths = Counter(len(row) for row in tokens)
  counters = [
    [_grams(row, n) for row in tokens] for n in range(1, BLEU_ORDER + 1)
  ]
  best = [_best_two(of_order) for of_order in counters]
  scores = []
  for i, row in enumerate(tokens):
    others = lengths - Counter([len(row)])
    if not row:
      scores.append(float(others[0] > 0))
      continue
    matches = []
    for order in range(min(BLEU_ORDER, len(row))):
      matched = 0
      for gram, count in counters[order][i].items():
        first, owner, second = best[order][gram]
        matched += min(count, second if owner == i else first)
      matches.append(matched)
    closest = min((abs(size - len(row)), size) for size in others)[1]
    scores.append(_bleu(matches, len(row), closest))
  return float(np.mean(scores))


def duplicate_share(texts: Sequence[str]) -> float:
  """Returns 1 - unique / all: the share of texts that repeat an earlier one.

  Texts are equal when their words are (case and spacing do not count).
  """
  _check(texts, 1)
  return 1.0 - len({words(text) for text in texts}) / len(texts)


def repeated_ngram_rate(texts: Sequence[str], n: int = 3) -> float:
  """Returns the share of n-grams that occurred before in the same text.

  0: no text repeats itself; near 1: texts that loop. NaN where no text holds
  n words.
  """
  _check(texts, n)
  counters = [_grams(words(text), n) for text in texts]
  total = sum(counter.total() for counter in counters)
  unique = sum(len(counter) for counter in counters)
  return 1.0 - unique / total if total else math.nan
