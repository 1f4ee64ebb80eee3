"""Ensembles of reward models: trained in a run, combined by every judge."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.algorithms import ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.exports import folders
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import heads, roles
from rlhf_jax.parallel import mesh
from rlhf_jax.pipelines import defaults, reward
from rlhf_jax.programs import actors, scorers, world
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.reader import Readers
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

MEMBERS = 3


def heads_config(files):
  """Three heads on a frozen trunk, each with prompts of its own."""
  samples = files.root / "sft_lora" / "samples.npz"
  config = tiny_runs.reward_config(files, "head", "", samples)
  config.ensemble.members = MEMBERS
  return config


def adapters_config(files):
  """Two members with LoRA factors of their own above a frozen layer."""
  start = files.root / "sft_lora"
  config = tiny_runs.reward_config(files, "lora", start, start / "samples.npz")
  config.trainable.first_layer = tiny_runs.LORA_LAYER
  config.ensemble.update(members=2, kind="adapters", subsets="share", share=0.7)
  config.schedule.update(steps=12, save_every=5)
  return config


@pytest.fixture(scope="module")
def three_heads(files, sft_lora):
  folder = files.root / "ensemble" / "three_heads"
  pipelines.run(heads_config(files), folder)
  return folder


@pytest.fixture(scope="module")
def adapters(files, sft_lora):
  folder = files.root / "ensemble" / "adapters"
  pipelines.run(adapters_config(files), folder)
  return folder


def loaded(config, folder, how=reward_model.ALONE):
  base = tiny_runs.load_base(config)
  return base, reward_model.load(folder, base, tiny_runs.world_of(config), how)


def samples_of(files):
  return tiny_runs.load_samples(files.root / "sft_lora" / "samples.npz")


def test_members_are_diagnosed_and_normalised_each(files, three_heads):
  config, info = heads_config(files), stages.read_stage(three_heads)
  assert [x["name"] for x in info["outputs"]] == [
    f"member {i}" for i in range(MEMBERS)
  ]
  each = [x["reward_model/accuracy"] for x in info["members"]]
  assert min(each) > 0.7
  assert info["diagnosis"]["reward_model/accuracy"] > 0.75
  assert 0.2 < info["agreement"] < 1.0
  row = tiny_runs.rows_of(three_heads)[-1]
  assert row["ensemble/deviation"] > 0.01
  _, (scorer, weights, _) = loaded(config, three_heads)
  scores = np.asarray(
    reward_model.make_member_scores(scorer)(weights, samples_of(files))
  )
  assert scores.shape == (32, MEMBERS)
  np.testing.assert_allclose(scores.mean(axis=0), 0.0, atol=5e-5)
  np.testing.assert_allclose(scores.std(axis=0), 1.0, atol=5e-5)
  np.testing.assert_allclose(
    info["normalisation"]["deviation"], scores.std(axis=1).mean(), rtol=1e-4
  )
  np.testing.assert_allclose(weights.deviation, scores.std(axis=1).mean(), 1e-4)
  for how in (Combination("min"), Combination("uwo", 0.5)):
    _, (scorer, weights, _) = loaded(config, three_heads, how)
    np.testing.assert_allclose(
      reward_model.make_score(scorer)(weights, samples_of(files)),
      ensemble.combined(scores, how),
      atol=1e-5,
    )


def test_a_run_that_was_killed_ends_the_same(files, three_heads, monkeypatch):
  folder = files.root / "again" / three_heads.name
  with monkeypatch.context() as patch:
    kill_at(patch, 45)
    with pytest.raises(Killed):
      pipelines.run(heads_config(files), folder)
  pipelines.run(heads_config(files), folder)
  assert_same_run(folder, three_heads, 60)


@pytest.mark.slow
def test_split_over_devices_members_are_the_same(files, three_heads):
  config = heads_config(files)
  config.mesh.update(devices=8, data=4, fsdp=2)
  folder = files.root / "split" / three_heads.name
  pipelines.run(config, folder)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(three_heads)
  )


@pytest.mark.slow
def test_adapters_of_members_train_resume_and_split(
  files, adapters, monkeypatch
):
  """Members' factors differ, and the same run on 2 x 2 x 2 devices is it."""
  saved = tiny_runs.trained_arrays(adapters)
  factors = [x for path, x in saved.items() if path.endswith("lora_b")]
  assert factors and all(len(x) == 2 for x in factors)
  assert any(np.abs(x[0] - x[1]).max() > 1e-4 for x in factors)
  folder = files.root / "again" / adapters.name
  with monkeypatch.context() as patch:
    kill_at(patch, 9)
    with pytest.raises(Killed):
      pipelines.run(adapters_config(files), folder)
  pipelines.run(adapters_config(files), folder)
  assert_same_run(folder, adapters, 12)
  config = adapters_config(files)
  config.mesh.update(devices=8, data=2, fsdp=2, tensor=2)
  folder = files.root / "split" / adapters.name
  pipelines.run(config, folder)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(adapters)
  )
  _, (scorer, weights, _) = loaded(adapters_config(files), adapters)
  scores = reward_model.make_member_scores(scorer)(weights, samples_of(files))
  for number in range(2):
    alone = reward_model.of_member(
      scorer, weights, number, lambda make, *x: make(*x)
    )
    assert not alone[0].role.own_factors
    np.testing.assert_allclose(
      reward_model.make_score(alone[0])(alone[1], samples_of(files)),
      scores[:, number],
      atol=1e-5,
    )


