"""Curves of a run: held-out numbers at their steps, signs, limits."""

import types

from rlhf_jax.evaluation import monitors
from rlhf_jax.pipelines import stage_curves


def series(curves, title):
  (found,) = [curve for curve in curves if curve.title == title]
  return found.series


def test_held_out_numbers_stand_at_their_steps():
  rows = [
    {"step": 1, "rollout/score_mean": 0.0, "rollout/kl_k1_sum": 0.0},
    {"step": 2, "rollout/score_mean": 1.0, "heldout/score": 0.5},
    {"step": 3, "rollout/score_mean": None, "heldout/kl": 2.0},
    {"step": 3, "heldout/score": 0.75, "heldout/pass1": 0.25},
  ]
  curves = stage_curves.of_policy(rows, types.SimpleNamespace())
  assert series(curves, "Reward") == {
    "proxy": ([1, 2, 3], [0.0, 1.0, None]),  # a gap where it was not finite
    "held out": ([2, 3], [0.5, 0.75]),
  }
  assert series(curves, "KL to the reference")["held-out"] == ([3], [2.0])
  right = series(curves, "Right answers to held-out prompts")
  assert right == {"of answers": ([3], [0.25])}


def test_held_out_pairs_beside_those_of_training():
  rows = [
    {"step": 1, "reward_model/loss": 0.7, "reward_model/accuracy": 0.5},
    {"step": 2, "validation/loss": 0.6, "validation/accuracy": 0.625},
  ]
  curves = stage_curves.of_supervised(rows)
  assert series(curves, "Loss") == {
    "pairs": ([1], [0.7]),
    "held-out": ([2], [0.6]),
  }
  assert series(curves, "Accuracy on pairs")["held-out"] == ([2], [0.625])


def test_signs_that_occur_are_drawn():
  rows = [
    {
      "step": i,
      "rollout/list_share": 0.1 * i,
      "rollout/bold_share": 0.0,
      "rollout/near_identical_share": 0.2,
      monitors.CORRELATION: 0.3,
      "reward/component/reward_deviation": 0.5,
    }
    for i in range(4)
  ]
  curves = {x.title: x for x in stage_curves.of_policy(rows, object())}
  signs = curves["Signs of reward hacking"].series
  assert sorted(signs) == ["list", "near identical"]
  assert signs["list"] == ([0, 1, 2, 3], [0.0, 0.1, 0.2, 0.30000000000000004])
  assert list(curves["Score and length"].lines.values()) == [0.3]
  assert "reward" in curves["Members of an ensemble disagree"].series
