"""Sum, switch and multiplier at values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.combination import (
  components,
  lagrangian,
  registry,
  safety_switch,
  weighted_sum,
)
from rlhf_jax.types import Components

Judge = components.Judge
ONES = jnp.ones(4)


def found(*columns, mask=None, tagged=None):
  values = jnp.asarray(columns, jnp.float32).T
  mask = jnp.ones_like(values) if mask is None else jnp.asarray(mask).T
  tagged = jnp.zeros(len(values)) if tagged is None else jnp.asarray(tagged)
  return Components(values=values * mask, mask=mask * 1.0, tagged=tagged * 1.0)


def scored(module, parts, judges, config, *, observes=True, counts=ONES):
  """Returns [N] scores of one batch that the state saw, and the state."""
  module.check(judges, config)
  state = module.init(judges, config)
  if observes:
    state = module.observe(state, parts, counts, judges, config)
  return np.asarray(module.combine(parts, state, judges, config)), state


def test_a_sum_of_reward_models_is_the_weighted_sum():
  judges = (Judge("a", 0.5), Judge("b", 2.0))
  parts = found([1, 2, 3, 4], [0.5, 0, 0, -1])
  score, _ = scored(weighted_sum, parts, judges, weighted_sum.Config())
  np.testing.assert_allclose(score, [1.5, 1.0, 1.5, 0.0])


def test_a_verifier_is_standardised_by_all_its_scores_so_far():
  judges = (
    Judge("model"),
    Judge("right", 3.0, "running", is_model=False),
    Judge("raw", 1.0, "none", is_model=False),
  )
  config = weighted_sum.Config()
  one = found([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 7, 0])
  score, state = scored(weighted_sum, one, judges, config)
  deviation = math.sqrt(0.25 * 0.75)
  expected = np.array([0 - 0.25] * 3 + [0.75]) / deviation * 3 + [0, 0, 7, 0]
  np.testing.assert_allclose(score, expected, rtol=1e-5)
  two = found([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0])
  state = weighted_sum.observe(state, two, ONES, judges, config)
  score = weighted_sum.combine(two, state, judges, config)
  mean, deviation = 5 / 8, math.sqrt(5 / 8 * 3 / 8)
  np.testing.assert_allclose(score, 3 * (1 - mean) / deviation, rtol=1e-5)


def test_who_does_not_judge_adds_nothing_and_is_not_seen():
  judges = (Judge("a"), Judge("b", 1.0, "running", is_model=False))
  mask = [[1, 1, 1, 1], [0, 1, 1, 0]]
  parts = found([1, 2, 3, 4], [9, 0, 2, 9], mask=mask)
  counts = jnp.asarray([1.0, 1.0, 1.0, 1.0])
  score, state = scored(
    weighted_sum, parts, judges, weighted_sum.Config(), counts=counts
  )
  np.testing.assert_allclose(score, [1, 2 - 1, 3 + 1, 4], rtol=1e-5)
  np.testing.assert_allclose(state["moments"].count, [4, 2])
  one = jnp.asarray([0.0, 1.0, 0.0, 0.0])
  _, state = scored(
    weighted_sum, parts, judges, weighted_sum.Config(), counts=one
  )
  np.testing.assert_allclose(state["moments"].mean, [2, 0])


def test_a_state_that_saw_nothing_leaves_scores_as_they_are():
  judges = (Judge("b", 1.0, "running", is_model=False),)
  score, _ = scored(
    weighted_sum,
    found([3, 1, 4, 1]),
    judges,
    weighted_sum.Config(),
    observes=False,
  )
  np.testing.assert_allclose(score, [3, 1, 4, 1])


def test_an_easy_reward_counts_only_where_the_hard_one_holds():
  judges = (
    Judge("format", requires="right", requires_at=1.0),
    Judge("right"),
  )
  values = jnp.asarray([[1.0, 1.0], [1.0, 0.0], [-2.0, 0.0], [1.0, 0.0]])
  mask = jnp.ones((4, 2)).at[3, 1].set(0.0)
  np.testing.assert_allclose(
    components.conditioned(values, mask, judges),
    # holds; fails; a malus stays; nobody judges the hard one
    [[1, 1], [0, 0], [-2, 0], [1, 0]],
  )


LLAMA = (Judge("safe"), Judge("helpful"))


def test_the_switch_at_hand_values():
  """sigmoid(-1.7346) = 0.15; whitened by the batch's own moments."""
  bound = math.log(0.15 / 0.85)
  safe = [bound - 0.01, bound + 0.01, 3.0, -3.0]
  helpful = [2.0, 1.0, -1.0, 5.0]
  config = safety_switch.Config(whitens=False)
  parts = found(safe, helpful)
  score, state = scored(safety_switch, parts, LLAMA, config)
  expected = np.array([bound - 0.01, 1.0, -1.0, -3.0])
  np.testing.assert_allclose(score, expected, rtol=1e-5)
  details = safety_switch.details(parts, state, LLAMA, config)
  np.testing.assert_array_equal(details["by_safety"], [1, 0, 0, 1])
  score, _ = scored(safety_switch, parts, LLAMA, safety_switch.Config())
  white = (expected - expected.mean()) / expected.std()
  np.testing.assert_allclose(score, white, rtol=1e-4)


