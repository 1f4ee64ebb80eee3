"""Preference losses and gradients against TRL 1.12.0 and OpenRLHF 0.11.2.

tests/oracles/make_preference_goldens.py and make_openrlhf_goldens.py say what
was called and list the differences; each has a test here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import reward, reward_losses, sft
from rlhf_jax.algorithms.preference import (
  cpo,
  dpo,
  ipo,
  kto,
  orpo,
  pairs,
  simpo,
  spin,
)
from rlhf_jax.types import TokenBatch
from tests.algorithms import goldens

TRL = goldens.load("preference_trl")
OPENRLHF = goldens.load("openrlhf")
BETA, EPSILON = float(TRL["beta"]), float(TRL["label_smoothing"])
GAMMA = float(TRL["gamma"])
CASES = {
  "sigmoid": (dpo, dpo.Config(beta=BETA)),
  "hinge": (dpo, dpo.Config(beta=BETA, link="hinge")),
  "robust": (
    dpo,
    dpo.Config(beta=BETA, label_smoothing=EPSILON, is_robust=True),
  ),
  "sigmoid_norm": (dpo, dpo.Config(beta=BETA, is_length_normalised=True)),
  "ipo": (ipo, ipo.Config(tau=BETA, is_length_normalised=True)),
  "cpo": (cpo, cpo.Config(beta=BETA, nll_weight=0.0)),
  "simpo": (simpo, simpo.Config(beta=BETA, margin_ratio=GAMMA / BETA)),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_trl(name):
  loss, gradient = goldens.pair_loss(*CASES[name], *goldens.pair_batch(TRL))
  goldens.close(loss, TRL[f"loss_{name}"])
  goldens.close(gradient, TRL[f"grad_{name}"])
  assert np.count_nonzero(TRL[f"grad_{name}"]) >= 30


def test_spin_is_trls_sigmoid():
  found = goldens.pair_loss(
    spin, spin.Config(beta=BETA), *goldens.pair_batch(TRL)
  )
  goldens.close(found[0], TRL["loss_sigmoid"])
  goldens.close(found[1], TRL["grad_sigmoid"])


def judged(golden):
  """Rows 0 to 2 are desirable; candidate 1 is the mismatched answer."""
  logprobs, batch = goldens.pair_batch(golden)
  names = ("tokens", "valid_mask", "loss_mask", "reference_logprobs")
  first, other = (
    batch.replace(**{name: getattr(batch, name)[:, part] for name in names})
    for part in (slice(0, 1), slice(1, 2))
  )
  z = jnp.mean(kto.baseline(logprobs[:, 1:], other))
  label = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
  return logprobs[:, :1], first.replace(label=label), z


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto_is_that_of_trl(name):
  """Without the KL, TRL calls it apo_zero_unpaired: ours with z = 0."""
  logprobs, batch, z = judged(TRL)
  assert z > 0.5
  z = jnp.where(name == "kto", z, 0.0)
  desirable, undesirable = (float(x) for x in TRL["weights"])
  config = kto.Config(
    beta=BETA, desirable_weight=desirable, undesirable_weight=undesirable
  )
  found = goldens.pair_loss(
    kto, config, logprobs, batch.replace(baseline=jnp.full(6, z))
  )
  goldens.close(found[0], TRL[f"loss_{name}"])
  goldens.close(found[1], TRL[f"grad_{name}"][:, :1])
  assert not TRL[f"grad_{name}"][:, 1].any(), "z has no gradient"


def test_kto_never_goes_below_z_of_zero_as_trl():
  logprobs, batch, _ = judged(TRL)
  config = kto.Config(beta=BETA, desirable_weight=1.2, undesirable_weight=0.8)
  found = goldens.pair_loss(
    kto, config, logprobs, batch.replace(baseline=jnp.full(6, -2.0))
  )
  goldens.close(found[0], TRL["loss_apo_zero_unpaired"])


def token_nll(logprobs, mask):
  """What TRL calls the likelihood: over all tokens of a batch alike."""
  return -jnp.sum(jnp.where(mask > 0, logprobs, 0.0)) / jnp.sum(mask)


def test_difference_likelihood_of_cpo_is_over_the_batch():
  """TRL: one mean over tokens. Here: each answer's own mean, or sum."""
  logprobs, batch = goldens.pair_batch(TRL)
  plain = cpo.Config(beta=BETA, nll_weight=0.0)

  def theirs(x):
    nll = token_nll(x[:, 0], batch.loss_mask[:, 0])
    return jnp.mean(cpo.loss(x, batch, plain)[0]) + nll

  loss, gradient = jax.value_and_grad(theirs)(logprobs)
  goldens.close(loss, TRL["loss_cpo_nll"])
  goldens.close(gradient, TRL["grad_cpo_nll"])
  ours, _ = goldens.pair_loss(cpo, cpo.Config(beta=BETA), logprobs, batch)
  assert abs(ours - TRL["loss_cpo_nll"]) > 1e-3
  # "sum" is theirs times the mean length of the preferred answers.
  total = cpo.Config(beta=BETA, nll="sum")
  ours, _ = goldens.pair_loss(cpo, total, logprobs, batch)
  length = jnp.mean(pairs.lengths(batch)[:, 0])
  theirs_nll = TRL["loss_cpo_nll"] - TRL["loss_cpo"]
  goldens.close(ours - TRL["loss_cpo"], theirs_nll * length)


