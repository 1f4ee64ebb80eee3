"""GAE and the PPO losses: hand-computed numbers, loops and limiting cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.algorithms.policy_gradient import objectives, ppo, shaping
from rlhf_jax.types import Rollout

N, L = 8, 6
LENGTHS = np.array([1, 4, 2, 3, 4, 1, 2, 3])


def fields(seed=8, padding=0):
  """Random fields; NaN wherever the response mask is 0."""
  rng = np.random.default_rng(seed)
  columns = np.arange(L)[None] - 2
  mask = ((columns >= 0) & (columns < LENGTHS[:, None])).astype(np.float32)
  names = ("old", "new", "entropy", "value", "old_value", "reward", "advantage")
  data = {name: rng.normal(0, 0.5, (N, L)) for name in names}
  data = {k: np.where(mask > 0, x, np.nan) for k, x in data.items()}
  data["mask"] = mask
  return {
    k: jnp.asarray(
      np.pad(
        x, ((0, 0), (0, padding)), constant_values=0 if k == "mask" else np.nan
      ),
      jnp.float32,
    )
    for k, x in data.items()
  }


def rollout_of(data, **kwargs):
  length = data["mask"].shape[1]
  return Rollout(
    tokens=jnp.zeros((N, length), jnp.int32),
    valid_mask=jnp.ones((N, length)),
    response_mask=data["mask"],
    behaviour_logprobs=data["old"],
    finish_reason=jnp.zeros(N, jnp.int32),
    reference_logprobs=data["old"],
    score=jnp.zeros(N),
    values=data["old_value"],
    rewards=data["reward"],
  ).replace(**kwargs)


def ready(config=None, **kwargs):
  config = ppo.Config() if config is None else config
  data = fields(**kwargs)
  return data, ppo.advantages(rollout_of(data), config)


def run(data, rollout, config):
  counts = ppo.denominators(rollout, config)
  return ppo.loss(
    data["new"], data["entropy"], data["value"], rollout, config, counts
  )


def gae_by_double_sum(reward, value, mask, gamma, lam):
  """A_t = sum_l (gamma lambda)^l delta_{t+l} over the counted tokens."""
  result = np.zeros(mask.shape)
  for row in range(len(mask)):
    places = np.flatnonzero(mask[row])
    for i, t in enumerate(places):
      for j in range(i, len(places)):
        here = places[j]
        after = value[row, places[j + 1]] if j + 1 < len(places) else 0.0
        delta = reward[row, here] + gamma * after - value[row, here]
        result[row, t] += (gamma * lam) ** (j - i) * delta
  return result


def test_trap_02_gae_of_three_tokens_by_hand():
  # One prompt token, three response tokens, one of padding; beta = 0.1, k1 =
  # 1, -1, 0.5; score 2 on the third. Rewards -0.1, 0.1, -0.05 + 2.
  # Values 0.5, 1, 1.5; gamma 1, lambda 0.5:
  # delta = -0.1 + 1 - 0.5, 0.1 + 1.5 - 1, 1.95 - 1.5 = 0.4, 0.6, 0.45.
  # A = 0.4 + 0.5 * 0.825, 0.6 + 0.5 * 0.45, 0.45 = 0.8125, 0.825, 0.45.
  mask = jnp.array([[0.0, 1, 1, 1, 0]])
  rollout = Rollout(
    tokens=jnp.zeros((1, 5), jnp.int32),
    valid_mask=jnp.array([[1.0, 1, 1, 1, 0]]),
    response_mask=mask,
    behaviour_logprobs=jnp.array([[0.0, -1, -2, -0.5, 0]]),
    finish_reason=jnp.zeros(1, jnp.int32),
    reference_logprobs=jnp.array([[0.0, -2, -1, -1.0, 0]]),
    score=jnp.array([2.0]),
    values=jnp.array([[9.0, 0.5, 1, 1.5, 9]]),
  )
  rollout, _, _ = shaping.shape_rewards(
    rollout, shaping.init_moments(), 0.1, shaping.Config()
  )
  np.testing.assert_allclose(
    rollout.rewards, [[0, -0.1, 0.1, 1.95, 0]], atol=1e-6
  )
  config = ppo.Config(gae_lambda=0.5, whitens_advantages=False)
  rollout = ppo.advantages(rollout, config)
  np.testing.assert_allclose(
    rollout.advantages, [[0, 0.8125, 0.825, 0.45, 0]], atol=1e-6
  )
  np.testing.assert_allclose(
    rollout.returns, [[0, 1.3125, 1.825, 1.95, 0]], atol=1e-6
  )


@pytest.mark.parametrize(
  ("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0)]
)
def test_t04_gae_against_a_double_sum(gamma, lam):
  data = fields()
  mask = np.array(data["mask"])
  mask[[1, 4], 3] = 0.0  # a tool's output in the middle of two answers
  found = ppo.gae(
    data["reward"],
    data["old_value"],
    jnp.asarray(mask),
    discount=gamma,
    gae_lambda=lam,
  )
  reward, value = (
    np.asarray(data[k], np.float64) for k in ("reward", "old_value")
  )
  np.testing.assert_allclose(
    found, gae_by_double_sum(reward, value, mask, gamma, lam), atol=1e-6
  )


def test_t04_lambda_1_is_reward_to_go_minus_value_and_0_is_delta():
  data, mc = ready(ppo.Config(gae_lambda=1.0, whitens_advantages=False))
  mask = np.asarray(data["mask"]) > 0
  reward = np.where(mask, data["reward"], 0)
  to_go = np.cumsum(reward[:, ::-1], 1)[:, ::-1]
  np.testing.assert_allclose(
    np.asarray(mc.returns)[mask], to_go[mask], atol=1e-6
  )
  _, td = ready(ppo.Config(gae_lambda=0.0, whitens_advantages=False))
  last = LENGTHS + 1
  rows = np.arange(N)
  delta = np.asarray(data["reward"] - data["old_value"])[rows, last]
  np.testing.assert_allclose(
    np.asarray(td.advantages)[rows, last], delta, atol=1e-6
  )


def test_t04_a_perfect_critic_has_advantages_of_mean_0():
  rng = np.random.default_rng(9)
  rows = 4000
  reward = rng.normal(size=(rows, 3)).astype(np.float32)
  found = ppo.gae(
    jnp.asarray(reward + np.array([1.0, 2, 3], np.float32)),
    jnp.tile(jnp.array([6.0, 5.0, 3.0]), (rows, 1)),
    jnp.ones((rows, 3)),
    discount=1.0,
    gae_lambda=0.95,
  )
  error = np.std(found, 0) / np.sqrt(rows)
  assert np.all(np.abs(np.mean(found, 0)) < 4 * error)


def test_advantages_are_whitened_and_returns_are_not():
  data, plain = ready(ppo.Config(whitens_advantages=False))
  _, white = ready()
  kept = np.asarray(data["mask"]) > 0
  np.testing.assert_array_equal(white.returns, plain.returns)
  x = np.asarray(plain.advantages, np.float64)[kept]
  np.testing.assert_allclose(
    np.asarray(white.advantages)[kept], (x - x.mean()) / x.std(), atol=1e-5
  )


def naive_loss(data, rollout, config):
  """A loop over tokens, in float64."""
  d = {k: np.asarray(x, np.float64) for k, x in data.items()}
  returns = np.asarray(rollout.returns, np.float64)
  advantage = np.asarray(rollout.advantages, np.float64)
  high = config.clip_ratio_high
  high = config.clip_ratio if high is None else high
  policy = value = entropy = 0.0
  for n, t in np.argwhere(d["mask"] > 0):
    a = advantage[n, t]
    ratio = np.exp(d["new"][n, t] - d["old"][n, t])
    clipped = min(max(ratio, 1 - config.clip_ratio), 1 + high)
    term = max(-a * ratio, -a * clipped)
    if config.dual_clip is not None and a < 0:
      term = min(term, -config.dual_clip * a)
    policy += term
    v, old, r = d["value"][n, t], d["old_value"][n, t], returns[n, t]
    near = old + np.clip(v - old, -config.value_clip, config.value_clip)
    value += 0.5 * max((v - r) ** 2, (near - r) ** 2)
    entropy += d["entropy"][n, t]
  count = d["mask"].sum()
  total = policy + config.value_coefficient * value
  total -= config.entropy_coefficient * entropy
  return total / count, policy / count, value / count


@pytest.mark.parametrize(
  "config",
  [
    ppo.Config(),
    ppo.Config(
      clip_ratio=0.1,
      clip_ratio_high=0.3,
      dual_clip=1.5,
      value_clip=0.05,
      value_coefficient=0.7,
      entropy_coefficient=0.3,
    ),
  ],
)
def test_loss_against_a_loop(config):
  data, rollout = ready(config)
  total, metrics = run(data, rollout, config)
  expected = naive_loss(data, rollout, config)
  np.testing.assert_allclose(total, expected[0], rtol=1e-5)
  np.testing.assert_allclose(metrics["ppo/policy_loss"], expected[1], rtol=1e-5)
  np.testing.assert_allclose(metrics["ppo/value_loss"], expected[2], rtol=1e-5)
  jitted, _ = jax.jit(run, static_argnums=2)(data, rollout, config)
  np.testing.assert_allclose(total, jitted, rtol=1e-6)


def test_metrics_by_hand():
  log_two = float(np.log(2.0))
  difference = jnp.array([[log_two, log_two, -log_two, -log_two, 0.0]])
  metrics = objectives.ratio_metrics(
    difference,
    jnp.array([[1.0, -1.0, 1.0, -1.0, 3.0]]),
    jnp.array([[1.0, 1.0, 1.0, 1.0, 0.0]]),
    jnp.float32(4.0),
    clip_ratio=0.2,
  )
  expected = {
    "ppo/clip_fraction_high": 0.25,
    "ppo/clip_fraction_low": 0.25,
    "ppo/ratio_mean": 1.25,
    "ppo/ratio_max": 2.0,
    "ppo/ratio_error_max": 1.0,
    "ppo/approximate_kl": ((1 - log_two) + (log_two - 0.5)) / 2,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_trap_08_t03_at_ratio_1_the_gradient_is_the_policy_gradient():
  config = ppo.Config(value_coefficient=0.0)
  data, rollout = ready(config)

  def total(new):
    return run(data | {"new": new}, rollout, config)

  (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(data["old"])
  expected = -rollout.advantages * data["mask"] / data["mask"].sum()
  np.testing.assert_allclose(gradient, expected, atol=1e-7)
  for name in (
    "approximate_kl",
    "clip_fraction_high",
    "clip_fraction_low",
    "ratio_error_max",
  ):
    assert metrics[f"ppo/{name}"] == 0, name


def test_trap_27_masked_positions_get_no_gradient():
  config = ppo.Config(entropy_coefficient=0.1)
  data, rollout = ready(config)

  def total(new, entropy, value):
    changed = data | {"new": new, "entropy": entropy, "value": value}
    return run(changed, rollout, config)[0]

  gradients = jax.grad(total, argnums=(0, 1, 2))(
    data["new"], data["entropy"], data["value"]
  )
  for gradient in gradients:
    gradient = np.asarray(gradient)
    assert np.all(gradient[np.asarray(data["mask"]) == 0] == 0)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
  share = -0.1 / np.sum(data["mask"]) * data["mask"]
  np.testing.assert_allclose(gradients[1], share, rtol=1e-6)


def test_trap_10_11_100_columns_of_padding_change_nothing():
  config = ppo.Config(entropy_coefficient=0.1)
  plain = run(*ready(config), config)
  wide = run(*ready(config, padding=100), config)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, wide
  )


def test_trap_32_no_gradient_reaches_what_a_rollout_fixed():
  config = ppo.Config()
  data, rollout = ready(config)

  def total(values, advantages, returns):
    fixed = rollout.replace(
      values=values, advantages=advantages, returns=returns
    )
    return run(data, fixed, config)[0]

  gradients = jax.grad(total, argnums=(0, 1, 2))(
    rollout.values, rollout.advantages, rollout.returns
  )
  assert not any(np.asarray(g).any() for g in gradients)


def test_trap_12_sharded_advantages_are_whitened_globally():
  data = fields()
  rows = NamedSharding(
    Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
  )
  sharded = jax.tree.map(lambda x: jax.device_put(x, rows), rollout_of(data))
  run_jit = jax.jit(ppo.advantages, static_argnums=1)
  found = run_jit(sharded, ppo.Config())
  np.testing.assert_allclose(found.advantages, ready()[1].advantages, atol=1e-5)


def test_trap_34_aggregation_of_packed_rows():
  """Two answers per row, end to end, give the loss of one answer per row."""
  for mode, tokens in (("token-mean", None), ("seq-mean-token-mean", None)):
    config = ppo.Config(aggregation=mode, aggregation_tokens=tokens)
    data, rollout = ready(config)
    plain = run(data, rollout, config)

    def pack(x):
      return x.reshape(N // 2, 2 * L)

    segments = pack(jnp.tile(jnp.arange(1, 3)[:, None], (N // 2, L)))
    token_level = {
      k: pack(getattr(rollout, k))
      for k in (
        "tokens",
        "response_mask",
        "behaviour_logprobs",
        "values",
        "advantages",
        "returns",
      )
    }
    packed = rollout.replace(segment_ids=segments, **token_level)
    found = run({k: pack(x) for k, x in data.items()}, packed, config)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, found
    )


def test_trap_20_shapes_and_missing_fields_are_refused():
  config = ppo.Config()
  data, rollout = ready(config)
  with pytest.raises(ValueError, match=r"shapes differ.*values=\(8, 1\)"):
    run(data | {"value": data["value"][:, :1]}, rollout, config)
  with pytest.raises(ValueError, match="PPO trains a critic"):
    run(data | {"value": None}, rollout, config)
  with pytest.raises(ValueError, match="rollout.values is None"):
    ppo.advantages(rollout.replace(values=None), config)
  with pytest.raises(ValueError, match="pack afterwards"):
    ppo.advantages(rollout.replace(segment_ids=rollout.tokens), config)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"clip_ratio": 0.0}, "clip_ratio=0.0: must be in"),
    ({"dual_clip": 1.0}, "dual_clip=1.0: must be > 1"),
    ({"value_clip": 0.0}, "value_clip=0.0: must be > 0, or None"),
    ({"gae_lambda": 1.1}, "gae_lambda=1.1"),
    ({"aggregation": "mean"}, "aggregation='mean'"),
    ({"entropy_coefficient": -1.0}, "entropy_coefficient=-1.0"),
  ],
)
def test_config_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    ppo.Config(**settings)
