"""The score stage: one shared pass, separate passes, prefixes one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.models import policy_value, trees
from rlhf_jax.programs import actors
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import FINISH_LENGTH
from tests.pipelines import tiny_runs


def load(config):
  """Returns the actors of a configuration."""
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  targets = settings.row_targets(1, "einsum")
  return actors.load(settings, base, world, targets, settings.value)


@pytest.fixture(scope="module")
def cast(files, sft_lora, reward_head):
  """Returns the actors of the LoRA run and samples to judge."""
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  config.monitors = {"again": str(reward_head)}
  found = load(config)
  return found, tiny_runs.load_samples(sft_lora / "samples.npz")


def critic(found):
  return trees.merge(found.params["value"], found.frozen["value"])


@functools.cache
def program(plan):
  return judge.make_judge(plan)


def judged(found, samples, plan, layout=None):
  return program(plan)(found.weights, critic(found), samples, layout)


def test_a_shared_trunk_and_packed_rows_change_no_number(cast):
  found, samples = cast
  assert found.plan.shared == {
    "policy",
    "reference",
    "value",
    "reward",
    "again",
  }
  alone = dataclasses.replace(found.plan, shared=frozenset())
  expected, expected_scores = judged(found, samples, alone)
  assert expected.hidden == {}
  wide = dataclasses.replace(found.plan, row_targets=30)
  layout = packing.plan(samples, packing.Shape(30, 30, 8, 8))
  assert layout.cell.shape[0] < len(samples.tokens)
  for plan, where in ((found.plan, None), (wide, layout)):
    rollout, scores = judged(found, samples, plan, where)
    for name in ("reference_logprobs", "values", "score"):
      np.testing.assert_allclose(
        getattr(rollout, name),
        getattr(expected, name),
        atol=2e-5,
        err_msg=name,
      )
    for name, values in expected_scores.items():
      np.testing.assert_allclose(scores[name], values, atol=2e-5)
    for name in vars(samples):
      np.testing.assert_array_equal(
        getattr(rollout, name), getattr(samples, name)
      )
    assert sorted(rollout.hidden) == ["policy", "value"]


def test_the_update_reads_the_kept_stream_as_it_reads_tokens(cast):
  """rollout.hidden, computed once, gives the log-probs of a whole forward."""
  found, samples = cast
  shared, _ = judged(found, samples, found.plan)
  alone, _ = judged(
    found, samples, dataclasses.replace(found.plan, shared=frozenset())
  )
  apply = jax.jit(
    functools.partial(
      policy_value.policy_and_value,
      policy=found.plan.policy,
      value=found.plan.value,
      temperature=found.plan.temperature,
      targets=found.plan.row_targets,
      is_unembedding_frozen=True,
    )
  )
  outputs = [
    apply(found.params, found.frozen, rollout) for rollout in (shared, alone)
  ]
  mask = np.asarray(samples.response_mask) > 0
  for kept, recomputed in zip(*outputs, strict=True):
    np.testing.assert_allclose(
      np.asarray(kept)[mask], np.asarray(recomputed)[mask], atol=2e-5
    )


def test_values_are_the_scores_of_prefixes(cast):
  """values[n, t] judges what stands before token t (invariant 1)."""
  found, samples = cast
  rollout, _ = judged(found, samples, found.plan)
  (_, scorer), *_ = found.plan.scorers
  score = jax.jit(functools.partial(reward_model.score, scorer))
  response = np.asarray(samples.response_mask) > 0
  checked = 0
  for column in range(response.shape[1]):
    before = jnp.arange(response.shape[1])[None, :] < column
    prefix = samples.replace(
      valid_mask=jnp.where(before, samples.valid_mask, 0.0),
      finish_reason=jnp.full_like(samples.finish_reason, FINISH_LENGTH),
    )
    rows = response[:, column]
    if not rows.any():
      continue
    expected = score(found.weights.scorers["reward"], prefix)
    np.testing.assert_allclose(
      np.asarray(rollout.values)[rows, column],
      np.asarray(expected)[rows],
      atol=5e-5,
    )
    checked += rows.sum()
  assert checked == response.sum()
  assert np.all(np.asarray(rollout.values)[~response] == 0.0)


def test_trap_33_a_permutation_of_samples_permutes_the_rewards(cast):
  found, samples = cast
  order = np.random.default_rng(0).permutation(len(samples.tokens))
  _, scores = judged(found, samples, found.plan)
  _, turned = judged(
    found, jax.tree.map(lambda x: x[order], samples), found.plan
  )
  assert np.unique(np.asarray(scores["reward"])).size > 10
  np.testing.assert_allclose(
    turned["reward"], np.asarray(scores["reward"])[order], atol=1e-5
  )


@pytest.mark.slow
def test_a_trunk_of_its_own_is_not_shared(files, sft_full, reward_full):
  config = tiny_runs.full_policy_config(files, sft_full, reward_full)
  found = load(config)
  assert found.plan.shared == frozenset()
  assert found.weights.base == {}
