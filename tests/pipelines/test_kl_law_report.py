"""The report's picture of score against sqrt(KL)."""

import types

from rlhf_jax.evaluation import figures, pictures
from rlhf_jax.pipelines import stage_curves

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
