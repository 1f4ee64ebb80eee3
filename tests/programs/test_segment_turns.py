"""Agent, predictors and queries of runs on segments, beside plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import optimizer as optimizer_lib
from rlhf_jax.algorithms import segments
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.environments import CART_POLE, PENDULUM
from rlhf_jax.programs.segments import agent, predictor, queries, turns
from rlhf_jax.programs.segments import settings as sections

SHORT = {
  "cart_pole": dataclasses.replace(CART_POLE, steps=40),
  "pendulum": dataclasses.replace(PENDULUM, steps=40),
}


def lab_of(name, **changes):
  values = {
    "environment": SHORT[name],
    "episodes": 4,
    "agent": sections.Agent(hidden=8),
    "algorithm": ppo.Config(discount=0.9),
    "update": update.Config(epochs=2, minibatches=2),
    "optimizer": optimizer_lib.Config(learning_rate=1e-2),
    "predictor": sections.Predictor(hidden=16, steps=20, batch_size=16),
    "decay": segments.Decay(),
    "queries": sections.Queries(length=5, candidates=4),
    "labels": sections.Labels(count=64),
  }
  return turns.Lab(**(values | changes))


@pytest.fixture(scope="module", params=SHORT)
def played(request):
  """Returns a lab, a state and its first episodes."""
  lab = lab_of(request.param)
  state = turns.start(jax.random.key(0), lab, 64)
  collect = jax.jit(turns.collect, static_argnames="lab")
  episodes = collect(state, jax.random.key(1), lab=lab)
  return lab, state, episodes


def test_episodes_are_what_the_environment_does(played):
  lab, _, episodes = played
  environment = lab.environment
  assert episodes.truth.shape == (4, 40)
  moved = jax.vmap(jax.vmap(environment.step))(
    episodes.state[:, :-1], episodes.action[:, :-1]
  )
  np.testing.assert_allclose(moved, episodes.state[:, 1:], atol=1e-4)
  truth = jax.vmap(jax.vmap(environment.reward))(
    episodes.state, episodes.action
  )
  np.testing.assert_allclose(truth, episodes.truth, atol=1e-5)
  if environment.is_discrete:
    np.testing.assert_array_equal(episodes.action.argmax(-1), episodes.token)
  else:
    assert float(jnp.abs(episodes.action).max()) <= 1.0
    mean = agent._policy(
      {"policy": played[1].agent.params["policy"]},
      episodes.observation,
      environment,
    )[0]
    z = np.asarray(episodes.drawn - mean)[..., 0]  # deviation 1 at the start
    wanted = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(episodes.logprob, wanted, atol=1e-4)


def test_advantages_are_gae_over_an_episode_that_the_clock_cut(played):
  lab, _, episodes = played
  rewards = jax.random.normal(jax.random.key(2), (4, 40))
  config = ppo.Config(discount=0.9, gae_lambda=0.8, whitens_advantages=False)
  rollout = ppo.advantages(agent.rollout_of(episodes, rewards, 0.9), config)
  value = np.asarray(episodes.value, np.float64)
  wanted = np.zeros((4, 41))
  following = np.concatenate(
    [value[:, 1:], np.asarray(episodes.last_value)[:, None]], axis=1
  )
  for t in reversed(range(40)):
    delta = (
      0.1 * np.asarray(rewards)[:, t] + 0.9 * following[:, t] - value[:, t]
    )
    wanted[:, t] = delta + 0.9 * 0.8 * wanted[:, t + 1]
  np.testing.assert_allclose(rollout.advantages, wanted[:, :-1], atol=1e-4)


def test_the_trainer_agrees_with_the_player_and_moves(played):
  lab, state, episodes = played
  trained, metrics = jax.jit(
    lambda s, e, r, k: agent.train(
      s,
      e,
      r,
      k,
      environment=lab.environment,
      algorithm=lab.algorithm,
      config=lab.update,
      optimizer=lab.agent_optimizer,
    )
  )(state.agent, episodes, episodes.truth, jax.random.key(3))
  assert float(metrics["ppo/first_ratio_error"]) < 1e-4
  assert float(metrics["ppo/first_clip_fraction"]) == 0.0
  assert int(trained.step) == 4
  before, after = (
    jax.tree.leaves(x.params["policy"]) for x in (state.agent, trained)
  )
  assert all(
    np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True)
  )


def test_pairs_are_cut_from_one_episode_each(played):
  _, _, episodes = played
  pairs = queries.cut(episodes, jax.random.key(4), 300, 5)
  assert pairs.state.shape[:3] == (300, 2, 5)
  rows = np.asarray(episodes.state)
  starts = set()
  for state, truth in zip(
    np.asarray(pairs.state).reshape(600, 5, -1),
    np.asarray(pairs.truth).reshape(600),
    strict=True,
  ):
    (n, t), *_ = np.argwhere((rows == state[0]).all(-1))
    np.testing.assert_array_equal(rows[n, t : t + 5], state)
    wanted = np.asarray(episodes.truth)[n, t : t + 5].sum()
    assert truth == pytest.approx(wanted, abs=1e-4)
    starts.add(int(t))
  assert starts == set(range(36))  # the last begins 5 steps before the end


def test_active_queries_are_those_of_most_disagreement(played):
  lab, state, episodes = played
  how = dict(settings=lab.queries, error=0.1)
  key = jax.random.key(5)
  every = queries.propose(state.ensemble, episodes, key, 12, True, **how)
  few = queries.propose(state.ensemble, episodes, key, 3, True, **how)
  random = queries.propose(state.ensemble, episodes, key, 12, False, **how)
  assert (np.diff(np.asarray(every.disagreement)) <= 0).all()
  assert every.disagreement.mean() > 1.5 * random.disagreement.mean() > 0
  assert few.truth.shape == (3, 2)
  drawn = queries.cut(episodes, key, 48, 5)
  np.testing.assert_array_equal(random.state, drawn.state[:12])


def pairs_of(truth):
  truth = jnp.asarray(truth, jnp.float32)
  count = len(truth)
  number = jnp.arange(count, dtype=jnp.float32)[:, None, None, None]
  blank = jnp.broadcast_to(number, (count, 2, 5, 3))
  return queries.Pairs(
    observation=blank,
    action=blank[..., :1],
    state=blank,
    truth=truth,
    disagreement=jnp.zeros(count),
  )


def test_the_simulated_annotator_sees_true_returns_and_ties():
  truth = [[2.0, 1.0], [1.0, 2.0], [3.0, 3.0], [3.0, 3.0 + 1e-6], [0.0, 0.2]]
  label, is_comparable = queries.simulated(
    pairs_of(truth), jax.random.key(0), sections.Labels()
  )
  assert label.tolist() == [1.0, 0.0, 0.5, 0.5, 0.0]
  assert bool(is_comparable.all())
  label, _ = queries.simulated(
    pairs_of(truth), jax.random.key(0), sections.Labels(ties=0.5)
  )
  assert label.tolist() == [1.0, 0.0, 0.5, 0.5, 0.5]
  many = pairs_of(np.tile([[1.0, 0.0]], (4_000, 1)))
  noisy = sections.Labels(noise=0.2, incomparable=0.3)
  label, is_comparable = queries.simulated(many, jax.random.key(1), noisy)
  assert float(label.mean()) == pytest.approx(0.9, abs=0.02)
  assert float(is_comparable.mean()) == pytest.approx(0.7, abs=0.03)


def test_labels_are_added_in_order_and_what_nobody_compares_is_dropped():
  lab = lab_of("pendulum")
  labels = queries.empty(lab.environment, 5, 3, 6)
  pairs = pairs_of(np.zeros((4, 2)))
  label = jnp.array([1.0, 0.0, 0.5, 1.0])
  is_comparable = jnp.array([True, False, True, True])
  key = jax.random.key(0)
  labels = queries.add(labels, pairs, label, is_comparable, 3, key)
  assert (int(labels.count), int(labels.asked)) == (2, 3)
  assert labels.label.tolist() == [1.0, 0.5, 0, 0, 0, 0]
  assert labels.observation[:3, 0, 0, 0].tolist() == [0.0, 2.0, 0.0]
  labels = queries.add(labels, pairs, label, is_comparable, 4, key)
  assert (int(labels.count), int(labels.asked)) == (5, 7)
  assert labels.is_there.tolist() == [True] * 5 + [False]
  assert labels.label.tolist() == [1.0, 0.5, 1.0, 0.5, 1.0, 0.0]


def test_members_draw_what_counts_for_them():
  counts = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 0.0]])
  drawn = np.asarray(predictor._draw(counts, jax.random.key(0), 4_000))
  shares = np.stack([np.bincount(x, minlength=4) / 4_000 for x in drawn])
  wanted = [[0.25, 0, 0.75, 0], [0, 0.5, 0.5, 0]]
  np.testing.assert_allclose(shares, wanted, atol=0.03)
  assert (shares[np.asarray(wanted) == 0] == 0).all()


def test_predictors_learn_a_planted_reward_and_are_normalised():
  lab = lab_of("pendulum")
  count, key = 300, jax.random.key(6)
  keys = jax.random.split(key, 4)
  observation = jax.random.normal(keys[0], (count, 2, 5, 3))
  action = jax.random.uniform(keys[1], (count, 2, 5, 1), minval=-1)
  planted = observation[..., 0] - 0.5 * observation[..., 1]
  pairs = pairs_of(planted.sum(-1)).replace(
    observation=observation, action=action
  )
  label, fine = queries.simulated(pairs, keys[2], lab.labels)
  labels = queries.empty(lab.environment, 5, 3, 320)
  labels = queries.add(labels, pairs, label, fine, count, keys[2])
  settings = dataclasses.replace(lab.predictor, steps=150)
  optimizer = lab.predictor_optimizer
  ensemble = predictor.init(
    keys[3], lab.environment, settings, lab.decay, optimizer
  )
  ensemble, metrics = jax.jit(
    lambda e, k: predictor.fit(
      e, labels, k, settings=settings, decay=lab.decay, optimizer=optimizer
    )
  )(ensemble, key)
  found = predictor.rewards(ensemble, observation, action)
  flat = np.asarray(found).reshape(3, -1)
  np.testing.assert_allclose(flat.mean(1), 0.0, atol=1e-3)
  np.testing.assert_allclose(flat.std(1), 1.0, atol=1e-3)
  mean = turns.correlation(found.mean(0), planted)
  assert float(mean) > 0.9
  assert float(metrics["predictor/loss"]) < 0.45
  assert np.abs(flat[0] - flat[1]).mean() > 0.01  # members of their own


def test_without_labels_rewards_keep_their_units():
  lab = lab_of("pendulum")
  state = turns.start(jax.random.key(0), lab, 8)
  _, _, mean, deviation = predictor.measure(
    state.ensemble.state.params, state.labels, 0.1
  )
  assert mean.tolist() == [0.0] * 3 and deviation.tolist() == [1.0] * 3


def test_correlation_is_pearsons_and_nan_of_a_constant():
  x = jnp.array([1.0, 2.0, 4.0, 3.0])
  y = jnp.array([2.0, 1.0, 5.0, 4.0])
  wanted = np.corrcoef(x, y)[0, 1]
  assert float(turns.correlation(x, y)) == pytest.approx(wanted, rel=1e-5)
  assert np.isnan(turns.correlation(x, jnp.ones(4)))


def test_moments_of_parts_are_those_of_the_whole():
  parts = jax.random.normal(jax.random.key(0), (3, 50)) * 2 + 5
  moments = jnp.zeros(3)
  for part in parts:
    moments = turns._moments(moments, part)
  wanted = [150, parts.mean(), 150 * parts.var()]
  np.testing.assert_allclose(moments, wanted, rtol=1e-4)


def labels_of(room):
  """Returns labels of 40 pairs of noise, in room for so many."""
  keys = jax.random.split(jax.random.key(7), 3)
  pairs = pairs_of(np.zeros((40, 2))).replace(
    observation=jax.random.normal(keys[0], (40, 2, 5, 3))
  )
  label = jax.random.bernoulli(keys[1], 0.5, (40,)).astype(jnp.float32)
  labels = queries.empty(PENDULUM, 5, 3, room)
  every = jnp.ones(40, bool)
  return queries.add(labels, pairs, label, every, 40, keys[2])


def test_room_for_labels_is_no_label():
  """It would be one that no member drew, and so validate all of them."""
  state = turns.start(jax.random.key(0), lab_of("pendulum"), 8)
  params = state.ensemble.state.params
  few, many = (predictor.measure(params, labels_of(x), 0.1) for x in (40, 90))
  for wanted, found in zip(few, many, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_l2_holds_the_weights_of_its_own_member():
  fast = sections.Predictor(
    hidden=16, steps=60, batch_size=16, learning_rate=1e-2
  )
  lab = lab_of("pendulum", predictor=fast)
  start = turns.start(jax.random.key(0), lab, 8).ensemble
  decay = jnp.array([1e-6, 1e-6, 10.0])
  trained, _ = predictor.fit(
    start.replace(decay=decay),
    labels_of(40),
    jax.random.key(1),
    settings=fast,
    decay=lab.decay,
    optimizer=lab.predictor_optimizer,
  )
  free, other, held = predictor._penalty(trained.state.params)
  assert held < 0.5 * min(free, other)


def test_the_control_trains_on_the_true_reward(played):
  lab, state, episodes = played
  key = jax.random.key(8)
  learn = jax.jit(turns.learn, static_argnames="lab")
  found, other = (
    learn(state, episodes, key, 0, uses_truth, lab=lab)[0].agent
    for uses_truth in (True, False)
  )
  truth = np.asarray(episodes.truth, np.float64)
  wanted, _ = agent.train(
    state.agent,
    episodes,
    jnp.asarray((truth - truth.mean()) / truth.std(), jnp.float32),
    jax.random.split(key)[1],
    environment=lab.environment,
    algorithm=lab.algorithm,
    config=lab.update,
    optimizer=lab.agent_optimizer,
  )

  def apart(x, y):
    parts = zip(
      jax.tree.leaves(x.params), jax.tree.leaves(y.params), strict=True
    )
    return max(float(jnp.abs(a - b).max()) for a, b in parts)

  assert apart(found, wanted) < 1e-3 < 1e-2 < apart(found, other)
