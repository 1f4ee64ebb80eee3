"""Process rewards by hand: where steps end, scores, the loss, token rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import process
from rlhf_jax.algorithms.policy_gradient import (
  dapo,
  ppo,
  registry,
  reinforce_pp,
  remax,
  rloo,
  shaping,
  token_rewards,
)
from rlhf_jax.types import Rollout, StepBatch, TrainState

# Tokens: 0 "a", 1 "b", 2 "\n", 3 "c\n", 4 end. One state and the start.
LINE = np.array([[4, 4, 3, 7, 0], [4, 4, 3, 7, 1]], np.int32)
# The delimiter "\n\n": token 2 is half of it, token 3 too.
TWO = np.array([[6, 6, 1, 7, 0], [6, 6, 5, 7, 1], [6, 6, 5, 7, 2]], np.int32)


@pytest.mark.parametrize(
  "table, tokens, mask, expected",
  [
    # The last token ends a step that says anything, as a delimiter does.
    (LINE, [0, 2, 0, 3, 0, 4], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1]),
    (LINE, [2, 0, 2, 2, 1, 2], [0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 1]),
    (LINE, [0, 0, 2, 4, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0]),
    (LINE, [2, 0, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
    # Half a delimiter in the prompt is none of the answer's.
    (TWO, [2, 2, 0, 2, 2, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]),
  ],
)
def test_where_steps_end(table, tokens, mask, expected):
  found = process.step_ends(
    jnp.asarray([tokens]), jnp.asarray([mask], jnp.float32), jnp.asarray(table)
  )
  np.testing.assert_array_equal(found, [expected])


def test_scores_of_an_answer():
  """Of p = 1/2 and 3/4; what stands elsewhere has no effect, NaN either."""
  logits = jnp.asarray([[np.nan, 0.0, np.log(3.0), 9.0], [1.0, 2.0, 3.0, 4.0]])
  ends = jnp.asarray([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
  expected = {"last": 0.75, "min": 0.5, "product": 0.375, "mean": 0.625}
  assert set(expected) == set(process.SCORES)
  for how, value in expected.items():
    found = process.answer_score(logits, ends, how)
    np.testing.assert_allclose(found, [value, 0.0], rtol=1e-6, err_msg=how)
  with pytest.raises(ValueError, match="score='max': must be one of last, min"):
    process.answer_score(logits, ends, "max")


def batch_of(labels, mask):
  mask = jnp.asarray(mask, jnp.float32)
  return StepBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones_like(mask),
    step_mask=mask,
    labels=jnp.asarray(labels, jnp.float32),
  )


def test_loss_by_hand():
  """-log 3/4 and -log 1/2, with y = 1 and 0; soft and smoothed labels."""
  logits = jnp.asarray([[np.log(3.0), 7.0], [0.0, np.nan]])
  batch = batch_of([[1.0, 0.0], [0.0, 0.0]], [[1, 0], [1, 0]])
  config = process.Config()
  counts = process.denominators(batch)
  value, metrics = process.loss(logits, batch, config, counts)
  np.testing.assert_allclose(value, (np.log(4 / 3) + np.log(2)) / 2, rtol=1e-6)
  assert float(metrics["process/right"]) == 0.5
  assert float(metrics["process/accuracy"]) == 1.0  # 0 is not above 1/2
  gradient = jax.grad(lambda z: process.loss(z, batch, config, counts)[0])
  np.testing.assert_allclose(
    gradient(logits), [[-0.125, 0.0], [0.25, 0.0]], atol=1e-6
  )
  soft = process.step_loss(logits[0, :1], jnp.asarray([0.75]))
  np.testing.assert_allclose(soft, np.log(4) - 0.75 * np.log(3), rtol=1e-6)
  smooth = process.step_loss(
    logits[0, :1], jnp.asarray([1.0]), label_smoothing=0.25
  )
  np.testing.assert_allclose(soft, smooth, rtol=1e-6)


def test_microbatches_do_not_matter():
  rng = np.random.default_rng(0)
  shape, features = (8, 5), rng.normal(size=(8, 5, 3)).astype(np.float32)
  batch = batch_of(rng.random(shape) > 0.5, rng.random(shape) > 0.4)
  batch = batch.replace(features=jnp.asarray(features))

  def after(parts):
    optimizer = optax.sgd(1.0)
    params = {"w": jnp.ones(3)}
    state = TrainState(
      jnp.int32(0), params, optimizer.init(params), jnp.int32(0)
    )
    return process.update(
      state,
      {},
      batch,
      jax.random.key(0),
      config=process.Config(microbatches=parts),
      apply=lambda params, frozen, batch: batch.features @ params["w"],
      optimizer=optimizer,
    )

  (one, found), (four, expected) = after(1), after(4)
  np.testing.assert_allclose(one.params["w"], four.params["w"], rtol=1e-5)
  for name in found:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def rollout_of(values, mask):
  """Returns two answers: columns 2 to 5 and 2 to 4 of six."""
  response = jnp.asarray([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0.0]])
  zeros = jnp.zeros_like(response)
  return Rollout(
    tokens=zeros.astype(jnp.int32),
    valid_mask=jnp.ones_like(response),
    response_mask=response,
    behaviour_logprobs=zeros,
    finish_reason=jnp.zeros(2, jnp.int32),
    reference_logprobs=zeros,
    score=jnp.asarray([2.0, -1.0]),
    prefix_values=jnp.asarray(values),
    prefix_mask=jnp.asarray(mask),
  )


STEPS = rollout_of(  # steps end at columns 3 and 5, and at 4
  [[9, 9, 9, 0.5, 9, 2.0], [9, 9, 9, 9, -1.0, 9.0]],
  [[0, 0, 0, 1, 0, 1.0], [0, 0, 0, 0, 1, 0.0]],
)
PREFIXES = rollout_of(  # of the prompt, too, in column 1
  [[9, 1.0, 3.0, 2.0, 0.0, 2.0], [9, 0.5, 0.0, 1.0, -1.0, 9.0]],
  [[0, 1, 1, 1, 1, 1.0], [0, 1, 1, 1, 1, 0.0]],
)
CONFIG = shaping.Config(kl_coefficient=0.0, kl_controller="fixed", clip=None)


def shaped(rollout, mode, **changes):
  if mode != "none":
    changes |= {"token_coefficient": 0.5}
  found, _, metrics = shaping.shape_rewards(
    rollout,
    shaping.init_moments(),
    jnp.float32(0.0),
    shaping.dataclasses.replace(CONFIG, token_rewards=mode, **changes),
  )
  assert found.prefix_values is None and found.prefix_mask is None
  return found, metrics


@pytest.mark.parametrize(
  "rollout, mode, expected",
  [
    # Half of each change; the score at the end, and nothing before a step.
    (STEPS, "potential", [[0, 0, 0, 0.25, 0, 1.75], [0, 0, 0, 0, -1.0, 0]]),
    (STEPS, "raw", [[0, 0, 0, 0.25, 0, 2.0], [0, 0, 0, 0, -1.0, 0]]),
    (
      PREFIXES,
      "potential",
      [[0, 0, 1.0, -0.5, -1.0, 2.0], [0, 0, -0.25, 0.5, -1.5, 0]],
    ),
    (PREFIXES, "raw", [[0, 0, 1.5, 1.0, 0, 2.0], [0, 0, 0, 0.5, -1.0, 0]]),
  ],
)
def test_token_rewards_by_hand(rollout, mode, expected):
  found, _ = shaped(rollout, mode)
  np.testing.assert_allclose(found.rewards, expected, atol=1e-6)


@pytest.mark.parametrize("rollout, start", [(STEPS, 0.0), (PREFIXES, 0.375)])
def test_a_potential_takes_its_start_off_every_answer(rollout, start):
  found, metrics = shaped(rollout, "potential")
  lost = rollout.score - jnp.sum(found.rewards, axis=-1)
  first = token_rewards.potentials(rollout.prefix_values, rollout.prefix_mask)[
    :, 2
  ]
  np.testing.assert_allclose(lost, 0.5 * first, atol=1e-6)
  np.testing.assert_allclose(metrics["reward/token_sum"], -start, atol=1e-6)


def test_potentials_are_a_baseline_of_returns():
  """With gamma = 1 the reward to go falls by Phi(s_t), whatever comes after."""
  plain, _ = shaped(PREFIXES, "none")
  found, _ = shaped(PREFIXES, "potential")
  phi = token_rewards.potentials(PREFIXES.prefix_values, PREFIXES.prefix_mask)
  config = reinforce_pp.Config(scales_advantages=False)
  to_go = functools.partial(reinforce_pp.returns.to_go, discount=1.0)
  mask = PREFIXES.response_mask
  np.testing.assert_allclose(
    to_go(plain) - to_go(found), 0.5 * phi * mask, atol=1e-6
  )
  registry.check_token_rewards(reinforce_pp, config, "potential")


def test_gae_of_a_critic_that_is_the_potential():
  """A critic V and rewards r, or V - Phi and r': the same advantages."""
  rng = np.random.default_rng(1)
  values = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
  phi = 0.5 * token_rewards.potentials(
    PREFIXES.prefix_values, PREFIXES.prefix_mask
  )
  plain, _ = shaped(PREFIXES, "none")
  found, _ = shaped(PREFIXES, "potential")
  mask, how = PREFIXES.response_mask, {"discount": 1.0, "gae_lambda": 0.7}
  expected = ppo.gae(plain.rewards, values, mask, **how)
  np.testing.assert_allclose(
    ppo.gae(found.rewards, values - phi, mask, **how), expected, atol=1e-6
  )


