"""What annotators are worth: planted accuracies, an oracle, better training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import reward
from rlhf_jax.labelling import annotators, judgements
from rlhf_jax.schema import UserError
from rlhf_jax.types import PreferenceBatch
from tests.labelling import planted

ACCURACIES = {"a": 0.95, "b": 0.9, "c": 0.8, "d": 0.7, "e": 0.6}
# Votes of five annotators on thirty units, and what crowd-kit 1.4.2 makes of
# them: DawidSkene(n_iter=5000, tol=-1).
VOTES = [
  "0...-0+00-+0.+-0-.--+-0++.0--+",
  "0+-.+0+0.-.0-+-0+---+-.+++0-.+",
  "0.-+...0--+.-.0+-.-+.-.0+...+-",
  "0+---.0-0-+0-+.+-00-+00+0+0-00",
  "0+....+0.-+0-.-0-0--+.0+++0--+",
]
PRIOR = [0.39561589319967233, 0.30438410679952654, 0.3000000000008011]
CONFUSION = {  # annotator -> P(vote | truth), rows votes, columns truths
  1: [
    [0.799787196, 0.144156666, 0.0],
    [0.0, 0.855843334, 0.0],
    [0.200212804, 0.0, 1.0],
  ],
  3: [
    [0.72397236, 0.139152675, 0.0],
    [0.27602764, 0.737869136, 0.333333333],
    [0.0, 0.122978189, 0.666666667],
  ],
}


def votes_of(records):
  found = [judgements.parse(r, f"x:{n}") for n, r in enumerate(records)]
  return judgements.votes(found)


def test_dawid_skene_is_that_of_crowd_kit():
  signs = {"+": 1, "-": -1, "0": 0}
  cells = [
    (u, a, signs[x])
    for u in range(30)
    for a, row in enumerate(VOTES)
    if (x := row[u]) != "."
  ]
  unit, who, value = np.array(cells).T
  votes = judgements.Votes(
    [(str(u), "", "x") for u in range(30)],
    list("abcde"),
    unit,
    who,
    value,
    np.full(len(unit), np.nan),
    np.arange(len(unit)),
    [],
  )
  found = annotators.dawid_skene(votes)
  np.testing.assert_allclose(found.prior, PRIOR, atol=1e-6)
  for who, expected in CONFUSION.items():
    np.testing.assert_allclose(found.confusion[who].T, expected, atol=1e-5)
  np.testing.assert_allclose(found.posterior[2, 0], 0.989371114, atol=1e-6)


def realised(records, truth):
  """Returns annotator -> share of own judgements that are right."""
  hits: dict = {}
  for record in records:
    item = int(record["prompt"].split()[1])
    is_right = record["ranks"][truth[item]] == 0
    hits.setdefault(record["annotator"], []).append(is_right)
  return {name: np.mean(x) for name, x in hits.items()}


@pytest.mark.parametrize("seed", range(3))
def test_planted_accuracies_come_back_within_two_points(seed):
  records, truth = planted.records(ACCURACIES, 200, seed)
  votes = votes_of(records)
  found = annotators.dawid_skene(votes).decided_accuracy
  expected = realised(records, truth)
  errors = [
    abs(x - expected[name])
    for name, x in zip(votes.annotators, found, strict=True)
  ]
  assert np.mean(errors) < 0.02  # of what they did; the draw itself varies more
  assert max(errors) < 0.05


def test_two_hundred_labels_recover_the_planted_ones_on_average():
  """Over seeds, where the draw of each annotator's errors averages out."""
  found = []
  for seed in range(12):
    votes = votes_of(planted.records(ACCURACIES, 200, seed)[0])
    own = annotators.dawid_skene(votes).decided_accuracy
    found.append([own[votes.annotators.index(x)] for x in ACCURACIES])
  expected = list(ACCURACIES.values())
  np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.02)


def bradley_terry(skill, items, spread, seed):
  """Returns records of annotators who follow the noisy model itself."""
  rng = np.random.default_rng(seed)
  found = []
  for item, delta in enumerate(spread * rng.standard_normal(items)):
    for name, own in skill.items():
      p = own / (1 + np.exp(-delta)) + (1 - own) / 2
      wins = bool(rng.random() < p)
      found.append(
        {
          "prompt": f"q {item}",
          "answers": ["a", "b"],
          "choice": 0 if wins else 1,
          "annotator": name,
        }
      )
  return found


