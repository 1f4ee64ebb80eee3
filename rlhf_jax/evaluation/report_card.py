"""The report card of a reward model, from scores of answers that people judged.

Accuracy with its interval, by any field of the records; calibration; length;
whole lists; how far it comes to what another person reaches; scores that the
model was not normalised for. Arrays and records in, a tree of numbers out; the
pipeline of that name scores (METHODS 2.8).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import length_control, listwise
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.evaluation.card_items import Item, Pairs, pairs_of
from rlhf_jax.evaluation.win_rate import bootstrap_interval
from rlhf_jax.schema import UserError

OUTSIDE = 3.0  # deviations of the reference, beyond which a score is outside
MAX_OUTSIDE = 0.05  # share of answers
MOST_VALUES = 24  # of a field, in a table; the others are one
OTHER = "other values"
KNOWN_FIELDS = (
  *("objective", "annotator", "language", "subset", "source", "strength"),
  "guideline",
)


def measure(
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  lengths: Sequence[np.ndarray],
  *,
  by: Sequence[str] = (),
  ceiling: float | None = None,
  seed: int = 0,
  nats: float = 1.0,
) -> dict[str, Any]:
  """Returns the numbers of a report card, without probes.

  Calibration, temperature, log loss and margin are of score differences in
  nats, in which the model was trained.

  Args:
    items: [N].
    scores: of each item, [K], in deviations of the reference.
    lengths: of each item, [K] tokens.
    by: fields of records; () for those of KNOWN_FIELDS that there are.
    ceiling: how often another person agrees with the label; None if unknown.
    seed: of the bootstrap.
    nats: of one deviation of the reference.

  Raises:
    UserError: nothing is decided, or a field that no record has.
  """
  scores = [np.asarray(x, np.float64) for x in scores]
  pairs = pairs_of(items, [nats * x for x in scores], lengths)
  decided = pairs.take(pairs.labels != 0.5)
  if not len(decided.labels):
    raise UserError(
      f"{len(items)} items, and none says which of two answers is better: "
      "nothing to compare scores with."
    )
  diagnosis = diagnostics.diagnose(pairs.scores, pairs.labels, pairs.lengths)
  found = {
    "items": len(items),
    "pairs": len(decided.labels),
    "tied_pairs": len(pairs.labels) - len(decided.labels),
    "diagnosis": diagnosis,
    "accuracy": diagnostics.accuracy(pairs.difference, pairs.labels),
    "calibration": diagnostics.calibration(pairs.difference, pairs.labels),
    **_cooled(pairs, diagnosis["reward_model/temperature"]),
    "length": _length(pairs),
    "listwise": _listwise(items, scores, seed),
    "ties": _ties(items, scores),
    "by": _by(items, [nats * x for x in scores], lengths, pairs, by),
    "ceiling": ceiling,
    "reached": _reached(diagnosis["reward_model/accuracy"], ceiling),
    "scores": _outside(scores),
  }
  found["remarks"] = remarks(found)
  return found


def _cooled(pairs: Pairs, temperature: float) -> dict[str, float]:
  """Returns the calibration error once scores are divided by T."""
  if not 0 < temperature < math.inf:
    return {"ece_cooled": math.nan}
  cool = pairs.difference / temperature
  return {"ece_cooled": diagnostics.calibration(cool, pairs.labels)["ece"]}


def _length(pairs: Pairs) -> dict[str, Any]:
  """Returns what length has to do with scores and with preferences."""
  bias = diagnostics.length_bias(pairs.scores, pairs.labels, pairs.lengths)
  decided = pairs.take(pairs.labels != 0.5)
  winner = np.sign(decided.labels - 0.5)
  hits = 0.5 * (1 + np.sign(decided.difference * winner))
  controlled = length_control.accuracy(hits, decided.longer * winner)
  weighed = length_control.weighed(pairs.difference, pairs.longer, pairs.labels)
  return {
    **bias,
    "controlled": controlled,
    "weighed": weighed,
  }


def _mean(values: Sequence[float], seed: int) -> dict[str, float]:
  """Returns a mean over prompts with its bootstrap interval."""
  known = [x for x in values if not math.isnan(x)]
  low = high = math.nan
  if len(known) > 1:
    low, high = bootstrap_interval(known, seed=seed)
  value = float(np.mean(known)) if known else math.nan
  return {"value": value, "low": low, "high": high, "count": len(known)}


def _listwise(
  items: Sequence[Item], scores: Sequence[np.ndarray], seed: int
) -> dict[str, Any]:
  """Returns best of K, and Kendall's tau_b, of items with three answers up."""
  best: dict[int, list[float]] = defaultdict(list)
  tau = []
  for item, own in zip(items, scores, strict=True):
    count = len(item.answers)
    if count > 2 and sum(item.right) == 1:
      best[count].append(listwise.best_of(own, item.right))
    if count > 2 and len(item.ranks):
      tau.append(listwise.kendall_tau_b(own, item.ranks))
  return {
    "best_of": {k: _mean(best[k], seed) for k in sorted(best)},
    "kendall_tau_b": _mean(tau, seed),
  }


