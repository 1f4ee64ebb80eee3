"""Policies and reward models of a notebook: compared, saved and loaded."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.algorithms import reward
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.pipelines import defaults
from rlhf_jax.runs import history
from rlhf_jax.schema import UserError
from tests.notebook.lab_runs import (
  BAD,
  GOOD,
  LENGTH,
  ONE,
  PAIRS,
  PROMPTS,
  assert_same,
  sampled,
)
from tests.pipelines import tiny_runs


def test_evaluate_compares_two_policies(policy, grpo_run, judge):
  after = grpo_run.policies[-1]
  found, said = lab.evaluate(
    policy,
    after,
    PROMPTS * 8,
    jax.random.key(0),
    reward=lambda text: float(text.count(tiny_runs.PLANTED)),
    gold=judge,
    batch_size=16,
    max_new_tokens=6,
  )
  assert found["evaluation_prompts"] == 32
  assert found["proxy_win_rate"] > 0.9 and found["gold_win_rate"] > 0.5
  rise = found["gold_after"] - found["gold_before"]
  assert rise > 2 * found["gold_standard_error"]
  assert found["kl_nats"] > 1.0
  assert {"distinct_2_before", "self_bleu_after"} <= set(found)
  low, high = found["proxy_win_rate_low"], found["proxy_win_rate_high"]
  assert 0.0 <= low <= found["proxy_win_rate"] <= high <= 1.0
  assert 0.0 <= found["repeated_3grams_after"] <= 1.0
  assert len(said["after"].texts) == 32 and len(said["before"].kl) == 32
  assert np.abs(said["before"].kl).max() < 1e-4


def test_what_is_saved_is_loaded(policy, grpo_run, judge, tmp_path):
  last = grpo_run.policies[-1]
  saved = last.save(tmp_path / "policy")
  found = lab.load(tmp_path / "policy", mesh=ONE)
  assert found.role == last.role and found.methods == last.methods
  assert_same(found.params, last.params, rtol=0, atol=0)
  assert found.origin.folder == saved.origin.folder
  further = lab.load(tmp_path / "policy", trainable="full", mesh=ONE)
  assert further.role.trainable == "full"
  assert sampled(further, 1)[1] == sampled(last, 1)[1]
  assert judge.origin.merged_from == ""
  judge.save(tmp_path / "judge")
  again = lab.load(tmp_path / "judge", mesh=ONE)
  texts = [GOOD] * 4
  np.testing.assert_allclose(
    again.score(PROMPTS, texts), judge.score(PROMPTS, texts), rtol=1e-5
  )


def test_a_reward_model_on_a_policy_names_its_folder(grpo_run, tmp_path):
  last = grpo_run.policies[-1]
  with pytest.raises(UserError, match="a policy that is in no folder"):
    last.reward_model().save(tmp_path / "judge")
  policy = last.save(tmp_path / "policy")
  model = policy.reward_model()
  model.save(tmp_path / "judge")
  found = lab.load(tmp_path / "judge", mesh=ONE)
  assert found.origin.merged_from == str(tmp_path / "policy")
  np.testing.assert_allclose(
    found.score(PROMPTS, [GOOD] * 4),
    model.score(PROMPTS, [GOOD] * 4),
    rtol=1e-5,
  )


def test_a_pipeline_starts_from_what_is_saved(model, grpo_run, tmp_path):
  grpo_run.policies[-1].save(tmp_path / "policy")
  data = tmp_path / "pairs.jsonl"
  data.write_text(
    "".join(
      f'{{"prompt": "{p}", "chosen": "{GOOD}", "rejected": "{BAD}"}}\n'
      for p in PROMPTS * 2
    )
  )
  config = defaults.preference("orpo")
  config.mesh.devices = 1
  config.model.update(source=model, lora_rank=2)
  config.trainable.mode = "lora"
  config.init_from = str(tmp_path / "policy")
  config.data.update(source=str(data), max_length=LENGTH)
  config.heldout.update(source=str(data), max_length=LENGTH)
  config.schedule.update(batch_size=4, steps=1)
  pipelines.run(config, tmp_path / "orpo")
  assert history.history(tmp_path / "orpo") == [("grpo", 6), ("orpo", 1)]
  found = lab.load(tmp_path / "orpo", mesh=ONE)
  assert found.methods == (("grpo", 6), ("orpo", 1))


def test_an_ensemble_learns_and_each_member_has_its_scale(policy, tmp_path):
  """Heads that begin apart, on all pairs; saved and loaded as it is."""
  model = policy.reward_model(members=3)
  learn = lab.learner(
    model, reward, reward.Config(), optax.adam(3e-2), length=LENGTH
  )
  for _ in range(8):
    model, metrics = learn(model, PAIRS)
  assert metrics["reward_model/accuracy"] > 0.9
  texts = [GOOD, BAD] * (len(PROMPTS) // 2)
  model = model.normalised(PROMPTS, texts)
  members = model.member_scores(PROMPTS, texts)
  assert members.shape == (len(texts), 3)
  np.testing.assert_allclose(members.mean(axis=0), 0.0, atol=1e-4)
  np.testing.assert_allclose(members.std(axis=0), 1.0, atol=1e-4)
  low = dataclasses.replace(model, combination=Combination("min"))
  np.testing.assert_allclose(low.score(PROMPTS, texts), members.min(axis=1))
  model.save(tmp_path / "three")
  again = lab.load(tmp_path / "three", mesh=ONE)
  np.testing.assert_allclose(
    again.member_scores(PROMPTS, texts), members, atol=1e-5
  )
