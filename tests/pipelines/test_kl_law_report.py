"""The report's picture of score against sqrt(KL)."""

import types

import pytest

from rlhf_jax.algorithms.combination import weighted_sum
from rlhf_jax.evaluation import figures, pictures
from rlhf_jax.pipelines import stage_curves
from rlhf_jax.rewards.named_judges import Named
from rlhf_jax.schema import Method

TITLE = "Score against the root of the KL"


def curve_of(rows):
  stage = types.SimpleNamespace(answers=64)
  [found] = [x for x in stage_curves.of_policy(rows, stage) if x.title == TITLE]
  return found, stage_curves.kl_law_of(rows, stage)


def rows(count):
  return [
    {
      "step": i + 1,
      "rollout/kl_k1_sum": (0.2 * i) ** 2,
      "rollout/score_mean": 0.2 * i,
      "rollout/score_std": 1.0,
    }
    for i in range(count)
  ]


def test_it_has_the_points_the_line_and_the_best():
  found, law = curve_of(rows(12))
  assert list(found.series) == ["score", "line", "the best there is"]
  d, gain = found.series["score"]
  assert list(d) == sorted(d) and len(d) == 12
  assert abs(law.slope - 1.0) < 1e-6 and law.error > 0.0
  assert "71 % of the best" in found.caption
  [picture] = [
    x for x in pictures.of_curves([found], "policy") if x.title == TITLE
  ]
  [card] = pictures.draw([picture], with_png=True)
  assert card.png and "<svg" in card.svg


def test_a_run_of_too_few_steps_has_no_such_picture():
  found, law = curve_of(rows(2))
  assert law is None and not figures.has_points(found)
  assert pictures.of_curves([found], "policy") == []


@pytest.mark.parametrize(
  ("scale", "weight", "is_drawn"),
  [("auto", 1.0, False), ("none", 1.0, True), ("running", 0.0, True)],
)
def test_a_score_in_units_that_move_has_no_line(scale, weight, is_drawn):
  """A function is on a running scale where scores are added."""
  stage = types.SimpleNamespace(
    answers=64,
    named_judges={
      "liked": Named(reward="x"),
      "word": Named(reward_fn="os:getcwd", scale=scale, weight=weight),
    },
    combination=Method("sum", weighted_sum, weighted_sum.Config()),
  )
  law = stage_curves.kl_law_of(rows(12), stage)
  assert (law is not None) == is_drawn