def test_difference_trls_simpo_has_a_likelihood_too():
  logprobs, batch = goldens.pair_batch(TRL)
  nll = token_nll(logprobs[:, 0], batch.loss_mask[:, 0])
  ours, _ = goldens.pair_loss(*CASES["simpo"], logprobs, batch)
  goldens.close(ours + nll, TRL["loss_simpo_nll"])


def test_difference_likelihood_of_orpo_counts_the_prompt():
  """TRL: the prompt's tokens too, and all tokens of a batch alike."""
  logprobs, batch = goldens.pair_batch(TRL)
  mask = batch.loss_mask[:, 0]
  # The prompt is tokens 0 and 1; nothing predicts token 0.
  prompt_too = mask.at[:, 1].set(1.0)

  def theirs(x, mask):
    whole = orpo.loss(x, batch, orpo.Config(odds_weight=BETA))[0]
    odds = whole + pairs.averages(x, batch)[:, 0]
    return jnp.mean(odds) + token_nll(x[:, 0], mask)

  loss, gradient = jax.value_and_grad(theirs)(logprobs, prompt_too)
  goldens.close(loss, TRL["loss_orpo"])
  goldens.close(gradient, TRL["grad_orpo"])
  assert abs(theirs(logprobs, mask) - TRL["loss_orpo"]) > 1e-3


def test_sft_of_the_preferred_answers_is_that_of_trl():
  logprobs, pairs_batch = goldens.pair_batch(TRL)
  batch = TokenBatch(
    **{
      name: getattr(pairs_batch, name)[:, 0]
      for name in ("tokens", "valid_mask", "loss_mask")
    }
  )
  config = sft.Config()

  def total(x):
    counts = sft.denominators(batch, config)
    return sft.loss(x[:, 0], jnp.zeros(x[:, 0].shape), batch, config, counts)[0]

  loss, gradient = jax.value_and_grad(total)(logprobs)
  goldens.close(loss, TRL["loss_sft"])
  goldens.close(gradient, TRL["grad_sft"])


@pytest.mark.parametrize(
  ("name", "module", "config"),
  [
    ("dpo", dpo, dpo.Config(beta=BETA)),
    ("cdpo", dpo, dpo.Config(beta=BETA, label_smoothing=EPSILON)),
    ("ipo", ipo, ipo.Config(tau=BETA)),
  ],
)
def test_pair_losses_are_those_of_openrlhf(name, module, config):
  """Its gradient is in answers, ours the same on every token of one."""
  logprobs, batch = goldens.pair_batch(OPENRLHF)
  loss, gradient = goldens.pair_loss(module, config, logprobs, batch)
  goldens.close(loss, OPENRLHF[f"loss_{name}"])
  answers = OPENRLHF[f"grad_{name}"][..., None] * OPENRLHF["loss_mask"]
  goldens.close(gradient, answers)


def test_difference_ipo_is_a_sum_in_openrlhf_and_a_mean_in_trl():
  batch = goldens.pair_batch(TRL)
  np.testing.assert_array_equal(TRL["logprobs"], OPENRLHF["logprobs"])
  both = [
    float(goldens.pair_loss(ipo, ipo.Config(BETA, mean), *batch)[0])
    for mean in (False, True)
  ]
  goldens.close(both, [OPENRLHF["loss_ipo"], TRL["loss_ipo"]])
  assert both[0] > 2.0 * both[1]


def test_the_centred_reward_loss_is_that_of_trl():
  _, batch = goldens.pair_batch(TRL)
  config = reward.Config(centering=0.01)

  def total(scores):
    counts = reward.denominators(batch, config)
    return reward.loss(scores, batch, config, counts)[0]

  loss, gradient = jax.value_and_grad(total)(jnp.asarray(TRL["pair_scores"]))
  goldens.close(loss, TRL["loss_centred"])
  goldens.close(gradient, TRL["grad_centred"])


@pytest.mark.parametrize("name", ["pair", "margin", "logexp"])
def test_reward_losses_are_those_of_openrlhf(name):
  """Difference: LogExpLoss is given the margin and does not read it."""
  margin = None
  if name == "margin":
    margin = jnp.asarray(OPENRLHF["margins"], jnp.float32)

  def total(scores):
    label = jnp.ones(len(scores))
    return jnp.mean(reward_losses.pairwise_loss(scores, label, margin=margin))

  scores = jnp.asarray(OPENRLHF["pair_scores"], jnp.float32)
  loss, gradient = jax.value_and_grad(total)(scores)
  goldens.close(loss, OPENRLHF[f"loss_{name}"])
  goldens.close(gradient, OPENRLHF[f"grad_{name}"])
