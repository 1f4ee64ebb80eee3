"""Answers of a rollout behind one prompt: no number changes, less is read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.algorithms import accumulate
from rlhf_jax.algorithms.policy_gradient import (
  dr_grpo,
  groups_in_rows,
  grpo,
  gspo,
  importance,
  packing,
  ppo,
  rloo,
)
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import heads, policy_value, roles, transformer, trees
from rlhf_jax.programs import policy_programs, policy_settings, policy_step
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Samples

PROMPTS, GROUP, PROMPT, NEW = 8, 4, 6, 5
MODEL = transformer.Config(
  vocab_size=50,
  width=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=4,
  mlp_width=24,
  max_length=64,
  positions="learned",
)
TARGETS = 3 * NEW


@functools.cache
def samples():
  rng = np.random.default_rng(0)
  count = PROMPTS * GROUP
  sizes = np.repeat(rng.integers(1, PROMPT + 1, PROMPTS), GROUP)
  answers = rng.integers(1, NEW + 1, count)
  column = np.arange(PROMPT + NEW)
  response = (column >= PROMPT) & (column < PROMPT + answers[:, None])
  valid = (column >= PROMPT - sizes[:, None]) & (column < PROMPT) | response
  text = np.repeat(rng.integers(3, 50, (PROMPTS, PROMPT)), GROUP, axis=0)
  answer = rng.integers(3, 50, (count, NEW))
  logprobs = -3.9 + 0.2 * rng.standard_normal(valid.shape)
  return Samples(
    tokens=jnp.asarray(np.concatenate([text, answer], 1) * valid, jnp.int32),
    valid_mask=jnp.asarray(valid, jnp.float32),
    response_mask=jnp.asarray(response, jnp.float32),
    behaviour_logprobs=jnp.asarray(logprobs * response, jnp.float32),
    finish_reason=jnp.zeros(count, jnp.int32),
  )


@functools.cache
def layout():
  groups = groups_in_rows.Groups(GROUP, PROMPT)
  shape = packing.shape_of(
    packing.GroupConfig(), PROMPTS * GROUP, PROMPT + NEW, NEW, 2, groups
  )
  return packing.plan(samples(), shape)


@functools.cache
def weights(seed, kind=None):
  params = transformer.init(MODEL, jax.random.key(seed))["params"]
  if kind is None:
    return {"params": params}
  config = heads.Config(pooling=kind)
  head = heads.init(config, MODEL.width, jax.random.key(seed + 1))
  return {"params": params, "head": head}


def head_role(kind):
  return roles.Role(model=MODEL, head=heads.Config(pooling=kind))


@functools.cache
def judged(kind, is_shared):
  """Returns rollout and scores, of rows that are shared or an answer each."""
  plan = judge.Plan(
    policy=roles.Role(model=MODEL),
    reference=roles.Role(model=MODEL),
    value=head_role(kind),
    scorers=(("reward", reward_model.Scorer(head_role(kind), True)),),
    shared=frozenset(),
    temperature=0.8,
    row_targets=TARGETS,
  )
  scorer = reward_model.Weights(
    weights(5, kind), jnp.float32(0.2), jnp.float32(1.5)
  )
  frozen = judge.Weights({}, weights(1), {"reward": scorer})
  where = layout() if is_shared else None
  return judge.make_judge(plan)(frozen, weights(3, kind), samples(), where)


def test_a_prompt_is_read_once():
  cells = np.asarray(layout().segment_ids)
  read = np.asarray(samples().valid_mask).sum()
  assert (cells > 0).sum() < 0.7 * read
  assert cells.size < 0.5 * samples().tokens.size


@pytest.mark.parametrize("kind", ["last", "mean_last"])
def test_reference_values_and_scores_do_not_change(kind):
  """Also of the first token of an answer, which the prompt's last predicts."""
  (expected, plain), (found, scores) = judged(kind, False), judged(kind, True)
  assert np.abs(plain["reward"]).max() > 0.1
  np.testing.assert_allclose(scores["reward"], plain["reward"], atol=1e-5)
  for name in ("reference_logprobs", "values"):
    x = getattr(expected, name)
    assert np.abs(x).max() > 0.1
    np.testing.assert_allclose(getattr(found, name), x, atol=1e-5, err_msg=name)


