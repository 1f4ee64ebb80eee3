"""An engineered gold that saturates (METHODS annex A2b, A3, A14).

Answers are bags: L = 48 tokens of V = 12 kinds, drawn one by one from a policy
that has one logit a kind. The gold rises with the count of each kind up to a
turning point and falls beyond it,

  g(c) = sum_v s_v z_v - |s_v| z_v^2 / (2 t_v),   z_v = (c_v - m_v) / d_v,

m and d mean and deviation of the counts under the reference, t_v in [2, 3], g
then mean 0 and deviation 1 there. Samples of the reference hardly show that it
turns, so proxies learnt on them push past the turning points, the smaller the
proxy the further. The KL of a policy and its mean gold are sums over kinds,
without sampling:

  KL(p | q) = L sum_v p_v log(p_v / q_v),
  E z_v = L (p_v - q_v) / d_v,   Var z_v = L p_v (1 - p_v) / d_v^2.

Everything takes one key and one problem; `jax.vmap` makes many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from rlhf_jax.types import Array, PyTree

LENGTH = 48  # tokens of an answer
KINDS = 12  # of tokens
TURNS = (2.0, 3.0)  # deviations of the reference, where the gold turns
TEMPERATURE = 0.5  # of the comparisons: p = sigmoid(difference / temperature)
SAMPLES = 256  # answers of a step of the policy


@flax.struct.dataclass
class Problem:
  """A gold, and the reference policy.

  reference: [V], logits.
  slope, turn: [V], s and t.
  mean, deviation: of the gold before it is normalised, under the reference.
  """

  reference: Array
  slope: Array
  turn: Array
  mean: Array
  deviation: Array


@flax.struct.dataclass
class Pairs:
  """Compared answers.

  counts: [N, 2, V].
  label: [N], probability that the first is better; 0 or 1.
  """

  counts: Array
  label: Array


def make(key: Array) -> Problem:
  """Returns a gold with its reference."""
  keys = jax.random.split(key, 4)
  problem = Problem(
    reference=0.5 * jax.random.normal(keys[0], (KINDS,)),
    slope=jax.random.normal(keys[1], (KINDS,)),
    turn=jax.random.uniform(
      keys[2], (KINDS,), minval=TURNS[0], maxval=TURNS[1]
    ),
    mean=jnp.zeros(()),
    deviation=jnp.ones(()),
  )
  raw = gold(problem, sample(keys[3], problem.reference, 16_384))
  mean = mean_gold(problem, problem.reference)
  return problem.replace(mean=mean, deviation=jnp.std(raw))


def sample(key: Array, logits: Array, count: int) -> Array:
  """Returns [count, V] bags of a policy with logits [V]."""
  below = jnp.cumsum(jax.nn.softmax(logits))
  draws = jax.random.uniform(key, (count, LENGTH))
  up_to = jnp.sum(draws[..., None] < below[None, None, :-1], axis=1)
  whole = jnp.full((count, 1), LENGTH)
  none = jnp.zeros((count, 1), up_to.dtype)
  return jnp.diff(jnp.concatenate([none, up_to, whole], axis=1)).astype(
    jnp.float32
  )


def standardised(problem: Problem, counts: Array) -> Array:
  """Returns z, of counts [..., V]."""
  q = jax.nn.softmax(problem.reference)
  shape = (1,) * (counts.ndim - 1) + (KINDS,)
  center = jnp.reshape(LENGTH * q, shape)
  return (counts - center) / jnp.reshape(_deviation(problem), shape)


def _deviation(problem: Problem) -> Array:
  q = jax.nn.softmax(problem.reference)
  return jnp.sqrt(LENGTH * q * (1.0 - q))


def gold(problem: Problem, counts: Array) -> Array:
  """Returns the gold [...] of bags [..., V]."""
  z = standardised(problem, counts)
  return _gold_of(problem, z, z**2)


def mean_gold(problem: Problem, logits: Array) -> Array:
  """Returns E gold of a policy with logits [V], exactly."""
  p, d = jax.nn.softmax(logits), _deviation(problem)
  z = LENGTH * (p - jax.nn.softmax(problem.reference)) / d
  return _gold_of(problem, z, z**2 + LENGTH * p * (1.0 - p) / d**2)


def _gold_of(problem: Problem, z: Array, squared: Array) -> Array:
  fall = jnp.abs(problem.slope) / (2.0 * problem.turn)
  raw = z @ problem.slope - squared @ fall
  return (raw - problem.mean) / problem.deviation


def kl(problem: Problem, logits: Array) -> Array:
  """Returns KL(policy | reference) of an answer in nats, exactly."""
  log_p = jax.nn.log_softmax(logits)
  log_q = jax.nn.log_softmax(problem.reference)
  return LENGTH * jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def compare(
  key: Array, problem: Problem, counts: Array, flips: float = 0.0
) -> Pairs:
  """Returns pairs labelled by Bradley-Terry on the gold.

  Args:
    key: of the labels.
    problem: whose gold decides.
    counts: [N, 2, V].
    flips: share of labels that are turned round besides.
  """
  keys = jax.random.split(key)
  scores = gold(problem, counts) / TEMPERATURE
  p = jax.nn.sigmoid(scores[:, 0] - scores[:, 1])
  is_first = jax.random.uniform(keys[0], p.shape) < p
  is_flipped = jax.random.uniform(keys[1], p.shape) < flips
  return Pairs(counts, (is_first ^ is_flipped).astype(jnp.float32))


# -- proxies --------------------------------------------------------------


def start_proxy(key: Array, width: int) -> PyTree:
  """Returns the weights of a proxy; width 0 is a linear one."""
  keys = jax.random.split(key)
  if not width:
    return {"linear": jnp.zeros(KINDS)}
  return {
    "inner": jax.random.normal(keys[0], (KINDS, width)) / KINDS**0.5,
    "bias": jnp.zeros(width),
    "outer": jax.random.normal(keys[1], (width,)) / width**0.5,
  }


def score(params: PyTree, problem: Problem, counts: Array) -> Array:
  """Returns raw scores [...] of bags [..., V]."""
  z = standardised(problem, counts)
  if "linear" in params:
    return z @ params["linear"]
  bias = jnp.reshape(params["bias"], (1,) * (z.ndim - 1) + (-1,))
  return jnp.tanh(z @ params["inner"] + bias) @ params["outer"]


def train_proxy(
  key: Array,
  problem: Problem,
  pairs: Pairs,
  weight: Array | None = None,
  *,
  width: int,
  steps: int = 400,
  rate: float = 0.02,
  decay: float = 1e-3,
) -> PyTree:
  """Returns a proxy learnt on all pairs at once, by Bradley-Terry.

  Args:
    key: of its first weights.
    problem: of the pairs.
    pairs: to learn.
    weight: [N] of pairs; None for 1 each.
    width: hidden units, 0 for a linear one.
    steps: of Adam, cosine to 0.
    rate: of learning.
    decay: of the weights, per unit of the learning rate.
  """
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(rate, steps), weight_decay=decay
  )
  start = start_proxy(key, width)
  weight = jnp.ones_like(pairs.label) if weight is None else weight

  def loss(params: PyTree) -> Array:
    scores = score(params, problem, pairs.counts)
    margin = scores[:, 0] - scores[:, 1]
    signed = jnp.where(pairs.label > 0.5, margin, -margin)
    return -jnp.sum(weight * jax.nn.log_sigmoid(signed)) / jnp.sum(weight)

  def one(carry: tuple, _: None) -> tuple:
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  carry, _ = jax.lax.scan(one, (start, optimizer.init(start)), None, steps)
  return carry[0]


# -- policies -------------------------------------------------------------


def optimise(
  key: Array,
  judge: Callable[[Array], Array],
  start: Array,
  *,
  steps: int = 300,
  rate: float = 0.02,
  penalty: float = 0.0,
) -> Array:
  """Returns [steps + 1, V], the logits of REINFORCE.

  Args:
    key: of the samples.
    judge: bags [N, V] -> scores [N].
    start: [V].
    steps: of Adam, SAMPLES answers each; their mean is the baseline.
    rate: of learning.
    penalty: score that a nat of KL to the start costs; 0 for no KL.
  """
  optimizer = optax.adam(rate)
  log_start = jax.nn.log_softmax(start)

  def loss(logits: Array, counts: Array, advantage: Array) -> Array:
    return -jnp.mean(advantage * (counts @ jax.nn.log_softmax(logits)))

  def one(carry: tuple, step_key: Array) -> tuple:
    logits, state = carry
    counts = sample(step_key, logits, SAMPLES)
    scores = judge(counts)
    if penalty:
      ratio = jax.nn.log_softmax(logits) - log_start
      scores = scores - penalty * (counts @ ratio)
    advantage = (scores - jnp.mean(scores)) / (jnp.std(scores) + 1e-6)
    gradient = jax.grad(loss)(logits, counts, advantage)
    updates, state = optimizer.update(gradient, state)
    logits = optax.apply_updates(logits, updates)
    return (logits, state), logits

  carry = (start, optimizer.init(start))
  _, path = jax.lax.scan(one, carry, jax.random.split(key, steps))
  return jnp.concatenate([start[None], path])


def curve(problem: Problem, path: Array) -> tuple[Array, Array]:
  """Returns (d, gold), [S] each, d = sqrt(KL), of policies [S, V]."""
  of_one = functools.partial(kl, problem)
  distance = jnp.sqrt(jnp.maximum(jax.vmap(of_one)(path), 0.0))
  return distance, jax.vmap(functools.partial(mean_gold, problem))(path)
