"""Is this process reward model fit to judge steps? Held-out diagnostics.

Accuracy of single steps beside that of always saying "right", the area under
their curve, calibration, and whether the first wrong step of an answer is found
(ProcessBench, Zheng et al. 2024, arXiv:2412.06559: the harmonic mean of that on
answers with an error and of finding none in the others). Answers must be held
out and split by prompt. A label above 1/2 counts as right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_jax.evaluation import reward_model
from rlhf_jax.evaluation.win_rate import finite_vector, proportion

CHANCE = 0.55  # area under the curve at or near chance
GOOD = 0.70  # below it few errors are found
FEW_ANSWERS = 1_000


def area(values: np.ndarray, is_right: np.ndarray) -> float:
  """Returns P(a right one is above a wrong one), ties 1/2; NaN without both.

  Args:
    values: [N].
    is_right: [N] bool.
  """
  right, wrong = np.sum(is_right), np.sum(~is_right)
  if not right or not wrong:
    return float("nan")
  _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
  rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
  total = np.sum(rank[is_right]) - right * (right + 1) / 2
  return float(total / (right * wrong))


def _first(is_wrong: np.ndarray) -> int:
  """Returns the place of the first wrong step, the number of steps for none."""
  return int(np.argmax(is_wrong)) if is_wrong.any() else len(is_wrong)


def diagnose(
  logits: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  scores: Mapping[str, np.ndarray],
) -> dict[str, float]:
  """Returns what a process reward model is worth; NaN where undefined.

  Metrics:
    process/steps, process/answers: how many were judged.
    process/heldout_loss: nats a step. Up is bad; log 2 is chance.
    process/heldout_accuracy: of single steps. Down is bad;
      process/always_right is what saying "right" to all gets.
    process/accuracy_low, process/accuracy_high: its 95 % interval. Far apart
      is bad: too few steps.
    process/always_right: share of steps that are right. No bad direction.
    process/auc: P(a right step is above a wrong one). Down is bad; 0.5 is
      chance.
    process/ece: expected calibration error. Up is bad.
    process/first_error: share of answers with an error whose first wrong step
      is found. Down is bad.
    process/no_error: share of other answers in which none is. Down is bad.
    process/f1: harmonic mean of both. Down is bad.
    process/answer_auc_last, process/answer_auc_min,
      process/answer_auc_product, process/answer_auc_mean: P(an answer without
      an error is above one with), by the score of an answer. Down is bad.

  Args:
    logits: of each answer, [E] at its judged steps.
    labels: the same of labels in [0, 1].
    scores: name of a score -> [N] of the answers.
  """
  every = finite_vector("logits", np.concatenate(logits))
  label = np.concatenate(labels).astype(np.float64)
  is_right = label > 0.5
  hits = proportion(((every > 0) == is_right).astype(np.float64))
  found = {
    "process/steps": float(len(every)),
    "process/answers": float(len(logits)),
    "process/heldout_loss": float(
      np.mean(np.logaddexp(0.0, every) - label * every)
    ),
    "process/heldout_accuracy": hits.value,
    "process/accuracy_low": hits.low,
    "process/accuracy_high": hits.high,
    "process/always_right": float(np.mean(is_right)),
    "process/auc": area(every, is_right),
    "process/ece": reward_model.calibration(every, label)["ece"],
  }
  wanted = np.asarray([_first(x <= 0.5) for x in labels])
  said = np.asarray([_first(x <= 0.0) for x in logits])
  has_error = wanted < np.asarray([len(x) for x in labels])
  is_hit = wanted == said
  parts = [
    float(np.mean(is_hit[part])) if part.any() else float("nan")
    for part in (has_error, ~has_error)
  ]
  found["process/first_error"], found["process/no_error"] = parts
  total = sum(parts)
  found["process/f1"] = 2 * parts[0] * parts[1] / total if total else 0.0
  for name, values in scores.items():
    found[f"process/answer_auc_{name}"] = area(values, ~has_error)
  return found


def guard(
  diagnosis: Mapping[str, float], answers: int, epochs: float
) -> list[tuple[str, str]]:
  """Returns what speaks against training a policy on this model.

  Args:
    diagnosis: what `diagnose` returned.
    answers: that it was trained on.
    epochs: passes over them.

  Returns:
    (level, message), "refuse" (stop unless forced), "warn" or "note".
  """
  auc, rate = diagnosis["process/auc"], diagnosis["process/heldout_accuracy"]
  always = max(
    diagnosis["process/always_right"], 1 - diagnosis["process/always_right"]
  )
  seen = f"process/auc={auc:.3f} on {diagnosis['process/steps']:.0f} steps"
  at_chance = not auc >= CHANCE  # NaN, where all are alike, is one
  rules = [
    (
      at_chance,
      "refuse",
      f"{seen}: below {CHANCE} right and wrong steps get the same, and a "
      "policy would follow noise. Check the labels and the delimiter, train "
      "on more answers, or set force=True of the run that it judges, if you "
      "mean it.",
    ),
    (
      not at_chance and auc < GOOD,
      "warn",
      f"{seen}: below {GOOD:.2f} many wrong steps pass. Add answers or clean "
      "their labels.",
    ),
    (
      rate <= always,
      "warn",
      f"process/heldout_accuracy={rate:.3f}: always saying what most steps are "
      f"gets {always:.3f}. Look at process/auc and process/f1, and balance the "
      "labels.",
    ),
    (
      answers < FEW_ANSWERS,
      "warn",
      f"answers={answers}: fewer than {FEW_ANSWERS} rarely carry a process "
      "reward model. Collect more.",
    ),
    (
      epochs > reward_model.MAX_EPOCHS,
      "warn",
      f"epochs={epochs}: more than {reward_model.MAX_EPOCHS} passes over-fit. "
      "Compare training and held-out loss.",
    ),
  ]
  return [(level, message) for applies, level, message in rules if applies]
