"""The agent: episodes of a small policy become a Rollout, and PPO trains it.

A time step stands where a token stands elsewhere (types.py, invariant 1):
tokens[n, t] is the action of step t, values[n, t] the value of the state before
it, and a row is a whole episode. So advantages, losses and update are those of
algorithms/policy_gradient; what the network reads is in Rollout.hidden.

An episode is cut by the clock and by nothing else, so its last reward gets the
discounted value of the state behind it (Pardo et al. 2018, arXiv:1712.00378).
Rewards are multiplied by 1 - discount: values are then averages of rewards, and
about 1 where the rewards have deviation 1.
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen

from rlhf_jax import ops
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.environments.environment import Environment
from rlhf_jax.types import (
  FINISH_LENGTH,
  Array,
  Metrics,
  PyTree,
  Rollout,
  TrainState,
)

LEAST_LOG, MOST_LOG = -3.0, 0.5  # of the deviation of a continuous action


@flax.struct.dataclass
class Episodes:
  """Whole episodes of one policy; [N, L, ...].

  state: [N, L, S], before each step.
  observation: [N, L, O], of it.
  token: [N, L] int32, the discrete action; 0 of a continuous one.
  drawn: [N, L, A] float32, the continuous action as it was drawn; 0 otherwise.
  action: [N, L, A] float32, as the environment took it: one-hot, or clipped.
  logprob, value: [N, L] float32, of the policy that acted.
  truth: [N, L] float32, the true reward.
  last_value: [N] float32, of the state after the last step.
  """

  state: Array
  observation: Array
  token: Array
  drawn: Array
  action: Array
  logprob: Array
  value: Array
  truth: Array
  last_value: Array


class Layers(linen.Module):
  """Two hidden layers of tanh. scale: of the last layer's first weights."""

  hidden: int
  outputs: int
  scale: float

  @linen.compact
  def __call__(self, x: Array) -> Array:
    """Returns [..., outputs] of x [..., O]."""
    for _ in range(2):
      start = linen.initializers.orthogonal(math.sqrt(2.0))
      x = jnp.tanh(linen.Dense(self.hidden, kernel_init=start)(x))
    last = linen.initializers.orthogonal(self.scale)
    return linen.Dense(self.outputs, kernel_init=last)(x)


def init(key: Array, environment: Environment, hidden: int) -> PyTree:
  """Returns {"policy", "value"}: first weights of both networks."""
  keys = jax.random.split(key)
  blank = jnp.zeros(environment.observation_size)
  actor = Layers(hidden, environment.action_size, 0.01)
  policy = {"layers": actor.init(keys[0], blank)}
  if not environment.is_discrete:
    policy["log_deviation"] = jnp.zeros(environment.action_size)
  critic = Layers(hidden, 1, 1.0)
  return {"policy": policy, "value": critic.init(keys[1], blank)}


def _outputs(params: PyTree, x: Array, size: int) -> Array:
  """Returns [..., size] of a network whose width its weights tell."""
  hidden = params["params"]["Dense_0"]["kernel"].shape[-1]
  return Layers(hidden, size, 1.0).apply(params, x)


def values(params: PyTree, observation: Array) -> Array:
  """Returns [...], the critic's values of observations [..., O]."""
  return _outputs(params["value"], observation, 1)[..., 0]


def _policy(
  params: PyTree, observation: Array, environment: Environment
) -> tuple[Array, Array | None]:
  """Returns logits and None, or mean and log deviation, [..., A] each."""
  own = params["policy"]
  found = _outputs(own["layers"], observation, environment.action_size)
  if environment.is_discrete:
    return found, None
  deviation = jnp.clip(own["log_deviation"], LEAST_LOG, MOST_LOG)
  return found, jnp.broadcast_to(deviation, found.shape)


def _normal(drawn: Array, mean: Array, log_deviation: Array) -> Array:
  """Returns [...], log-density of [..., A] independent normal variables."""
  squares = jnp.square((drawn - mean) * jnp.exp(-log_deviation))
  each = -0.5 * (squares + math.log(2 * math.pi)) - log_deviation
  return jnp.sum(each, axis=-1)


def act(
  params: PyTree, observation: Array, key: Array, environment: Environment
) -> tuple[Array, Array, Array]:
  """Returns what is done: token [N], drawn [N, A], log-probability [N].

  Args:
    params: of the agent.
    observation: [N, O].
    key: of the draw.
    environment: whose actions.
  """
  rows, size = len(observation), environment.action_size
  found, deviation = _policy(params, observation, environment)
  if deviation is None:
    token = jax.random.categorical(key, found).astype(jnp.int32)
    logprobs = jax.nn.log_softmax(found)
    chosen = jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]
    return token, jnp.zeros((rows, size)), chosen
  noise = jax.random.normal(key, found.shape)
  drawn = found + noise * jnp.exp(deviation)
  return jnp.zeros(rows, jnp.int32), drawn, _normal(drawn, found, deviation)