@pytest.fixture
def policy_config(files, sft_lora):
  def make(scorer, **scoring):
    config = tiny_runs.policy_config(files, "lora", sft_lora, scorer)
    config.schedule.update(steps=1, asynchronous=False)
    config.value.pretrain_steps = 0
    config.scoring.update(**scoring)
    return config

  return make


def test_a_policy_learns_from_an_ensemble(files, three_heads, policy_config):
  """The critic starts as the mean of the linear heads."""
  config = policy_config(three_heads, combine="uwo", uncertainty_weight=0.1)
  folder = files.root / "policy_ensemble"
  pipelines.run(config, folder)
  (row,) = tiny_runs.rows_of(folder)
  for name in ("deviation", "deviation_ratio", "agreement"):
    assert f"reward/component/reward_{name}" in row
  info = stages.read_stage(three_heads)
  ratio = row["reward/component/reward_deviation"]
  ratio /= info["normalisation"]["deviation"]
  np.testing.assert_allclose(
    row["reward/component/reward_deviation_ratio"], ratio, rtol=1e-4
  )


def judged(config, files):
  """Returns the scores that a policy run's judge gives the SFT samples."""
  settings = tiny_runs.settings_of(config)
  base, place = tiny_runs.load_base(config), tiny_runs.world_of(config)
  made = actors.load(settings, base, place, 6)
  _, scores = judge.make_judge(made.plan)(made.weights, {}, samples_of(files))
  return {name: np.asarray(x) for name, x in scores.items()}


def test_several_runs_are_one_ensemble(
  files, three_heads, reward_head, policy_config
):
  """One of one head, one of three: four members, and their deviation."""
  config = policy_config(f"{reward_head}, {three_heads}", combine="min")
  config.algorithm.update(name="rloo", value_coefficient=None)
  scores = judged(config, files)
  members = []
  for folder in (reward_head, three_heads):
    _, (scorer, weights, _) = loaded(heads_config(files), folder)
    score = reward_model.make_member_scores(scorer)
    members.append(np.asarray(score(weights, samples_of(files))))
  together = np.concatenate(members, axis=1)
  assert together.shape == (32, 1 + MEMBERS)
  np.testing.assert_allclose(scores["reward"], together.min(axis=1), atol=1e-5)
  deviation = scores["component/reward_deviation"]
  np.testing.assert_allclose(deviation, together.std(axis=1), atol=1e-5)
  # These are the samples that both were normalised on.
  ratio = scores["component/reward_deviation_ratio"]
  np.testing.assert_allclose(ratio.mean(), 1.0, rtol=1e-4)


