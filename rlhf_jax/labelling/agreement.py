"""How far annotators agree, and how much of it is more than chance.

  raw      p_o = mean_u sum_c n_uc (n_uc - 1) / (n_u (n_u - 1))
  Cohen    kappa = (p_o - p_e) / (1 - p_e),  p_e = sum_c p_1c p_2c
  Fleiss   kappa with p_e = sum_c p_c^2, p_c the pooled share of c
  Krippendorff  alpha = 1 - D_o / D_e, of the coincidences of values

Tables are [R, U], of R annotators on U units, NaN where one did not vote. Cohen
1960; Fleiss 1971; Krippendorff 2011 (Computing Krippendorff's
Alpha-Reliability). Where labels are skewed, p_e nears 1 and kappa is near 0 at
high agreement: read both. This is own code, for the library `krippendorff` is
GPL; the tests hold its numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.win_rate import Proportion, proportion
from rlhf_jax.schema import UserError

LEVELS = ("nominal", "ordinal", "interval")
MIN_AGREEMENT = 0.70  # METHODS 19: warned below
RESAMPLES = 1000


class Estimate(NamedTuple):
  """A statistic with its bootstrap interval (95 %); NaN where unknown."""

  value: float
  low: float
  high: float
  count: int


def _counts(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the values [V] of a table, and how often [U, V] each unit has it.

  Units with fewer than two votes are left out.
  """
  table = np.asarray(table, np.float64)
  if table.ndim != 2:
    raise UserError(
      f"a table of shape {table.shape}: agreement reads [annotators, units]."
    )
  table = table[:, (~np.isnan(table)).sum(axis=0) >= 2]
  values = np.unique(table[~np.isnan(table)])
  counts = (table[:, :, None] == values).sum(axis=0)
  return values, counts


def _unit_agreement(counts: np.ndarray) -> np.ndarray:
  """Returns [U] the share of pairs of votes on a unit that agree."""
  total = counts.sum(axis=1)
  same = (counts * (counts - 1)).sum(axis=1)
  return same / (total * (total - 1))


def raw_agreement(table: np.ndarray) -> float:
  """Returns how often two annotators of a unit agree, NaN if none has two.

  Units count the same, however many votes they have.

  Args:
    table: [R, U].
  """
  _, counts = _counts(table)
  return float(np.mean(_unit_agreement(counts))) if len(counts) else math.nan


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float:
  """Returns Cohen's kappa of two annotators, on the units that both judged.

  Args:
    first, second: [U], NaN where one did not vote.

  Returns:
    kappa; NaN where they share no unit, or where both always say the same one
    value, which leaves nothing to agree on beyond chance.
  """
  first, second = np.asarray(first), np.asarray(second)
  both = ~np.isnan(first) & ~np.isnan(second)
  if not both.any():
    return math.nan
  a, b = first[both], second[both]
  values = np.unique(np.concatenate([a, b]))
  observed = float(np.mean(a == b))
  chance = float(sum(np.mean(a == v) * np.mean(b == v) for v in values))
  return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss_kappa(table: np.ndarray) -> float:
  """Returns Fleiss' kappa, NaN where all votes are the same or none meet.

  Units may have different numbers of votes: pooled shares are over votes.

  Args:
    table: [R, U].
  """
  _, counts = _counts(table)
  if not len(counts):
    return math.nan
  observed = float(np.mean(_unit_agreement(counts)))
  shares = counts.sum(axis=0) / counts.sum()
  chance = float(np.sum(shares**2))
  return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def _distances(
  values: np.ndarray, totals: np.ndarray, level: str
) -> np.ndarray:
  """Returns squared distances [V, V] of values; Krippendorff 2011, D."""
  if level == "nominal":
    return 1.0 - np.eye(len(values))
  if level == "interval":
    return (values[:, None] - values[None, :]) ** 2
  if level == "ordinal":
    middle = np.cumsum(totals) - 0.5 * totals
    return (middle[:, None] - middle[None, :]) ** 2
  raise UserError(f"level={level!r}: must be one of {', '.join(LEVELS)}.")


