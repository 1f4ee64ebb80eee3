"""PPO, its relatives and their KL against OpenRLHF 0.11.2.

tests/oracles/make_openrlhf_goldens.py says what was called and lists the
differences; each has a test here, those of preference losses in
test_preference_goldens.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms import sft
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  importance,
  kl_control,
  ppo,
  reinforce,
  reinforce_pp,
  returns,
  rloo,
  shaping,
  surrogate,
)
from rlhf_jax.types import TokenBatch
from tests.algorithms import goldens

OPEN = goldens.load("openrlhf")
MASK = OPEN["mask"]
CLIP = {"clip_ratio_high": 0.28}
ANSWERS = "seq-mean-token-mean"


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("ppo", CLIP),
    ("ppo_answers", CLIP | {"aggregation": ANSWERS}),
    ("dual", CLIP | {"dual_clip": 3.0}),
  ],
)
def test_policy_losses_are_those_of_openrlhf(name, settings):
  value, gradient = goldens.policy_loss(OPEN, goldens.rollout(OPEN), **settings)
  goldens.close(value, OPEN[f"loss_{name}"])
  goldens.close(gradient, OPEN[f"grad_{name}"])


def test_dual_clip_is_felt():
  assert abs(OPEN["loss_dual"] - OPEN["loss_ppo"]) > 0.01


def test_difference_gspo_of_openrlhf_moves_an_answer_as_one():
  """The same where an answer has one advantage; else theirs is the mean."""
  data = goldens.rollout(OPEN).replace(
    advantages=goldens.spread(OPEN, "answer_advantages")
  )
  value, gradient = goldens.policy_loss(
    OPEN,
    data,
    objective="gspo",
    clip_ratio=0.05,
    clip_ratio_high=0.06,
    aggregation=ANSWERS,
  )
  goldens.close(value, OPEN["loss_gspo"])
  goldens.close(gradient, OPEN["grad_gspo"])


def test_difference_gspo_of_openrlhf_mixes_the_advantages_of_tokens():
  """Each of its tokens gets the mean over the answer of our gradients."""
  value, gradient = goldens.policy_loss(
    OPEN, goldens.rollout(OPEN), objective="gspo", aggregation=ANSWERS
  )
  goldens.close(value, OPEN["loss_gspo_tokens"])
  mean = np.sum(gradient, 1, keepdims=True) / MASK.sum(1, keepdims=True)
  goldens.close(mean * MASK, OPEN["grad_gspo_tokens"])
  assert np.abs(gradient - OPEN["grad_gspo_tokens"]).max() > 0.01


def weighed():
  data = goldens.rollout(OPEN)
  return importance.weigh(
    data, goldens.field(OPEN, "sampler"), importance.Config(cap=2.0)
  )[0]


def test_token_weights_are_those_of_openrlhf():
  value, gradient = goldens.policy_loss(OPEN, weighed(), **CLIP)
  goldens.close(value, OPEN["loss_clipped"])
  goldens.close(gradient, OPEN["grad_clipped"])


def test_difference_token_weights_of_openrlhf_have_a_lower_end():
  data = weighed()
  raised = jnp.maximum(data.importance_weights, 0.5)
  assert jnp.sum((raised > data.importance_weights) * MASK) > 1
  value, gradient = goldens.policy_loss(
    OPEN, data.replace(importance_weights=raised), **CLIP
  )
  goldens.close(value, OPEN["loss_banded"])
  goldens.close(gradient, OPEN["grad_banded"])


@pytest.mark.parametrize(
  ("name", "clip"), [("value", 0.2), ("value_free", None)]
)
def test_value_losses_are_those_of_openrlhf(name, clip):
  mask = jnp.asarray(MASK)

  def total(values):
    return ppo.value_loss(
      values,
      goldens.field(OPEN, "values"),
      goldens.field(OPEN, "returns"),
      mask,
      jnp.sum(mask),
      clip,
    )[0]

  value, gradient = jax.value_and_grad(total)(goldens.field(OPEN, "new_values"))
  goldens.close(value, OPEN[f"loss_{name}"])
  goldens.close(gradient, OPEN[f"grad_{name}"])


def test_the_value_clip_is_felt():
  assert abs(OPEN["loss_value"] - OPEN["loss_value_free"]) > 0.01


def test_sft_is_that_of_openrlhf():
  batch = TokenBatch(
    tokens=jnp.zeros(MASK.shape, jnp.int32),
    valid_mask=jnp.ones(MASK.shape),
    loss_mask=jnp.asarray(MASK),
  )
  config = sft.Config()
  counts = sft.denominators(batch, config)

  def total(x):
    return sft.loss(x, jnp.zeros(MASK.shape), batch, config, counts)[0]

  value, gradient = jax.value_and_grad(total)(goldens.field(OPEN, "new"))
  goldens.close(value, OPEN["loss_sft"])
  goldens.close(gradient, OPEN["grad_sft"])


def penalty(name, kind):
  """Returns K, and its gradient, of ours."""
  mask = jnp.asarray(MASK)

  def total(new):
    reference = goldens.field(OPEN, "reference")
    if kind == "k1":
      found = ops.kl_k1(ops.neutral(new, mask), ops.neutral(reference, mask))
    else:
      found = surrogate.kl_penalty(new, reference, mask, kind)
    return jnp.sum(found), found

  (_, found), gradient = jax.value_and_grad(total, has_aux=True)(
    goldens.field(OPEN, name)
  )
  return found, gradient


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimators_are_those_of_openrlhf(kind):
  found, gradient = penalty("new", kind)
  goldens.close(found, OPEN[f"kl_{kind}"] * MASK)
  goldens.close(gradient, OPEN[f"kl_grad_{kind}"] * MASK)


def test_difference_unbiased_kl_has_the_gradient_of_k3_plus():
  """Times the ratio, which in ours weights the value too."""
  found, gradient = penalty("new", "k3+")
  goldens.close(found, OPEN["kl_k3_unbiased"] * MASK)
  mask = jnp.asarray(MASK)
  difference = ops.log_ratio(
    goldens.field(OPEN, "new"), goldens.field(OPEN, "old"), mask
  )
  theirs = OPEN["kl_grad_k3_unbiased"] * MASK
  goldens.close(gradient * jnp.exp(difference), theirs)
  # The loss of ours, where A = 0: the mean over tokens of rho K.
  data = goldens.rollout(OPEN).replace(advantages=jnp.zeros(MASK.shape))
  value, whole = goldens.policy_loss(
    OPEN, data, kl_loss="k3+", kl_loss_coefficient=1.0
  )
  goldens.close(whole, theirs / MASK.sum())
  weighted = np.asarray(jnp.exp(difference)) * OPEN["kl_k3_unbiased"] * MASK
  goldens.close(value, weighted.sum() / MASK.sum())


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_difference_kl_estimators_of_openrlhf_are_bounded_at_10(kind):
  new, one = jnp.array([-2.0, -4.0, -30.0]), jnp.ones(3)
  estimate = {"k1": ops.kl_k1, "k2": ops.kl_k2, "k3": ops.kl_k3}[kind]
  found, pull = jax.vjp(lambda x: estimate(x, jnp.zeros(3)), new)
  gradient = pull(one)[0]
  goldens.close(np.clip(found, -10.0, 10.0), OPEN[f"kl_far_{kind}"])
  inside = np.abs(found) <= 10.0
  goldens.close(np.where(inside, gradient, 0.0), OPEN[f"kl_grad_far_{kind}"])
  assert not np.all(inside)


def scored(mask="mask", **fields):
  """The scores on last tokens, without a KL."""
  rewards = goldens.last_token(OPEN, mask)
  return goldens.rollout(OPEN, mask, rewards=rewards, **fields)


@pytest.mark.parametrize(
  ("name", "module", "config"),
  [
    (
      "gae",
      ppo,
      ppo.Config(discount=0.97, gae_lambda=0.9),
    ),
    ("rloo", rloo, rloo.Config(group_size=3)),
    # Difference: OpenRLHF adds 1e-9 to the deviation of a group.
    ("group_norm", grpo, grpo.Config(group_size=3, scale_epsilon=1e-9)),
    ("dr_grpo", grpo, grpo.Config(group_size=3, scale_rewards="none")),
    (
      "reinforce_baseline",
      reinforce_pp,
      reinforce_pp.Config(group_size=3),
    ),
    (
      "reinforce_free",
      reinforce_pp,
      reinforce_pp.Config(scales_advantages=False),
    ),
  ],
)
def test_advantages_are_those_of_openrlhf(name, module, config):
  """Whitened by the population deviation in both. Theirs keep the padding."""
  found = module.advantages(scored(), config)
  goldens.close(found.advantages, OPEN[f"adv_{name}"] * MASK)
  if name == "gae":
    goldens.close(found.returns * MASK, OPEN["ret_gae"] * MASK)
    assert np.abs(OPEN["adv_gae"] * (1 - MASK)).max() > 0.01


def with_kl(rewards):
  config = shaping.Config(kl_controller="fixed", clip=None)
  return shaping.shape_rewards(
    goldens.rollout(OPEN, score=rewards),
    shaping.init_moments(),
    jnp.float32(0.05),
    config,
  )[0]


def test_reinforce_pp_with_its_kl_is_that_of_openrlhf():
  """The score sits on the last token in both, and the KL on each."""
  found = reinforce_pp.advantages(
    with_kl(jnp.asarray(OPEN["scores"])), reinforce_pp.Config(discount=0.9)
  )
  goldens.close(found.advantages, OPEN["adv_reinforce"] * MASK)


def test_difference_baselines_of_openrlhf_are_of_scores_alone():
  """The KL comes after, from each token on; ours is in R before it."""
  config = rloo.Config(group_size=3)
  of_scores = rloo.advantages(scored(), config).advantages
  only_kl = with_kl(jnp.zeros(6))
  to_go = returns.to_go(only_kl, 1.0)
  theirs = OPEN["adv_rloo_kl"] * MASK
  goldens.close(of_scores + to_go, theirs)
  ours = rloo.advantages(with_kl(jnp.asarray(OPEN["scores"])), config)
  assert np.abs(ours.advantages - theirs).max() > 1e-3


def test_difference_the_clip_of_openrlhf_comes_after_the_baseline():
  plain = grpo.Config(group_size=3, scale_rewards="none")
  mask = jnp.asarray(MASK)
  centred = grpo.advantages(scored(), plain).advantages
  clipped = jnp.clip(centred, -0.5, 0.5)
  goldens.close(ops.whiten(clipped, mask), OPEN["adv_clipped"] * MASK)
  # Ours: the score, before anything is taken off.
  early = scored().replace(rewards=jnp.clip(scored().rewards, -0.5, 0.5))
  ours = ops.whiten(grpo.advantages(early, plain).advantages, mask)
  assert np.abs(ours - OPEN["adv_clipped"] * MASK).max() > 0.01


def test_difference_openrlhf_does_not_pass_over_holes():
  """A masked token has reward and value 0, and takes a step of gamma."""
  filled = scored("gaps").replace(
    response_mask=jnp.asarray(MASK),
    values=goldens.field(OPEN, "values") * OPEN["gaps"],
  )
  gaps = jnp.asarray(OPEN["gaps"])
  settings = {"discount": 0.97, "gae_lambda": 0.9, "whitens_advantages": False}
  found = ppo.advantages(filled, ppo.Config(**settings)).advantages
  theirs = OPEN["adv_gaps"] * OPEN["gaps"]
  goldens.close(ops.whiten(found, gaps), theirs)
  ours = ppo.advantages(scored("gaps"), ppo.Config(**settings)).advantages
  assert np.abs(ops.whiten(ours, gaps) - theirs).max() > 0.01


def test_reinforce_without_a_baseline_is_the_return_of_openrlhf():
  config = reinforce.Config(baseline="none")
  found = reinforce.advantages(scored(), config).advantages
  goldens.close(found, OPEN["ret_reinforce_free"] * MASK)


def test_the_overlong_penalty_is_that_of_openrlhf():
  config = shaping.Config(
    overlong_tokens=5, overlong_cache=3, overlong_penalty=0.7, clip=None
  )
  found = shaping.shaped_scores(
    goldens.rollout(OPEN), shaping.init_moments(), config
  )
  goldens.close(found, OPEN["overlong"])
  assert np.sum(OPEN["overlong"] != OPEN["scores"]) == 3


def test_the_kl_coefficient_moves_as_that_of_openrlhf():
  config = shaping.Config(kl_target=6.0, kl_horizon=100.0)
  coefficient, found = 0.1, []
  for kl in (3.0, 6.5, 20.0):
    coefficient = kl_control.update_kl_coefficient(coefficient, kl, 16, config)
    found.append(coefficient)
  goldens.close(found, OPEN["kl_coefficients"])
