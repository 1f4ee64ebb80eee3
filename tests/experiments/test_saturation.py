"""The engineered gold: exact sums beside samples, labels, penalty, members."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.experiments import saturation, saturation_level


@pytest.fixture(scope="module")
def problem():
  return saturation.make(jax.random.key(0))


def test_exact_gold_and_kl_are_those_of_samples(problem):
  move = 0.4 * jax.random.normal(jax.random.key(1), (saturation.KINDS,))
  for logits in (problem.reference, problem.reference + move):
    bags = saturation.sample(jax.random.key(2), logits, 20_000)
    assert (bags.sum(-1) == saturation.LENGTH).all()
    gold = np.asarray(saturation.gold(problem, bags))
    exact = float(saturation.mean_gold(problem, logits))
    error = gold.std() / np.sqrt(len(gold))
    assert exact == pytest.approx(gold.mean(), abs=5 * error)
    ratio = jax.nn.log_softmax(logits) - jax.nn.log_softmax(problem.reference)
    nats = np.asarray(bags @ ratio)
    error = nats.std() / np.sqrt(len(nats)) + 1e-6
    kl = float(saturation.kl(problem, logits))
    assert kl == pytest.approx(nats.mean(), abs=5 * error)
  assert kl > 1.0  # of the policy that has moved
  bags = saturation.sample(jax.random.key(3), problem.reference, 20_000)
  gold = np.asarray(saturation.gold(problem, bags))
  assert (gold.mean(), gold.std()) == pytest.approx((0.0, 1.0), abs=0.03)


@pytest.mark.parametrize("flips", [0.0, 0.25])
def test_labels_are_turned_round_as_often_as_said(problem, flips):
  """Of pairs that no Bradley-Terry label gets wrong."""
  bags = saturation.sample(jax.random.key(1), problem.reference, 16_000)
  counts = bags.reshape(-1, 2, saturation.KINDS)
  scores = np.asarray(saturation.gold(problem, counts))
  far = np.abs(scores[:, 0] - scores[:, 1]) > 4.0
  pairs = saturation.compare(jax.random.key(2), problem, counts, flips)
  is_right = (np.asarray(pairs.label) > 0.5) == (scores[:, 0] > scores[:, 1])
  # the first is better in half of them: neither side is favoured
  for first in (True, False):
    some = is_right[far & ((scores[:, 0] > scores[:, 1]) == first)]
    assert len(some) > 10
    assert some.mean() == pytest.approx(1.0 - flips, abs=0.2)
  assert is_right[far].mean() == pytest.approx(1.0 - flips, abs=0.1)


def test_a_penalty_holds_the_policy_near_its_start(problem):
  @functools.partial(jax.jit, static_argnames="penalty")
  def end(penalty):
    path = saturation.optimise(
      jax.random.key(1),
      lambda bags: saturation.standardised(problem, bags)[:, 0],
      problem.reference,
      steps=60,
      penalty=penalty,
    )
    return saturation.kl(problem, path[-1])

  free, held = float(end(0.0)), float(end(1.0))
  # of a tilt by z / 1.0, whose KL is about 1 / 2
  assert 0.2 < held < 1.0 < free


def test_members_learn_from_bootstraps_and_count_in_their_own_units(problem):
  how = saturation_level.Condition("x", 2, pairs=200, members=3, rule="min")
  how = dataclasses.replace(
    how, combination=saturation_level.Combination("min")
  )
  params, _ = saturation_level._members(jax.random.key(1), problem, how)
  alone = dataclasses.replace(how, members=1)
  whole, _ = saturation_level._members(jax.random.key(1), problem, alone)
  for leaf in jax.tree.leaves(params):
    assert leaf.shape[0] == 3
  # the first member has the weights that the single one begins with, and
  # other pairs
  bags = saturation.sample(jax.random.key(2), problem.reference, 500)
  of = lambda tree, i: saturation.score(  # noqa: E731
    jax.tree.map(lambda x: x[i], tree), problem, bags
  )
  assert jnp.abs(of(params, 0) - of(whole, 0)).max() > 0.05
  key = jax.random.key(3)
  judge = saturation_level._judge(key, problem, params, how)
  wide = params | {"outer": params["outer"] * jnp.array([[1.0], [9.0], [0.1]])}
  other = saturation_level._judge(key, problem, wide, how)
  np.testing.assert_allclose(judge(bags), other(bags), atol=1e-3)
  each = [
    saturation_level._judge(
      key,
      problem,
      jax.tree.map(lambda x, i=i: x[i : i + 1], params),
      alone,
    )(bags)
    for i in range(3)
  ]
  np.testing.assert_allclose(judge(bags), np.min(each, axis=0), atol=1e-4)
  assert np.mean(each) == pytest.approx(0.0, abs=0.1)
  assert np.std(each) == pytest.approx(1.0, abs=0.1)
