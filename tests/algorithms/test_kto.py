"""KTO by hand: single judged answers against a baseline."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.preference import (
  kto,
)
from rlhf_jax.types import PreferenceBatch


def judged(u, label, baseline):
  """Answers of one token with log-ratios u."""
  rows = len(u)
  logprobs = jnp.asarray(u, jnp.float32)[:, None, None] - 1.0
  return logprobs, PreferenceBatch(
    tokens=jnp.zeros((rows, 1, 1), jnp.int32),
    valid_mask=jnp.ones((rows, 1, 1)),
    loss_mask=jnp.ones((rows, 1, 1)),
    label=jnp.asarray(label, jnp.float32),
    weight=jnp.ones(rows),
    reference_logprobs=jnp.full((rows, 1, 1), -1.0),
    baseline=jnp.full(rows, baseline),
  )


def test_t11_kto_by_hand():
  config = kto.Config(beta=0.5, desirable_weight=1.2, undesirable_weight=0.9)
  logprobs, batch = judged([3.0, -1.0, 0.4], [1.0, 0.0, 1.0], 0.4)
  found, metrics = kto.loss(logprobs, batch, config)

  def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))

  expected = [
    1.2 * (1.0 - sigmoid(0.5 * 2.6)),
    0.9 * (1.0 - sigmoid(0.5 * 1.4)),
    0.6,  # u = z gives lambda / 2
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_array_equal(
    metrics["preference/accuracy"][0], [1.0, 1.0, 0.0]
  )
  np.testing.assert_allclose(
    metrics["preference/margin"][0], [1.3, 0.7, 0.0], atol=1e-7
  )
  np.testing.assert_array_equal(
    metrics["preference/logprob_rejected"][1], [0.0, 1.0, 0.0]
  )


def test_kto_takes_no_negative_baseline_and_no_gradient_through_it():
  config = kto.Config(beta=0.5)
  logprobs, batch = judged([1.0], [1.0], -2.0)
  negative, _ = kto.loss(logprobs, batch, config)
  zero, _ = kto.loss(logprobs, batch.replace(baseline=jnp.zeros(1)), config)
  np.testing.assert_array_equal(negative, zero)
  slope = jax.grad(
    lambda z: jnp.sum(kto.loss(logprobs, batch.replace(baseline=z), config)[0])
  )(jnp.ones(1))
  np.testing.assert_array_equal(slope, [0.0])


def test_kto_balance():
  labels = np.array([1.0, 1.0, 1.0, 0.0])
  config = kto.Config(desirable_weight=0.5)
  assert kto.balance(labels, config) == pytest.approx(1.5)
