"""The curves of the stages of a run, from the rows of their metrics.jsonl."""

from __future__ import annotations

import functools
from typing import Any

from rlhf_jax.evaluation import kl_law, monitors
from rlhf_jax.evaluation.figures import Curve
from rlhf_jax.rewards import named_judges

COMPONENT = "reward/component/"  # how metrics of one of several judges begin
SIGNS = tuple(
  (name.removeprefix("rollout/").removesuffix("_share").replace("_", " "), name)
  for name in monitors.SHARES
)


def _series(rows: list[dict], *pairs: tuple[str, str]) -> dict:
  """Returns label -> (steps, values) of the metrics that are there.

  Args:
    rows: of metrics.jsonl.
    pairs: (label, metric).
  """
  found = {}
  for label, name in pairs:
    told = [(row["step"], row[name]) for row in rows if name in row]
    if any(value is not None for _, value in told):
      steps, values = zip(*told, strict=True)
      found[label] = list(steps), list(values)
  return found


def of_supervised(rows: list[dict]) -> list[Curve]:
  """Returns the curves of SFT or a reward model; those without rows are empty.

  Args:
    rows: of metrics.jsonl.
  """
  series = functools.partial(_series, rows)
  return [
    Curve(
      "Loss",
      "nats",
      series(
        ("training", "sft/loss"),
        ("pairs", "reward_model/loss"),
        ("held-out", "validation/loss"),
      ),
      caption="Down is better.",
    ),
    Curve(
      "Accuracy on pairs",
      "share",
      series(
        ("training", "reward_model/accuracy"),
        ("held-out", "validation/accuracy"),
      ),
      {"chance": 0.5},
      caption="Of the training pairs of each step, and of those held out where "
      "they were measured.",
    ),
    Curve("Margin", "score", series(("margin", "reward_model/margin"))),
    Curve("Entropy", "nats per token", series(("entropy", "sft/entropy"))),
    Curve(
      "Gradient norm",
      "norm",
      series(
        ("SFT", "sft/gradient_norm"),
        ("reward model", "reward_model/gradient_norm"),
      ),
      caption="Before clipping; a spike is a batch to look at.",
    ),
  ]


def _kl_lines(stage: Any, rows: list[dict]) -> dict[str, float]:
  """Returns the target, and the limits where the KL came near to them."""
  limits = getattr(stage, "shaping", getattr(stage, "guards", None))
  if limits is None:
    return {}
  top = max((row.get("rollout/kl_k1_sum", 0.0) for row in rows), default=0.0)
  lines = {"warn": limits.warn_nats, "halt": limits.halt_nats}
  lines = {k: v for k, v in lines.items() if v < 1.5 * top}
  if getattr(limits, "kl_controller", "") == "adaptive":
    lines["target"] = limits.kl_target
  return lines


def _between(rows: list[dict], start: str, end: str) -> list[str]:
  """Returns what stands between both in the names of metrics."""
  names = dict.fromkeys(name for row in rows for name in row)
  return [
    name.removeprefix(start).removesuffix(end)
    for name in names
    if name.startswith(start) and name.endswith(end)
  ]


def _judges(rows: list[dict]) -> list[tuple[str, str]]:
  """Returns (label, metric) of several judges: those with standard errors."""
  found = _between(rows, COMPONENT, "_standard_error")
  return [(name, f"{COMPONENT}{name}") for name in found]


def _deviations(rows: list[dict]) -> list[tuple[str, str]]:
  """Returns (judge, metric) of how far members of an ensemble deviate."""
  found = _between(rows, COMPONENT, "_deviation")
  return [(name, f"{COMPONENT}{name}_deviation") for name in found]


def _signs(rows: list[dict]) -> list[Curve]:
  """Returns the pictures of what monitors.py watches."""
  series = functools.partial(_series, rows)
  limit = {"warn": monitors.LENGTH_CORRELATION}
  return [
    Curve(
      "Signs of reward hacking",
      "share of answers",
      {
        label: found
        for label, found in series(*SIGNS).items()
        if any(found[1])  # of what never occurs there is nothing to see
      },
      caption="An alarm: 20 points above the start, beyond the noise. Signs "
      "that never occur are left out.",
    ),
    Curve(
      "Score and length",
      "correlation",
      series(("correlation", monitors.CORRELATION)),
      limit,
      caption="Above the line longer answers score higher.",
    ),
    Curve(
      "Members of an ensemble disagree",
      "deviation",
      series(*_deviations(rows)),
      caption="Up: the policy goes where they were not taught.",
    ),
  ]


def kl_law_of(rows: list[dict], stage: Any) -> kl_law.Law | None:
  """Returns the line of score against sqrt(KL), see evaluation/kl_law.py.

  Args:
    rows: of the policy stage's metrics.jsonl.
    stage: its settings.
  """
  return _law_and_points(rows, stage)[0]


def _law_and_points(
  rows: list[dict], stage: Any
) -> tuple[kl_law.Law | None, list[tuple[float, float]]]:
  """Returns kl_law.of_rows, nothing where the score's units move."""
  named = getattr(stage, "named_judges", {})
  if named and not named_judges.has_fixed_units(named, stage.combination):
    return None, []
  return kl_law.of_rows(rows, _answers(stage))


