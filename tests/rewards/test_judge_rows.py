"""What the judge puts together, on roles written by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import outputs
from rlhf_jax.rewards import judge
from rlhf_jax.types import FINISH_EOS, Samples

MASK = np.float32([[0, 1, 1], [0, 1, 0]])
SAMPLES = Samples(
  tokens=jnp.asarray([[4, 5, 6], [7, 8, 0]]),
  valid_mask=jnp.asarray([[1.0, 1, 1], [1, 1, 0]]),
  response_mask=jnp.asarray(MASK),
  behaviour_logprobs=-1.0 * jnp.asarray(MASK),
  finish_reason=jnp.full((2,), FINISH_EOS),
)
SCORES = {"reward": jnp.asarray([1.5, -0.5]), "gold": jnp.asarray([2.0, 3.0])}


def plan_of(names, **changes):
  role = types.SimpleNamespace(entrance=0)
  scorers = tuple(
    (name, types.SimpleNamespace(role=role, objectives=())) for name in names
  )
  fields = dict(
    policy=role,
    reference=role,
    value=role,
    scorers=scorers,
    shared=frozenset(),
    temperature=0.5,
    row_targets=2,
  )
  return judge.Plan(**fields | changes)


@pytest.fixture
def crafted(monkeypatch):
  """Log-probabilities are the negative temperature times the token."""

  def logprobs(role, variables, rows, mask, *, temperature, **settings):
    assert variables == "reference" and settings["targets"] == 2
    return -temperature * rows.tokens * mask, None

  monkeypatch.setattr(outputs, "logprobs", logprobs)
  monkeypatch.setattr(
    outputs, "values", lambda role, value, rows, *_: 1.0 * rows.tokens
  )
  monkeypatch.setattr(
    judge.reward_model,
    "member_scores",
    lambda scorer, weights, samples, *_: SCORES[weights][:, None],
  )


def judged(names, **changes):
  weights = judge.Weights({}, "reference", {name: name for name in names})
  return judge.judge(weights, {}, SAMPLES, plan=plan_of(names, **changes))


def test_a_rollout_is_what_each_role_says(crafted):
  rollout, scores = judged(["reward", "gold"])
  np.testing.assert_allclose(
    rollout.reference_logprobs, [[0, -2.5, -3], [0, -4, 0]]
  )
  np.testing.assert_allclose(rollout.values, [[0, 5, 6], [0, 8, 0]])
  np.testing.assert_array_equal(rollout.score, SCORES["reward"])
  np.testing.assert_array_equal(rollout.tokens, SAMPLES.tokens)
  np.testing.assert_array_equal(scores["gold"], SCORES["gold"])
  assert sorted(scores) == ["gold", "reward"]


def test_without_a_reference_and_a_reward_model_there_is_neither(crafted):
  """A verifier judges later; the policy then stands for its reference."""
  rollout, scores = judged(["gold"], reference=None, value=None)
  np.testing.assert_array_equal(rollout.reference_logprobs, -MASK)
  np.testing.assert_array_equal(rollout.score, [0.0, 0.0])
  assert rollout.values is None and list(scores) == ["gold"]
