"""Diversity of a set of texts, by their words.

  distinct-n = U / C        U unique, C total n-grams   Li et al. 2016
  EAD = U / (V (1 - ((V - 1) / V)^C))                   Liu et al. 2022
  entropy = -sum_g p_g log p_g over n-grams             Zhang et al. 2018
  self-BLEU = mean_i BLEU-4(text_i | the other texts)   Zhu et al. 2018

Lower distinct-n, EAD and entropy, higher self-BLEU, duplicates and repetition
mean less diversity. All but EAD move with the number and the length of the
texts: compare policies at equal sample counts, under identical sampling
settings, and cut to a common length (`max_words`) where lengths differ. EAD
divides by the number of unique n-grams that C draws from V equally likely ones
would have, which takes most of the length out.

Words come from one fixed rule, `words`: what stands between spaces, in lower
case, punctuation included. Answers to one prompt against those to others, and
embeddings: `spread.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

BLEU_ORDER = 4
SMOOTHING_EPSILON = 0.1  # method 1 of Chen & Cherry 2014
VOCABULARY = 50_000  # V of EAD: one for all, so that runs can be compared
EAD_ORDERS = (1, 2, 3, 4, 5)  # averaged, as Kirk et al. 2024 do

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


def expectation_adjusted_distinct(
  texts: Sequence[str],
  orders: Sequence[int] = EAD_ORDERS,
  *,
  vocabulary: int = VOCABULARY,
) -> float:
  """Returns unique n-grams over those expected at this length, mean of orders.

  Liu et al. 2022 (arXiv:2202.13587), averaged over n = 1..5 as in Kirk et al.
  2024 (arXiv:2310.06452). About 1: as many unique n-grams as equally likely
  words would give; natural text has less of short ones.

  Args:
    texts: any number of texts.
    orders: the n; those that no text is long enough for do not count.
    vocabulary: V, the same for whatever is compared, >= 2.

  Returns:
    The mean ratio, or NaN where no text holds an n-gram.

  Raises:
    ValueError: no texts, no order, or a vocabulary below 2.
  """
  if vocabulary < 2 or not orders:
    raise ValueError(
      f"vocabulary={vocabulary}, orders={tuple(orders)}: EAD needs a "
      "vocabulary of 2 words and one order. Set both."
    )
  found = []
  for n in orders:
    counts = _corpus_grams(texts, n)
    if total := counts.total():
      # V (1 - (1 - 1 / V)^C), without cancellation
      drawn = -vocabulary * math.expm1(total * math.log1p(-1.0 / vocabulary))
      found.append(len(counts) / drawn)
  return float(np.mean(found)) if found else math.nan


def ngram_entropy(texts: Sequence[str], n: int = 2) -> float:
  """Returns the entropy of the corpus' n-grams in nats (Zhang et al. 2018).

  0: one n-gram alone; at most log C of C n-grams. arXiv:1809.05972, section 4.

  Returns:
    The entropy, or NaN where no text holds n words.
  """
  counts = np.array(list(_corpus_grams(texts, n).values()), np.float64)
  if not counts.size:
    return math.nan
  shares = counts / counts.sum()
  return max(0.0, float(-np.sum(shares * np.log(shares))))


def jaccard_distance(texts: Sequence[str]) -> float:
  """Returns the mean of 1 - |A & B| / |A | B| over all pairs of texts' words.

  0: all texts have the same words; 1: no two share any. Two empty texts are the
  same.

  Raises:
    ValueError: fewer than 2 texts.
  """
  _check(texts, 1, at_least=2)
  sets = [set(words(text)) for text in texts]
  index = {word: i for i, word in enumerate(set().union(*sets))}
  has = np.zeros((len(sets), max(1, len(index))), np.float32)
  for row, own in zip(has, sets, strict=True):
    row[[index[word] for word in own]] = 1.0
  shared = has @ has.T
  sizes = np.diag(shared)
  union = sizes[:, None] + sizes[None, :] - shared
  alike = np.where(union > 0, shared / np.maximum(union, 1.0), 1.0)
  pairs = np.triu_indices(len(sets), k=1)
  return float(np.mean(1.0 - alike[pairs]))


def _corpus_grams(texts: Sequence[str], n: int) -> Counter[Words]:
  _check(texts, n)
  counts: Counter[Words] = Counter()
  for text in texts:
    counts.update(_grams(words(text), n))
  return counts


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


def near_identical_share(
  texts: Sequence[str], prompts: Sequence[str], least: float = 0.8
) -> float:
  """Returns the share of texts nearly the same as one to another prompt.

  J(A, B) = |A and B| / |A or B| of the sets of words is at least `least`; two
  empty texts are the same. Up is bad: the prompt no longer matters. Lee et al.
  2022 (arXiv:2107.06499) call texts near duplicates from 0.8 on, of word
  5-grams; words alone also catch short answers.

  Args:
    texts: N answers; all pairs are compared.
    prompts: the prompt of each.
    least: in (0, 1].

  Returns:
    NaN where all answer one prompt.

  Raises:
    ValueError: no texts, or not as many prompts.
  """
  _check(texts, 1)
  if len(prompts) != len(texts):
    raise ValueError(
      f"{len(prompts)} prompts for {len(texts)} texts: give one for each."
    )
  names = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
  if len(names) < 2:
    return math.nan
  owner = np.array([names[prompt] for prompt in prompts])
  sets = [set(words(text)) for text in texts]
  column = {word: i for i, word in enumerate(sorted(set().union(*sets)))}
  has = np.zeros((len(texts), max(len(column), 1)), np.float32)
  for row, those in zip(has, sets, strict=True):
    row[[column[word] for word in those]] = 1.0
  both, sizes = has @ has.T, has.sum(axis=1)
  union = sizes[:, None] + sizes - both
  is_near = (both >= least * union) & (owner[:, None] != owner)
  return float(np.mean(is_near.any(axis=1)))


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
