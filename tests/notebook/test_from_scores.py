"""Policy gradients in a notebook: they learn, change nothing, compile once.

The policies say the planted word more often when scores ask for it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import lab
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
  ppo,
  remax,
  shaping,
)
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.models import outputs, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import critic, rollouts, supervised
from rlhf_jax.schema import UserError
from rlhf_jax.types import Rollout
from tests.notebook.lab_runs import (
  ADAM,
  COUNTER,
  GRPO,
  RUN,
  Run,
  assert_same,
  sampled,
  scores_of,
)


def test_grpo_learns_to_say_the_planted_word(grpo_run):
  """Away from the policy that the learner was made with."""
  scores = [row["rollout/score_mean"] for row in grpo_run.metrics]
  assert scores[-1] > scores[0] + 1.0
  assert grpo_run.metrics[-1]["rollout/kl_k1_sum"] > 1.0
  assert all(row["ppo/first_ratio_error"] < 1e-4 for row in grpo_run.metrics)
  assert grpo_run.policies[-1].methods == (("grpo", 6),)


def test_equal_shapes_compile_once(grpo_run):
  assert grpo_run.compiles[0] > 0
  assert grpo_run.compiles[1:] == [0] * 5
  count = COUNTER.count
  sampled(grpo_run.policies[3], 3)
  assert COUNTER.count == count


def test_an_earlier_policy_is_as_it_was(grpo_run):
  """The same step from the same value gives the same bits again."""
  first, second = grpo_run.policies[:2]
  samples, texts = sampled(first, 0)
  again, metrics = grpo_run.learn(first, samples, scores_of(texts))
  assert_same(again.params, second.params, rtol=0, atol=0)
  assert metrics == grpo_run.metrics[0]
  assert (first.steps, again.steps) == (0, 1)


def direct_step(policy, samples, scores, optimizer):
  """Returns factors and metrics after one step, by the package's functions."""
  frozen = policy.frozen
  plain = shaping.Config(kl_coefficient=0.0, kl_controller="fixed", clip=None)

  @jax.jit
  def judged(samples, score):
    variables = trees.merge(policy.params, frozen)
    reference, _ = outputs.logprobs(
      policy.role, variables, Rows.of(samples), samples.response_mask
    )
    rollout = Rollout(
      **vars(samples), reference_logprobs=reference, score=score
    )
    rollout, _, _ = shaping.shape_rewards(
      rollout, shaping.init_moments(), jnp.float32(0.0), plain
    )
    return grpo.advantages(rollout, GRPO)

  def apply(params, frozen, part):
    logprobs, entropies = outputs.logprobs(
      policy.role,
      trees.merge(params["policy"], frozen),
      Rows.of(part),
      part.response_mask,
    )
    return logprobs, entropies, None

  update = functools.partial(
    pg.update,
    algorithm=grpo,
    algorithm_config=GRPO,
    config=pg.Config(epochs=1, minibatches=1),
    apply=apply,
    optimizer=optimizer,
  )
  rollout = judged(rollouts.samples_of(samples), jnp.asarray(scores))
  state = supervised.initial_state({"policy": policy.params}, optimizer)
  key = jax.random.key(0)
  state, metrics = jax.jit(update)(state, frozen, rollout, key)
  return state.params["policy"], metrics


def test_a_step_is_the_update_function(policy, grpo_run):
  samples, texts = sampled(policy, 0)
  params, metrics = direct_step(policy, samples, scores_of(texts), RUN)
  assert_same(grpo_run.policies[1].params, params, rtol=1e-3, atol=1e-6)
  for name, value in metrics.items():
    np.testing.assert_allclose(
      grpo_run.metrics[0][name], value, rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_eight_devices_equal_one(model, grpo_run):
  mesh = mesh_lib.Config(data=2, fsdp=2, tensor=2)
  policy = lab.load(model, lora_rank=2, mesh=mesh)
  run = Run(lab.learner(policy, grpo, GRPO, RUN), [policy])
  for step in range(2):
    samples, texts = sampled(grpo_run.policies[step], step)
    run.on(samples, scores_of(texts))
  assert run.compiles[1] == 0
  expected = grpo_run.metrics[:2]
  for row, other in zip(run.metrics, expected, strict=True):
    assert row.keys() == other.keys()
    for name, value in row.items():
      np.testing.assert_allclose(value, other[name], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_remax_reads_greedy_answers_and_no_reference(policy, grpo_run):
  """And functions of one's own stand in the place of the method's."""
  called = []

  def objective(log_ratio, advantages, config):
    called.append(config)
    return -log_ratio * advantages

  def advantages(rollout, config):
    called.append(config)
    return remax.advantages(rollout, config)

  learn = lab.learner(
    policy,
    remax,
    remax.Config(),
    ADAM,
    objective=objective,
    advantages=advantages,
  )
  samples, texts = sampled(policy, 0)
  greedy, greedy_texts = sampled(policy, 0, num_samples=1, temperature=0.0)
  further = {"greedy": (greedy, scores_of(greedy_texts))}
  changed, metrics = learn(policy, samples, scores_of(texts), further=further)
  assert metrics["ppo/gradient_norm"] > 0.0 and changed.steps == 1
  assert len(called) >= 2 and set(called) == {remax.Config()}
  [(_, weights)] = learn.made.values()
  assert weights.reference == {}
  shown = {x for x in grpo_run.metrics[0] if x.startswith("rollout/kl_")}
  assert shown - metrics.keys() == {
    "rollout/kl_k1_sum",
    "rollout/kl_k1_standard_error",
    "rollout/kl_k3_sum",
    "rollout/kl_per_token",
  }
  with pytest.raises(
    UserError, match=r"remax reads 'greedy' \(sampled with temp"
  ):
    learn(policy, samples, scores_of(texts))


def test_ppo_trains_a_critic(policy):
  learn = lab.learner(
    policy,
    ppo,
    ppo.Config(value_coefficient=1.0),
    {"policy": RUN, "value": optax.adam(5e-2)},
    critic=critic.Value(init="random", mode="head"),
    shaping=shaping.Config(kl_coefficient=0.05),
    epochs=pg.Config(epochs=2, minibatches=2),
  )
  run = Run(learn, [policy])
  for step in range(5):
    samples, texts = sampled(run.policies[-1], step)
    run.on(samples, scores_of(texts))
  assert run.compiles[1:] == [0] * 4
  first, last = run.metrics[0], run.metrics[-1]
  assert last["rollout/score_mean"] > first["rollout/score_mean"] + 1.0
  assert first["ppo/explained_variance"] < 1e-5  # the critic starts at 0
  assert last["ppo/explained_variance"] > 0.05
  assert (
    last["ppo/kl_coefficient"] != first["ppo/kl_coefficient"]
  )  # its controller moves it


def test_a_critic_starts_as_the_reward_model(policy, judge):
  learn = lab.learner(policy, ppo, ppo.Config(), ADAM, critic=judge)
  assert learn.critic.role.trainable == "lora"
  found = learn.critic.variables["head"]["output"]["kernel"]
  kernel = judge.params["head"]["output"]["kernel"]
  assert_same(found, kernel / judge.std, rtol=1e-6)
  assert_same(learn.critic.variables["lora"], judge.params["lora"])