def test_masked_answers_get_no_token_rewards():
  rollout = STEPS.replace(finish_reason=jnp.asarray([1, 0], jnp.int32))
  found, metrics = shaped(rollout, "raw", missing_eos="mask")
  assert not np.any(np.asarray(found.rewards[0]))
  np.testing.assert_allclose(metrics["reward/token_sum"], 0.0, atol=1e-7)


def test_what_cannot_tell_tokens_apart_refuses_by_name():
  for module in (ppo, remax, reinforce_pp):
    registry.check_token_rewards(module, module.Config(), "potential")
  for module in (rloo, dapo):
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"token_rewards='raw': {name} gives"):
      registry.check_token_rewards(module, module.Config(), "raw")
  with pytest.raises(ValueError, match="in groups of 4, so .* ppo, remax, rei"):
    registry.check_token_rewards(
      reinforce_pp, reinforce_pp.Config(group_size=4), "raw"
    )
  with pytest.raises(ValueError, match="with discount=0.9: the potential"):
    registry.check_token_rewards(ppo, ppo.Config(discount=0.9), "potential")
  with pytest.raises(ValueError, match="token_rewards='max': must be one of"):
    shaping.Config(token_rewards="max")
  with pytest.raises(ValueError, match="rollout.prefix_values is None"):
    shaped(STEPS.replace(prefix_values=None), "raw")
