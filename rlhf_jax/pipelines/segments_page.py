"""The page of a run on segments: numbers, curves, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.evaluation import pictures
from rlhf_jax.evaluation.figures import Curve
from rlhf_jax.evaluation.pictures import number
from rlhf_jax.evaluation.table_page import Page, Section
from rlhf_jax.metrics import read_metrics

LEAD = (
  "The true return is what the environment gives; the agent does not see it. "
  "Predicted rewards are normalised, so only the shapes of the two returns "
  "compare. Where the prediction rises and the true return falls, the agent "
  "exploits what the predictors do not know: ask more, or more evenly."
)
CURVES = (
  # title, y axis, {label: metric}, caption
  (
    "True return",
    "true reward per episode",
    {"sampled policy": "agent/true_return", "greedy": "heldout/true_return"},
    "Down is bad.",
  ),
  (
    "Predicted return",
    "normalised reward per episode",
    {"predicted": "agent/predicted_return"},
    "By the newest predictors, of each rollout.",
  ),
  (
    "Predicted against true reward",
    "correlation over steps",
    {"correlation": "agent/reward_correlation"},
    "Of each rollout. Low is bad; not there where the true reward is constant.",
  ),
  (
    "Loss of the predictors",
    "nats per label",
    {
      "labels they drew": "predictor/loss",
      "held-out": "predictor/validation_loss",
    },
    "L2 is tuned so that the second is 1.1 to 1.5 times the first.",
  ),
  (
    "How members differ",
    "deviation of a step's reward",
    {"members": "predictor/disagreement"},
    "Near 0 early is bad: the members know nothing of what they do not know.",
  ),
  ("Labels", "labels", {"so far": "labels/count"}, ""),
)


def page(settings: Any, facts: Mapping[str, Any], folder: Path) -> Page:
  """Returns the page of a finished run.

  Args:
    settings: of the run.
    facts: its numbers.
    folder: with metrics.jsonl.
  """
  rows = read_metrics(folder / "metrics.jsonl")
  correlations = [
    row["agent/reward_correlation"]
    for row in rows
    if "agent/reward_correlation" in row
  ]
  tiles = [
    (
      "True return",
      number(facts["true_return"], 1),
      f"standard error {number(facts['true_return_error'], 1)}, greedy policy, "
      f"{settings.agent.test_episodes} episodes",
    ),
    ("Environment steps", f"{facts['environment_steps']:,}", ""),
  ]
  if "labels" in facts:
    by = f"by {facts['labels_by']}, pairs by {facts['queries']}"
    tiles.append(("Labels", f"{facts['labels']:,}", by))
  if correlations:
    note = "predicted and true reward, the last rollout where both vary"
    tiles.append(("Correlation", number(correlations[-1], 3), note))
  return Page(
    title=f"Segments of {settings.environment}",
    subtitle="Preferences between segments of trajectories, and the agent that "
    "learned from them (Christiano et al. 2017)."
    if "labels" in facts
    else "The control: the same agent on the true reward.",
    tiles=tiles,
    sections=[
      Section(
        "How it went",
        LEAD,
        pictures=pictures.of_curves(list(_curves(rows)), "segments"),
      )
    ],
    facts=[(k.replace("_", " "), v) for k, v in facts.items()],
  )


def _curves(rows: Sequence[Mapping[str, Any]]):
  """Yields the curves of the metrics that are there."""
  for title, label, series, caption in CURVES:
    found = {}
    for name, metric in series.items():
      there = [row for row in rows if row.get(metric) is not None]
      if there:
        steps = [row["step"] for row in there]
        found[name] = (steps, [row[metric] for row in there])
    if found:
      yield Curve(title, label, found, xlabel="rollout", caption=caption)
