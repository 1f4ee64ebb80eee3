"""The critic alone, on the rollout of a bigram table."""

import functools

import jax
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms.policy_gradient import ppo, update, value_pretraining
from tests.algorithms.bigram import (
  FROZEN,
  KEY,
  apply,
  make_rollout,
  make_state,
  parameters,
)


def test_value_update_trains_the_critic_alone():
  rollout = make_rollout()
  optimizer = optax.adam(0.05)
  config = update.Config(epochs=30, minibatches=2, microbatches=2)

  def values(params, frozen, rollout):
    return rollout.hidden["value"] @ params["w"] + frozen["shift"]

  step = jax.jit(
    functools.partial(
      value_pretraining.value_update,
      config=config,
      apply=values,
      optimizer=optimizer,
    )
  )
  state = make_state(optimizer, parameters()["value"])
  state, metrics = step(state, FROZEN, rollout, KEY)
  fitted = values(state.params, FROZEN, rollout)
  after = ppo.explained_variance(rollout.replace(values=fitted))
  assert state.step == 60 and metrics["ppo/epochs"] == 30
  assert after > metrics["ppo/explained_variance"] + 0.1
  mask = np.asarray(rollout.response_mask) > 0
  features = np.asarray(rollout.hidden["value"])[mask]
  best = np.linalg.lstsq(features, np.asarray(rollout.returns)[mask])[0]
  np.testing.assert_allclose(state.params["w"], best, atol=0.1)


def test_it_needs_returns():
  with pytest.raises(ValueError, match="Run ppo.advantages first"):
    value_pretraining.value_update(
      make_state(optax.sgd(1.0)),
      {},
      make_rollout().replace(returns=None),
      KEY,
      config=update.Config(),
      apply=apply,
      optimizer=optax.sgd(1.0),
    )
