"""One step of online preferences and of BOND, on programs written by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import bond as bond_algorithm
from rlhf_jax.algorithms.preference import pairing
from rlhf_jax.pipelines import bond, online_preference
from rlhf_jax.programs import sampled_steps, watch
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout, TrainState


def state_of(params):
  zero = jnp.int32(0)
  return TrainState(zero, params, optax.sgd(1.0).init(params), zero)


def rollout_of(score, tokens, finish=FINISH_EOS):
  """Returns judged answers of two tokens behind a prompt of one."""
  rows = len(score)
  mask = jnp.tile(jnp.asarray([[0.0, 1.0, 1.0]]), (rows, 1))
  return Rollout(
    tokens=jnp.asarray(tokens, jnp.int32),
    valid_mask=jnp.ones((rows, 3)),
    response_mask=mask,
    behaviour_logprobs=-mask,
    finish_reason=jnp.broadcast_to(jnp.asarray(finish), (rows,)),
    reference_logprobs=-2.0 * mask,
    score=jnp.asarray(score, jnp.float32),
  )


@pytest.mark.parametrize("every", [0, 2])
def test_the_reference_follows_after_every_second_step(every):
  """Weights count the steps; a step at which all pairs tie counts as none."""
  shares = [1.0, 0.5, 0.0, 1.0, 1.0]
  referred = []

  def pairs(rollout, key):
    del key
    return "pairs", {"pair/used_share": jnp.float32(rollout)}

  def refer(params, frozen, batch):
    assert (frozen, batch) == ("frozen", "pairs")
    referred.append(float(params))
    return "referred"

  def update(state, frozen, batch, key):
    del frozen, key
    assert batch == ("referred" if every else "pairs")
    return state.replace(params=state.params + 1.0), {
      "preference/loss": jnp.ones(())
    }

  arrays = online_preference.initial_arrays(
    jnp.float32(0.0), transform=optax.sgd(1.0), moves=every > 0
  )
  settings = types.SimpleNamespace(
    pairing=pairing.Config(reference_every=every)
  )
  programs = {"pairs": pairs, "refer": refer, "update": update}
  weights = []
  for step, share in enumerate(shares):
    arrays, row = online_preference.learn(
      settings, programs, arrays, "frozen", share, jax.random.key(step), step
    )
    weights.append(float(arrays["train"].params))
    assert ("preference/loss" in row) == (share > 0.0)
  assert weights == [1, 2, 2, 3, 4]
  assert referred == ([0, 0, 2, 2, 3] if every else [])
  assert ("reference" in arrays) == (every > 0)


def test_the_best_teaches_and_ranks_are_against_all():
  """Best of the first 2 of 3 answers of the anchor to each of 2 prompts."""
  anchor = rollout_of(
    [0.5, 0.25, 0.75, -1.0, 2.0, 3.0], np.arange(18).reshape(6, 3)
  )
  own = rollout_of([0.6, 2.5], [[1, 2, 3], [4, 5, 6]])
  teach = jax.jit(bond.teach, static_argnames="target")
  best, ratio = teach(anchor, own, target=bond.Target(kind="bond", n=2))
  np.testing.assert_array_equal(best.tokens[:, 0], [0, 12])
  np.testing.assert_allclose(best.score, [0.5, 2.0])
  # Both are above 2 of 3: log 2 + (2 - 1) log 3 / 4.
  np.testing.assert_allclose(ratio, np.log([1.5, 1.5]), rtol=1e-5)
  pairs = rollout_of([0.5, 0.25, -1.0, 2.0], np.arange(12).reshape(4, 3))
  own = rollout_of([0.3, -1.5], [[1, 2, 3], [4, 5, 6]])
  _, ratio = teach(pairs, own, target=bond.Target())
  np.testing.assert_allclose(ratio, [0.0, -np.log(16.0)], rtol=1e-5)


def test_a_step_of_bond_moves_policy_and_anchor():
  """log p = w t for token t, so every gradient is a sum of tokens."""
  anchor = rollout_of(
    [0.0, 1.0, 3.0, 2.0], [[0, 1, 1], [0, 2, 1], [0, 3, 1], [0, 4, 1]]
  )
  own = rollout_of([2.0, 2.5], [[0, 5, 5], [0, 1, 1]])

  def apply(params, frozen, rollout):
    assert list(frozen["policy"]) == ["base"]
    return params["policy"] * rollout.tokens.astype(jnp.float32), None, None

  policy, begun = jnp.float32(-0.5), jnp.float32(-0.25)
  update = functools.partial(
    bond.update,
    apply=apply,
    config=bond_algorithm.Config(backward_weight=0.5, anchor_rate=0.25),
    target=bond.Target(),
    optimizer_=optax.sgd(0.1),
  )
  state, moved, row = jax.jit(update)(
    state_of(policy), {"base": begun}, begun, anchor, own
  )
  # Best answers: tokens 2 + 1 and 3 + 1. Own: sums 10 and 2, log-ratios to
  # the anchor -2.5 and -0.5; no reward, so returns 1.25 and 0.25 before the
  # mean of the other is taken off: 1 and -1.
  np.testing.assert_allclose(row["bond/forward"], 0.5 * (3 + 4) / 2)
  np.testing.assert_allclose(row["bond/kl"], -1.5)
  np.testing.assert_allclose(row["bond/reward"], 0.0)
  np.testing.assert_allclose(row["bond/anchor_score"], 1.5)
  np.testing.assert_allclose(row["bond/best_score"], 2.0)
  gradient = -0.5 * 3.5 - (1.0 * 10 - 1.0 * 2) / 2
  np.testing.assert_allclose(
    row["bond/gradient_norm"], abs(gradient), rtol=1e-6
  )
  np.testing.assert_allclose(state.params, -0.5 - 0.1 * gradient, rtol=1e-6)
  expected = -0.25 + 0.25 * (float(state.params) + 0.25)
  np.testing.assert_allclose(moved, expected, rtol=1e-6)


def test_kl_to_the_reference_is_of_the_answer():
  rollout = rollout_of([0.0, 0.0], [[1, 2, 3]] * 2)
  rollout = rollout.replace(
    behaviour_logprobs=jnp.asarray([[7.0, -1.0, -0.5], [jnp.nan, -1.0, -1.0]]),
    reference_logprobs=jnp.asarray([[-9.0, -2.0, -1.0], [-9.0, -0.5, -1.0]]),
  )
  np.testing.assert_allclose(
    sampled_steps.kl_to_reference(rollout), [1.5, -0.5]
  )


def test_only_what_has_no_end_loses_points():
  batch = types.SimpleNamespace(
    rollout=rollout_of(
      [1.0, 2.0], [[1, 2, 3]] * 2, finish=[FINISH_LENGTH, FINISH_EOS]
    )
  )
  found = sampled_steps.penalised(batch, watch.Guards(missing_eos_penalty=0.75))
  np.testing.assert_allclose(found.score, [0.25, 2.0])
