"""What is asked: pairs of segments of episodes, and what is said of them."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import segments
from rlhf_jax.environments.environment import Environment
from rlhf_jax.programs.segments import predictor as predictor_lib
from rlhf_jax.programs.segments.agent import Episodes
from rlhf_jax.programs.segments.labels import Labels
from rlhf_jax.programs.segments.settings import Labels as LabelSettings
from rlhf_jax.programs.segments.settings import Queries
from rlhf_jax.types import Array, PyTree


@flax.struct.dataclass
class Pairs:
  """Q pairs of segments of T steps.

  observation, action, state: [Q, 2, T, ...].
  truth: [Q, 2] float32, the true return of each segment.
  disagreement: [Q] float32, the variance over members of their preference.
  """

  observation: Array
  action: Array
  state: Array
  truth: Array
  disagreement: Array


def empty(
  environment: Environment, length: int, members: int, most: int
) -> Labels:
  """Returns room for labels."""
  shape = (most, 2, length)
  return Labels(
    observation=jnp.zeros((*shape, environment.observation_size)),
    action=jnp.zeros((*shape, environment.action_size)),
    label=jnp.zeros(most),
    counts=jnp.zeros((most, members)),
    count=jnp.int32(0),
    asked=jnp.int32(0),
  )


def cut(episodes: Episodes, key: Array, count: int, length: int) -> Pairs:
  """Returns pairs of segments drawn evenly from all places of all episodes.

  Args:
    episodes: N of L steps.
    key: of the draw.
    count: Q.
    length: T, at most L.
  """
  rows, steps = episodes.truth.shape
  row_key, start_key = jax.random.split(key)
  row = jax.random.randint(row_key, (count, 2), 0, rows)
  start = jax.random.randint(start_key, (count, 2), 0, steps - length + 1)
  place = (row[..., None], start[..., None] + jnp.arange(length)[None, None])
  return Pairs(
    observation=episodes.observation[place],
    action=episodes.action[place],
    state=episodes.state[place],
    truth=jnp.sum(episodes.truth[place], axis=-1),
    disagreement=jnp.zeros(count),
  )


def propose(
  ensemble: predictor_lib.Ensemble,
  episodes: Episodes,
  key: Array,
  most: int,
  is_active: Array | bool,
  settings: Queries,
  error: float,
) -> Pairs:
  """Returns the pairs that are asked, the most telling first.

  Args:
    ensemble: whose members agree or not.
    episodes: where segments are cut.
    key: of the draw.
    most: Q, at least as many as are due; queries.candidates times as many are
      drawn, also where fewer are due.
    is_active: by the members' disagreement; else as drawn.
    settings: length and candidates.
    error: e of the members' preference.
  """
  drawn = cut(episodes, key, most * settings.candidates, settings.length)
  rewards = predictor_lib.members(
    ensemble.state.params, drawn.observation, drawn.action
  )
  variance = segments.disagreement(jnp.sum(rewards, axis=-1), error)
  drawn = drawn.replace(disagreement=variance)
  rank = jnp.where(is_active, variance, -jnp.arange(len(variance)) * 1.0)
  _, chosen = jax.lax.top_k(rank, most)
  return jax.tree.map(lambda x: x[chosen], drawn)


def simulated(
  pairs: Pairs, key: Array, settings: LabelSettings
) -> tuple[Array, Array]:
  """Returns what somebody says who sees the true returns.

  The segment of the higher true return is better; equal ones tie (Christiano et
  al. 2017, section 3.1). A share of the answers is given by chance.

  Args:
    pairs: Q.
    key: of the noise.
    settings: noise, ties, incomparable.

  Returns:
    label [Q] in {0, 1/2, 1}, and whether each pair was comparable, [Q] bool.
  """
  keys = jax.random.split(key, 3)
  apart = pairs.truth[:, 0] - pairs.truth[:, 1]
  # A sum of equal rewards in another order is equal but for rounding.
  margin = settings.ties + 1e-5 * jnp.max(jnp.abs(pairs.truth), axis=1)
  label = jnp.where(jnp.abs(apart) <= margin, 0.5, apart > 0)
  coin = jax.random.bernoulli(keys[0], 0.5, label.shape)
  is_chance = jax.random.bernoulli(keys[1], settings.noise, label.shape)
  is_left = jax.random.bernoulli(keys[2], settings.incomparable, label.shape)
  return jnp.where(is_chance, coin, label).astype(jnp.float32), ~is_left


def add(
  labels: Labels,
  pairs: Pairs,
  label: Array,
  is_comparable: Array,
  due: Array | int,
  key: Array,
) -> Labels:
  """Returns the labels with those of the first `due` pairs that compare.

  Args:
    labels: so far.
    pairs: Q.
    label: [Q] in [0, 1].
    is_comparable: [Q] bool; pairs that nobody could compare are dropped.
    due: [] int, how many pairs were asked.
    key: of the bootstrap.
  """
  is_asked = jnp.arange(len(label)) < due
  is_new = is_asked & is_comparable
  place = labels.count + jnp.cumsum(is_new) - 1
  place = jnp.where(is_new, place, len(labels.label))  # nowhere
  counts = segments.bootstrap(key, len(label), labels.counts.shape[1])

  def put(all_of: Array, new: Array) -> Array:
    return all_of.at[place].set(new, mode="drop")

  new: PyTree = {
    "observation": put(labels.observation, pairs.observation),
    "action": put(labels.action, pairs.action),
    "label": put(labels.label, label),
    "counts": put(labels.counts, counts),
    "count": labels.count + jnp.sum(is_new, dtype=jnp.int32),
    "asked": labels.asked + jnp.sum(is_asked, dtype=jnp.int32),
  }
  return labels.replace(**new)
