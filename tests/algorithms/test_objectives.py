"""Objectives: a foreign one by hand, what is asked for, what is refused."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  objectives,
  ppo,
  surrogate,
  update,
)
from rlhf_jax.types import TrainState
from tests.algorithms import answers
from tests.algorithms.soft_clip import soft_clip

NEW, ENTROPY = answers.field(11), answers.field(12)
ADVANTAGES = answers.field(13)
DATA = answers.rollout(advantages=ADVANTAGES)
CONFIG = surrogate.Config(aggregation="token-mean")


def run(objective, new=NEW, data=DATA, config=CONFIG):
  counts = surrogate.denominators(data, config)
  return surrogate.loss(
    new, ENTROPY, None, data, config, counts, objective=objective
  )


def test_a_foreign_objective_has_the_value_and_gradient_worked_out_by_hand():
  (total, metrics), gradient = jax.value_and_grad(
    functools.partial(run, soft_clip), has_aux=True
  )(NEW)
  counted = answers.MASK > 0
  old = np.asarray(DATA.behaviour_logprobs, np.float64)
  ratio = np.exp(np.asarray(NEW, np.float64) - old)[counted]
  a = np.asarray(ADVANTAGES, np.float64)[counted]
  gate = 1 / (1 + np.exp(-2 * (ratio - 1)))
  np.testing.assert_allclose(total, np.mean(-a * gate * 2), rtol=1e-5)
  by_hand = -a * ratio * 4 * gate * (1 - gate) / counted.sum()
  np.testing.assert_allclose(np.asarray(gradient)[counted], by_hand, rtol=1e-4)
  assert not np.asarray(gradient)[~counted].any()
  # The ratio is watched as if PPO's objective had been used.
  usual = run(None)[1]
  assert set(metrics) == set(usual)
  for name in (
    "clip_fraction_high",
    "approximate_kl",
    "ratio_mean",
    "ratio_max",
  ):
    assert metrics[f"ppo/{name}"] == usual[f"ppo/{name}"], name
  np.testing.assert_allclose(metrics["ppo/ratio_mean"], ratio.mean(), rtol=1e-5)


def test_at_ratio_1_it_is_the_policy_gradient_for_any_slope():
  for slope in (0.5, 8.0):
    soft = functools.partial(soft_clip, slope=slope)
    gradient = jax.grad(lambda x, f=soft: run(f, x)[0])(DATA.behaviour_logprobs)
    kept = np.where(answers.MASK > 0, ADVANTAGES, 0.0)
    np.testing.assert_allclose(
      gradient, -kept / answers.MASK.sum(), rtol=1e-5, atol=1e-8
    )


def test_it_overrides_the_objective_of_the_settings_and_keeps_the_rest():
  """With a KL and an entropy bonus: the total changes by the policy term."""
  config = surrogate.Config(
    objective="cispo",
    kl_loss="k2",
    kl_loss_coefficient=0.7,
    entropy_coefficient=0.3,
  )
  plain, usual = run(None, config=config)
  total, metrics = run(soft_clip, config=config)
  change = metrics["ppo/policy_loss"] - usual["ppo/policy_loss"]
  assert abs(change) > 0.01
  np.testing.assert_allclose(total - plain, change, rtol=1e-4)
  assert metrics["ppo/kl_loss"] == usual["ppo/kl_loss"]
  built_in = run(objectives.OBJECTIVES["cispo"], config=config)
  assert built_in[0] == plain


def test_ppo_takes_an_objective_beside_its_critic():
  data = DATA.replace(values=0 * ADVANTAGES, returns=ADVANTAGES)
  config = ppo.Config()
  counts = ppo.denominators(data, config)
  plain, usual = ppo.loss(NEW, ENTROPY, ADVANTAGES, data, config, counts)
  total, metrics = ppo.loss(
    NEW, ENTROPY, ADVANTAGES, data, config, counts, objective=soft_clip
  )
  np.testing.assert_allclose(
    metrics["ppo/policy_loss"], run(soft_clip)[0], rtol=1e-6
  )
  change = metrics["ppo/policy_loss"] - usual["ppo/policy_loss"]
  np.testing.assert_allclose(total - plain, change, rtol=1e-4)
  assert metrics["ppo/value_loss"] == usual["ppo/value_loss"]


def test_rows_hold_what_was_sampled_and_metrics_are_added():
  """Twice the entropies as losses; the share of tokens with more than 0."""

  def entropic(log_ratio, advantages, config, rows):
    assert rows.mask.shape == log_ratio.shape == advantages.shape
    np.testing.assert_allclose(
      rows.logprobs, np.where(answers.MASK > 0, NEW, 0.0)
    )
    np.testing.assert_allclose(
      rows.reference_logprobs,
      np.where(answers.MASK > 0, DATA.reference_logprobs, 0.0),
    )
    assert rows.tokens == answers.MASK.sum() and rows.segment_ids is None
    share = ops.masked_mean((rows.entropies > 0) * 1.0, rows.mask, rows.tokens)
    return 2.0 * rows.entropies, {"toy/share": share, "ppo/ratio_mean": share}

  total, metrics = run(entropic)
  kept = np.asarray(ENTROPY)[answers.MASK > 0]
  np.testing.assert_allclose(total, 2 * kept.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["toy/share"], (kept > 0).mean(), rtol=1e-6)
  assert metrics["ppo/ratio_mean"] == metrics["toy/share"]
  assert metrics["ppo/ratio_max"] == run(None)[1]["ppo/ratio_max"]


def net(params, frozen, rows):
  del frozen
  logprobs = params["policy"] * rows.hidden["x"]
  return logprobs, jnp.zeros_like(logprobs), None


def step(algorithm, microbatches=1, **options):
  data = grpo.advantages(answers.rollout(), grpo.Config(group_size=3))
  mask = data.response_mask
  data = data.replace(hidden={"x": jnp.where(mask > 0, NEW, 0.0)})
  optimizer = optax.sgd(0.1)
  params = {"policy": jnp.float32(0.9)}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  return jax.jit(
    functools.partial(
      update.update,
      algorithm=algorithm,
      algorithm_config=options.pop(
        "algorithm_config", grpo.Config(group_size=3)
      ),
      config=update.Config(2, 1, microbatches),
      apply=net,
      optimizer=optimizer,
      **options,
    )
  )(state, {}, data, jax.random.key(0))


def test_update_takes_an_objective_or_a_loss_that_has_one():
  found = step(grpo, objective=soft_clip)
  bound = types.SimpleNamespace(
    loss=functools.partial(grpo.loss, objective=soft_clip),
    denominators=grpo.denominators,
  )
  jax.tree.map(np.testing.assert_array_equal, found, step(bound))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
    found,
    step(grpo, 6, objective=soft_clip),
  )
  assert found[0].params["policy"] != step(grpo)[0].params["policy"]


def own_loss(logprobs, entropies, values, rollout, config, denominators):
  """-log p, and nothing to watch."""
  del entropies, values, config
  value = -ops.masked_mean(
    logprobs, rollout.response_mask, denominators["tokens"]
  )
  return value, {"toy/loss": value}


def test_a_loss_that_takes_no_objective_refuses_one_and_runs_without():
  toy = types.SimpleNamespace(
    __name__="toy", loss=own_loss, denominators=grpo.denominators
  )
  with pytest.raises(ValueError, match="loss of toy has no parameter `object"):
    step(toy, objective=soft_clip)
  state, metrics = step(toy)
  # Two steps of SGD against -mean x: each adds 0.1 mean x.
  mean = np.asarray(NEW)[answers.MASK > 0].mean()
  np.testing.assert_allclose(state.params["policy"], 0.9 + 0.2 * mean, 1e-5)
  assert "ppo/first_ratio_error" not in metrics
  limited = grpo.Config(group_size=3, update_kl_limit=1.0)
  with pytest.raises(ValueError, match="update_kl_limit=1.0: the loss reports"):
    step(toy, algorithm_config=limited)


@pytest.mark.parametrize(
  ("function", "message"),
  [
    ("soft", "objective='soft': must be a function; it is called as `def obj"),
    (lambda log_ratio, advantages: 0.0, "it takes no config"),
    (
      lambda advantages, log_ratio, config: 0.0,
      "'advantages' stands in the place of 'log_ratio'",
    ),
    (
      lambda log_ratio, advantages, rows: 0.0,
      "'rows' stands in the place of 'config'",
    ),
    (
      lambda log_ratio, advantages, config, width: 0.0,
      "nobody gives it 'width', which has no default; it is called as",
    ),
    (
      lambda log_ratio, advantages, config, *, width: 0.0,
      "nobody gives it 'width'",
    ),
    (
      lambda log_ratio, advantages, config: jnp.mean(log_ratio),
      r"returned losses of shape \(\); one loss a token, \(6, 8\)",
    ),
  ],
)
def test_wrong_objectives_are_refused(function, message):
  with pytest.raises(ValueError, match=message):
    run(function)


def test_right_signatures_say_whether_rows_are_wanted():
  def wants(function):
    return objectives.wants_rows(objectives.checked(function))

  assert not wants(lambda r, a, c: r)
  assert not wants(lambda *anything: anything[0])
  assert wants(lambda r, a, c, *, rows, width=1.0: r)
  assert wants(functools.partial(lambda w, r, a, c, rows: r, 1.0))
  for name, function in objectives.OBJECTIVES.items():
    assert wants(function) == (name != "ppo"), name