def taken(token: Array, drawn: Array, environment: Environment) -> Array:
  """Returns [..., A], actions as the environment takes them."""
  if environment.is_discrete:
    return jax.nn.one_hot(token, environment.action_size)
  return jnp.clip(drawn, -1.0, 1.0)


def collect(
  params: PyTree, key: Array, environment: Environment, episodes: int
) -> Episodes:
  """Returns whole episodes of the policy, side by side.

  Args:
    params: of the agent.
    key: of starts and actions.
    environment: where.
    episodes: N.
  """
  start_key, act_key = jax.random.split(key)
  state = jax.vmap(environment.reset)(jax.random.split(start_key, episodes))

  def one(state: Array, key: Array):
    observation = jax.vmap(environment.observe)(state)
    token, drawn, logprob = act(params, observation, key, environment)
    action = taken(token, drawn, environment)
    truth = jax.vmap(environment.reward)(state, action)
    row = (state, observation, token, drawn, action, logprob, truth)
    return jax.vmap(environment.step)(state, action), row

  keys = jax.random.split(act_key, environment.steps)
  last, rows = jax.lax.scan(one, state, keys)
  state, observation, token, drawn, action, logprob, truth = (
    jnp.swapaxes(x, 0, 1) for x in rows
  )
  return Episodes(
    state=state,
    observation=observation,
    token=token,
    drawn=drawn,
    action=action,
    logprob=logprob,
    value=values(params, observation),
    truth=truth,
    last_value=values(params, jax.vmap(environment.observe)(last)),
  )


def greedy_returns(
  params: PyTree, key: Array, environment: Environment, episodes: int
) -> Array:
  """Returns [N], true returns of episodes of the most likely actions."""
  state = jax.vmap(environment.reset)(jax.random.split(key, episodes))

  def one(state: Array, _):
    observation = jax.vmap(environment.observe)(state)
    found, _ = _policy(params, observation, environment)
    token = jnp.argmax(found, axis=-1)
    action = taken(token, found, environment)
    truth = jax.vmap(environment.reward)(state, action)
    return jax.vmap(environment.step)(state, action), truth

  _, truth = jax.lax.scan(one, state, length=environment.steps)
  return jnp.sum(truth, axis=0)


def rollout_of(episodes: Episodes, rewards: Array, discount: float) -> Rollout:
  """Returns episodes as a judged rollout, ready for ppo.advantages.

  Args:
    episodes: of the policy that is trained.
    rewards: [N, L], about deviation 1.
    discount: gamma, below 1.
  """
  ones = jnp.ones_like(rewards)
  scaled = (1.0 - discount) * rewards
  scaled = scaled.at[:, -1].add(discount * episodes.last_value)
  rows = len(rewards)
  return Rollout(
    tokens=episodes.token,
    valid_mask=ones,
    response_mask=ones,
    behaviour_logprobs=episodes.logprob,
    finish_reason=jnp.full(rows, FINISH_LENGTH, jnp.int32),
    reference_logprobs=episodes.logprob,
    score=jnp.sum(rewards, axis=1),
    values=episodes.value,
    rewards=scaled,
    hidden={"observation": episodes.observation, "drawn": episodes.drawn},
  )


def train(
  state: TrainState,
  episodes: Episodes,
  rewards: Array,
  key: Array,
  *,
  environment: Environment,
  algorithm: ppo.Config,
  config: update.Config,
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Trains the agent on its newest episodes: epochs of PPO.

  Args:
    state: of the agent that played them.
    episodes: N.
    rewards: [N, L], about deviation 1.
    key: permutes episodes.
    environment: where.
    algorithm: of PPO.
    config: epochs, minibatches of whole episodes.
    optimizer: an optax.GradientTransformation.
  """

  def apply(params: PyTree, frozen: PyTree, rows: Rollout):
    del frozen
    observation = rows.hidden["observation"]
    found, deviation = _policy(params, observation, environment)
    if deviation is None:
      every = jax.nn.log_softmax(found)
      chosen = jnp.take_along_axis(every, rows.tokens[..., None], axis=-1)
      return chosen[..., 0], ops.entropy(found), values(params, observation)
    logprobs = _normal(rows.hidden["drawn"], found, deviation)
    each = deviation + 0.5 * math.log(2 * math.pi * math.e)
    entropies = jnp.sum(each, axis=-1)
    return logprobs, entropies, values(params, observation)

  rollout = rollout_of(episodes, rewards, algorithm.discount)
  return update.update(
    state,
    {},
    ppo.advantages(rollout, algorithm),
    key,
    algorithm=ppo,
    algorithm_config=algorithm,
    config=config,
    apply=apply,
    optimizer=optimizer,
  )