def _coincidences(counts: np.ndarray) -> np.ndarray:
  """Returns the coincidences [U, V, V] of each unit's pairs of values."""
  pairs = counts[:, :, None] * counts[:, None, :]
  pairs = pairs - counts[:, :, None] * np.eye(counts.shape[1])
  return pairs / (counts.sum(axis=1) - 1)[:, None, None]


def _alpha(coincidences: np.ndarray, values: np.ndarray, level: str) -> float:
  """Returns alpha of coincidences [V, V]."""
  totals = coincidences.sum(axis=0)
  distances = _distances(values, totals, level)
  expected = np.sum(np.outer(totals, totals) * distances)
  if not expected > 0:
    return math.nan
  observed = np.sum(coincidences * distances)
  return float(1 - (totals.sum() - 1) * observed / expected)


def krippendorff_alpha(table: np.ndarray, level: str = "nominal") -> float:
  """Returns Krippendorff's alpha; annotators may have left out any units.

  Args:
    table: [R, U].
    level: "nominal", "ordinal" or "interval".

  Returns:
    alpha, 1 for full agreement, 0 for chance; NaN where no two votes meet or
    all are the same.

  Raises:
    UserError: an unknown level, or a table of another shape.
  """
  values, counts = _counts(table)
  if level not in LEVELS:
    raise UserError(f"level={level!r}: must be one of {', '.join(LEVELS)}.")
  if not len(counts):
    return math.nan
  together = sum(
    (_coincidences(part).sum(axis=0) for part in _split(counts)),
    np.zeros((len(values), len(values))),
  )
  return _alpha(together, values, level)