def test_noisy_bradley_terry_recovers_accuracies_within_two_points():
  skill = {"a": 1.0, "b": 0.8, "c": 0.5, "d": 0.2, "e": 0.9}
  votes = votes_of(bradley_terry(skill, 3000, 2.0, 1))
  found = annotators.noisy_bradley_terry(votes, spread=2.0)
  expected = np.array([skill[name] for name in votes.annotators])
  # P(right) = 1/2 + skill (E s(|d|) - 1/2), d of deviation 2.
  d = np.abs(2.0 * np.random.default_rng(1).standard_normal(100_000))
  per_skill = np.mean(1 / (1 + np.exp(-d))) - 0.5
  errors = np.abs(found - expected) * per_skill
  assert np.max(errors) < 0.02


@functools.cache
def simulated(seed, is_equal):
  """Returns features [B, 2, D], labels [B], weights [B], and the direction."""
  accuracies = (
    dict.fromkeys("abcde", 0.8)
    if is_equal
    else {"a": 0.95, "b": 0.9, "c": 0.55, "d": 0.52, "e": 0.5}
  )
  records, truth = planted.records(accuracies, 300, seed, share=0.8)
  votes = votes_of(records)
  weight, _ = annotators.weights(votes, annotators.skills(votes))
  by_name = dict(zip(votes.annotators, weight, strict=True))
  rng = np.random.default_rng(100 + seed)
  direction = rng.standard_normal(20)
  pairs = rng.standard_normal((300, 2, 20))
  better = (pairs @ direction).argmax(axis=1)
  # The truth of an item is the better answer of its own pair.
  for item in np.flatnonzero(better != truth):
    pairs[item] = pairs[item, ::-1]
  items = [int(r["prompt"].split()[1]) for r in records]
  labels = [float(r["ranks"][0] == 0) for r in records]
  weights = [by_name[r["annotator"]] for r in records]
  return pairs[items], np.array(labels), np.array(weights), direction


def accuracy(features, labels, weights, direction, seed):
  """Returns the accuracy of a linear reward model on clean pairs.

  It is trained with the loss of the package, to its minimum.
  """
  batch = PreferenceBatch(
    tokens=jnp.ones((len(labels), 2, 1), jnp.int32),
    loss_mask=jnp.ones((len(labels), 2, 1)),
    valid_mask=jnp.ones((len(labels), 2, 1)),
    label=jnp.asarray(labels, jnp.float32),
    weight=jnp.asarray(weights, jnp.float32),
  )
  config, inputs = reward.Config(), jnp.asarray(features, jnp.float32)
  counts = reward.denominators(batch, config)

  @jax.jit
  def gradient(w):
    return jax.grad(
      lambda w: reward.loss(inputs @ w, batch, config, counts)[0]
    )(w)

  w = jnp.zeros(features.shape[-1])
  for _ in range(200):
    w = w - 1.0 * gradient(w)
  test = np.random.default_rng(900 + seed).standard_normal((4000, 20))
  return np.mean(np.sign(test @ np.asarray(w)) == np.sign(test @ direction))


@pytest.mark.parametrize("is_equal", [False, True])
def test_weights_help_where_annotators_differ_and_do_nothing_else(is_equal):
  gains = []
  for seed in range(4):
    features, labels, weights, direction = simulated(seed, is_equal)
    assert np.mean(weights) == pytest.approx(1.0, abs=1e-6)
    with_weights = accuracy(features, labels, weights, direction, seed)
    ones = np.ones_like(weights)
    gains.append(
      with_weights - accuracy(features, labels, ones, direction, seed)
    )
  if is_equal:
    assert abs(np.mean(gains)) < 0.005
  else:
    assert min(gains) > 0 and np.mean(gains) > 0.02


def test_those_who_cannot_be_judged_weigh_one_and_coins_nothing():
  records, _ = planted.records(
    {"a": 0.9, "b": 0.9, "c": 0.9, "against": 0.2}, 100, 1
  )
  alone = [
    {**r, "prompt": f"other {n}", "annotator": "alone"}
    for n, r in enumerate(records[:30])
  ]
  votes = votes_of(records + alone)
  skill = annotators.skills(votes)
  found, notes = annotators.weights(votes, skill)
  by_name = dict(zip(votes.annotators, found, strict=True))
  assert by_name["alone"] == 1.0
  assert by_name["against"] == 0.0
  said = dict((m.partition(":")[0], level) for level, m in notes)
  assert said == {"alone": "note", "against": "warn"}


def test_nobody_to_compare_with():
  votes = votes_of(planted.records({"a": 0.9}, 10)[0])
  with pytest.raises(UserError, match="no two annotators judged the same"):
    annotators.dawid_skene(votes)
  with pytest.raises(UserError, match="model='majority'"):
    annotators.skills(votes, "majority")