def _ties(
  items: Sequence[Item], scores: Sequence[np.ndarray]
) -> listwise.Ties | None:
  """Returns the ties score of records named ref:N and tied:N, as there."""
  found: dict[str, dict[str, listwise.Answers]] = {"ref": {}, "tied": {}}
  for item, own in zip(items, scores, strict=True):
    kind, _, name = str(item.fields.get("id", "")).partition(":")
    is_ties = str(item.fields.get("subset", "")).lower() == "ties"
    if is_ties and kind in found and len(item.right):
      found[kind][name] = (own.tolist(), item.right)
  if not found["tied"]:
    return None
  return listwise.ties(found["ref"], found["tied"])


def _reached(accuracy: float, ceiling: float | None) -> float:
  """Returns the part of the way from chance to another person, or NaN."""
  if ceiling is None or not ceiling > 0.5:
    return math.nan
  return (accuracy - 0.5) / (ceiling - 0.5)


def _outside(scores: Sequence[np.ndarray]) -> dict[str, float]:
  every = np.concatenate([np.asarray(x, np.float64) for x in scores])
  within = [np.var(x) for x in scores if len(x) > 1]
  return {
    "mean": float(np.mean(every)),
    "deviation": float(np.std(every)),
    "spread": float(np.sqrt(np.mean(within))),
    "outside": float(np.mean(np.abs(every) > OUTSIDE)),
    "answers": int(every.size),
  }


def _group(pairs: Pairs) -> dict[str, Any]:
  rate = diagnostics.accuracy(pairs.difference, pairs.labels)
  found: dict[str, Any] = {"accuracy": rate, "ece": math.nan}
  if len(pairs.labels):
    ece = diagnostics.calibration(pairs.difference, pairs.labels)["ece"]
    found["ece"] = ece
  found["longer_wins"] = diagnostics.length_bias(
    pairs.scores, pairs.labels, pairs.lengths
  )["longer_wins"]
  return found


def _by(
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  lengths: Sequence[np.ndarray],
  pairs: Pairs,
  by: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """Returns field -> value -> accuracy and the like."""
  found: dict[str, dict[str, Any]] = {}
  names = sorted({name for item in items for name in item.objectives})
  if names:
    found["objective"] = {
      name: _group(
        pairs_of(
          items, scores, lengths, lambda x, n=name: x.objectives.get(n, ())
        )
      )
      for name in names
    }
  known = {name for item in items for name in item.fields}
  for field in by:
    if field not in known:
      raise UserError(
        f"by={field!r}: no record has this field. There are "
        f"{', '.join(sorted(known)) or 'none'}."
      )
  for field in by or [x for x in KNOWN_FIELDS if x in known - set(found)]:
    values = _values(items, field, pairs)
    groups = {
      name: _group(pairs.take(values == name)) for name in _ordered(values)
    }
    if len(groups) > 1 or field in by:
      found[field] = groups
  found["length of both answers (tokens)"] = _quarters(
    pairs, pairs.lengths.sum(axis=1)
  )
  found["difference of lengths (tokens)"] = _quarters(
    pairs, np.abs(pairs.longer)
  )
  return {name: groups for name, groups in found.items() if groups}


def _values(items: Sequence[Item], field: str, pairs: Pairs) -> np.ndarray:
  """Returns what the record of each pair says of a field [P]."""
  said = [str(item.fields.get(field, "not said")) for item in items]
  counts = Counter(said)
  kept = {name for name, _ in counts.most_common(MOST_VALUES)}
  shown = [name if name in kept else OTHER for name in said]
  return np.asarray(shown, object)[pairs.item]


def _ordered(values: np.ndarray) -> list[str]:
  counts = Counter(values.tolist())
  return sorted(counts, key=lambda name: (name == OTHER, -counts[name], name))


def _quarters(pairs: Pairs, sizes: np.ndarray) -> dict[str, Any]:
  """Returns four groups of about equal size, named by their range."""
  edges = np.unique(np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]))
  if len(edges) < 3:
    return {}
  which = np.clip(np.searchsorted(edges, sizes, "right") - 1, 0, len(edges) - 2)
  return {
    f"{edges[n]:.0f} to {edges[n + 1]:.0f}": _group(pairs.take(which == n))
    for n in range(len(edges) - 1)
    if np.any(which == n)
  }


def remarks(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns (level, message) of what is not as it should be."""
  diagnosis = found["diagnosis"]
  # Nothing is said of how much it was trained on: that is not known here.
  said = diagnostics.guard(
    diagnosis, comparisons=diagnostics.MANY_COMPARISONS, epochs=1
  )
  controlled = found["length"]["controlled"]
  longer = found["length"]["longer_wins"]
  accuracy = diagnosis["reward_model/accuracy"]
  if longer.count and longer.low > accuracy:
    said.append(
      (
        "warn",
        f"'the longer one wins' is right in {longer.value:.1%} of "
        f"{longer.count} pairs, and the model in {accuracy:.1%}. Train on "
        "comparisons of equal length too.",
      )
    )
  if not math.isnan(controlled.high) and controlled.high < accuracy:
    said.append(
      (
        "warn",
        f"at equal length the model is right in {controlled.accuracy:.1%} "
        f"({controlled.low:.1%} to {controlled.high:.1%}), over all pairs in "
        f"{accuracy:.1%}: part of its accuracy is length.",
      )
    )
  outside = found["scores"]["outside"]
  if outside > MAX_OUTSIDE:
    said.append(
      (
        "warn",
        f"{outside:.1%} of {found['scores']['answers']} scores lie beyond "
        f"{OUTSIDE:.0f} deviations of the samples that the model was "
        "normalised on: it has not seen such answers, and its scores of them "
        "mean less.",
      )
    )
  return said
