"""One turn of a run: play, ask, learn what is liked, train the agent.

Four programs, so that whoever answers may stand in the middle:

  collect   the policy plays whole episodes
  propose   pairs of their segments are chosen
  (ask)     queries.simulated, or people at the page
  add       labels join those that are there
  learn     predictors are fitted, and PPO trains the agent on the reward that
            they now give; advantages are never older

How many labels are due, how they are chosen and which reward trains may be
traced values: many runs fit in one vmapped program (tests/proofs/segments.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import optimizer as optimizer_lib
from rlhf_jax.algorithms import segments
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.environments.environment import Environment
from rlhf_jax.programs.segments import agent, predictor, queries
from rlhf_jax.programs.segments.settings import (
  Agent,
  Labels,
  Predictor,
  Queries,
)
from rlhf_jax.types import Array, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class Lab:
  """All that the programs of a run read; hashable, so a static argument.

  episodes: of each rollout.
  """

  environment: Environment
  episodes: int
  agent: Agent
  algorithm: ppo.Config
  update: update.Config
  optimizer: optimizer_lib.Config
  predictor: Predictor
  decay: segments.Decay
  queries: Queries
  labels: Labels

  @property
  def agent_optimizer(self) -> Any:
    """Of policy and critic, each clipped by itself."""
    both = {"policy": self.optimizer, "value": self.optimizer}
    return optimizer_lib.make_labelled(both)

  @property
  def predictor_optimizer(self) -> Any:
    """Adam; L2 is in the loss."""
    rate = self.predictor.learning_rate
    return optimizer_lib.make_optimizer(
      optimizer_lib.Config(learning_rate=rate, beta2=0.999, clip_norm=None)
    )


@flax.struct.dataclass
class State:
  """All that a run carries from turn to turn.

  truth: [3] float32, count, mean and squared deviations of true rewards so far,
    by which the control's rewards are scaled.
  """

  agent: TrainState
  ensemble: predictor.Ensemble
  labels: queries.Labels
  truth: Array


def start(key: Array, lab: Lab, most: int) -> State:
  """Returns the state before the first turn.

  Args:
    key: of the weights.
    lab: settings.
    most: labels that there will be room for.
  """
  keys = jax.random.split(key)
  params = agent.init(keys[0], lab.environment, lab.agent.hidden)
  opt_state = lab.agent_optimizer.init(params)
  return State(
    agent=TrainState(jnp.int32(0), params, opt_state, jnp.int32(0)),
    ensemble=predictor.init(
      keys[1],
      lab.environment,
      lab.predictor,
      lab.decay,
      lab.predictor_optimizer,
    ),
    labels=queries.empty(
      lab.environment, lab.queries.length, lab.predictor.members, most
    ),
    truth=jnp.zeros(3),
  )


def collect(state: State, key: Array, lab: Lab) -> agent.Episodes:
  """Returns new episodes of the agent.

  Args:
    state: of the run.
    key: of this turn.
    lab: settings.
  """
  params = state.agent.params
  return agent.collect(params, key, lab.environment, lab.episodes)


def propose(
  state: State,
  episodes: agent.Episodes,
  key: Array,
  lab: Lab,
  most: int,
  is_active: Array | bool,
) -> queries.Pairs:
  """Returns the pairs of segments of episodes to ask about.

  Args:
    state: of the run.
    episodes: where segments are cut.
    key: of this turn.
    lab: settings.
    most: pairs, the most telling first.
    is_active: whether the members' disagreement chooses.
  """
  error = lab.predictor.error
  return queries.propose(
    state.ensemble, episodes, key, most, is_active, lab.queries, error
  )


def add(
  state: State,
  pairs: queries.Pairs,
  label: Array,
  is_comparable: Array,
  due: Array | int,
  key: Array,
) -> tuple[State, Metrics]:
  """Returns the state with new labels, and what to log of them.

  Metrics:
    labels/count: labels so far.
    labels/asked: the same, with pairs that could not be compared.
    labels/ties: share of ties among the labels so far. Near 1 is bad: they
      teach little.
    labels/disagreement: variance of the members' preference over the pairs that
      were asked, before they were; 0 where none was. Near 0 is bad: the members
      knew the answers, right or wrong.

  Args:
    state: of the run.
    pairs: Q, of `propose`.
    label, is_comparable: [Q], what was said of them.
    due: [] int, how many of the pairs were asked.
    key: of this turn.
  """
  labels = queries.add(state.labels, pairs, label, is_comparable, due, key)
  is_asked = jnp.arange(len(label)) < due
  variance = jnp.sum(pairs.disagreement * is_asked)
  is_tie = (labels.label == 0.5) & labels.is_there
  return state.replace(labels=labels), {
    "labels/count": labels.count * 1.0,
    "labels/asked": labels.asked * 1.0,
    "labels/ties": jnp.sum(is_tie) / jnp.maximum(labels.count, 1),
    "labels/disagreement": variance / jnp.maximum(jnp.sum(is_asked), 1),
  }


def _moments(moments: Array, new: Array) -> Array:
  """Returns count, mean and squared deviations of what was and what is new."""
  count, mean, squares = moments
  size, apart = new.size, jnp.mean(new) - mean
  total = count + size
  between = jnp.square(apart) * count * size / total
  inside = jnp.sum(jnp.square(new - jnp.mean(new)))
  return jnp.stack(
    [total, mean + apart * size / total, squares + inside + between]
  )


def correlation(x: Array, y: Array) -> Array:
  """Returns [], Pearson's; NaN where one of them does not vary."""
  x, y = x - jnp.mean(x), y - jnp.mean(y)
  scale = jnp.sqrt(jnp.mean(jnp.square(x)) * jnp.mean(jnp.square(y)))
  is_varied = scale > 1e-8
  found = jnp.mean(x * y) / jnp.where(is_varied, scale, 1.0)
  return jnp.where(is_varied, found, jnp.nan)


