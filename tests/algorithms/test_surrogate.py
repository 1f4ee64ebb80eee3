"""The loss without a critic against a loop, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import aggregate
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  objectives,
  ppo,
  surrogate,
  update,
)
from rlhf_jax.types import TrainState
from tests.algorithms import answers

NEW, ENTROPY = answers.field(11), answers.field(12)
ADVANTAGES = answers.field(13)
WEIGHTS = np.abs(answers.field(14))


def ready(**changes):
  return answers.rollout(advantages=ADVANTAGES, **changes)


def run(config, new=NEW, entropy=ENTROPY, data=None):
  data = ready() if data is None else data
  counts = surrogate.denominators(data, config)
  return surrogate.loss(new, entropy, None, data, config, counts)


def policy_term(config, a, new, old, mean_difference):
  """S of one token."""
  high = config.clip_ratio_high
  high = config.clip_ratio if high is None else high
  low, high = 1 - config.clip_ratio, 1 + high
  if config.objective == "reinforce":
    return -a * new
  if config.objective == "cispo":
    return -a * new * min(max(np.exp(new - old), low), high)
  ratio = np.exp(mean_difference if config.objective == "gspo" else new - old)
  return max(-a * ratio, -a * min(max(ratio, low), high))


def kl_term(config, new, old, reference):
  """K of one token, with its ratio."""
  if config.kl_loss == "none":
    return 0.0
  u = reference - new
  value = u * u / 2 if config.kl_loss == "k2" else np.exp(u) - 1 - u
  return value * (np.exp(new - old) if config.has_kl_loss_ratio else 1.0)


def naive(config, data):
  """A loop over answers and tokens in float64."""
  total = {mode: 0.0 for mode in aggregate.MODES}
  new, old, reference, a, entropy = (
    np.asarray(x, np.float64)
    for x in (
      NEW,
      data.behaviour_logprobs,
      data.reference_logprobs,
      data.advantages,
      ENTROPY,
    )
  )
  weights = data.importance_weights
  weights = np.ones_like(new) if weights is None else np.asarray(weights)
  for n in range(answers.N):
    span = range(answers.PROMPT, answers.PROMPT + answers.LENGTHS[n])
    mean = np.mean([new[n, t] - old[n, t] for t in span])
    for t in span:
      term = policy_term(config, a[n, t], new[n, t], old[n, t], mean)
      term += config.kl_loss_coefficient * kl_term(
        config, new[n, t], old[n, t], reference[n, t]
      )
      term = term * weights[n, t] - config.entropy_coefficient * entropy[n, t]
      total["token-mean"] += term / answers.MASK.sum()
      total["seq-mean-token-mean"] += term / len(span) / answers.N
      total["seq-mean-token-sum"] += term / answers.N
      total["seq-sum-const"] += term / answers.N / 9
  return total[config.aggregation]


def settings(objective, kl_loss, mode, **kwargs):
  return surrogate.Config(
    objective=objective,
    kl_loss=kl_loss,
    kl_loss_coefficient=0.0 if kl_loss == "none" else 0.7,
    aggregation=mode,
    aggregation_tokens=9 if mode == "seq-sum-const" else None,
    **kwargs,
  )


CASES = [
  settings("ppo", "k3", "seq-mean-token-mean"),
  settings("ppo", "none", "seq-sum-const", clip_ratio_high=0.4),
  settings("gspo", "k2", "seq-mean-token-mean", clip_ratio=0.05),
  settings("cispo", "k3+", "token-mean", clip_ratio=1.0, clip_ratio_high=0.1),
  settings("reinforce", "k2", "seq-mean-token-sum", has_kl_loss_ratio=False),
  settings("ppo", "k3", "token-mean", entropy_coefficient=0.3),
]


@pytest.mark.parametrize("config", CASES)
def test_trap_34_loss_against_a_loop(config):
  for data in (ready(), ready(importance_weights=WEIGHTS)):
    total, _ = run(config, data=data)
    np.testing.assert_allclose(total, naive(config, data), rtol=1e-5)


@pytest.mark.parametrize("config", CASES[:4])
def test_packed_and_padded_rows_give_the_same_loss(config):
  plain = run(config)
  packed = run(
    config,
    answers.pack(NEW),
    answers.pack(ENTROPY),
    answers.packed(ready()),
  )
  wide = functools.partial(answers.field, padding=100)
  padded = answers.rollout(padding=100, advantages=wide(13))
  padded = run(config, wide(11), wide(12), padded)
  for other in (packed, padded):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      plain,
      other,
    )


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_t03_trap_08_at_ratio_1_all_objectives_are_the_policy_gradient(
  objective,
):
  data = ready()
  config = surrogate.Config(
    objective=objective, aggregation="seq-mean-token-mean"
  )

  def total(new):
    return run(config, new, data=data)

  (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(
    data.behaviour_logprobs
  )
  lengths = answers.LENGTHS[:, None]
  kept = np.where(answers.MASK > 0, ADVANTAGES, 0.0)
  expected = -kept / lengths / answers.N
  np.testing.assert_allclose(gradient, expected, atol=1e-7)
  for name in (
    "approximate_kl",
    "clip_fraction_high",
    "clip_fraction_low",
    "ratio_error_max",
  ):
    assert metrics[f"ppo/{name}"] == 0, name


def test_trap_27_masked_positions_get_no_gradient():
  for config in CASES:
    gradients = jax.grad(
      lambda new, h, config=config: run(config, new, h)[0], argnums=(0, 1)
    )(NEW, ENTROPY)
    for gradient in gradients:
      assert np.isfinite(gradient).all()
      assert not np.asarray(gradient)[answers.MASK == 0].any()
    assert np.abs(gradients[0]).max() > 0
    # Each counted token's entropy has its share of the average.
    share = -config.entropy_coefficient / answers.MASK.sum() * answers.MASK
    np.testing.assert_allclose(gradients[1], share, rtol=1e-6)


def test_trap_32_no_gradient_reaches_what_a_rollout_fixed():
  config = settings("cispo", "k3", "token-mean")

  def total(advantages, reference, weights):
    data = ready().replace(
      advantages=advantages,
      reference_logprobs=reference,
      importance_weights=weights,
    )
    return run(config, data=data)[0]

  gradients = jax.grad(total, argnums=(0, 1, 2))(
    ADVANTAGES, answers.field(2), WEIGHTS
  )
  assert not any(np.nan_to_num(g).any() for g in gradients)


def test_straight_through_has_the_value_of_k3_and_the_gradient_of_k2():
  one = jnp.ones((1, 1))

  def penalty(kind):
    return jax.value_and_grad(
      lambda x: surrogate.kl_penalty(x * one, -0.5 * one, one, kind)[0, 0]
    )(-1.25)

  # u = 0.75: k2 = 0.28125, slope -u; k3 = e^0.75 - 1.75, slope 1 - e^0.75.
  grown = float(np.exp(0.75))
  np.testing.assert_allclose(penalty("k2"), (0.28125, -0.75), rtol=1e-6)
  np.testing.assert_allclose(
    penalty("k3"), (grown - 1.75, 1 - grown), rtol=1e-6
  )
  np.testing.assert_allclose(penalty("k3+"), (grown - 1.75, -0.75), rtol=1e-6)


def test_trap_15_off_policy_the_ratio_restores_the_gradient_of_the_kl():
  """All arms once, drawn from p_old: weights p_old, ratio p / p_old."""
  arms = 5
  rng = np.random.default_rng(15)
  old, start, reference = (
    jax.nn.log_softmax(jnp.asarray(rng.normal(size=arms), jnp.float32))
    for _ in range(3)
  )
  column = jnp.arange(arms)[:, None]
  data = answers.rollout()
  data = data.replace(
    tokens=column,
    response_mask=jnp.ones((arms, 1)),
    behaviour_logprobs=old[column],
    reference_logprobs=reference[column],
    advantages=jnp.zeros((arms, 1)),
    importance_weights=arms * jnp.exp(old)[column],
  )

  def gradient(kl_loss, has_ratio):
    config = settings("ppo", kl_loss, "token-mean", has_kl_loss_ratio=has_ratio)

    def total(z):
      new = jax.nn.log_softmax(z)[column]
      return run(config, new, jnp.zeros((arms, 1)), data)[0]

    return jax.grad(total)(start)

  def forward(z):
    new = jax.nn.log_softmax(z)
    return 0.7 * jnp.sum(jnp.exp(new) * (new - reference))

  def backward(z):
    return 0.7 * jnp.sum(jnp.exp(reference) * -jax.nn.log_softmax(z))

  np.testing.assert_allclose(
    gradient("k2", True), jax.grad(forward)(start), atol=1e-6
  )
  np.testing.assert_allclose(
    gradient("k3", True), jax.grad(backward)(start), atol=1e-6
  )
  gap = gradient("k2", False) - jax.grad(forward)(start)
  assert np.abs(gap).max() > 0.02


def test_trap_13_25_update_runs_without_a_critic():
  """Through update.update: microbatches and minibatches change no metric."""
  data = grpo.advantages(answers.rollout(), grpo.Config(group_size=3))
  mask = data.response_mask
  data = data.replace(hidden={"x": jnp.where(mask > 0, NEW, 0.0)})

  def net(params, frozen, rows):
    del frozen
    logprobs = params["policy"] * rows.hidden["x"]
    return logprobs, jnp.zeros_like(logprobs), None

  def step(epochs, microbatches):
    optimizer = optax.sgd(0.1)
    params = {"policy": jnp.float32(0.9)}
    state = TrainState(
      jnp.int32(0), params, optimizer.init(params), jnp.int32(0)
    )
    return jax.jit(
      functools.partial(
        update.update,
        algorithm=grpo,
        algorithm_config=grpo.Config(group_size=3, update_kl_limit=1e3),
        config=update.Config(epochs, 1, microbatches),
        apply=net,
        optimizer=optimizer,
      )
    )(state, {}, data, jax.random.key(0))

  one, six = step(2, 1), step(2, 6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), one, six
  )
  state, metrics = one
  assert state.step == 2 and state.params["policy"] != 0.9
  assert metrics["ppo/epochs"] == 2 and "ppo/kl_loss" in metrics
  assert (
    "ppo/value_loss" not in metrics and "ppo/explained_variance" not in metrics
  )


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"kl_loss": "k1"}, "kl_loss='k1': .*expected gradient of 0"),
    ({"kl_loss": "kl"}, "kl_loss='kl': must be one of none, k2, k3, k3+"),
    ({"kl_loss": "k2"}, "kl_loss_coefficient=0.0: does not agree with"),
    ({"kl_loss_coefficient": 0.1}, "kl_loss_coefficient=0.1: does not agree"),
    (
      {"kl_loss": "k2", "kl_loss_coefficient": -1.0},
      "kl_loss_coefficient=-1.0: must be >= 0",
    ),
    ({"objective": "trpo"}, "objective='trpo': must be one of"),
    ({"clip_ratio": 1.5}, r"clip_ratio=1.5: must be in \(0, 1\]"),
    ({"dual_clip": 0.5}, "dual_clip=0.5: must be > 1"),
    ({"dual_clip": 3.0, "objective": "cispo"}, "dual_clip=3.0: objective="),
    ({"update_kl_limit": 0.0}, "update_kl_limit=0.0: must be > 0"),
    ({"entropy_coefficient": -0.1}, "entropy_coefficient=-0.1"),
    ({"aggregation": "mean"}, "aggregation='mean'"),
  ],
)
def test_config_errors(kwargs, message):
  with pytest.raises(ValueError, match=message):
    surrogate.Config(**kwargs)


def test_trap_20_values_and_wrong_shapes_are_refused():
  config = surrogate.Config()
  data = ready()
  counts = surrogate.denominators(data, config)
  with pytest.raises(ValueError, match="trains no critic"):
    surrogate.loss(NEW, ENTROPY, NEW, data, config, counts)
  with pytest.raises(ValueError, match=r"shapes differ.*entropies=\(6, 1\)"):
    run(config, NEW, ENTROPY[:, :1])
  with pytest.raises(ValueError, match=r"importance_weights=\(6, 1\)"):
    run(config, data=ready(importance_weights=WEIGHTS[:, :1]))


def test_ppo_takes_importance_weights_too():
  config = ppo.Config(entropy_coefficient=0.2)
  data = ready(values=0 * ADVANTAGES, returns=ADVANTAGES)

  def total(weights):
    rows = data.replace(importance_weights=weights)
    counts = ppo.denominators(rows, config)
    return ppo.loss(NEW, ENTROPY, ADVANTAGES, rows, config, counts)

  plain, metrics = total(None)
  once, _ = total(jnp.ones_like(NEW))
  twice, doubled = total(2 * jnp.ones_like(NEW))
  np.testing.assert_allclose(plain, once, rtol=1e-6)
  np.testing.assert_allclose(
    twice - plain, metrics["ppo/policy_loss"], rtol=1e-4, atol=1e-6
  )
  assert doubled["ppo/value_loss"] == metrics["ppo/value_loss"]
