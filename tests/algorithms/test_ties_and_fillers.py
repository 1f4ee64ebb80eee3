"""Ties, rows without weight, other averages: what must not count, or must."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import reward, reward_losses, sft
from rlhf_jax.algorithms.policy_gradient import groups, grpo, shaping
from rlhf_jax.algorithms.policy_gradient import registry as policy_registry
from rlhf_jax.algorithms.policy_gradient import update as policy_update
from rlhf_jax.algorithms.preference import dpo, kto, pairing, update
from rlhf_jax.types import PreferenceBatch, Rollout, TokenBatch, TrainState
from tests import plain


def state_of(params):
  zero = jnp.int32(0)
  return TrainState(zero, params, optax.sgd(1.0).init(params), zero)


def test_perplexity_is_of_tokens_whatever_the_loss_averages():
  """Rows of 1 and 3 targets, at 1 and 2 nats each."""
  mask = jnp.asarray([[0.0, 1, 0, 0], [0, 1, 1, 1]])
  batch = TokenBatch(jnp.zeros((2, 4), jnp.int32), jnp.ones((2, 4)), mask)
  apply = lambda params, frozen, rows: (  # noqa: E731
    -params * jnp.asarray([[1.0], [2.0]]) * jnp.ones((1, 4)),
    jnp.zeros((2, 4)),
  )
  step = functools.partial(
    sft.update,
    config=sft.Config(aggregation="seq-mean-token-mean"),
    apply=plain.weighted(apply),
    optimizer=optax.sgd(1.0),
  )
  start = state_of(jnp.float32(1.0))
  _, found = jax.jit(step)(start, {}, batch, jax.random.key(0))
  np.testing.assert_allclose(found["sft/loss"], 1.5)
  np.testing.assert_allclose(found["sft/token_loss"], 7 / 4)
  np.testing.assert_allclose(found["sft/perplexity"], np.exp(7 / 4), rtol=1e-6)


def test_tied_candidates_stay_in_each_others_choice_set():
  """Two best of three: each is chosen among all, the last from itself."""
  scores = jnp.asarray([[1.0, 0.5, -1.0]])
  found = reward_losses.plackett_luce_loss(
    scores, jnp.asarray([[0, 0, 1]]), jnp.ones((1, 3))
  )
  total = np.log(np.sum(np.exp(np.asarray(scores))))
  np.testing.assert_allclose(found, [2 * total - 1.5], rtol=1e-6)


def test_equal_scores_are_not_right():
  pairs = jnp.zeros((2, 2, 1), jnp.int32)
  batch = PreferenceBatch(
    tokens=pairs,
    valid_mask=jnp.ones((2, 2, 1)),
    loss_mask=jnp.ones((2, 2, 1)),
    label=jnp.asarray([1.0, 1.0]),
    weight=jnp.ones(2),
  )
  config = reward.Config()
  _, found = jax.jit(
    lambda scores: reward.loss(
      scores, batch, config, reward.denominators(batch, config)
    )
  )(jnp.asarray([[0.5, 0.5], [0.5, 0.0]]))
  np.testing.assert_allclose(found["reward_model/accuracy"], 0.5)


def test_a_weight_counts_prompts_and_scales_no_score():
  """Means 2 and 3, deviations 1 and 3, margins -2 and -6; weights 2, 1/2."""
  ones = jnp.ones((2, 2, 1))
  batch = PreferenceBatch(
    tokens=jnp.zeros((2, 2, 1), jnp.int32),
    valid_mask=ones,
    loss_mask=ones,
    label=jnp.ones(2),
    weight=jnp.asarray([2.0, 0.5]),
  )
  config = reward.Config()
  _, found = reward.loss(
    jnp.asarray([[1.0, 3.0], [0.0, 6.0]]),
    batch,
    config,
    reward.denominators(batch, config),
  )
  for name, (one, other) in {
    "score_mean": (2, 3),
    "spread": (1, 3),
    "margin": (-2, -6),
    "loss": (np.log1p(np.exp(2)), np.log1p(np.exp(6))),
  }.items():
    np.testing.assert_allclose(
      found[f"reward_model/{name}"], (2 * one + 0.5 * other) / 2.5, rtol=1e-5
    )


def test_equal_scores_are_no_preference_with_no_least_gap():
  _, weight = pairing.choose(
    jnp.asarray([2.0, 2.0, 1.0, 1.5]),
    jax.random.key(0),
    num_samples=2,
    config=pairing.Config(minimum_gap=0.0),
  )
  np.testing.assert_array_equal(weight, [0.0, 1.0])


def test_a_score_at_the_limit_is_not_right():
  """groups.metrics: above, not at, what a right answer has."""
  mask = jnp.ones((4, 1))
  rollout = Rollout(
    tokens=jnp.zeros((4, 1), jnp.int32),
    valid_mask=mask,
    response_mask=mask,
    behaviour_logprobs=mask,
    finish_reason=jnp.zeros(4, jnp.int32),
    reference_logprobs=mask,
    score=jnp.asarray([1.0, 1.0, 1.0, 2.0]),
  )
  found = jax.jit(groups.metrics, static_argnums=(1, 2))(rollout, 2, 1.0)
  np.testing.assert_allclose(found["group/pass1"], 1 / 4)
  np.testing.assert_allclose(found["group/passG"], 1 / 2)


def test_equal_rewards_give_exactly_nothing_whatever_they_are():
  """The mean of three equal numbers is not always that number."""
  x = np.random.default_rng(0).random(64).astype(np.float32)
  rewards = np.repeat(x, 3)
  assert np.any(np.float32(rewards.reshape(-1, 3).sum(1) / 3) != x)
  found = jax.jit(groups.centred, static_argnums=2)(
    rewards, np.ones(192, np.float32), 3
  )
  np.testing.assert_array_equal(found, np.zeros(192))


@pytest.mark.parametrize(
  "name", ["rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "gdpo"]
)
def test_a_group_without_a_comparison_has_no_advantage(name):
  """Equal scores of any size; one answer that counts; none."""
  module = policy_registry.ALGORITHMS[name]
  config = module.Config(group_size=4)
  one, ones = np.tile([0.0, 1.0, 0.0, 0.0], 2), np.ones(8)
  differing = np.arange(8.0)
  for score, counts in (
    *((np.full(8, value), ones) for value in (0.1, 12345.678, 1e30, 3e38)),
    (differing, one),
    (differing, 0 * one),
  ):
    mask = jnp.asarray(np.outer(counts, [1.0, 1.0, 0.0]), jnp.float32)
    rewards = mask * jnp.asarray([[0.0, 1.0, 0.0]]) * score[:, None]
    rollout = Rollout(
      tokens=jnp.zeros((8, 3), jnp.int32),
      valid_mask=mask,
      response_mask=mask,
      behaviour_logprobs=-mask,
      finish_reason=jnp.zeros(8, jnp.int32),
      reference_logprobs=-mask,
      score=jnp.asarray(score, jnp.float32),
      rewards=rewards,
    )
    found = module.advantages(rollout, config).advantages
    np.testing.assert_array_equal(found, np.zeros((8, 3)))


def preferences(rows):
  """Returns judged answers of two tokens; the second of KTO is longer."""
  tokens = jnp.arange(4 * 2 * 3, dtype=jnp.int32).reshape(4, 2, 3)[:rows]
  mask = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 1.0]), tokens.shape)
  return PreferenceBatch(
    tokens=tokens,
    valid_mask=jnp.ones(tokens.shape),
    loss_mask=mask,
    label=jnp.asarray([1.0, 0.0, 1.0, 1.0])[:rows],
    weight=jnp.asarray([1.0, 1.0, 1.0, 0.0])[:rows],
    reference_logprobs=-jnp.ones(tokens.shape),
  )


@pytest.mark.parametrize("module", [dpo, kto])
def test_rows_without_weight_change_neither_step_nor_numbers(module):
  """Three rows, and the same three with a filler behind them."""
  config = module.Config(beta=0.3)

  def apply(params, frozen, batch):
    del frozen
    return params * jnp.sin(batch.tokens.astype(jnp.float32) + 0.4)

  step = jax.jit(
    functools.partial(
      update.update,
      algorithm=module,
      algorithm_config=config,
      config=update.Config(),
      apply=apply,
      optimizer=optax.sgd(1.0),
    )
  )
  start = jnp.float32(0.8)
  (plain, expected), (filled, found) = (
    step(state_of(start), {}, preferences(rows), jax.random.key(0))
    for rows in (3, 4)
  )
  assert abs(plain.params - start) > 1e-3
  np.testing.assert_allclose(filled.params, plain.params, rtol=1e-6)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
  if module is kto:
    second = np.sin(np.asarray(preferences(3).tokens)[:, 1, 1:] + 0.4)
    z = np.mean(0.8 * second.sum(-1)) + 2.0
    assert z > 0.1  # else it would be cut
    np.testing.assert_allclose(found["preference/kl"], z, rtol=1e-5)


@pytest.mark.parametrize("objective", ["k-wise", "plackett-luce", "choice"])
def test_an_absent_candidate_may_be_anything(objective):
  """Value and slope of the others, with NaN where there is no answer."""
  rank, valid = jnp.asarray([[0, 1, 2]]), jnp.asarray([[1.0, 1.0, 0.0]])
  function = {
    "k-wise": reward_losses.kwise_loss,
    "plackett-luce": reward_losses.plackett_luce_loss,
    "choice": reward_losses.choice_loss,
  }[objective]

  def total(scores, valid=valid):
    centring = reward_losses.centering_loss(scores, valid)
    return (function(scores, rank, valid) + centring).sum()

  scores = jnp.asarray([[0.5, -1.0, 0.0]])
  expected = jax.value_and_grad(total)(scores)
  for poison in (jnp.nan, jnp.inf, -jnp.inf):
    found = jax.value_and_grad(total)(scores.at[0, 2].set(poison))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
  two = jax.nn.softplus(-1.5) + 0.25  # of two, which is the loss of pairs
  np.testing.assert_allclose(expected[0], two, rtol=1e-6)


def test_equal_large_scores_standardise_to_nothing():
  """Their float32 mean is off by more than the least deviation."""
  score = jnp.full(1000, 12345.678, jnp.float32)
  moments = shaping.init_moments()
  for _ in range(3):
    moments = shaping.update_moments(moments, score, jnp.ones(1000))
  assert moments.mean == score[0] and moments.m2 == 0.0


@pytest.mark.parametrize("microbatches", [1, 2, 8])
@pytest.mark.parametrize("where", ["loss", "reward"])
def test_groups_of_equal_scores_move_nothing(where, microbatches):
  """Not by a KL of rounding, by momentum, or by weight decay.

  The reference is the policy up to what two programs round differently.
  """
  rng = np.random.default_rng(7)
  params = {"policy": jnp.asarray(rng.normal(size=5), jnp.float32)}

  tokens = jnp.asarray(rng.integers(0, 5, (8, 4)), jnp.int32)
  mask = jnp.ones((8, 4))
  logprobs = jax.nn.log_softmax(params["policy"])[tokens]
  noise = jnp.asarray(rng.uniform(-2e-6, 2e-6, (8, 4)), jnp.float32)
  rollout = Rollout(
    tokens=tokens,
    valid_mask=mask,
    response_mask=mask,
    behaviour_logprobs=logprobs,
    finish_reason=jnp.zeros(8, jnp.int32),
    reference_logprobs=logprobs + noise,
    score=jnp.full(8, 0.1),
  )
  kl = {"kl_loss": "k3", "kl_loss_coefficient": 0.04}
  if where == "reward":
    kl = {"kl_loss": "none", "kl_loss_coefficient": 0.0}
  config = grpo.Config(group_size=4, **kl)
  rollout, _, _ = shaping.shape_rewards(
    rollout,
    shaping.init_moments(),
    jnp.float32(0.1 * (where == "reward")),
    shaping.Config(kl_controller="fixed"),
  )
  rollout = grpo.advantages(rollout, config)
  np.testing.assert_array_equal(rollout.advantages, np.zeros((8, 4)))

  def apply(params, frozen, rows):
    found = jax.nn.log_softmax(params["policy"])[rows.tokens]
    near = rows.behaviour_logprobs + 1e-6  # as another program rounds it
    return found + jax.lax.stop_gradient(near - found), 0 * found, None

  optimizer = optax.adamw(0.1, weight_decay=0.1)
  state = TrainState(
    jnp.int32(0),
    params,
    jax.tree.map(lambda x: x + 1, optimizer.init(params)),  # has momentum
    jnp.int32(0),
  )
  step = functools.partial(
    policy_update.update,
    algorithm=grpo,
    algorithm_config=config,
    config=policy_update.Config(1, 1, microbatches),
    apply=apply,
    optimizer=optimizer,
  )
  after, found = jax.jit(step)(state, {}, rollout, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, after, state)
  assert found["ppo/gradient_norm"] == 0.0 and found["ppo/epochs"] == 1.0
  assert found["sys/skipped_updates"] == 0.0
  assert all(np.isfinite(x) for x in found.values())
