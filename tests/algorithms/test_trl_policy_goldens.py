"""GRPO, RLOO and PPO against TRL 1.12.0.

tests/oracles/make_trl_policy_goldens.py says what was called and lists the
differences; each has a test here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  objectives,
  ppo,
  rloo,
  shaping,
  surrogate,
)
from tests.algorithms import goldens

TRL = goldens.load("policy_trl")
MASK = TRL["mask"]
CLIP = {"clip_ratio_high": 0.28}
K3 = {"kl_loss": "k3", "kl_loss_coefficient": 0.04, "has_kl_loss_ratio": False}
ANSWERS = "seq-mean-token-mean"
CONSTANT = {"aggregation": "seq-sum-const", "aggregation_tokens": 9}
GSPO = {"objective": "gspo", "clip_ratio": 0.05, "clip_ratio_high": 0.06}


def loss(name, data=None, entropies=None, **settings):
  """Asserts that ours is the golden of this name."""
  data = goldens.rollout(TRL) if data is None else data
  value, gradient = goldens.policy_loss(TRL, data, entropies, **settings)
  goldens.close(value, TRL[f"loss_{name}"])
  goldens.close(gradient, TRL[f"grad_{name}"])
  assert np.count_nonzero(TRL[f"grad_{name}"]) > 3


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("grpo", CLIP | K3 | {"aggregation": ANSWERS}),
    ("bnpo", CLIP | K3),
    ("dapo", CLIP | K3),
    ("dr_grpo", CLIP | K3 | CONSTANT),
    ("delta", CLIP | {"dual_clip": 3.0, "aggregation": ANSWERS}),
  ],
)
def test_grpo_losses_and_gradients_are_those_of_trl(name, settings):
  """Difference: TRL does not weight the KL by the ratio (has_kl_loss_ratio)."""
  loss(name, **settings)


def test_delta_is_felt():
  assert abs(TRL["loss_delta"] - TRL["loss_entropy"]) > 0.1
  assert not np.allclose(TRL["grad_delta"], TRL["grad_entropy"])


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("gspo", GSPO | {"aggregation": ANSWERS}),
    # Difference: TRL's epsilon_high is the bound itself, 1.2; ours 1 + 0.2.
    (
      "cispo",
      {"objective": "cispo", "clip_ratio": 1.0, "clip_ratio_high": 0.2},
    ),
  ],
)
def test_gspo_and_cispo_are_those_of_trl(name, settings):
  data = goldens.rollout(TRL).replace(
    advantages=goldens.spread(TRL, "answer_advantages")
  )
  loss(name, data, **settings)


@pytest.mark.parametrize(
  ("name", "settings"),
  [("empty", {"aggregation": ANSWERS}), ("empty_dr", CONSTANT)],
)
def test_difference_trl_divides_by_answers_without_a_token_too(name, settings):
  """The last of six answers has none: ours is the mean of five."""
  mask = jnp.asarray(MASK).at[5].set(0.0)
  data = goldens.rollout(TRL).replace(response_mask=mask)
  value, gradient = goldens.policy_loss(TRL, data, **settings, **CLIP)
  goldens.close(value * 5 / 6, TRL[f"loss_{name}"])
  goldens.close(gradient * 5 / 6, TRL[f"grad_{name}"])


def test_difference_the_ratio_of_trl_has_no_bound():
  """One bad answer at e^23: ours counts e^20, and has no gradient there."""
  data = goldens.rollout(TRL)
  new = goldens.field(TRL, "new")
  data = data.replace(
    behaviour_logprobs=data.behaviour_logprobs.at[0, 0].set(new[0, 0] - 23.0),
    advantages=data.advantages.at[0, 0].set(-1.0),
  )
  value, gradient = goldens.policy_loss(TRL, data, aggregation=ANSWERS, **CLIP)
  np.testing.assert_allclose(TRL["loss_far"], np.exp(23.0) / 6, rtol=1e-5)
  np.testing.assert_allclose(value, np.exp(20.0) / 6, rtol=1e-5)
  assert gradient[0, 0] == 0.0 and TRL["grad_far"][0, 0] > 1e9
  goldens.close(gradient[1:], TRL["grad_far"][1:])


def test_difference_the_entropy_of_trl_is_a_mean_over_tokens():
  """Whatever the loss type; ours follows `aggregation`."""
  data = goldens.rollout(TRL)
  entropies = -goldens.field(TRL, "old")
  value, gradient = goldens.policy_loss(TRL, data, aggregation=ANSWERS, **CLIP)
  goldens.close(
    value - 0.1 * ops.masked_mean(entropies, jnp.asarray(MASK)),
    TRL["loss_entropy"],
  )
  goldens.close(gradient, TRL["grad_entropy"])
  ours, _ = goldens.policy_loss(
    TRL,
    data,
    entropies,
    aggregation=ANSWERS,
    entropy_coefficient=0.1,
    **CLIP,
  )
  assert abs(ours - TRL["loss_entropy"]) > 1e-3


def test_difference_the_corrected_kl_of_trl_has_a_gradient_in_the_ratio():
  """The value is ours with has_kl_loss_ratio; the gradient has rho K on top."""
  settings = CLIP | K3 | {"aggregation": ANSWERS, "has_kl_loss_ratio": True}
  data = goldens.rollout(TRL)
  value, gradient = goldens.policy_loss(TRL, data, **settings)
  goldens.close(value, TRL["loss_corrected"])
  new, mask = goldens.field(TRL, "new"), jnp.asarray(MASK)
  k3 = surrogate.kl_penalty(new, goldens.field(TRL, "reference"), mask, "k3")
  ratio = jnp.exp(ops.log_ratio(new, goldens.field(TRL, "old"), mask))
  share = mask / jnp.sum(mask, axis=1, keepdims=True) / 6
  on_top = 0.04 * ratio * k3 * share
  goldens.close(gradient + on_top, TRL["grad_corrected"])
  assert jnp.max(on_top) > 1e-4


@pytest.mark.parametrize(("name", "scale"), [("group", 1e-4), ("none", 1e-6)])
def test_group_advantages_are_those_of_trl(name, scale):
  """Difference: TRL adds 1e-4 to the deviation, verl and ours 1e-6."""
  data = goldens.rollout(TRL, rewards=goldens.last_token(TRL))
  config = grpo.Config(group_size=3, scale_rewards=name, scale_epsilon=scale)
  found = grpo.advantages(data, config).advantages
  goldens.close(found, TRL[f"adv_{name}"][:, None] * MASK)


def test_difference_the_batch_scale_of_trl_is_of_the_rewards():
  """Their sample deviation; ours: population, of what the groups leave."""
  data = goldens.rollout(TRL, rewards=goldens.last_token(TRL))
  config = grpo.Config(group_size=3, scale_rewards="batch")
  found = grpo.advantages(data, config).advantages[:, 0]
  scores = TRL["scores"].astype(np.float64)
  groups = scores.reshape(2, 3)
  left = groups - groups.mean(1, keepdims=True)
  theirs = scores.std(ddof=1) + 1e-4
  goldens.close(found * (left.std() + 1e-6) / theirs, TRL["adv_batch"])
  assert np.abs(found - TRL["adv_batch"]).max() > 0.01


def rloo_advantages():
  data = goldens.rollout(TRL)
  config = shaping.Config(kl_controller="fixed", clip=None)
  data, _, _ = shaping.shape_rewards(
    data, shaping.init_moments(), jnp.float32(0.05), config
  )
  return rloo.advantages(data, rloo.Config(group_size=3)).advantages[:, 0]


def test_rloo_is_that_of_trl():
  """With the KL of the whole answer in the reward, before the baseline."""
  goldens.close(rloo_advantages(), TRL["adv_rloo"])


def test_difference_trl_can_normalise_the_advantages_of_rloo():
  found = np.asarray(rloo_advantages(), np.float64)
  white = (found - found.mean()) / (found.std(ddof=1) + 1e-4)
  goldens.close(white, TRL["adv_rloo_normalised"])


def test_difference_rloo_of_trl_has_one_ratio_per_answer():
  """On the policy's own samples: the same gradient, another value."""
  answer_advantages = goldens.spread(TRL, "answer_advantages")
  data = goldens.rollout(TRL).replace(advantages=answer_advantages)
  value, gradient = goldens.policy_loss(
    TRL, data, new="old", aggregation="seq-mean-token-sum"
  )
  goldens.close(gradient, TRL["grad_rloo"])
  goldens.close(np.mean(-TRL["answer_advantages"]), TRL["loss_rloo"])
  by_length = -TRL["answer_advantages"] * MASK.sum(1)
  goldens.close(value, np.mean(by_length))


