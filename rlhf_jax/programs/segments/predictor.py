"""The reward predictor: an ensemble that learns from labels of segments.

Each member is a small network of observation and action. It trains on labels
drawn as often as they count for it, and its L2 coefficient follows its loss on
those that do not count (algorithms/segments.py). The reward of a step is the
mean over members of their rewards, each normalised by itself over all labelled
segments: mean 0, deviation 1 (Christiano et al. 2017, section 2.2.3).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen

from rlhf_jax.algorithms import accumulate
from rlhf_jax.algorithms import segments as maths
from rlhf_jax.environments.environment import Environment
from rlhf_jax.programs.segments.labels import Labels
from rlhf_jax.programs.segments.settings import Predictor
from rlhf_jax.types import Array, Metrics, PyTree, TrainState

SLOPE = 0.01  # of leaky ReLUs below 0; Christiano et al. 2017, appendix A.1


@flax.struct.dataclass
class Ensemble:
  """M predictors.

  state: params [M, ...].
  decay: [M] float32, coefficients of L2.
  mean, deviation: [M] float32, of each member's rewards.
  """

  state: TrainState
  decay: Array
  mean: Array
  deviation: Array


class Layers(linen.Module):
  """Two hidden layers of leaky ReLUs, and one number out."""

  hidden: int

  @linen.compact
  def __call__(self, x: Array) -> Array:
    """Returns [...] of x [..., O + A]."""
    for _ in range(2):
      x = jax.nn.leaky_relu(linen.Dense(self.hidden)(x), SLOPE)
    return linen.Dense(1)(x)[..., 0]


def init(
  key: Array,
  environment: Environment,
  settings: Predictor,
  decay: maths.Decay,
  optimizer: Any,
) -> Ensemble:
  """Returns members that know nothing; each begins with weights of its own."""
  blank = jnp.zeros(environment.observation_size + environment.action_size)
  network = Layers(settings.hidden)
  keys = jax.random.split(key, settings.members)
  params = jax.vmap(lambda key: network.init(key, blank))(keys)
  opt_state = optimizer.init(params)
  ones = jnp.ones(settings.members)
  return Ensemble(
    state=TrainState(jnp.int32(0), params, opt_state, jnp.int32(0)),
    decay=decay.start * ones,
    mean=0.0 * ones,
    deviation=ones,
  )


def members(params: PyTree, observation: Array, action: Array) -> Array:
  """Returns [M, ...], each member's rewards, not normalised.

  Args:
    params: [M, ...].
    observation: [..., O].
    action: [..., A].
  """
  hidden = params["params"]["Dense_0"]["kernel"].shape[-1]
  x = jnp.concatenate([observation, action], axis=-1)
  return jax.vmap(Layers(hidden).apply, in_axes=(0, None))(params, x)


def rewards(ensemble: Ensemble, observation: Array, action: Array) -> Array:
  """Returns [M, ...], each member's normalised rewards; their mean counts.

  Args:
    ensemble: M members.
    observation: [..., O].
    action: [..., A].
  """
  found = members(ensemble.state.params, observation, action)
  shape = (-1,) + (1,) * (found.ndim - 1)
  mean, deviation = ensemble.mean, ensemble.deviation
  return (found - mean.reshape(shape)) / deviation.reshape(shape)


def _penalty(params: PyTree) -> Array:
  """Returns [M], half the sum of squared weights; biases are spared."""
  found = jax.tree_util.tree_leaves_with_path(params)
  kernels = [x for path, x in found if "kernel" in str(path[-1])]
  return 0.5 * sum(jnp.sum(jnp.square(x), axis=(1, 2)) for x in kernels)


def _draw(counts: Array, key: Array, size: int) -> Array:
  """Returns int32 [M, size], labels of each member, as often as they count."""
  total = jnp.cumsum(counts, axis=0).T  # [M, C]
  uniform = jax.random.uniform(key, (len(total), size))
  find = jax.vmap(lambda a, v: jnp.searchsorted(a, v, side="right"))
  found = find(total, uniform * total[:, -1:])
  return jnp.minimum(found, total.shape[1] - 1)


def _returns(params: PyTree, observation: Array, action: Array) -> Array:
  """Returns [M, B, 2]; observation and action are [M, B, 2, T, ...]."""
  hidden = params["params"]["Dense_0"]["kernel"].shape[-1]
  x = jnp.concatenate([observation, action], axis=-1)
  return jnp.sum(jax.vmap(Layers(hidden).apply)(params, x), axis=-1)


def measure(
  params: PyTree, labels: Labels, error: float
) -> tuple[Array, Array, Array, Array]:
  """Returns losses on drawn and on other labels, and how rewards lie.

  Returns:
    training, validation: [M] nats, NaN where a member has no such label.
    mean, deviation: [M], of the rewards of all labelled steps; 0 and 1 where
      there is none.
  """
  found = members(params, labels.observation, labels.action)  # [M, C, 2, T]
  losses = maths.loss(jnp.sum(found, axis=-1), labels.label, error)
  is_there = labels.is_there[:, None]
  drawn = (labels.counts * is_there).T
  other = ((labels.counts == 0) & is_there).T

  def mean_of(weight: Array) -> Array:
    return jnp.sum(losses * weight, axis=1) / jnp.sum(weight, axis=1)

  weight = labels.is_there[None, :, None, None] * jnp.ones_like(found)
  count = jnp.maximum(jnp.sum(weight, axis=(1, 2, 3)), 1.0)
  mean = jnp.sum(found * weight, axis=(1, 2, 3)) / count
  apart = jnp.square(found - mean[:, None, None, None]) * weight
  deviation = jnp.sqrt(jnp.sum(apart, axis=(1, 2, 3)) / count)
  deviation = jnp.where(labels.count > 0, jnp.maximum(deviation, 1e-6), 1.0)
  return mean_of(drawn), mean_of(other), mean, deviation


def fit(
  ensemble: Ensemble,
  labels: Labels,
  key: Array,
  *,
  settings: Predictor,
  decay: maths.Decay,
  optimizer: Any,
) -> tuple[Ensemble, Metrics]:
  """Trains the members on all labels so far, and normalises them anew.

  Metrics:
    predictor/loss: cross-entropy of the labels that each member drew, the mean
      over members, nats. Far below the validation loss is bad.
    predictor/validation_loss: of the labels it did not draw. Up is bad.
    predictor/loss_ratio: the second over the first; 1.1 to 1.5 is aimed at.
    predictor/l2: the coefficient, the geometric mean over members.
    predictor/gradient_norm: of all members in the last step. Sudden growth is
      bad.

  Args:
    ensemble: M members.
    labels: all so far.
    key: of the batches.
    settings: steps, batch size and e.
    decay: how L2 is tuned.
    optimizer: an optax.GradientTransformation.
  """
  counts = labels.counts * labels.is_there[:, None]

  def contribution(params: PyTree, chosen: Array) -> Array:
    observation, action = labels.observation[chosen], labels.action[chosen]
    returns = _returns(params, observation, action)
    losses = maths.loss(returns, labels.label[chosen], settings.error)
    each = jnp.mean(losses, axis=1) + ensemble.decay * _penalty(params)
    return jnp.sum(each)

  def step(state: TrainState, key: Array):
    chosen = _draw(counts, key, settings.batch_size)
    value, grads = jax.value_and_grad(contribution)(state.params, chosen)
    state, report = accumulate.apply_gradients(
      state, grads, optimizer, jnp.isfinite(value)
    )
    return state, report.gradient_norm

  keys = jax.random.split(key, settings.steps)
  state, norms = jax.lax.scan(step, ensemble.state, keys)
  training, validation, mean, deviation = measure(
    state.params, labels, settings.error
  )
  l2 = maths.tuned(ensemble.decay, training, validation, decay)
  ratio = jnp.nanmean(validation) / jnp.nanmean(training)
  return Ensemble(state, l2, mean, deviation), {
    "predictor/loss": jnp.nanmean(training),
    "predictor/validation_loss": jnp.nanmean(validation),
    "predictor/loss_ratio": ratio,
    "predictor/l2": jnp.exp(jnp.mean(jnp.log(l2))),
    "predictor/gradient_norm": norms[-1],
  }