def test_a_tag_gives_the_word_to_safety():
  parts = found([3, 3, 3, 3], [0, 1, 2, 4], tagged=[1, 0, 0, 1])
  config = safety_switch.Config(whitens=False, tagged_by="risky")
  score, _ = scored(safety_switch, parts, LLAMA, config)
  np.testing.assert_allclose(score, [3, 1, 2, 3])


def test_logits_are_clipped_and_probabilities_are_not_squashed():
  limit = math.log((1 - 1e-6) / 1e-6)
  x = jnp.asarray([-100.0, 0.3, 100.0])
  np.testing.assert_allclose(
    safety_switch.logits(x, 1e-6, is_model=True), [-limit, 0.3, limit]
  )
  p = jnp.asarray([0.0, 0.25, 1.0])
  np.testing.assert_allclose(
    safety_switch.logits(p, 1e-6, is_model=False),
    [-limit, math.log(1 / 3), limit],
    rtol=5e-3,  # 1 - 1e-6 has few bits in float32
  )


def test_the_switch_takes_a_probability_and_a_reward_model_together():
  judges = (Judge("safe", scale="none", is_model=False), Judge("helpful"))
  parts = found([0.1, 0.2, 0.9, 0.5], [1, 2, 3, 4])
  config = safety_switch.Config(whitens=False)
  score, _ = scored(safety_switch, parts, judges, config)
  np.testing.assert_allclose(score, [math.log(1 / 9), 2, 3, 4], rtol=1e-5)


COSTED = (Judge("r"), Judge("cost", scale="none", is_model=False))


def test_the_lagrangian_at_hand_values():
  config = lagrangian.Config(limit=0.25, start=3.0, rate=0.5)
  parts = found([1, 2, 3, 4], [0, 1, 0, 2])
  score, state = scored(lagrangian, parts, COSTED, config)
  np.testing.assert_allclose(score, [0.25, -0.25, 0.75, -0.5])
  state, row = lagrangian.update(state, parts, ONES, COSTED, config)
  assert float(row["combination/violation"]) == 0.75 - 0.25
  error = np.std([0, 1, 0, 2]) / 2
  found_error = row["combination/violation_standard_error"]
  np.testing.assert_allclose(found_error, error, rtol=1e-5)
  assert float(state["multiplier"]) == 3.25
  free = lagrangian.Config(limit=0.25, start=3.0, rate=0.5, divides=False)
  score, _ = scored(lagrangian, parts, COSTED, free)
  np.testing.assert_allclose(score, [1, -1, 3, -2])


def test_a_score_that_must_be_large_is_a_cost_with_its_sign_turned():
  config = lagrangian.Config(limit=1.0, start=1.0, bound="at_least")
  parts = found([1, 2, 3, 4], [0, 1, 0, 2])
  score, state = scored(lagrangian, parts, COSTED, config)
  np.testing.assert_allclose(score, [0.5, 1.5, 1.5, 3.0])
  _, row = lagrangian.update(state, parts, ONES, COSTED, config)
  assert float(row["combination/violation"]) == 1.0 - 0.75