def ppo_rollout():
  """TRL's PPO in our types: a mask one longer, without a KL at its end."""
  mask = jnp.asarray(MASK)
  longer = jnp.concatenate([jnp.ones((6, 1)), mask[:, :-1]], axis=1)

  def padded(name):
    return jnp.where(mask > 0, goldens.field(TRL, name), 0.0)

  return goldens.rollout(
    TRL | {"longer": np.asarray(longer)},
    "longer",
    behaviour_logprobs=padded("old"),
    reference_logprobs=padded("reference"),
  )


def shaped_ppo():
  config = shaping.Config(kl_controller="fixed", clip=None)
  return shaping.shape_rewards(
    ppo_rollout(), shaping.init_moments(), jnp.float32(0.05), config
  )[0]


def test_difference_ppo_of_trl_puts_the_score_after_the_end_token():
  """At EOS + 1, where it has a value too: our arrays, one token longer."""
  found = ppo.advantages(
    shaped_ppo(),
    ppo.Config(discount=0.97, gae_lambda=0.9, whitens_advantages=False),
  )
  longer = found.response_mask
  goldens.close(found.rewards, TRL["ppo_rewards"])
  goldens.close(found.returns * longer, TRL["ppo_returns"] * longer)
  # Whitening is over the answer alone, by the sample deviation.
  white = ops.whiten(found.advantages, jnp.asarray(MASK))
  sample = np.sqrt((MASK.sum() - 1) / MASK.sum())
  goldens.close(white * sample, TRL["ppo_advantages"])
  after = np.roll(goldens.last_token(TRL) != 0, 1, axis=1)
  theirs = np.sum(np.where(after, TRL["ppo_rewards"], 0.0), axis=1)
  goldens.close(theirs, TRL["scores"])


