"""GRPO and its variants: numbers by hand, defaults by paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import (
  cispo,
  dapo,
  dr_grpo,
  grpo,
  gspo,
  registry,
  shaping,
)
from tests.algorithms import answers

CENTRED = np.array([-2.0, -1, 3, 0, 0, 0])  # of 1, 2, 6 and 4, 4, 4


@pytest.mark.parametrize(
  ("scale", "divisor"),
  [("none", 1.0), ("group", 7**0.5), ("batch", (14 / 6) ** 0.5)],
)
def test_advantages_by_hand(scale, divisor):
  config = grpo.Config(group_size=3, scale_rewards=scale)
  found = grpo.advantages(answers.rollout(), config)
  np.testing.assert_allclose(
    found.advantages, answers.spread(CENTRED / divisor), rtol=1e-5
  )


def test_equal_rewards_give_no_gradient_at_all():
  data = answers.rollout(score=(0.1,) * 6)
  for scale in grpo.SCALES:
    config = grpo.Config(group_size=3, scale_rewards=scale)
    assert not np.asarray(grpo.advantages(data, config).advantages).any()


def test_an_answer_taken_out_leaves_the_statistics():
  """6 is masked: 1 and 2 have the mean 1.5 and the deviation 1 / sqrt 2."""
  data = answers.without(answers.rollout(), 2)
  found = grpo.advantages(data, grpo.Config(group_size=3)).advantages
  expected = np.array([-1, 1, 0, 0, 0, 0]) / 2**0.5
  np.testing.assert_allclose(found[:, answers.PROMPT], expected, atol=1e-5)


# Two answers of 1 and 3 tokens, advantages 1 and -1, two prompt tokens. Ratios
# 2 on the first; 1/2, 1 and 4 on the second, whose geometric mean is 2^(1/3).
RATIOS = jnp.array([[1.0, 1, 2, 1, 1], [1, 1, 0.5, 1, 4]])
TWO = answers.rollout().replace(
  response_mask=jnp.array([[0.0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]),
  behaviour_logprobs=jnp.full((2, 5), -1.0),
  reference_logprobs=jnp.full((2, 5), -1.0),
  advantages=jnp.array([[1.0] * 5, [-1.0] * 5]),
)


def run(module, config, reference=-1.0):
  data = TWO.replace(reference_logprobs=jnp.full((2, 5), reference))
  counts = module.denominators(data, config)

  def total(logprobs):
    entropies = jnp.zeros((2, 5))
    return module.loss(logprobs, entropies, None, data, config, counts)[0]

  return jax.value_and_grad(total)(-1.0 + jnp.log(RATIOS))


def test_grpo_by_hand():
  # The first: -min(2, 1.2). The second: max(1/2, 0.8), 1, max(4, 1.2).
  # KL at p_ref = p_old, without ratio: k3 = 1 / rho - 1 + log rho.
  config = grpo.Config(
    group_size=2, kl_loss_coefficient=0.5, has_kl_loss_ratio=False
  )
  k3 = 1 / RATIOS - 1 + jnp.log(RATIOS)
  first = -1.2 + 0.5 * k3[0, 2]
  second = (0.8 + 1 + 4 + 0.5 * k3[1, 2:].sum()) / 3
  total, _ = run(grpo, config)
  np.testing.assert_allclose(total, (first + second) / 2, rtol=1e-5)


def test_dr_grpo_by_hand():
  config = dr_grpo.Config(group_size=2, aggregation_tokens=10)
  total, gradient = run(dr_grpo, config)
  np.testing.assert_allclose(total, (-1.2 + 0.8 + 1 + 4) / 20, rtol=1e-6)
  np.testing.assert_allclose(
    gradient[1], np.array([0, 0, 0, 1, 4]) / 20, rtol=1e-5, atol=1e-7
  )


def test_dapo_by_hand():
  total, _ = run(dapo, dapo.Config(group_size=2))
  np.testing.assert_allclose(total, (-1.28 + 0.8 + 1 + 4) / 4, rtol=1e-6)


def test_gspo_by_hand():
  """The first is clipped as a whole; the second's tokens share s / 3."""
  total, gradient = run(gspo, gspo.Config(group_size=2))
  root = 2 ** (1 / 3)
  np.testing.assert_allclose(total, (-1.0004 + root) / 2, rtol=1e-6)
  expected = np.zeros((2, 5))
  expected[1, 2:] = root / 3 / 2
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_cispo_by_hand():
  """Ratios are cut to 1.2 from above only, and every token has a gradient."""
  total, gradient = run(cispo, cispo.Config(group_size=2))
  logs = -1 + np.log(np.asarray(RATIOS, np.float64))
  weights = np.array([[0, 0, -1.2, 0, 0], [0, 0, 0.5, 1, 1.2]])
  np.testing.assert_allclose(total, (weights * logs).sum() / 4, rtol=1e-6)
  np.testing.assert_allclose(gradient, weights / 4, rtol=1e-6)