def _split(counts: np.ndarray) -> list[np.ndarray]:
  """Returns parts of [U, V] whose coincidences fit into memory."""
  size = max(1, 4_000_000 // max(1, counts.shape[1]) ** 2)
  return [counts[i : i + size] for i in range(0, len(counts), size)]


def resampled(
  statistic: Callable[[np.ndarray], float],
  table: np.ndarray,
  groups: np.ndarray,
  seed: int = 0,
) -> Estimate:
  """Returns a statistic of a table with its interval over prompts.

  The percentile bootstrap (Efron 1979): prompts are drawn with replacement, for
  pairs of one prompt's answers are not independent.

  Args:
    statistic: of a table [R, U].
    table: [R, U].
    groups: [U] the prompt of each unit.
    seed: of the draw.
  """
  shared = (~np.isnan(table)).sum(axis=0) >= 2
  table, groups = table[:, shared], groups[shared]
  value, names = statistic(table), np.unique(groups)
  if len(names) < 2 or math.isnan(value):
    return Estimate(value, math.nan, math.nan, table.shape[1])
  places = [np.flatnonzero(groups == name) for name in names]
  generator = np.random.default_rng(seed)
  draws = []
  for _ in range(RESAMPLES):
    drawn = generator.integers(0, len(names), len(names))
    draws.append(
      statistic(table[:, np.concatenate([places[i] for i in drawn])])
    )
  draws = [x for x in draws if not math.isnan(x)]
  low, high = np.quantile(draws, [0.025, 0.975]) if draws else (math.nan,) * 2
  return Estimate(value, float(low), float(high), table.shape[1])


def binomial_p(hits: int, count: int, share: float = 0.5) -> float:
  """Returns the two-sided exact p-value of hits in so many trials.

  Outcomes that are no likelier than what was seen are summed.

  Args:
    hits: in [0, count].
    count: trials; 0 gives NaN.
    share: the chance of a hit, in (0, 1).

  Raises:
    UserError: hits outside [0, count].
  """
  if not 0 <= hits <= count:
    raise UserError(f"hits={hits}, count={count}: hits are among the trials.")
  if count == 0:
    return math.nan
  k = np.arange(count + 1)
  choose = np.array([math.lgamma(i + 1) for i in range(count + 1)])
  log_p = choose[-1] - choose - choose[::-1]
  log_p = log_p + k * math.log(share) + (count - k) * math.log1p(-share)
  likely = log_p <= log_p[hits] + 1e-7
  return float(min(1.0, np.sum(np.exp(log_p[likely]))))


class Position(NamedTuple):
  """How often the answer that stood first was called the best.

  share: with its Wilson interval.
  expected: without a bias.
  p_value: of a binomial test, two-sided.
  """

  share: Proportion
  expected: float
  p_value: float


def position_bias(hits: Sequence[bool], answers: int) -> Position:
  """Returns the position bias of judgements that have one best answer.

  Args:
    hits: whether the best one stood first.
    answers: K, that were shown each time.
  """
  found = np.asarray(hits, np.float64)
  p = binomial_p(int(found.sum()), found.size, 1 / answers)
  return Position(proportion(found), 1 / answers, p)


def triads(
  edges: Mapping[tuple[str, str], int],
) -> tuple[int, int]:
  """Returns (intransitive, all) triads among answers to one prompt.

  a beats b, b beats c and c beats a is intransitive; one judged at random is so
  with probability 1/4. Ties and pairs that nobody judged leave a triad out.

  Args:
    edges: (a, b) with a < b -> +1 where a is better, -1 where b is.
  """
  names = sorted({name for edge in edges for name in edge})
  bad = total = 0
  for a, b, c in itertools.combinations(names, 3):
    ab, bc, ac = (edges.get(x, 0) for x in ((a, b), (b, c), (a, c)))
    if ab and bc and ac:
      total += 1
      bad += ab == bc != ac
  return bad, total


def majority(table: np.ndarray, without: int = -1) -> np.ndarray:
  """Returns [U] the value that most annotators gave, NaN where none is first.

  Args:
    table: [R, U].
    without: an annotator whose votes are left out.
  """
  rows = [row for i, row in enumerate(table) if i != without]
  if not rows:
    return np.full(table.shape[1], np.nan)
  others = np.stack(rows)
  values = np.unique(table[~np.isnan(table)])
  if not len(values):
    return np.full(table.shape[1], np.nan)
  counts = (others[:, :, None] == values).sum(axis=0)
  most = counts.max(axis=1)
  is_one = (most > 0) & ((counts == most[:, None]).sum(axis=1) == 1)
  return np.where(is_one, values[counts.argmax(axis=1)], np.nan)


def agreement_with(votes: np.ndarray, truth: np.ndarray) -> Proportion:
  """Returns the share of votes [U] that are as a truth [U], where both are."""
  both = ~np.isnan(votes) & ~np.isnan(truth)
  return proportion((votes[both] == truth[both]).astype(np.float64))


class Split(NamedTuple):
  """Shares of pairs of votes on one unit that agree; pairs count the same.

  within: of two annotators of a group.
  between: of one of them with one of another group.
  others: of two annotators of other groups.
  pairs: how many `between` rests on.
  """

  within: float
  between: float
  others: float
  pairs: int


def between_groups(
  table: np.ndarray, groups: Sequence[str]
) -> dict[str, Split]:
  """Returns group -> agreement within it, with others, and among those.

  Where both sides agree more among themselves than across, they want different
  things. Skill alone does not do that: careful annotators agree with each other
  more than with careless ones, but those agree among themselves even less.

  Args:
    table: [R, U].
    groups: [R] of the annotators.
  """
  values = np.unique(table[~np.isnan(table)])
  names = sorted(set(groups))
  rows = np.asarray(groups)
  counts = {
    name: (table[rows == name][:, :, None] == values).sum(axis=0)
    for name in names
  }
  everyone = sum(counts.values(), np.zeros((table.shape[1], len(values))))
  found = {}
  for name, own in counts.items():
    rest = everyone - own
    n, m = own.sum(axis=1), rest.sum(axis=1)
    found[name] = Split(
      _ratio(np.sum(own * (own - 1)), np.sum(n * (n - 1))),
      _ratio(np.sum(own * rest), np.sum(n * m)),
      _ratio(np.sum(rest * (rest - 1)), np.sum(m * (m - 1))),
      int(np.sum(n * m)),
    )
  return found


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else math.nan


def mean_of(values: Iterable[float]) -> float:
  """Returns the mean of the numbers that are there, NaN for none."""
  found = [x for x in values if not math.isnan(x)]
  return float(np.mean(found)) if found else math.nan