def test_difference_rewards_are_whitened_by_the_sample_deviation():
  data = shaped_ppo()
  mask = data.response_mask
  mean = ops.masked_mean(data.rewards, mask)
  kept = ops.whiten(data.rewards, mask, shifts_mean=False) - mean
  count = float(jnp.sum(mask))
  factor = np.sqrt((count - 1) / count)
  goldens.close((kept * factor + mean) * mask, TRL["ppo_white_rewards"])


def test_the_loss_of_ppo_is_that_of_trl():
  """Difference: policy over the answer, value over one token more."""
  data = ppo_rollout()
  mask, longer = jnp.asarray(MASK), data.response_mask

  def total(new, values):
    policy = objectives.clipped(
      ops.log_ratio(new, goldens.field(TRL, "old"), mask),
      jnp.asarray(TRL["ppo_advantages"], jnp.float32),
      clip_ratio=0.2,
    )
    value = ppo.value_loss(
      values,
      data.values,
      jnp.asarray(TRL["ppo_returns"], jnp.float32),
      longer,
      jnp.sum(longer),
      0.2,
    )[0]
    return ops.masked_mean(policy, mask) + 0.1 * value

  new, values = goldens.field(TRL, "new"), jnp.asarray(TRL["new_values"])
  found, gradients = jax.value_and_grad(total, (0, 1))(new, values)
  goldens.close(found, TRL["loss_ppo"])
  goldens.close(gradients[0], TRL["grad_ppo"])
  goldens.close(gradients[1], TRL["grad_ppo_values"])