def test_readers_of_text_combine_as_judges_of_tokens_do(
  files, three_heads, reward_head, policy_config
):
  config = policy_config(f"{reward_head},{three_heads}", combine="min")
  config.algorithm.update(name="rloo", value_coefficient=None)
  config.scoring.reads = "text"
  settings = tiny_runs.settings_of(config)
  base, place = tiny_runs.load_base(config), tiny_runs.world_of(config)
  found = scorers.load(settings.reward, "reward", settings, base, place)
  tokens, readers = scorers.parted({"reward": found})
  assert not tokens and [x.name for x in readers] == ["reward/0", "reward/1"]
  rows = [[5, 6, 7], [8, 9, 10, 11]]
  members = [x.member_scores(rows, place.mesh) for x in readers]
  read = Readers(readers, {}, base.tokenizer, (), place.mesh)
  scores = read._judged(
    {x.name: y for x, y in zip(readers, members, strict=True)}
  )
  together = np.concatenate(members, axis=1)
  np.testing.assert_allclose(scores["reward"], together.min(axis=1), atol=1e-6)
  assert "component/reward_deviation_ratio" in scores


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_beginnings_are_combined_as_answers_are(files, three_heads, combine):
  """Each member reads every prefix; the last is the score of the answer."""
  how = Combination(combine)
  _, (scorer, weights, _) = loaded(heads_config(files), three_heads, how)
  samples = samples_of(files)
  found = reward_model.prefixes(scorer, weights, samples)
  each = [
    reward_model.prefixes(
      *reward_model.of_member(
        scorer, weights, i, lambda make, *trees: make(*trees)
      ),
      samples,
    )["prefix_values"]
    for i in range(3)
  ]
  expected = np.mean(each, 0) if combine == "mean" else np.min(each, 0)
  mask = np.asarray(found["prefix_mask"]) > 0
  np.testing.assert_allclose(
    np.asarray(found["prefix_values"])[mask],
    expected[mask],
    rtol=2e-3,
    atol=2e-3,
  )
  last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
  ends = np.asarray(found["prefix_values"])[np.arange(len(last)), last]
  scores = reward_model.score(scorer, weights, samples)
  np.testing.assert_allclose(ends, scores, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"scoring.combine": "min"}, "is one reward model"),
    ({"scoring.combine": "uwo"}, "uncertainty_weight=None"),
    ({"value.member": 0}, "is no ensemble"),
    ({"reward": "{0},{0}"}, "stands there twice"),
    ({"reward": "{0},{0}_gone"}, "wanted a finished reward run"),
  ],
)
def test_what_does_not_go_together_is_refused(
  reward_head, policy_config, change, message, tmp_path
):
  config = policy_config(reward_head)
  for name, value in change.items():
    if isinstance(value, str):
      value = value.format(reward_head)
    config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=message):
    pipelines.run(config, tmp_path)


def test_a_critic_cannot_be_the_mean_of_runs(
  three_heads, reward_head, policy_config, tmp_path
):
  config = policy_config(f"{reward_head},{three_heads}")
  with pytest.raises(UserError, match="value.member=None: .* ensemble of 2"):
    pipelines.run(config, tmp_path)


def test_one_member_is_exported(files, three_heads):
  config = heads_config(files)
  base, (scorer, weights, info) = loaded(config, three_heads)
  leaving = Leaving(base, scorer.role, weights.variables, info, "runs/x")
  with pytest.raises(UserError, match="member=None: runs/x is an ensemble"):
    folders._member_of(leaving, None)
  alone = folders._member_of(leaving, 1)
  scale = alone.info["normalisation"]
  plain = reward_model.Weights(alone.variables, scale["mean"], scale["std"])
  single = reward_model.Scorer(alone.role, scorer.reads_end_token)
  scores = reward_model.make_member_scores(scorer)(weights, samples_of(files))
  np.testing.assert_allclose(
    reward_model.make_score(single)(plain, samples_of(files)),
    scores[:, 1],
    atol=1e-5,
  )