def _answers(stage: Any) -> int:
  """Returns the answers of a rollout, 0 where nobody knows."""
  return int(getattr(stage, "answers", 0))


def _score_against_kl(rows: list[dict], stage: Any) -> Curve:
  """Returns the curve of score against sqrt(KL), with the best line."""
  law, points = _law_and_points(rows, stage)
  series = {}
  if law is not None:
    d, gain = zip(*points, strict=True)
    ends = (0.0, min(d[-1], kl_law.FAR))
    series = {
      "score": (d, gain),
      "line": (ends, [law.slope * x for x in ends]),
      "the best there is": (ends, [kl_law.BEST * x for x in ends]),
    }
  caption = "" if law is None else f"The line: {kl_law.sentence(law)}."
  return Curve(
    "Score against the root of the KL",
    "gain (deviations)",
    series,
    xlabel="\N{SQUARE ROOT}KL (\N{SQUARE ROOT}nats)",
    caption=caption,
  )


def _scores(rows: list[dict]) -> list[Curve]:
  """Returns the pictures of what judges say of the answers."""
  series = functools.partial(_series, rows)
  return [
    Curve(
      "Reward",
      "score (SFT deviations)",
      series(
        ("proxy", "rollout/score_mean"),
        ("gold", "eval/gold"),
        ("held out", "heldout/score"),
        ("samples of a round", "rejection/score_mean"),
        ("kept", "rejection/kept_score"),
      ),
    ),
    Curve(
      "Right answers to held-out prompts",
      "share",
      series(
        ("of answers", "heldout/pass1"),
        ("of prompts, one of several", "heldout/passG"),
      ),
    ),
    Curve(
      "Objectives",
      "score of each judge",
      series(*_judges(rows)),
      caption="On the scale of each. One that falls while others rise is "
      "traded away.",
    ),
    Curve(
      "Decided by the safety score",
      "share of answers",
      series(("by safety", "combination/by_safety")),
    ),
    Curve(
      "Constraint",
      "multiplier, violation",
      series(
        ("multiplier", "combination/multiplier"),
        ("violation", "combination/violation"),
      ),
      {"holds": 0.0},
      caption="A violation above 0 makes the multiplier grow.",
    ),
  ]


def _pairs(rows: list[dict]) -> list[Curve]:
  """Returns the pictures of training on pairs."""
  series = functools.partial(_series, rows)
  return [
    Curve(
      "Pairs in the right order",
      "share",
      series(
        ("training", "preference/accuracy"),
        ("held-out", "validation/accuracy"),
      ),
    ),
    Curve(
      "Loss on pairs",
      "loss",
      series(("training", "preference/loss"), ("held-out", "validation/loss")),
    ),
  ]


def _rollouts(rows: list[dict]) -> list[Curve]:
  """Returns the pictures of the samples and of the updates on them."""
  series = functools.partial(_series, rows)
  return [
    Curve(
      "Entropy of the samples",
      "nats per token",
      series(("entropy", "rollout/entropy")),
    ),
    Curve(
      "Answer length",
      "tokens",
      series(("mean", "rollout/length_mean"), ("held-out", "heldout/length")),
    ),
    Curve(
      "Critic: explained variance",
      "share",
      series(("explained variance", "ppo/explained_variance")),
    ),
    Curve("KL coefficient", "beta", series(("beta", "ppo/kl_coefficient"))),
    Curve(
      "Clip fraction",
      "share of tokens",
      series(
        ("above", "ppo/clip_fraction_high"),
        ("below", "ppo/clip_fraction_low"),
      ),
    ),
    Curve(
      "Distinct bigrams in a rollout",
      "share",
      series(("distinct-2", "rollout/distinct_2")),
    ),
    Curve(
      "Answers that end by themselves",
      "share",
      series(("ended", "rollout/eos_share")),
    ),
  ]


def of_policy(rows: list[dict], stage: Any) -> list[Curve]:
  """Returns the curves of the policy stage.

  Args:
    rows: of its metrics.jsonl.
    stage: its settings, with the limits of the KL.
  """
  series = functools.partial(_series, rows)
  tasks = [(x, f"tax/{x}_change") for x in _between(rows, "tax/", "_change")]
  return [
    *_scores(rows),
    Curve(
      "KL to the reference",
      "nats per answer",
      series(
        ("k1", "rollout/kl_k1_sum"),
        ("k3", "rollout/kl_k3_sum"),
        ("samples of a round", "rejection/kl"),
        ("held-out", "heldout/kl"),
      ),
      _kl_lines(stage, rows),
    ),
    _score_against_kl(rows, stage),
    *_pairs(rows),
    *_rollouts(rows),
    *_signs(rows),
    Curve(
      "Capabilities since the run began",
      "points (texts: nats a token)",
      series(*tasks),
      {"as before": 0.0},
      caption="On the first items of each task, paired by item. Below 0 is "
      "forgotten; of texts above 0.",
    ),
  ]
