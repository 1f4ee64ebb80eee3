"""Pictures of the policy stage: signs of hacking that occur, and limits."""

from rlhf_jax.evaluation import monitors
from rlhf_jax.pipelines import stage_curves


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