def test_a_plan_counts_every_member(files, sft_lora):
  """Heads and factors of members are trained bytes, and passes work."""
  phases = {}
  for members in (1, 2):
    config = adapters_config(files)
    if members == 1:
      config.ensemble.update(
        members=1, kind="heads", subsets="bootstrap", share=None
      )
    settings = tiny_runs.settings_of(config)
    planned = world.Planned.on(settings.mesh, 1)
    (phases[members],) = reward.phases(settings, planned)
  trained = {
    n: sum(x.size for x in jax.tree.leaves(phase.arrays["train"].params))
    for n, phase in phases.items()
  }
  assert trained[2] == 2 * trained[1]
  flops = {n: phase["update"].work().flops for n, phase in phases.items()}
  assert 1.3 * flops[1] < flops[2] <= 2.0 * flops[1]


def test_old_stages_with_one_output_are_read(files, reward_head, tmp_path):
  """As they were written before members: no outputs, no scores."""
  info = json.loads((reward_head / "stage.json").read_text())
  assert "outputs" not in info and "members" not in info["role"]
  _, (scorer, weights, _) = loaded(heads_config(files), reward_head)
  assert scorer.role.members == 1 and weights.mean.shape == ()
  assert weights.deviation is None


def test_texts_are_scored_by_an_ensemble(files, three_heads, tmp_path):
  """With the deviation of its members beside, and what lab.load gives."""
  rows = tiny_runs.rows_of(files.root, "comparisons.jsonl")[:4]
  texts = [{"prompt": x["prompt"], "response": x["chosen"]} for x in rows]
  path = tmp_path / "texts.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in texts))
  config = defaults.score_texts()
  config.mesh.devices = 1
  config.data.source, config.rewards = str(path), str(three_heads)
  config.combine = "min"
  pipelines.run(config, tmp_path / "scored")
  found = tiny_runs.rows_of(tmp_path / "scored", "scores.jsonl")
  name = three_heads.name
  model = lab.load(three_heads, mesh=mesh.Config(devices=1))
  prompts = [row["prompt"] for row in texts]
  answers = [row["response"] for row in texts]
  members = model.member_scores(prompts, answers)
  assert members.shape == (4, MEMBERS)
  scores = [row["scores"][name] for row in found]
  np.testing.assert_allclose(scores, members.min(axis=1), atol=1e-5)
  spread = [row["scores"][f"{name}_spread"] for row in found]
  np.testing.assert_allclose(spread, members.std(axis=1), atol=1e-5)
  np.testing.assert_allclose(
    model.score(prompts, answers), members.mean(axis=1), atol=1e-5
  )
  again = model.save(tmp_path / "saved")
  assert stages.read_stage(tmp_path / "saved")["outputs"][2]["std"] > 0.0
  np.testing.assert_array_equal(again.mean, model.mean)


def test_the_best_of_n_is_chosen_by_an_ensemble(
  files, sft_lora, three_heads, tmp_path
):
  config = defaults.generate_answers()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.policy, config.reward = str(sft_lora), str(three_heads)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=6, num_samples=3)
  config.scoring.update(combine="uwo", uncertainty_weight=0.5)
  config.update(count=8, batch_size=4, choose="proxy")
  found = pipelines.run(config, tmp_path)
  assert found["kept_proxy"] > found["proxy"]


def test_members_of_a_role_are_checked():
  role = roles.Role.__dataclass_fields__
  assert role["members"].default == 1
  model = tiny_runs.transformer.Config(
    vocab_size=8,
    width=4,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    head_dim=4,
    mlp_width=4,
    max_length=8,
  )
  with pytest.raises(UserError, match="1 without a head"):
    roles.Role(model, members=2)
  plain = roles.Role(model, head=heads.Config(), members=2)
  with pytest.raises(UserError, match="own_factors=True"):
    dataclasses.replace(plain, own_factors=True)