def test_what_is_recomputed_reads_those_rows_too():
  """Below float32: log-probabilities of the trainer, before rewards."""
  rollout, _ = judged("last", False)
  run = functools.partial(
    policy_step.recompute,
    {"policy": weights(1), "value": weights(3, "last")},
    {"policy": {}, "value": {}},
    rollout,
    apply=functools.partial(
      policy_value.policy_and_value,
      policy=roles.Role(model=MODEL),
      value=head_role("last"),
      temperature=0.8,
      targets=TARGETS,
      is_unembedding_frozen=True,
    ),
    weights=importance.Config(),
    has_values=True,
  )
  (expected, row), (found, other) = jax.jit(run)(), jax.jit(run)(layout())
  for name in ("behaviour_logprobs", "values"):
    x = getattr(expected, name)
    np.testing.assert_allclose(getattr(found, name), x, atol=1e-5, err_msg=name)
  gap = float(row["rollout/sampler_gap"])
  assert gap > 0.01 and float(other["rollout/sampler_gap"]) == pytest.approx(
    gap
  )


def gradient(module, config, rollout, parts, apply, params):
  """Returns the loss of a rollout and its gradient."""
  rollout = rollout.replace(score=None, finish_reason=None)
  counts = module.denominators(rollout, config)

  def contribution(params, rows, frozen, counts):
    return module.loss(*apply(params, frozen, rows), rows, config, counts)

  grads, loss, metrics = accumulate.accumulate(
    contribution, params, rollout, parts, {"policy": {}, "value": {}}, counts
  )
  return loss, grads, metrics


CASES = {
  "ppo": (ppo, ppo.Config(entropy_coefficient=0.1)),
  "ppo_shared_trunk": (ppo, ppo.Config()),
  "grpo": (grpo, grpo.Config(kl_loss_coefficient=0.1, group_size=GROUP)),
  "dr_grpo": (dr_grpo, dr_grpo.Config(aggregation_tokens=9, group_size=GROUP)),
  "gspo": (gspo, gspo.Config(group_size=GROUP)),
  "rloo": (rloo, rloo.Config(group_size=GROUP)),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_do_not_change(name):
  """Means over answers count each of those behind one prompt."""
  module, config = CASES[name]
  rollout, _ = judged("last", False)
  noise = np.random.default_rng(1).standard_normal(rollout.tokens.shape)
  rollout = rollout.replace(
    rewards=jnp.asarray(noise, jnp.float32) * rollout.response_mask
  )
  if module is not ppo:
    rollout = rollout.replace(values=None)
  rollout = module.advantages(rollout, config)
  policy, value = roles.Role(model=MODEL), head_role("last")
  params = {"policy": weights(1)}
  how = dict(temperature=0.8, targets=TARGETS, is_unembedding_frozen=False)
  apply = policy_value.policy_and_value
  if module is ppo:
    params["value"] = weights(3, "last")
  if name.endswith("trunk"):
    params["value"] = {"head": params["value"]["head"]}
    how["stops_gradient"] = False
    apply = policy_value.shared_trunk
  apply = functools.partial(
    apply, policy=policy, value=value if module is ppo else None, **how
  )
  one = jax.jit(
    functools.partial(gradient, module, config, apply=apply),
    static_argnames="parts",
  )
  loss, grads, metrics = one(rollout, parts=1, params=params)
  packed = packing.pack_rollout(rollout, layout())
  found, found_grads, found_metrics = one(packed, parts=2, params=params)
  np.testing.assert_allclose(found, loss, rtol=1e-4, atol=1e-6)
  for key, x in metrics.items():
    np.testing.assert_allclose(found_metrics[key], x, rtol=1e-4, atol=1e-5)
  found_grads = trees.flatten(found_grads)
  for path, leaf in trees.flatten(grads).items():
    size = max(np.abs(leaf).max(), 1e-4)
    np.testing.assert_allclose(
      found_grads[path] / size, leaf / size, atol=1e-4, err_msg=path
    )


def settings_of(**settings):
  return policy_settings.Settings(
    prompts=Data(max_length=30),
    generate=generate.Config(max_new_tokens=10, num_samples=4),
    packing=packing.GroupConfig(**settings),
  )


def test_prompts_are_shared_wherever_they_can_be():
  assert settings_of().groups(1, "einsum") == groups_in_rows.Groups(4, 20)
  assert settings_of().groups(1, "splash") == groups_in_rows.ALONE
  never = settings_of(share_prompts="never")
  assert never.groups(1, "einsum") == groups_in_rows.ALONE
  asked = settings_of(share_prompts="always")
  assert asked.groups(1, "cudnn") == groups_in_rows.Groups(4, 20)
  with pytest.raises(FieldError, match="attention='splash' reads whole"):
    asked.groups(1, "splash")
  with pytest.raises(FieldError, match="128 answers are too few"):
    asked.groups(32, "einsum")


def test_what_is_chosen_is_said(capsys):
  policy_programs.say_rows(settings_of(), 1, "einsum")
  assert "; 4 to a prompt share that too" in capsys.readouterr().out
  policy_programs.say_rows(settings_of(), 1, "splash")
  said = capsys.readouterr().out
  assert "prompts stand once an answer, as attention='splash' reads" in said
