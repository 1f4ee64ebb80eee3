"""Statistics of groups, returns of answers, weights between two programs."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import aggregate
from rlhf_jax.algorithms.policy_gradient import groups, importance, returns
from tests.algorithms import answers

X = jnp.array([1.0, 2, 6, 4, 4, 4])
ALL = jnp.ones(6)


def test_known_answers():
  np.testing.assert_allclose(groups.centred(X, ALL, 3), [-2, -1, 3, 0, 0, 0])
  # The others' mean: (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2.
  np.testing.assert_allclose(
    groups.leave_one_out(X, ALL, 3), [-3, -1.5, 4.5, 0, 0, 0]
  )
  np.testing.assert_allclose(
    groups.deviations(X, ALL, 3), [7**0.5] * 3 + [0] * 3, rtol=1e-6
  )
  np.testing.assert_array_equal(groups.informative(X, ALL, 3), [True, False])


def test_answers_that_do_not_count_enter_no_baseline():
  weights = jnp.array([1.0, 0, 1, 0, 1, 0])
  x = X.at[1].set(jnp.nan)
  np.testing.assert_allclose(
    groups.centred(x, weights, 3), [-2.5, 0, 2.5, 0, 0, 0]
  )
  np.testing.assert_allclose(
    groups.leave_one_out(x, weights, 3), [-5, 0, 5, 0, 0, 0]
  )
  np.testing.assert_allclose(
    groups.deviations(x, weights, 3)[:3], 12.5**0.5, rtol=1e-6
  )
  np.testing.assert_array_equal(
    groups.informative(x, weights, 3), [True, False]
  )
  assert not np.asarray(groups.centred(x, 0 * weights, 3)).any()


def test_equal_rewards_are_exactly_0():
  """0.1 three times has a float32 mean that is not 0.1."""
  x = jnp.full(12, 0.1)
  assert not np.asarray(groups.centred(x, jnp.ones(12), 3)).any()
  assert not np.asarray(groups.deviations(x, jnp.ones(12), 3)).any()


def test_trap_33_permuting_prompts_permutes_groups():
  order = jnp.array([1, 0])
  swapped = X.reshape(2, 3)[order].reshape(-1)
  found = groups.centred(swapped, ALL, 3)
  np.testing.assert_allclose(found, [0, 0, 0, -2, -1, 3])


def test_trap_19_groups_of_one_and_ragged_groups_are_refused():
  with pytest.raises(ValueError, match="group_size=1: GRPO compares"):
    groups.check_size(1, "GRPO")
  with pytest.raises(ValueError, match="group_size=4: 6 rows do not split"):
    groups.centred(X, ALL, 4)


def test_metrics_by_hand():
  data = answers.rollout(
    score=(0.0, 1, 1, 0, 0, 0),
    advantages=jnp.asarray(answers.spread([1.0, -1, 1, -1, 1, -1])),
  )
  found = groups.metrics(data, 3, correct_above=0.5)
  x = np.repeat([1.0, -1, 1, -1, 1, -1], answers.LENGTHS)
  expected = {
    "group/std": (1 / 3) ** 0.5 / 2,
    "group/zero_variance_share": 0.5,
    "group/pass1": 2 / 6,
    "group/passG": 0.5,
    "group/advantage_std": x.std(),
  }
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
  masked = answers.without(answers.without(data, 0), 1)
  found = groups.metrics(masked.replace(advantages=None), 3, 0.5)
  np.testing.assert_allclose(found["group/zero_variance_share"], 1.0)
  np.testing.assert_allclose(found["group/pass1"], 1 / 4)
  # What the loss leaves out is an answer all the same: 1 of 6, in one of two.
  found = groups.metrics(masked, 3, 0.5, answered=jnp.ones(6))
  np.testing.assert_allclose(found["group/pass1"], 2 / 6)
  np.testing.assert_allclose(found["group/passG"], 1 / 2)
  np.testing.assert_allclose(found["group/zero_variance_share"], 1.0)


def test_returns_of_answers_against_loops():
  rewards = answers.rewards_per_token()
  data = answers.rollout(rewards=rewards)
  np.testing.assert_allclose(
    returns.of_sequence(data), answers.sums(rewards), rtol=1e-5
  )
  found = np.asarray(returns.to_go(data, 0.9))
  for n, t in np.argwhere(answers.MASK > 0):
    expected = sum(
      0.9 ** (s - t) * float(rewards[n, s])
      for s in range(t, answers.PROMPT + answers.LENGTHS[n])
    )
    np.testing.assert_allclose(found[n, t], expected, rtol=1e-4, atol=1e-6)
  assert not found[answers.MASK == 0].any()


def test_sequence_means_of_rows_and_of_packed_rows():
  x = answers.field(21)
  found = np.asarray(aggregate.sequence_means(x, jnp.asarray(answers.MASK)))
  for n in range(answers.N):
    row = np.asarray(x)[n][answers.MASK[n] > 0]
    np.testing.assert_allclose(found[n], row.mean(), rtol=1e-5)
  segments = jnp.tile(jnp.array([[1], [2]]), (3, answers.L))
  packed = aggregate.sequence_means(
    answers.pack(x),
    answers.pack(jnp.asarray(answers.MASK)),
    answers.pack(segments),
  )
  np.testing.assert_allclose(packed, answers.pack(found), rtol=1e-5)


def test_importance_weights_by_hand():
  """Ratios 2, 1/2, 3, 1 on four tokens, the cap at 2.5."""
  mask = jnp.array([[0.0, 1, 1, 1, 1]])
  logs = jnp.log(jnp.array([[1.0, 2, 0.5, 3, 1]]))
  sampler = jnp.array([[jnp.nan, -1, -2, -3, -4]])
  data = answers.rollout().replace(
    response_mask=mask, behaviour_logprobs=sampler + logs
  )
  weighed, metrics = importance.weigh(data, sampler, importance.Config(cap=2.5))
  np.testing.assert_allclose(
    weighed.importance_weights, [[0, 2, 0.5, 2.5, 1]], rtol=1e-6
  )
  np.testing.assert_allclose(metrics["rollout/sampler_capped"], 0.25)
  np.testing.assert_allclose(
    metrics["rollout/sampler_ratio_mean"], 6.5 / 4, rtol=1e-6
  )
  ratios = np.array([2, 0.5, 3, 1])
  np.testing.assert_allclose(
    metrics["rollout/sampler_kl"],
    np.mean(ratios - 1 - np.log(ratios)),
    rtol=1e-5,
  )
  plain, metrics = importance.weigh(data, sampler, importance.Config())
  assert plain.importance_weights is None
  assert "rollout/sampler_capped" not in metrics
  with pytest.raises(ValueError, match="cap=0.0: must be > 0"):
    importance.Config(cap=0.0)