def _fitted(
  state: State, key: Array, lab: Lab, fits: Array | int
) -> tuple[predictor.Ensemble, Metrics]:
  """Returns the predictors after some fits, and the metrics of the last."""

  def fit(number: Array, before: tuple[predictor.Ensemble, Metrics]):
    return predictor.fit(
      before[0],
      state.labels,
      jax.random.fold_in(key, number),
      settings=lab.predictor,
      decay=lab.decay,
      optimizer=lab.predictor_optimizer,
    )

  _, shapes = jax.eval_shape(lambda: fit(jnp.int32(0), (state.ensemble, {})))
  none = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), shapes)
  return jax.lax.fori_loop(0, fits, fit, (state.ensemble, none))


def learn(
  state: State,
  episodes: agent.Episodes,
  key: Array,
  fits: Array | int,
  uses_truth: Array | bool,
  lab: Lab,
) -> tuple[State, Metrics]:
  """Returns the state after predictors and agent learned, and what to log.

  Metrics: those of predictor.fit and of update.update, and
    agent/true_return: of an episode, which the agent does not see. Down is bad.
    agent/predicted_return: the same by the predictors. Up while the true return
      falls is bad.
    agent/reward_correlation: of predicted and true reward, over steps. Low is
      bad; not there where the true reward does not vary.
    predictor/disagreement: deviation over members of a step's normalised
      reward. Near 0 early is bad: members are alike.

  Args:
    state: with all labels so far.
    episodes: of `collect`, this turn's.
    key: of this turn.
    fits: how often lab.predictor.steps are taken; 0 for a control.
    uses_truth: whether the agent trains on the true reward.
    lab: settings.
  """
  keys = jax.random.split(key)
  ensemble, metrics = _fitted(state, keys[0], lab, fits)
  each = predictor.rewards(ensemble, episodes.observation, episodes.action)
  learned = jnp.mean(each, axis=0)
  truth = _moments(state.truth, episodes.truth)
  deviation = jnp.sqrt(truth[2] / truth[0])
  scaled = (episodes.truth - truth[1]) / jnp.maximum(deviation, 1e-6)
  new_agent, of_agent = agent.train(
    state.agent,
    episodes,
    jnp.where(uses_truth, scaled, learned),
    keys[1],
    environment=lab.environment,
    algorithm=lab.algorithm,
    config=lab.update,
    optimizer=lab.agent_optimizer,
  )
  metrics |= of_agent | {
    "agent/true_return": jnp.mean(jnp.sum(episodes.truth, axis=1)),
    "agent/predicted_return": jnp.mean(jnp.sum(learned, axis=1)),
    "agent/reward_correlation": correlation(learned, episodes.truth),
    "predictor/disagreement": jnp.mean(jnp.std(each, axis=0)),
  }
  return State(new_agent, ensemble, state.labels, truth), metrics
