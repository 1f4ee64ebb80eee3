"""Reward shaping, running moments and the KL controller."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.algorithms.policy_gradient import kl_control, shaping
from rlhf_jax.types import FINISH_EOS, FINISH_LENGTH, Rollout

N, L, PROMPT = 8, 7, 2
LENGTHS = np.array([1, 5, 2, 4, 3, 5, 1, 2])
TRUNCATED = LENGTHS == 5
PLAIN = shaping.Config(clip=None)


def rollout(padding=0, seed=6, score_scale=1.0, poison=0.0):
  """Answers of 1 to 5 tokens after 2 prompt tokens, then padding."""
  rng = np.random.default_rng(seed)
  columns = np.arange(L + padding)[None] - PROMPT
  mask = ((columns >= 0) & (columns < LENGTHS[:, None])).astype(np.float32)
  logprobs = np.full((2, N, L + padding), poison, np.float32)
  drawn = -rng.uniform(0.1, 3.0, (2, N, L))
  logprobs[:, :, :L] = np.where(mask[None, :, :L] > 0, drawn, poison)
  return Rollout(
    tokens=jnp.zeros((N, L + padding), jnp.int32),
    valid_mask=jnp.asarray(columns < LENGTHS[:, None], jnp.float32),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=jnp.asarray(logprobs[0]),
    reference_logprobs=jnp.asarray(logprobs[1]),
    finish_reason=jnp.asarray(
      np.where(TRUNCATED, FINISH_LENGTH, FINISH_EOS), jnp.int32
    ),
    score=jnp.asarray(score_scale * rng.normal(1.0, 2.0, N), jnp.float32),
  )


def shape(config, beta=0.25, **kwargs):
  return shaping.shape_rewards(
    rollout(**kwargs), shaping.init_moments(), jnp.float32(beta), config
  )


def naive(data, score, beta):
  """A loop: -beta k1 on each response token, the score on the last one."""
  rewards = np.zeros((N, L))
  for row in range(N):
    for t in range(PROMPT, PROMPT + LENGTHS[row]):
      k1 = float(data.behaviour_logprobs[row, t])
      k1 -= float(data.reference_logprobs[row, t])
      rewards[row, t] = -beta * k1
    rewards[row, PROMPT + LENGTHS[row] - 1] += score[row]
  return rewards


def test_trap_02_t15_the_score_is_on_the_last_response_token():
  shaped, _, _ = shape(PLAIN)
  data = rollout()
  score = np.asarray(data.score)
  np.testing.assert_allclose(
    shaped.rewards, naive(data, score, 0.25), rtol=1e-5, atol=1e-6
  )
  without = np.asarray(shaped.rewards) - naive(data, 0 * score, 0.25)
  hit = np.abs(without) > 1e-5
  np.testing.assert_array_equal(hit.sum(1), np.ones(N))
  np.testing.assert_array_equal(hit.argmax(1), PROMPT + LENGTHS - 1)


def test_order_of_the_steps_against_a_loop():
  config = shaping.Config(
    missing_eos="replace",
    missing_eos_value=-3.0,
    length_penalty=0.5,
    length_penalty_start=2,
    normalise="standardise",
    clip=1.2,
  )
  shaped, moments, metrics = shape(config)
  data = rollout()
  raw = np.asarray(data.score, np.float64)
  score = np.where(TRUNCATED, -3.0, raw)
  penalty = 0.5 * np.maximum(LENGTHS - 2, 0)
  score = score - penalty
  np.testing.assert_allclose(moments.mean, score.mean(), rtol=1e-5)
  normal = (score - score.mean()) / score.std()
  assert (np.abs(normal) > 1.2).any()
  final = np.clip(normal, -1.2, 1.2)
  np.testing.assert_allclose(
    shaped.rewards, naive(data, final, 0.25), rtol=1e-4, atol=1e-5
  )
  k1 = np.sum(data.behaviour_logprobs - data.reference_logprobs, 1)
  expected = {
    "reward/raw": raw.mean(),
    "reward/missing_eos": (np.where(TRUNCATED, -3.0, raw) - raw).mean(),
    "reward/length_penalty": -penalty.mean(),
    "reward/shaped": final.mean(),
    "reward/kl_term": -0.25 * k1.mean(),
    "reward/total": final.mean() - 0.25 * k1.mean(),
    "reward/clip_share": (np.abs(normal) > 1.2).mean(),
    "reward/running_std": score.std(),
    "ppo/kl_coefficient": 0.25,
  }
  for name, value in expected.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_rollout_metrics_against_numpy():
  data = rollout()
  _, _, metrics = shape(PLAIN)
  k1 = np.asarray(data.behaviour_logprobs - data.reference_logprobs, np.float64)
  mask = np.asarray(data.response_mask)
  u = -k1
  expected = {
    "rollout/score_mean": np.mean(data.score),
    "rollout/score_std": np.std(data.score),
    "rollout/kl_k1_sum": k1.sum(1).mean(),
    "rollout/kl_k1_standard_error": k1.sum(1).std() / np.sqrt(N),
    "rollout/kl_k3_sum": ((np.exp(u) - 1 - u) * mask).sum(1).mean(),
    "rollout/kl_per_token": k1.sum() / mask.sum(),
    "rollout/entropy": -np.sum(data.behaviour_logprobs) / mask.sum(),
    "rollout/length_mean": LENGTHS.mean(),
    "rollout/length_p95": np.percentile(LENGTHS, 95),
    "rollout/eos_share": 6 / 8,
    "rollout/score_length_correlation": np.corrcoef(data.score, LENGTHS)[0, 1],
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  same = data.replace(score=jnp.full(N, 3.0))
  found = shaping.rollout_metrics(same)["rollout/score_length_correlation"]
  assert found == 0.0  # no score varies


@pytest.mark.parametrize("mode", ["keep", "replace", "subtract", "mask"])
def test_trap_03_missing_eos_touches_truncated_rows_only(mode):
  said = {
    "replace": {"missing_eos_value": -9.0},
    "subtract": {"missing_eos_penalty": 4.0},
  }
  config = dataclasses.replace(PLAIN, missing_eos=mode, **said.get(mode, {}))
  shaped, moments, metrics = shape(config)
  plain, _, _ = shape(PLAIN)
  rows = np.flatnonzero(TRUNCATED)
  last = PROMPT + LENGTHS[rows] - 1
  change = np.asarray(shaped.rewards - plain.rewards)
  np.testing.assert_array_equal(change[~TRUNCATED], 0)
  score = np.asarray(rollout().score)[rows]
  expected = {"keep": 0 * score, "replace": -9.0 - score, "subtract": -4.0}
  if mode == "mask":
    assert not np.asarray(shaped.rewards)[rows].any()
    assert not np.asarray(shaped.response_mask)[rows].any()
    assert moments.count == 6
    np.testing.assert_allclose(metrics["reward/kept_share"], 0.75)
    np.testing.assert_allclose(
      metrics["reward/raw"], np.mean(rollout().score[~TRUNCATED]), rtol=1e-5
    )
  else:
    np.testing.assert_allclose(
      change[rows, last], expected[mode], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(shaped.response_mask, rollout().response_mask)
  np.testing.assert_allclose(metrics["rollout/length_mean"], LENGTHS.mean())
  np.testing.assert_allclose(metrics["rollout/eos_share"], 0.75)


@pytest.mark.parametrize("poison", [0.0, 1e6, np.nan, -np.inf])
def test_trap_03_10_11_27_padding_changes_nothing(poison):
  config = shaping.Config(normalise="scale")
  plain, wide = shape(config), shape(config, padding=100, poison=poison)
  np.testing.assert_allclose(wide[0].rewards[:, :L], plain[0].rewards)
  assert not np.asarray(wide[0].rewards[:, L:]).any()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), wide[2], plain[2]
  )


def test_trap_12_statistics_are_global_over_8_devices():
  config = shaping.Config(normalise="standardise", missing_eos="mask")
  rows = NamedSharding(
    Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
  )
  sharded = jax.tree.map(lambda x: jax.device_put(x, rows), rollout())
  run = jax.jit(shaping.shape_rewards, static_argnames="config")
  found = run(sharded, shaping.init_moments(), jnp.float32(0.25), config=config)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found,
    shape(config),
  )


def test_trap_18_zero_is_a_value():
  shaped, _, metrics = shape(PLAIN, beta=0.0)
  data = rollout()
  np.testing.assert_allclose(
    shaped.rewards, naive(data, np.asarray(data.score), 0.0), rtol=1e-6
  )
  assert metrics["ppo/kl_coefficient"] == 0
  shaped, _, _ = shape(PLAIN, score_scale=0.0)
  np.testing.assert_allclose(
    shaped.rewards, naive(data, np.zeros(N), 0.25), rtol=1e-5, atol=1e-6
  )
  replaced = dataclasses.replace(
    PLAIN, missing_eos="replace", missing_eos_value=0.0
  )
  found = np.asarray(shape(replaced, beta=0.0)[0].rewards)
  assert not found[TRUNCATED].any() and found[~TRUNCATED].any(1).all()
  fixed = shaping.Config(kl_coefficient=0.0, kl_controller="fixed")
  assert kl_control.update_kl_coefficient(0.0, 3.0, 64, fixed) == 0


def test_moments_of_batches_are_the_moments_of_all():
  rng = np.random.default_rng(7)
  parts = [rng.normal(100.0 * i, 3.0, 5 + i) for i in range(4)]
  moments = shaping.init_moments()
  for part in parts:
    padded = np.append(part, np.nan).astype(np.float32)
    mask = np.append(np.ones(len(part)), 0.0).astype(np.float32)
    moments = shaping.update_moments(moments, padded, mask)
  everything = np.concatenate(parts)
  assert moments.count == len(everything)
  np.testing.assert_allclose(moments.mean, everything.mean(), rtol=1e-5)
  np.testing.assert_allclose(
    shaping.standard_deviation(moments), everything.std(), rtol=1e-5
  )


def test_t21_normalised_rewards_do_not_see_the_scale_of_the_score():
  config = shaping.Config(normalise="standardise")
  a, b = (shape(config, score_scale=s)[0].rewards for s in (1.0, 100.0))
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("kl", "multiplier"),
  [(9.0, 1.02048), (6.6, 1.01024), (6.0, 1.0), (0.0, 0.97952), (-99, 0.97952)],
)
def test_t06_adaptive_controller(kl, multiplier):
  found = kl_control.update_kl_coefficient(0.5, kl, 1024, shaping.Config())
  np.testing.assert_allclose(found, 0.5 * multiplier, rtol=1e-6)


def test_t06_the_coefficient_never_turns_negative():
  with pytest.raises(ValueError, match=r"kl_horizon=10000.0: with 50000"):
    kl_control.update_kl_coefficient(0.5, 0.0, 50_000, shaping.Config())


def test_trap_16_kl_is_checked_on_both_sides():
  config = shaping.Config()
  assert kl_control.check_kl(14.9, config) == "ok"
  assert kl_control.check_kl(15.1, config) == "warn"
  assert kl_control.check_kl(20.1, config) == "halt"
  assert kl_control.check_kl(float("nan"), config) == "halt"
  assert kl_control.check_kl(-0.5, config, standard_error=0.6) == "ok"
  assert kl_control.check_kl(-0.5, config, standard_error=0.4) == "warn"
  data = rollout()
  swapped = data.replace(
    behaviour_logprobs=data.reference_logprobs,
    reference_logprobs=data.reference_logprobs + data.response_mask,
  )
  metrics = shaping.rollout_metrics(swapped)
  np.testing.assert_allclose(metrics["rollout/kl_per_token"], -1.0, rtol=1e-5)
  # u = 1 on each token: e - 1 - 1.
  np.testing.assert_allclose(
    metrics["rollout/kl_k3_sum"], (np.e - 2) * LENGTHS.mean(), rtol=1e-5
  )


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"missing_eos": "drop"}, "missing_eos='drop': must be one of keep"),
    ({"missing_eos_value": -2.0}, "missing_eos_value=-2.0: nothing reads it"),
    (
      {"missing_eos": "replace", "missing_eos_penalty": 2.0},
      "missing_eos_penalty=2.0: nothing reads it with missing_eos='replace'",
    ),
    ({"length_penalty_start": 9}, "nothing reads it with length_penalty=0.0"),
    ({"overlong_penalty": 0.5}, "nothing reads it with overlong_tokens=None"),
    ({"token_coefficient": 0.5}, "nothing reads it with token_rewards='none'"),
    ({"normalise": "whiten"}, "normalise='whiten'"),
    ({"clip": 0.0}, "clip=0.0: must be > 0. Set None"),
    ({"kl_coefficient": -0.1}, "kl_coefficient=-0.1: must be >= 0"),
    ({"kl_target": 0.0}, "kl_target=0.0: must be > 0"),
    ({"warn_nats": 30.0}, "warn_nats=30.0 > halt_nats=20.0"),
  ],
)
def test_config_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    shaping.Config(**settings)


def test_packed_rollouts_are_refused():
  data = rollout().replace(segment_ids=jnp.ones((N, L), jnp.int32))
  with pytest.raises(ValueError, match="Shape rewards first"):
    shaping.shape_rewards(data, shaping.init_moments(), 0.1, PLAIN)
