"""Against verl 0.9.1, frozen by tests/oracles/make_policy_goldens.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  reinforce_pp,
  remax,
  rloo,
  surrogate,
)
from rlhf_jax.types import Rollout

GOLDEN = np.load(Path(__file__).parent.parent / "oracles" / "policy_verl.npz")
MASK = GOLDEN["mask"]
TOKENS = MASK.sum()
# verl divides the variance of whitening by n - 1, this package by n.
WHITEN = np.sqrt((TOKENS - 1) / TOKENS)


def field(name):
  """A golden input, NaN where no token counts."""
  return jnp.asarray(np.where(MASK > 0, GOLDEN[name], np.nan))


def rollout():
  return Rollout(
    tokens=jnp.zeros(MASK.shape, jnp.int32),
    valid_mask=jnp.ones(MASK.shape),
    response_mask=jnp.asarray(MASK),
    behaviour_logprobs=field("old"),
    finish_reason=jnp.zeros(len(MASK), jnp.int32),
    reference_logprobs=field("reference"),
    score=jnp.zeros(len(MASK)),
    rewards=field("rewards"),
    advantages=field("advantages"),
    baseline=jnp.asarray(GOLDEN["baselines"]),
  )


@pytest.mark.parametrize(
  ("name", "module", "config", "factor"),
  [
    ("adv_grpo", grpo, grpo.Config(group_size=3), 1.0),
    (
      "adv_grpo_plain",
      grpo,
      grpo.Config(group_size=3, scale_rewards="none"),
      1.0,
    ),
    ("adv_rloo", rloo, rloo.Config(group_size=3), 1.0),
    ("adv_remax", remax, remax.Config(), 1.0),
    ("adv_rpp", reinforce_pp, reinforce_pp.Config(discount=0.9), WHITEN),
    (
      "adv_rpp_baseline",
      reinforce_pp,
      reinforce_pp.Config(group_size=3),
      WHITEN,
    ),
  ],
)
def test_advantages_are_those_of_verl(name, module, config, factor):
  found = module.advantages(rollout(), config).advantages * factor
  np.testing.assert_allclose(found, GOLDEN[name], rtol=2e-5, atol=1e-6)


CLIP = {"clip_ratio_high": 0.28, "dual_clip": 3.0}


@pytest.mark.parametrize(
  ("name", "settings", "weights"),
  [
    ("token_mean", CLIP | {"aggregation": "token-mean"}, None),
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
  config = surrogate.Config(**settings)
  data = rollout()
  if weights is not None:
    data = data.replace(importance_weights=field(weights))
  counts = surrogate.denominators(data, config)

  def total(new):
    entropies = jnp.zeros(MASK.shape)
    return surrogate.loss(new, entropies, None, data, config, counts)[0]

  value, gradient = jax.value_and_grad(total)(field("new"))
  np.testing.assert_allclose(value, GOLDEN[f"loss_{name}"], rtol=2e-5)
  np.testing.assert_allclose(
    gradient, GOLDEN[f"grad_{name}"], rtol=2e-4, atol=1e-6
  )
  assert np.count_nonzero(GOLDEN[f"grad_{name}"]) > 3


@pytest.mark.parametrize("kind", ["k2", "k3", "k3+"])
def test_kl_penalties_are_those_of_verl(kind):
  def total(new):
    found = surrogate.kl_penalty(
      new, field("reference"), jnp.asarray(MASK), kind
    )
    return jnp.sum(found), found

  (_, found), gradient = jax.value_and_grad(total, has_aux=True)(field("new"))
  np.testing.assert_allclose(found, GOLDEN[f"kl_{kind}"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    gradient, GOLDEN[f"kl_grad_{kind}"], rtol=1e-5, atol=1e-6
  )