@pytest.mark.parametrize("form", lagrangian.FORMS)
def test_a_multiplier_stays_above_0_and_starts_where_it_should(form):
  config = lagrangian.Config(limit=10.0, start=0.5, rate=0.9, form=form)
  parts = found([1, 2, 3, 4], [0, 0, 0, 0])
  _, state = scored(lagrangian, parts, COSTED, config)
  force = float(lagrangian.multiplier(state, config))
  np.testing.assert_allclose(force, 0.5, rtol=1e-5)
  before = float(state["multiplier"])
  state, _ = lagrangian.update(state, parts, ONES, COSTED, config)
  after = float(lagrangian.multiplier(state, config))
  if form == "clipped":
    assert after == 0.0
    state, _ = lagrangian.update(
      state,
      found([1, 2, 3, 4], [11, 11, 11, 11]),
      ONES,
      COSTED,
      lagrangian.Config(limit=10.0, start=0.5, most=0.6, rate=0.9),
    )
    np.testing.assert_allclose(state["multiplier"], 0.6)
  else:
    slope = 1 / (1 + math.exp(-before))
    moved = before - 0.9 * 10.0 * slope
    np.testing.assert_allclose(state["multiplier"], moved, rtol=1e-5)
    assert 0.0 < after < 0.5


def test_a_rollout_that_the_cost_does_not_judge_moves_nothing():
  config = lagrangian.Config(limit=0.25, start=3.0)
  mask = [[1, 1, 1, 1], [0, 0, 0, 0]]
  parts = found([1, 2, 3, 4], [5, 5, 5, 5], mask=mask)
  score, state = scored(lagrangian, parts, COSTED, config)
  np.testing.assert_allclose(score, [0.25, 0.5, 0.75, 1.0])
  moved, row = lagrangian.update(state, parts, ONES, COSTED, config)
  assert float(moved["multiplier"]) == 3.0
  assert float(row["combination/violation"]) == 0.0


def test_trap_12_a_split_batch_gives_the_same_scores_and_state():
  """Over 8 devices, and where half of the answers do not count."""
  rng = np.random.default_rng(0)
  columns = rng.normal(size=(2, 64)).astype(np.float32)
  counts = (rng.random(64) < 0.5).astype(np.float32)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  judges = (Judge("r", scale="running"), COSTED[1])
  for module, config, who in (
    (weighted_sum, weighted_sum.Config(), judges),
    (lagrangian, lagrangian.Config(), judges),
    (safety_switch, safety_switch.Config(), LLAMA),
  ):

    @jax.jit
    def run(parts, counts, module=module, config=config, who=who):
      state = module.observe(
        module.init(who, config), parts, counts, who, config
      )
      return module.combine(parts, state, who, config), state

    parts = found(*columns)
    expected = run(parts, counts)
    placed = jax.tree.map(lambda x: jax.device_put(x, split), (parts, counts))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      run(*placed),
      expected,
    )


@pytest.mark.parametrize(
  "module, judges, config, message",
  [
    (weighted_sum, (Judge("a", 0.0),), {}, "all weights are 0"),
    (safety_switch, COSTED, {}, "judges are cost, r"),
    (
      safety_switch,
      (Judge("safe"), Judge("helpful", 2.0)),
      {},
      "judges.helpful.weight=2.0: the switch",
    ),
    (lagrangian, LLAMA, {}, "combination.cost='cost': must be one of the"),
    (lagrangian, COSTED[1:], {}, "nothing to maximise"),
    (
      lagrangian,
      (COSTED[0], Judge("cost", 1.0, "running", is_model=False)),
      {},
      "judges.cost.scale='running'",
    ),
    (lagrangian, COSTED, {"form": "relu"}, "form='relu'"),
    (lagrangian, COSTED, {"bound": "near"}, "bound='near'"),
    (lagrangian, COSTED, {"start": 0.0, "form": "softplus"}, "must be > 0"),
    (lagrangian, COSTED, {"most": 5.0, "form": "softplus"}, "has no bound"),
    (lagrangian, COSTED, {"most": 0.5}, "must be >= start"),
    (lagrangian, COSTED, {"rate": -1.0}, "rate=-1.0"),
    (safety_switch, LLAMA, {"threshold": 1.5}, "threshold=1.5"),
    (safety_switch, LLAMA, {"epsilon": 0.0}, "epsilon=0.0"),
    (safety_switch, LLAMA, {"safety": "helpful"}, "Name two judges"),
  ],
)
def test_what_cannot_be_combined_is_refused(module, judges, config, message):
  with pytest.raises(ValueError, match=message):
    module.check(judges, module.Config(**config))


def test_every_combination_of_the_package_is_one():
  for module in registry.COMBINATIONS.values():
    registry.check_module(module)
  moving = {n for n, m in registry.COMBINATIONS.items() if registry.moves(m)}
  assert moving == {"lagrangian"}
