"""A user's own method module: through the update, and what is refused."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms.policy_gradient import (
  further_rollouts,
  grpo,
  registry,
  shaping,
  update,
)
from rlhf_jax.algorithms.preference import dpo, kto
from rlhf_jax.algorithms.preference import registry as preference
from rlhf_jax.types import TrainState
from tests.algorithms import answers, hot_baseline

NEW = answers.field(11)
CONFIG = hot_baseline.Config()


def judged(scores):
  """The first answers of answers.py, with these scores."""
  rows = len(scores)
  first = jax.tree.map(lambda x: x[:rows], answers.rollout())
  return first.replace(score=jnp.asarray(scores, jnp.float32))


def prepared():
  """Two prompts; hot answers score 0, 2 and 5, 7, greedy ones 3 and 2."""
  config = shaping.Config(clip=4.0)
  data, moments, _ = shaping.shape_rewards(
    answers.rollout(), shaping.init_moments(), jnp.float32(0.0), config
  )
  further = {"hot": judged([0, 2, 5, 7]), "greedy": judged([3, 2])}
  data = further_rollouts.attach(data, further, moments, config)
  return registry.compute_advantages(hot_baseline.advantages, data, CONFIG)


def test_a_module_with_further_rollouts_by_hand():
  """Clipped at 4: baselines (1 + 3) / 2 and (4 + 2) / 2."""
  registry.check_method(hot_baseline)
  assert not registry.has_critic(hot_baseline)
  assert registry.further_of(
    hot_baseline, hot_baseline.Config(hot_samples=5)
  ) == {
    "hot": {"temperature": 2.0, "num_samples": 5},
    "greedy": {"temperature": 0.0, "num_samples": 1},
  }
  found = prepared()
  assert found.further == {}
  np.testing.assert_allclose(
    found.advantages, answers.spread([-1, 0, 2, 1, 1, 1]), atol=1e-6
  )


def test_its_update_is_the_gradient_of_its_loss():
  data = prepared()
  mask = data.response_mask
  data = data.replace(hidden={"x": jnp.where(mask > 0, NEW, 0.0)})
  optimizer = optax.sgd(0.1)

  def net(params, frozen, rows):
    del frozen
    logprobs = params["policy"] * rows.hidden["x"]
    return logprobs, jnp.zeros_like(logprobs), None

  params = {"policy": jnp.float32(0.9)}
  state = TrainState(jnp.int32(0), params, optimizer.init(params), jnp.int32(0))
  step = functools.partial(
    update.update,
    algorithm=hot_baseline,
    algorithm_config=CONFIG,
    config=update.Config(1, 1),
    apply=net,
    optimizer=optimizer,
  )
  state, _ = jax.jit(step)(state, {}, data, jax.random.key(0))
  # d/dw of mean_n sum_t max(-A rho, -A clip(rho)), rho = exp(w x - old).
  x, old = (np.asarray(y, np.float64) for y in (NEW, data.behaviour_logprobs))
  gradient = 0.0
  for n, t in np.argwhere(answers.MASK > 0):
    a, rho = [-1, 0, 2, 1, 1, 1][n], np.exp(0.9 * x[n, t] - old[n, t])
    is_cut = (a > 0 and rho > 1.2) or (a < 0 and rho < 0.8)
    gradient += 0.0 if is_cut else -a * rho * x[n, t] / answers.N
  np.testing.assert_allclose(
    state.params["policy"], 0.9 - 0.1 * gradient, rtol=1e-5
  )


def test_every_method_of_the_package_is_one():
  for module in registry.ALGORITHMS.values():
    registry.check_method(module)
  for module in preference.ALGORITHMS.values():
    preference.check_method(module)
  critics = {
    n for n, m in registry.ALGORITHMS.items() if registry.has_critic(m)
  }
  assert critics == {"ppo"}
  wanting = {
    name: registry.further_of(module, module.Config())
    for name, module in registry.ALGORITHMS.items()
  }
  together = {"batch_size": None, "refill": None}
  assert wanting.pop("remax") == {
    "greedy": {"temperature": 0.0, "num_samples": 1} | together
  }
  assert not any(wanting.values())

  def those(says):
    return {name for name, x in preference.ALGORITHMS.items() if says(x)}

  assert those(preference.is_unpaired) == {"kto"}
  assert those(preference.is_reference_free) == {"orpo", "simpo", "cpo"}


def changed(module, **attributes):
  """A module with attributes changed, or left out where they are None."""
  found = {k: v for k, v in vars(module).items() if not k.startswith("__")}
  found = {k: v for k, v in (found | attributes).items() if v is not None}
  result = types.ModuleType("mine")
  vars(result).update(found)
  return result


class Loose:
  """Not a dataclass."""


@dataclasses.dataclass
class Thawed:
  """Not frozen."""

  beta: float = 1.0


@dataclasses.dataclass(frozen=True)
class Empty:
  """A field without default."""

  beta: float


@dataclasses.dataclass(frozen=True)
class Bare:
  """Nothing that an update reads."""


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"loss": None, "denominators": None}, "method mine: has no loss, denomin"),
    ({"Config": Loose}, "is not a frozen dataclass"),
    ({"Config": Thawed}, "is not a frozen dataclass"),
    ({"Config": Empty}, "Config has no default for beta"),
    ({"Config": Bare}, "Config has no update_kl_limit, ptx_coefficient"),
    ({"advantages": 3}, "advantages=3: must be a function"),
    ({"advantages": lambda rollout: rollout}, "it takes no config; it is call"),
    (
      {"advantages": lambda config, rollout: rollout},
      "'config' stands in the place of 'rollout'",
    ),
    (
      {"loss": lambda logprobs, rollout, config: 0.0},
      "'rollout' stands in the place of 'entropies'",
    ),
    ({"HAS_CRITIC": 1}, "HAS_CRITIC=1 says what the method needs"),
    ({"further": lambda: {}}, "it takes no config"),
  ],
)
def test_modules_that_are_no_method_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    registry.check_method(changed(grpo, **changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"loss": None}, "method mine: has no loss; a method is a module with"),
    (
      {"loss": lambda batch, logprobs, config: 0},
      "'batch' stands in the place",
    ),
    ({"UNPAIRED": "yes"}, "UNPAIRED='yes' says"),
    ({"check_labels": lambda: None}, "it takes no labels"),
    ({"UNPAIRED": None}, "baseline is there and UNPAIRED is not"),
  ],
)
def test_modules_that_are_no_preference_method_are_refused(changes, message):
  preference.check_method(changed(kto))
  with pytest.raises(ValueError, match=message):
    preference.check_method(changed(kto, **changes))


def test_labels_are_checked_for_a_module_too():
  with pytest.raises(ValueError, match="all 2 labels are 1"):
    preference.check_labels(changed(kto), np.ones(2))
  preference.check_labels(changed(dpo), np.ones(2))


@pytest.mark.parametrize(
  "found", [[], {"greedy": None}, {"greedy": {0: 1}}, {1: {}}]
)
def test_further_must_be_a_table_of_changes(found):
  module = changed(grpo, further=lambda config: found)
  with pytest.raises(ValueError, match="mine: further returned"):
    registry.further_of(module, grpo.Config())


def test_advantages_of_a_users_own_are_checked():
  registry.check_advantages(lambda data, settings: data)
  with pytest.raises(ValueError, match="it takes no config"):
    registry.check_advantages(lambda rollout: rollout)
  data = answers.rollout()

  def scaled(rollout, config):
    return config.scale * rollout.rewards

  def silent(rollout, config):
    return rollout

  def per_answer(rollout, config):
    return rollout.replace(advantages=rollout.score)

  config = types.SimpleNamespace(scale=1.0)
  for function, message in (
    (scaled, r"advantages=scaled: returned \w+; a rollout with"),
    (silent, "advantages=silent: returned Rollout;"),
    (per_answer, r"returned advantages \(6,\); a rollout with .* \(6, 8\)"),
  ):
    with pytest.raises(ValueError, match=message):
      registry.compute_advantages(function, data, config)


def test_an_objective_of_ones_own_may_take_several_steps():
  config = registry.ALGORITHMS["remax"].Config()
  check = functools.partial(
    registry.check_run,
    config,
    num_samples=1,
    kl_coefficient=0.1,
    steps_per_rollout=2,
  )
  with pytest.raises(ValueError, match="has no importance ratio"):
    check()
  check(objective=lambda log_ratio, advantages, config: -advantages)