def test_dapo_soft_overlong_penalty():
  """L_max 5, L_cache 2: 0 up to 3 tokens, -1/2 at 4, -1 from 5 on."""
  config = shaping.Config(overlong_tokens=5, overlong_cache=2, clip=None)
  data = answers.rollout(score=(0.0,) * 6)
  data = data.replace(response_mask=jnp.ones((6, 8)).at[0, 3:].set(0.0))
  data = data.replace(response_mask=data.response_mask.at[1, 4:].set(0.0))
  data = data.replace(response_mask=data.response_mask.at[2, 5:].set(0.0))
  found = shaping.shaped_scores(data, shaping.init_moments(), config)
  np.testing.assert_allclose(found, [0, -0.5, -1, -1, -1, -1])
  with pytest.raises(ValueError, match=r"overlong_cache=0: must be in \[1"):
    shaping.Config(overlong_tokens=5)
  with pytest.raises(ValueError, match="overlong_cache=2: needs overlong_tok"):
    shaping.Config(overlong_cache=2)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_a_reward_of_k2_or_k3_is_refused(kind):
  with pytest.raises(ValueError, match=f"kl_estimator='{kind}': .*diverges"):
    shaping.Config(kl_estimator=kind)


def test_no_method_mixes_text_in_unasked():
  for module in registry.ALGORITHMS.values():
    assert module.Config().ptx_coefficient == 0.0


@pytest.mark.parametrize(
  ("config", "samples", "beta", "steps", "message"),
  [
    (grpo.Config(group_size=4), 8, 0.0, 1, "group_size=4: generate.num_samp"),
    (grpo.Config(group_size=4), 4, 0.1, 1, "the KL would count twice"),
    (
      registry.ALGORITHMS["remax"].Config(),
      1,
      0.1,
      2,
      "objective='reinforce': has no importance ratio, and 2 steps",
    ),
  ],
)
def test_wrong_runs_are_refused(config, samples, beta, steps, message):
  with pytest.raises(ValueError, match=message):
    registry.check_run(
      config,
      num_samples=samples,
      kl_coefficient=beta,
      steps_per_rollout=steps,
    )


def test_right_runs_are_not():
  for name, module in registry.ALGORITHMS.items():
    config = module.Config()
    size = getattr(config, "group_size", None)
    registry.check_run(
      config,
      num_samples=1 if size is None else size,
      kl_coefficient=0.0 if name in ("grpo", "gdpo") else 0.1,
      steps_per_rollout=1,
    )


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"group_size": 1}, "group_size=1: GRPO compares the answers"),
    ({"scale_rewards": "std"}, "scale_rewards='std': must be one of"),
    ({"scale_epsilon": 0.0}, "scale_epsilon=0.0: must be > 0"),
    ({"kl_loss_coefficient": 0.0}, "does not agree with kl_loss='k3'"),
  ],
)
def test_config_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    grpo.Config(**settings)
