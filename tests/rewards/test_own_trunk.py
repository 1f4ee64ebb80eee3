"""A policy that starts from whole fine-tuned weights, with factors on top.

Its frozen lower layers are not the base's; their stream is computed once.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import heads, outputs, roles, transformer, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.planning import hlo
from rlhf_jax.programs import actors
from rlhf_jax.rewards import judge
from rlhf_jax.runs import stages
from rlhf_jax.types import FINISH_EOS, Samples

MODEL = transformer.Config(
  vocab_size=19,
  width=16,
  n_layers=3,
  n_heads=2,
  n_kv_heads=2,
  head_dim=8,
  mlp_width=24,
  max_length=8,
  lora_rank=2,
)
MASK = jnp.asarray([[0.0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]])
SAMPLES = Samples(
  tokens=jnp.asarray([[4, 5, 6, 7, 8, 0], [9, 3, 4, 2, 0, 0]]),
  valid_mask=jnp.asarray([[1.0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
  response_mask=MASK,
  behaviour_logprobs=-1.0 * MASK,
  finish_reason=jnp.full((2,), FINISH_EOS),
)


def cast(first_layer):
  """Returns actors: base, fine-tuned policy and critic of the same arrays."""
  base, tuned = (
    transformer.init(MODEL, jax.random.key(seed))["params"] for seed in (0, 1)
  )
  role = roles.Role(MODEL, "lora", first_layer)
  key = jax.random.key(2)
  factors = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(key, x.shape),
    roles.fresh_lora(role, key),
  )
  start = {"params": tuned, "lora": factors}
  policy = stages.Stage(role, start, {})
  head = heads.Config()
  made = heads.init(head, MODEL.width, key)
  critic = stages.Stage(
    dataclasses.replace(role, head=head), start | {"head": made}, {}
  )
  base = types.SimpleNamespace(params=base)
  return actors.assemble(base, policy, critic, {}, 1.0, 3)


@pytest.mark.slow
def test_the_lower_layers_of_a_tuned_policy_run_once():
  found = cast(2)
  value = trees.merge(found.params["value"], found.frozen["value"])
  assert found.plan.shared == frozenset()
  assert found.plan.own == {"policy", "reference", "value"}
  kept = {"embedding", "layer_0", "layer_1"}
  assert set(found.weights.own) == kept
  alone = dataclasses.replace(found.plan, own=frozenset())
  once, each = (
    judge.make_judge(plan).lower(found.weights, value, SAMPLES).compile()
    for plan in (found.plan, alone)
  )
  rollout, _ = once(found.weights, value, SAMPLES)
  expected, _ = each(found.weights, value, SAMPLES)
  for name in ("reference_logprobs", "values"):
    np.testing.assert_allclose(
      getattr(rollout, name), getattr(expected, name), atol=2e-6
    )
  assert (sorted(rollout.hidden), expected.hidden) == (["policy", "value"], {})
  assert found.plan.taps() == (2,)
  streams = outputs.frozen_streams(
    MODEL, found.weights.own, Rows.of(SAMPLES), (2,)
  )
  sampled = judge.make_judge(found.plan)
  asked = found.weights, value, SAMPLES, None, streams
  given = sampled.lower(*asked).compile()
  np.testing.assert_allclose(
    given(*asked)[0].values, expected.values, atol=2e-6
  )
  programs = (once, each, given)
  flops = [hlo.count(c.as_text(), 1, 1).flops for c in programs]
  assert flops[0] < 0.75 * flops[1]  # 2 + 1 + 1 layers, not 3 + 3
  assert flops[2] < 0.6 * flops[0]  # 1 + 1
  variables = trees.merge(found.params["policy"], found.frozen["policy"])
  from_stream, from_tokens = (
    outputs.logprobs(
      found.plan.policy,
      variables,
      Rows.of(SAMPLES),
      MASK,
      hidden=hidden,
    )[0]
    for hidden in (rollout.hidden["policy"], None)
  )
  np.testing.assert_allclose(from_stream, from_tokens, atol=2e-6)


def test_below_float32_the_judge_reads_no_stream_of_the_sampler():
  plan = cast(2).plan
  policy = dataclasses.replace(
    plan.policy, model=dataclasses.replace(MODEL, dtype="bfloat16")
  )
  assert dataclasses.replace(plan, policy=policy).taps() == ()


def test_a_policy_that_trains_from_the_bottom_has_no_trunk():
  found = cast(0)
  assert found.plan.taps() == ()
  assert found.plan.known == frozenset()
  assert found.weights.own == {}
