"""Advantages, losses and KL penalties against verl 0.9.1.

tests/oracles/make_policy_goldens.py says what was called and lists the
differences; each has a test here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  kl_control,
  ppo,
  reinforce_pp,
  remax,
  rloo,
  shaping,
  surrogate,
)
from tests.algorithms import goldens

VERL = goldens.load("policy_verl")
MASK = VERL["mask"]
CLIP = {"clip_ratio_high": 0.28, "dual_clip": 3.0}


def sample_deviation(mask):
  """verl divides the variance of whitening by n - 1, this package by n."""
  return np.sqrt((mask.sum() - 1) / mask.sum())


@pytest.mark.parametrize(
  ("name", "module", "config", "factor"),
  [
    ("grpo", grpo, grpo.Config(group_size=3), 1.0),
    ("grpo_plain", grpo, grpo.Config(group_size=3, scale_rewards="none"), 1.0),
    ("rloo", rloo, rloo.Config(group_size=3), 1.0),
    ("remax", remax, remax.Config(), 1.0),
    (
      "rpp",
      reinforce_pp,
      reinforce_pp.Config(discount=0.9),
      sample_deviation(MASK),
    ),
    (
      "rpp_baseline",
      reinforce_pp,
      reinforce_pp.Config(group_size=3),
      sample_deviation(MASK),
    ),
  ],
)
def test_advantages_are_those_of_verl(name, module, config, factor):
  """Difference: where it whitens, by the sample deviation."""
  data = goldens.with_greedy(VERL, goldens.rollout(VERL))
  found = module.advantages(data, config).advantages
  goldens.close(found * factor, VERL[f"adv_{name}"])
  if factor != 1.0:
    assert np.abs(found - VERL[f"adv_{name}"]).max() > 0.01


@pytest.mark.parametrize(("name", "mask"), [("gae", "mask"), ("gaps", "gaps")])
def test_gae_is_that_of_verl(name, mask):
  """Holes are passed over by both. Difference: the sample deviation."""
  config = ppo.Config(discount=0.97, gae_lambda=0.9)
  found = ppo.advantages(goldens.rollout(VERL, mask), config)
  counted = VERL[mask]
  factor = sample_deviation(counted)
  goldens.close(found.advantages * factor, VERL[f"adv_{name}"] * counted)
  goldens.close(found.returns * counted, VERL[f"ret_{name}"] * counted)


def test_difference_a_group_of_one_keeps_its_score_in_verl():
  """There the first answer has a group of its own; here that gives 0."""
  first = jnp.arange(6)[:, None] == 0
  mask = np.where(first, MASK, 0.0)
  alone = goldens.rollout(VERL).replace(response_mask=jnp.asarray(mask))
  found = grpo.advantages(alone, grpo.Config(group_size=3)).advantages
  assert not np.any(found)
  score = np.sum(VERL["rewards"][0] * MASK[0])
  goldens.close(
    VERL["adv_grpo_alone"][0], score / (1 + 1e-6) * MASK[0].astype(np.float64)
  )
  goldens.close(VERL["adv_grpo_alone"][3:], VERL["adv_grpo"][3:])


@pytest.mark.parametrize(("name", "module"), [("grpo", grpo), ("rloo", rloo)])
def test_difference_verl_sums_rewards_off_the_mask(name, module):
  """A 1 on the padding of the first answer is part of its return there."""
  config = module.Config(group_size=3)
  rewards = goldens.field(VERL, "rewards")
  padded = goldens.rollout(VERL, rewards=rewards.at[0, 5].set(1.0))
  ours = module.advantages(padded, config).advantages
  goldens.close(ours, VERL[f"adv_{name}"])
  theirs = VERL[f"adv_{name}_padded"]
  assert np.abs(theirs - ours).max() > 0.1
  moved = goldens.rollout(VERL, rewards=rewards.at[0, 0].add(1.0))
  goldens.close(module.advantages(moved, config).advantages, theirs)


def test_difference_gspo_of_verl_is_bounded_at_e_to_10():
  """One bad answer at e^13; ours goes to e^20."""
  data = goldens.rollout(VERL)
  old = data.behaviour_logprobs
  far = VERL | {"new": np.where(MASK > 0, VERL["new"], 0.0)}
  far["new"][0, 0] = old[0, 0] + 13.0
  data = data.replace(advantages=data.advantages.at[0, 0].set(-1.0))
  settings = {
    "objective": "gspo",
    "clip_ratio": 0.05,
    "clip_ratio_high": 0.06,
    "aggregation": "seq-mean-token-mean",
  }
  value, _ = goldens.policy_loss(far, data, **settings)
  other = (np.exp(13.0) - np.exp(10.0)) / 6
  np.testing.assert_allclose(value - other, VERL["loss_gspo_far"], rtol=1e-4)
  np.testing.assert_allclose(VERL["loss_gspo_far"], np.exp(10.0) / 6, rtol=1e-3)


def test_the_kl_in_the_reward_is_that_of_verl():
  config = shaping.Config(kl_controller="fixed", clip=None)
  data = goldens.rollout(VERL)
  found, _, _ = shaping.shape_rewards(
    data, shaping.init_moments(), jnp.float32(0.05), config
  )
  score = goldens.last_token(VERL)
  theirs = VERL["rewards_kl"] - VERL["rewards"]
  goldens.close(found.rewards - score, theirs * MASK)


@pytest.mark.parametrize(
  ("name", "settings", "weights"),
  [
    ("token_mean", CLIP | {"aggregation": "token-mean"}, None),
    ("no_dual", {"clip_ratio_high": 0.28, "aggregation": "token-mean"}, None),
    ("seq_token_mean", CLIP | {"aggregation": "seq-mean-token-mean"}, None),
    ("seq_token_sum", CLIP | {"aggregation": "seq-mean-token-sum"}, None),
    (
      "const",
      CLIP | {"aggregation": "seq-sum-const", "aggregation_tokens": 9},
      None,
    ),
    ("weighted", CLIP | {"aggregation": "token-mean"}, "weights"),
    (
      "gspo",
      {
        "objective": "gspo",
        "clip_ratio": 0.05,
        "clip_ratio_high": 0.06,
        "aggregation": "seq-mean-token-mean",
      },
      None,
    ),
    (
      "cispo",
      {"objective": "cispo", "clip_ratio": 1.0, "clip_ratio_high": 0.2},
      None,
    ),
  ],
)
def test_losses_and_gradients_are_those_of_verl(name, settings, weights):
  data = goldens.rollout(VERL)
  if weights is not None:
    data = data.replace(importance_weights=goldens.field(VERL, weights))
  loss, gradient = goldens.policy_loss(VERL, data, **settings)
  goldens.close(loss, VERL[f"loss_{name}"])
  goldens.close(gradient, VERL[f"grad_{name}"])
  assert np.count_nonzero(VERL[f"grad_{name}"]) > 3


def test_difference_verl_always_has_a_dual_clip():
  """It is 3 there unless set, and these answers feel it; None here."""
  assert abs(VERL["loss_no_dual"] - VERL["loss_token_mean"]) > 0.01


def test_difference_token_sum_is_token_mean_times_the_tokens():
  tokens = MASK.sum()
  loss, gradient = goldens.policy_loss(VERL, goldens.rollout(VERL), **CLIP)
  goldens.close(loss * tokens, VERL["loss_token_sum"])
  goldens.close(gradient * tokens, VERL["grad_token_sum"])


def value_loss(values, mask, tokens):
  return ppo.value_loss(
    values,
    goldens.field(VERL, "values"),
    goldens.field(VERL, "returns"),
    mask,
    tokens,
    0.2,
  )[0]


def test_the_value_loss_is_that_of_verl():
  mask = jnp.asarray(MASK)
  loss, gradient = jax.value_and_grad(value_loss)(
    goldens.field(VERL, "new_values"), mask, jnp.sum(mask)
  )
  goldens.close(loss, VERL["value_token_mean"])
  goldens.close(gradient, VERL["value_grad_token_mean"])


def test_difference_the_value_loss_of_verl_follows_the_mode():
  """Ours is over tokens; one answer at a time gives the other averages."""
  answers = [MASK * (np.arange(6)[:, None] == n) for n in range(6)]

  def rows(divide):
    def total(values):
      return sum(
        value_loss(values, jnp.asarray(mask), divide(mask)) for mask in answers
      )

    return jax.value_and_grad(total)(goldens.field(VERL, "new_values"))

  columns = MASK.shape[1]
  for name, divide in (
    ("token_sum", lambda _: 1.0),
    ("seq_token_mean", lambda mask: 6.0 * mask.sum()),
    ("seq_token_sum", lambda _: 6.0),
    ("const", lambda _: 6.0 * columns),
  ):
    loss, gradient = rows(divide)
    goldens.close(loss, VERL[f"value_{name}"])
    goldens.close(gradient, VERL[f"value_grad_{name}"])
    assert abs(loss - VERL["value_token_mean"]) > 1e-3


@pytest.mark.parametrize("kind", ["k2", "k3", "k3+"])
def test_kl_penalties_are_those_of_verl(kind):
  def total(new):
    found = surrogate.kl_penalty(
      new, goldens.field(VERL, "reference"), jnp.asarray(MASK), kind
    )
    return jnp.sum(found), found

  (_, found), gradient = jax.value_and_grad(total, has_aux=True)(
    goldens.field(VERL, "new")
  )
  goldens.close(found, VERL[f"kl_{kind}"])
  goldens.close(gradient, VERL[f"kl_grad_{kind}"])


def test_difference_k3_of_verl_is_bounded_at_10():
  new = jnp.array([-2.0, -4.0, -30.0])
  one = jnp.ones(3)
  found, pull = jax.vjp(
    lambda x: surrogate.kl_penalty(x, jnp.zeros(3), one, "k3"), new
  )
  gradient = pull(one)[0]
  goldens.close(np.minimum(found, 10.0), VERL["kl_far"])
  goldens.close(np.where(found < 10.0, gradient, 0.0), VERL["kl_grad_far"])
  assert found[1] > 40.0 and gradient[1] < -40.0


def test_the_kl_coefficient_moves_as_that_of_verl():
  config = shaping.Config(kl_target=6.0, kl_horizon=100.0)
  coefficient, found = 0.1, []
  for kl in (3.0, 6.5, 20.0):
    coefficient = kl_control.update_kl_coefficient(coefficient, kl, 16, config)
    found.append(coefficient)
  goldens.close(found, VERL["kl_coefficients"])
