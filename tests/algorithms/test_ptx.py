"""PPO-ptx: text mixed into the updates of a bigram table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops
from rlhf_jax.algorithms import sft
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.types import TokenBatch
from tests import plain
from tests.algorithms.bigram import (
  V,
  assert_same,
  make_rollout,
  parameters,
  policy_logits,
  run,
)


def text(rows=8):
  rng = np.random.default_rng(12)
  mask = jnp.asarray(np.arange(5)[None] < rng.integers(2, 6, (rows, 1)))
  return TokenBatch(
    tokens=jnp.asarray(rng.integers(0, V, (rows, 5))),
    valid_mask=mask.astype(jnp.float32),
    loss_mask=mask.astype(jnp.float32).at[:, 0].set(0.0),
  )


def text_apply(params, frozen, batch):
  logits = policy_logits(params, batch.tokens)
  return plain.logprobs_of_logits(logits, batch.tokens), ops.entropy(logits)


def test_ptx_adds_the_weighted_gradient_of_pre_training_text():
  rollout, batch = make_rollout(), text()
  config = update.Config(epochs=1, minibatches=1, microbatches=4)

  def cross_entropy(params):
    counts = sft.denominators(batch, sft.Config())
    outputs = text_apply(params, {}, batch)
    return sft.loss(*outputs, batch, sft.Config(), counts)[0]

  value, grads = jax.value_and_grad(cross_entropy)(parameters())
  plain, plain_metrics = run(rollout, config=update.Config(1, 1))
  state, metrics = run(
    rollout,
    config=config,
    algorithm_config=ppo.Config(ptx_coefficient=27.8),
    ptx_batch=batch,
    ptx_apply=text_apply,
  )
  assert_same(
    state.params,
    jax.tree.map(lambda p, g: p - 0.5 * 27.8 * g, plain.params, grads),
  )
  norm = np.sqrt(np.sum(np.square(grads["policy"]["table"])))
  np.testing.assert_allclose(metrics["ppo/ptx_loss"], value, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["ppo/gradient_norm_ptx_ratio"],
    27.8 * norm / plain_metrics["ppo/gradient_norm"],
    rtol=1e-4,
  )


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    (
      {"algorithm_config": ppo.Config(ptx_coefficient=1.0)},
      "ptx_coefficient=1.0, ptx_batch given: False",
    ),
    ({"ptx_batch": text()}, "ptx_coefficient=0.0, ptx_batch given: True"),
    (
      {
        "algorithm_config": ppo.Config(ptx_coefficient=1.0),
        "ptx_batch": text(6),
        "ptx_apply": text_apply,
        "config": update.Config(epochs=1, minibatches=2, microbatches=2),
      },
      "minibatches \\* microbatches=4: 6 rows",
    ),
  ],
)
def test_errors(kwargs, message):
  with pytest.raises(ValueError, match=message):
    run(make_rollout(), **kwargs)
