"""Losses on comparisons: limiting cases, loops, and one update."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.algorithms import reward, reward_losses
from rlhf_jax.types import PreferenceBatch, TrainState

RNG = np.random.default_rng(4)
B, K, L, D = 8, 4, 5, 3
SCORES = jnp.asarray(RNG.normal(size=(B, K)) * 2, jnp.float32)
PAIR = SCORES[:, :2]
ONES = jnp.ones(B)


def nll(difference):
  return np.log1p(np.exp(-np.asarray(difference, np.float64)))


def test_pairwise_hand_computed():
  found = reward_losses.pairwise_loss(jnp.array([[2.0, 0.0]]), jnp.array([1.0]))
  np.testing.assert_allclose(found, [0.126928], rtol=1e-5)
  wrong = reward_losses.pairwise_loss(
    jnp.array([[0.0, 300.0]]), jnp.array([1.0])
  )
  np.testing.assert_allclose(wrong, [300.0])


def test_soft_labels_and_ties():
  difference = PAIR[:, 0] - PAIR[:, 1]
  label = jnp.asarray([0, 0.25, 0.5, 0.75, 1, 0.9, 0.1, 0.5], jnp.float32)
  np.testing.assert_allclose(
    reward_losses.pairwise_loss(PAIR, label),
    label * nll(difference) + (1 - label) * nll(-difference),
    rtol=1e-5,
  )
  tie = jax.grad(
    lambda s: reward_losses.pairwise_loss(s, jnp.array([0.5])).sum()
  )
  np.testing.assert_allclose(tie(jnp.zeros((1, 2))), [[0.0, 0.0]], atol=1e-7)


def test_t10_margin_0_and_smoothing_0_are_bradley_terry():
  plain = reward_losses.pairwise_loss(PAIR, ONES)
  np.testing.assert_allclose(plain, nll(PAIR[:, 0] - PAIR[:, 1]), rtol=1e-5)
  margin = reward_losses.pairwise_loss(PAIR, ONES, margin=jnp.zeros(B))
  np.testing.assert_array_equal(margin, plain)


def test_margin_and_smoothing():
  difference = PAIR[:, 0] - PAIR[:, 1]
  margin = jnp.asarray(RNG.uniform(0, 3, B), jnp.float32)
  np.testing.assert_allclose(
    reward_losses.pairwise_loss(PAIR, ONES, margin=margin),
    nll(difference - margin),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    reward_losses.pairwise_loss(PAIR[:, ::-1], 0 * ONES, margin=margin),
    nll(difference - margin),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    reward_losses.pairwise_loss(PAIR, ONES, label_smoothing=0.1),
    0.9 * nll(difference) + 0.1 * nll(-difference),
    rtol=1e-5,
  )


def test_t10_gradient_of_centering():
  eta, pair = 0.01, jnp.array([[1.5, -0.25]])

  def centred(s):
    return eta * reward_losses.centering_loss(s, jnp.ones((1, 2))).sum()

  np.testing.assert_allclose(
    jax.grad(centred)(pair), [[2 * eta * 1.25] * 2], rtol=1e-6
  )


def test_t09_kwise_with_two_candidates_is_pairwise():
  rank = jnp.tile(jnp.array([[0, 1]]), (B, 1))
  for smoothing in (0.0, 0.2):
    np.testing.assert_allclose(
      reward_losses.kwise_loss(
        PAIR, rank, jnp.ones((B, 2)), label_smoothing=smoothing
      ),
      reward_losses.pairwise_loss(PAIR, ONES, label_smoothing=smoothing),
      rtol=1e-6,
    )


def test_t09_kwise_is_the_mean_of_the_pairs_and_so_is_its_gradient():
  rank = jnp.asarray([RNG.permutation(K) for _ in range(B)])
  valid = jnp.ones((B, K))

  def separately(scores):
    total = 0.0
    for row in range(B):
      order = np.argsort(np.asarray(rank[row]))
      for better, worse in itertools.combinations(order, 2):
        pair = jnp.stack([scores[row, better], scores[row, worse]])[None]
        total += reward_losses.pairwise_loss(pair, jnp.ones(1))[0] / 6
    return total

  def together(scores):
    return reward_losses.kwise_loss(scores, rank, valid).sum()

  a, b = (jax.value_and_grad(f)(SCORES) for f in (separately, together))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
  )


def test_t09_ties_and_missing_candidates_give_no_pair():
  scores = jnp.array([[1.0, 0.0, 5.0, 99.0]])
  rank = jnp.array([[0, 1, 0, 2]])
  valid = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  expected = (nll(1.0) + nll(5.0)) / 2
  found = reward_losses.kwise_loss(scores, rank, valid)
  np.testing.assert_allclose(found, [expected], rtol=1e-5)
  nothing = reward_losses.kwise_loss(scores, 0 * rank, valid)
  np.testing.assert_array_equal(nothing, [0.0])


def test_plackett_luce_is_the_likelihood_of_the_ranking():
  scores = jnp.array([[0.5, 2.0, -1.0, 77.0]])
  valid = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  total = 0.0
  for order in itertools.permutations(range(3)):
    rank = np.zeros((1, 4), np.int32)
    rank[0, list(order)] = range(3)
    loss = reward_losses.plackett_luce_loss(scores, jnp.asarray(rank), valid)
    weights = np.exp(np.asarray(scores, np.float64)[0])[list(order)]
    by_hand = np.prod([weights[k] / weights[k:].sum() for k in range(3)])
    np.testing.assert_allclose(np.exp(-loss[0]), by_hand, rtol=1e-5)
    total += by_hand
  np.testing.assert_allclose(total, 1.0)
  pair = reward_losses.plackett_luce_loss(
    PAIR, jnp.tile(jnp.array([[0, 1]]), (B, 1)), jnp.ones((B, 2))
  )
  expected = reward_losses.pairwise_loss(PAIR, ONES)
  np.testing.assert_allclose(pair, expected, rtol=1e-5, atol=1e-6)


FEATURES = jnp.asarray(RNG.normal(size=(50, D)), jnp.float32)
LABEL = jnp.asarray([1, 1, 0.5, 0, 0.8, 1, 1, 1], jnp.float32)


def preferences(candidates, label=LABEL, weight=ONES):
  rng = np.random.default_rng(5)
  shape = (B, candidates, L)
  return PreferenceBatch(
    tokens=jnp.asarray(rng.integers(0, 50, shape)),
    valid_mask=jnp.ones(shape),
    loss_mask=jnp.ones(shape).at[:, :, 0].set(0.0),
    label=label,
    weight=weight,
    rank=None
    if candidates == 2
    else jnp.asarray(rng.integers(0, 3, (B, candidates)), jnp.float32),
    target=jnp.asarray(rng.integers(0, 3, (B, candidates)), jnp.float32),
  )


def apply(params, frozen, batch):
  return FEATURES[batch.tokens].mean(2) @ params["w"] + frozen.get("b", 0.0)


def run(batch, apply=apply, jit=True, **settings):
  optimizer = optax.sgd(0.5)
  params = {"w": jnp.arange(1.0, D + 1)}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  update = functools.partial(
    reward.update,
    config=reward.Config(**settings),
    apply=apply,
    optimizer=optimizer,
  )
  update = jax.jit(update) if jit else update
  return update(state, {}, batch, jax.random.key(0))


def assert_same(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-5, atol=1e-6), a, b
  )


def test_golden_metrics_of_an_update():
  batch = preferences(2, weight=ONES.at[6].set(0.0))
  _, metrics = run(batch, centering=0.01)
  scores = np.asarray(apply({"w": jnp.arange(1.0, D + 1)}, {}, batch))
  keep = [0, 1, 2, 3, 4, 5, 7]
  label = np.asarray(LABEL)
  difference = scores[:, 0] - scores[:, 1]
  losses = label * nll(difference) + (1 - label) * nll(-difference)
  decided = [row for row in keep if label[row] != 0.5]
  signed = (difference * np.sign(label - 0.5))[decided]
  expected = {
    "reward_model/loss": losses[keep].mean(),
    "reward_model/accuracy": (signed > 0).mean(),
    "reward_model/margin": signed.mean(),
    "reward_model/spread": scores[keep].std(1).mean(),
    "reward_model/score_mean": scores[keep].mean(),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  assert 0 < expected["reward_model/accuracy"] < 1
  # d loss / d score 0 and 1, and 2 eta (r_0 + r_1) on both, through w.
  slope = 1 / (1 + np.exp(-difference)) - label
  pull = 2 * 0.01 * scores.sum(1)
  x = np.asarray(FEATURES, np.float64)[np.asarray(batch.tokens)].mean(2)
  each = (slope + pull)[:, None] * x[:, 0] + (pull - slope)[:, None] * x[:, 1]
  norm = np.linalg.norm(each[keep].mean(0))
  np.testing.assert_allclose(
    metrics["reward_model/gradient_norm"], norm, rtol=1e-4
  )


@pytest.mark.parametrize(
  ("objective", "candidates"),
  [
    *[("pairwise", 2), ("k-wise", 4), ("plackett-luce", 4)],
    *[("choice", 4), ("regression", 4)],
  ],
)
def test_trap_12_13_25_microbatches_sharding_and_jit(objective, candidates):
  batch = preferences(candidates, weight=jnp.arange(8.0) / 7)
  eta = 0.0 if objective in reward.SCORED else 0.1
  settings = {"objective": objective, "centering": eta}
  plain = run(batch, jit=False, **settings)
  assert_same(plain, run(batch, microbatches=8, **settings))
  rows = NamedSharding(
    Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
  )
  sharded = jax.tree.map(lambda x: jax.device_put(x, rows), batch)
  assert_same(plain, run(sharded, **settings))


def test_kwise_and_pairwise_updates_agree_for_two_candidates():
  batch = preferences(2, label=ONES)
  assert_same(
    run(batch, centering=0.1)[0],
    run(batch, centering=0.1, objective="k-wise")[0],
  )


@pytest.mark.parametrize(
  "objective", ["pairwise", "k-wise", "plackett-luce", "choice", "regression"]
)
def test_trap_27_dropped_rows_may_hold_anything(objective):
  def poisoned(params, frozen, batch):
    scores = apply(params, frozen, batch)
    return jnp.where(batch.weight[:, None] > 0, scores, jnp.nan)

  batch = preferences(2, weight=ONES.at[2].set(0.0))
  state, metrics = run(batch, apply=poisoned, objective=objective)
  assert state.step == 1
  assert all(np.isfinite(x) for x in metrics.values())
  assert_same(metrics, run(batch, objective=objective)[1])


@pytest.mark.parametrize("objective", ["k-wise", "plackett-luce", "choice"])
def test_two_candidates_are_ranked_by_their_label(objective):
  """A label of 0 says that the second is the better, in every objective."""
  ones = np.ones((B, 2, 1), np.float32)
  batch = PreferenceBatch(
    tokens=np.zeros((B, 2, 1), np.int32),
    valid_mask=ones,
    loss_mask=ones,
    label=np.arange(B) % 2 * 1.0,
    weight=np.ones(B, np.float32),
  )
  config = reward.Config(objective=objective)
  value, metrics = reward.loss(
    PAIR, batch, config, reward.denominators(batch, config)
  )
  pairwise = reward_losses.pairwise_loss(PAIR, batch.label)
  np.testing.assert_allclose(value, pairwise.mean(), rtol=1e-6)
  first_wins = np.asarray(PAIR[:, 0] > PAIR[:, 1])
  np.testing.assert_allclose(
    metrics["reward_model/accuracy"],
    np.mean(first_wins == (batch.label > 0.5)),
    rtol=1e-6,
  )


def test_rankings_of_soft_labels_are_refused():
  labels = np.array([1.0, 0.5, 0.0, 0.7])
  reward.check_labels(labels, reward.Config())
  reward.check_labels(labels[[0, 2]], reward.Config(objective="k-wise"))
  with pytest.raises(ValueError, match="2 of 4 labels.*0.5"):
    reward.check_labels(labels, reward.Config(objective="k-wise"))


def test_errors():
  with pytest.raises(ValueError, match="K=4 candidates"):
    run(preferences(4))
  with pytest.raises(ValueError, match="rank=None with K=4"):
    run(preferences(4).replace(rank=None), objective="k-wise")
  with pytest.raises(ValueError, match=r"label_smoothing=0.5: must be in"):
    reward.Config(label_smoothing=0.5)
  with pytest.raises(ValueError, match="objective='bt'"):
    reward.Config(objective="bt")
  with pytest.raises(ValueError, match="centering=-1"):
    reward.Config(centering=-1)
