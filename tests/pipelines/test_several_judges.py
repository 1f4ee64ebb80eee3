"""Several judges in one run: sums, a constraint, kinds of prompts, resume."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults, rlhf, stage_curves
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

STEPS = 4


@pytest.fixture(scope="module")
def prompts(files):
  """Returns a file of prompts with a kind, a tag and a reference."""
  rows = [json.loads(line) for line in open(files.prompts)]
  path = files.root / "kinds.jsonl"
  more = [
    {"kind": "ab"[i % 2], "risky": i % 3 == 0, "reference": "x"}
    for i in range(len(rows))
  ]
  lines = [json.dumps(a | b) for a, b in zip(rows, more, strict=True)]
  path.write_text("\n".join(lines) + "\n")
  return str(path)


@pytest.fixture(scope="module")
def word(files):
  """Returns the import path of a function: does the answer say the word?"""
  path = files.root / "word.py"
  path.write_text(
    "def says(texts):\n"
    f"  return [float({tiny_runs.PLANTED!r} in t.split()) for t in texts]\n"
  )
  return f"{path}:says"


def config_of(files, prompts, start, judges, method="rloo", pipeline="policy"):
  """A short run with several judges."""
  if pipeline == "policy":
    config = tiny_runs.policy_config(files, "lora", start, "")
    config.algorithm.update(name=method, value_coefficient=None)
    config.value.pretrain_steps = 0
    config.shaping.update(kl_coefficient=0.0, kl_controller="fixed", clip=None)
    config.schedule.update(asynchronous=False, keep_best="")
    config.packing = defaults.policy().packing
    config.packing.row_tokens = 0
  else:
    config = getattr(defaults, pipeline)()
    config.mesh.devices = 1
    config.model.update(source=files.model, lora_rank=2)
    config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
    config.init_from = str(start)
    config.prompts.update(format="prompt", max_length=24)
    config.generate.update(
      max_new_tokens=tiny_runs.NEW_TOKENS, temperature=0.9, num_samples=4
    )
  config.schedule.update(batch_size=8, steps=STEPS, save_every=2)
  config.prompts.source = prompts
  config.judges = ConfigDict(judges)
  return config


@pytest.fixture(scope="module")
def three(reward_head, reward_lora, word):
  """Two reward models and a function, which judges one kind of prompts."""
  return {
    "helpful": {"reward": str(reward_head), "weight": 0.7},
    "safe": {"reward": str(reward_lora), "weight": 0.3},
    "word": {"reward_fn": word, "kinds": ["a"]},
  }


@pytest.fixture(scope="module")
def whole(files, prompts, sft_lora, three):
  """Returns (config, folder) of a finished run with a constraint."""
  config = config_of(files, prompts, sft_lora, three)
  config.combination.update(
    name="lagrangian", cost="word", bound="at_least", limit=0.9, by="kind"
  )
  config.heldout.update(source=prompts, format="prompt", max_length=24)
  config.schedule.eval_every = STEPS
  config.evaluation.count = 8
  folder = files.root / "several_whole"
  pipelines.run(config, folder)
  return config, folder


def test_a_run_logs_every_judge_and_the_multiplier(whole):
  _, folder = whole
  rows = tiny_runs.rows_of(folder)
  force = 1.0
  for row in rows:
    part = "reward/component/"
    for name in ("helpful", "safe", "word"):
      assert row[f"{part}{name}_standard_error"] >= 0.0
    assert 0.0 <= row[f"{part}word"] <= 1.0
    np.testing.assert_allclose(row["combination/multiplier"], force, rtol=1e-6)
    violation = 0.9 - row[f"{part}word"]
    np.testing.assert_allclose(
      row["combination/violation"], violation, atol=1e-6
    )
    force += 0.1 * violation
  last = rows[-1]
  for name in ("score", "component/helpful", "component/word"):
    assert f"heldout/{name}_standard_error" in last
  np.testing.assert_allclose(
    last["heldout/combination/multiplier"], force, rtol=1e-5
  )
  saved = tiny_runs.saved_arrays(folder)
  np.testing.assert_allclose(saved["combination/multiplier"], force, rtol=1e-5)
  info = stages.read_stage(folder)
  assert list(info["judges"]) == ["helpful", "safe", "word"]
  assert info["combination"]["name"] == "lagrangian"


def test_the_report_draws_the_judges_and_the_constraint(whole):
  config, folder = whole
  rows = tiny_runs.rows_of(folder)
  curves = stage_curves.of_policy(rows, tiny_runs.settings_of(config))
  found = {curve.title: list(curve.series) for curve in curves}
  assert found["Objectives"] == ["helpful", "safe", "word"]
  assert found["Constraint"] == ["multiplier", "violation"]
  assert found["Decided by the safety score"] == []


def test_a_whole_run_names_its_own_reward_model(tmp_path):
  config = defaults.rlhf()
  several = {"liked": {"reward": ""}, "other": {"reward": "runs/x"}}
  config.policy.judges = ConfigDict(several)
  rlhf.connect(config, "", tmp_path)
  judges = config.policy.judges
  assert judges.liked.reward == str(tmp_path / "reward")
  assert (judges.other.reward, config.policy.reward) == ("runs/x", "")


def test_samples_say_what_each_judge_said(whole):
  """The score is what the parts make; a judge of other prompts is left out."""
  _, folder = whole
  lines = (folder / "samples.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  has_word = ["component/word" in row for row in rows]
  assert any(has_word) and not all(has_word)
  for row in rows:
    force = row["combination/multiplier"]
    reward = 0.7 * row["component/helpful"] + 0.3 * row["component/safe"]
    expected = (reward + force * row.get("component/word", 0.0)) / (1 + force)
    np.testing.assert_allclose(row["score"], expected, atol=1e-5)
    if "component/word" in row:
      says = tiny_runs.PLANTED in row["response"].split()
      assert row["component/word"] == float(says)


def test_t20_trap_23_the_multiplier_goes_on_bit_for_bit(whole, monkeypatch):
  config, folder = whole
  again = folder.parent / "several_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(config, again)
  pipelines.run(config, again)
  assert_same_run(again, folder, STEPS)


@pytest.mark.slow
def test_trap_12_eight_devices_give_the_same_numbers(
  files, prompts, sft_lora, three
):
  config = config_of(files, prompts, sft_lora, three)
  config.combination.by = "kind"
  config.schedule.steps = 2
  config.policy_optimizer.learning_rate = 1e-3
  found = []
  for devices in (1, 8):
    config.mesh.update(devices=devices, data=devices)
    folder = files.root / f"several_{devices}"
    pipelines.run(config, folder)
    found.append(tiny_runs.rows_of(folder))
  tiny_runs.assert_close_rows(*found)


@pytest.mark.slow
@pytest.mark.parametrize(
  "method, combination",
  [("gdpo", "sum"), ("remax", "sum"), ("grpo", "switch"), ("ppo", "sum")],
)
def test_other_methods_and_combinations_run(
  files, prompts, sft_lora, three, method, combination
):
  judges = dict(three)
  if combination == "switch":
    judges = {
      "safe": {"reward": three["safe"]["reward"]},
      "helpful": {"reward": three["helpful"]["reward"]},
    }
  config = config_of(files, prompts, sft_lora, judges, method)
  config.epochs.update(epochs=1, minibatches=1)
  config.schedule.steps = 2
  if combination == "switch":
    config.combination.update(name="switch", tagged_by="risky")
  else:
    config.combination.by = "kind"
  if method == "remax":
    config.generate.num_samples = 1
  if method == "ppo":
    config.value.init = "random"
  folder = files.root / f"several_{method}"
  pipelines.run(config, folder)
  for row in tiny_runs.rows_of(folder):
    assert np.isfinite(row["ppo/policy_loss"])
    if combination == "switch":
      assert 0.2 < row["combination/by_safety"] <= 1.0  # a third is tagged


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["rejection", "online_preference", "bond"])
def test_other_pipelines_take_several_judges(
  files, prompts, sft_lora, three, pipeline, monkeypatch
):
  config = config_of(files, prompts, sft_lora, three, pipeline=pipeline)
  config.combination.by = "kind"
  name = "reward/component/word"
  if pipeline == "rejection":
    config.rounds.update(count=2, prompts=16, batch_size=8)
    config.schedule.update(steps=2)
    config.heldout.update(source=prompts, format="prompt", max_length=24)
    config.schedule.eval_every = 2
    config.evaluation.count = 8
  if pipeline == "bond":
    config.generate.num_samples = 2
  folder = files.root / f"several_{pipeline}"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  if pipeline == "rejection":  # held-out numbers of a round stand by themselves
    rows = [row for row in rows if "rejection/score_mean" in row]
  assert rows and all(0.0 <= row[name] <= 1.0 for row in rows)
  if pipeline == "rejection":  # the second round is trained again, as it was
    state = (folder / "round_2" / "combination.json").read_text()
    assert len(json.loads(state)["leaves"][0]) == 3
    told = tiny_runs.rows_of(folder / "round_2")
    for path in (folder / "round_2", folder):
      (path / "stage.json").unlink()
    pipelines.run(config, folder)
    assert tiny_runs.rows_of(folder / "round_2") == told
    return
  saved = tiny_runs.saved_arrays(folder)
  answers = 8 * STEPS * (3 if pipeline == "bond" else 4)
  counts = saved["combination/moments/count"]
  assert counts[0] == answers and 0 < counts[2] < answers


def test_a_plan_counts_all_reward_models(files, prompts, sft_lora, three):
  config = config_of(files, prompts, sft_lora, three)
  config.combination.by = "kind"
  job = pipelines.read(config)
  world = job.open("")
  phase = job.phases(world)[0]
  scorers = phase.frozen[1][0].scorers
  assert sorted(scorers) == ["helpful", "safe"]
  assert "combination" in phase.arrays


@pytest.mark.parametrize(
  "judges, changes, message",
  [
    ({"reward": {"reward": "x"}}, {}, "judges.reward: a judge's name"),
    ({"a": {"weight": 1.0}}, {}, "judges.a: sets no judge"),
    ({"a": {"reward": "x", "reward_fn": "y.py:z"}}, {}, "sets reward and"),
    ({"a": {"reward": "x", "wait": 1.0}}, {}, "config.judges.a.wait: no such"),
    ({"a": {"reward": ""}}, {}, "judges.a.reward is empty"),
    ({"a": {"reward": "runs/none"}}, {}, "judges.a.reward='runs/none'"),
    ({"a": {"reward": "x", "scale": "none"}}, {}, "scale='none': a reward mo"),
    ({"a": {"reward": "x", "requires": "b"}}, {}, "must be another judge"),
    ({"a": {"reward": "x", "kinds": ["m"]}}, {}, "combination.by is empty"),
    ({"a": {"reward": "x"}}, {"combination.by": "kind"}, "no judge has kinds"),
    ({"a": {"reward": "x"}}, {"reward": "y"}, "reward='y': judges=a judge al"),
    ({"a": {"reward": "x"}}, {"monitors": {"a": "y"}}, "monitors.a: is one of"),
    ({"a": {"reward": "x", "weight": 0.0}}, {}, "all weights are 0"),
    ({}, {"combination.name": "switch"}, "there are no judges to combine"),
    ({}, {"combination.name": "swich"}, "Did you mean 'switch'"),
    (
      {"a": {"reward": "x"}},
      {"combination.name": "switch"},
      "the switch is between",
    ),
    (
      {"a": {"reward": "x"}},
      {"algorithm.name": "ppo", "value.init": "reward"},
      "needs a critic",
    ),
    (
      {"a": {"reward": "x"}},
      {"algorithm.name": "gdpo", "shaping.clip": 5.0},
      "shaping.clip=5.0: 'gdpo' reads",
    ),
    ({"a": {"verifier": {"name": "numbre"}}}, {}, "'numbre' is unknown"),
  ],
)
def test_what_cannot_judge_together_is_refused(
  files, prompts, sft_lora, judges, changes, message
):
  with pytest.raises(UserError, match=message):
    config = config_of(files, prompts, sft_lora, judges)
    config.epochs.update(epochs=1, minibatches=1)
    monitors = changes.pop("monitors", None)
    if monitors:
      config.monitors = ConfigDict(monitors)
    config.update_from_flattened_dict(changes)
    tiny_runs.checked(config)


def test_rejection_sampling_has_no_multiplier(files, prompts, sft_lora, three):
  config = config_of(files, prompts, sft_lora, three, pipeline="rejection")
  config.combination.update(name="lagrangian", cost="word", by="kind")
  with pytest.raises(UserError, match="a round of rejection sampling has a"):
    tiny_runs.checked(config)
