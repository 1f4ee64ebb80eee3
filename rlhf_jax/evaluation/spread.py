"""Diversity of one prompt's answers, against that of answers to many prompts.

  per prompt      mean over prompts of D(the G answers to one)
  across prompts  mean over sets of G prompts of D(one answer to each)

Both have sets of G texts, so they may be compared, whatever D does with the
size of a set. A policy that heeds its prompts is less diverse within one than
across them. Their fall together is collapse; "across" that falls to "per
prompt" is one answer for all prompts (Kirk et al. 2024, arXiv:2310.06452, call
them per-input and across-input diversity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_jax.evaluation import diversity

Measure = Callable[[Sequence[str]], float]
Groups = Sequence[Sequence[str]]

# What is measured of a set of texts. Up is more diverse, but for self-BLEU.
MEASURES: dict[str, Measure] = {
  "distinct_2": lambda texts: diversity.distinct_n(texts, 2),
  "expectation_adjusted_distinct": diversity.expectation_adjusted_distinct,
  "self_bleu": diversity.self_bleu,
  "jaccard_distance": diversity.jaccard_distance,
}


def _check(groups: Groups) -> int:
  sizes = {len(group) for group in groups}
  if len(sizes) != 1 or min(sizes) < 2:
    raise ValueError(
      f"groups of {sorted(sizes)} texts: each prompt needs as many answers, at "
      "least 2. Sample as many of each."
    )
  return sizes.pop()


def _mean(values: Sequence[float]) -> float:
  known = [x for x in values if not math.isnan(x)]
  return float(np.mean(known)) if known else math.nan


def per_prompt(measure: Measure, groups: Groups) -> float:
  """Returns the mean over prompts of a measure of the answers to each.

  Args:
    measure: of a list of texts; NaN where they do not define it, which is left
      out of the mean.
    groups: [P][G] answers, G >= 2.

  Raises:
    ValueError: prompts with different numbers of answers, or with one.
  """
  _check(groups)
  return _mean([measure(group) for group in groups])


def across_prompts(measure: Measure, groups: Groups, seed: int = 0) -> float:
  """Returns the mean of a measure over sets of G answers to G prompts.

  Prompts are shuffled once and cut into sets of G, the last of which may lack
  some and is then left out; from the p-th prompt of a set comes its p-th
  answer, then the next, until each answer stood in one set.

  Args:
    measure, groups: as in per_prompt; P >= G.
    seed: of the order of prompts.

  Returns:
    The mean, or NaN where there are fewer prompts than answers to each.
  """
  size = _check(groups)
  order = np.random.default_rng(seed).permutation(len(groups))
  found = []
  for start in range(0, len(groups) - size + 1, size):
    rows = order[start : start + size]
    for turn in range(size):
      found.append(
        measure([groups[row][(i + turn) % size] for i, row in enumerate(rows)])
      )
  return _mean(found)


def facts(
  groups: Groups, embed: Callable[[Sequence[str]], np.ndarray] | None = None
) -> dict[str, float]:
  """Returns all measures of answers, within prompts and across them.

  {per_prompt, across_prompts}_{distinct_2, expectation_adjusted_distinct,
  self_bleu, jaccard_distance, embedding_distance}. NaN where undefined.

  Args:
    groups: [P][G] answers, G >= 2.
    embed: texts -> vectors [n, D], or None: no embedding_distance.
  """
  measures = dict(MEASURES)
  if embed is not None:
    texts = sorted({text for group in groups for text in group})
    vectors = dict(zip(texts, embed(texts), strict=True))
    measures["embedding_distance"] = lambda chosen: embedding_distance(
      np.stack([vectors[text] for text in chosen])
    )
  found = {}
  for name, measure in measures.items():
    found[f"per_prompt_{name}"] = per_prompt(measure, groups)
    found[f"across_prompts_{name}"] = across_prompts(measure, groups)
  return found


def embedding_distance(vectors: np.ndarray) -> float:
  """Returns 1 - the mean cosine of all pairs of vectors, in [0, 2].

  With unit vectors u the mean over ordered pairs is
  (|sum u|^2 - n) / (n (n - 1)).

  Args:
    vectors: [n, D]; those of length 0 (a text without a token) say nothing and
      are left out.

  Returns:
    The distance, or NaN where fewer than 2 vectors are left.
  """
  vectors = np.asarray(vectors, np.float64)
  lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
  has_length = lengths[:, 0] > 0.0
  count = int(has_length.sum())
  if count < 2:
    return math.nan
  units = vectors[has_length] / lengths[has_length]
  total = float(np.sum(np.square(units.sum(axis=0))))
  return 1.0 - (total - count) / (count * (count - 1))
