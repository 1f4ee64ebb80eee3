"""The whole job on rated sentences: five stages, a report, no repetition."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import dataset, statistics
from rlhf_jax.evaluation import lexicon
from rlhf_jax.pipelines import (
  PIPELINES,
  defaults,
  evaluate,
  forecast,
  rlhf,
  workdir,
)
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

PROMISED = [
  "seconds_total",
  "reward_model_accuracy",
  "reward_model_accuracy_ceiling",
  "proxy_before",
  "proxy_after",
  "gold_before",
  "gold_after",
  "gold_win_rate",
  "gold_win_rate_standard_error",
  "vader_before",
  "vader_after",
  "kl_nats",
  "distinct_2_before",
  "distinct_2_after",
  "length_before",
  "length_after",
]


def ratings(files, split, **changes):
  return {
    "source": files.ratings,
    "format": "ratings",
    "prompt": "the",
    "max_length": 16,
    "splits": "test:60,A:90,B:90",
    "split": split,
    **changes,
  }


def make_config(files):
  config = defaults.rlhf()
  config.title = "Tiny"
  config.facts = {"model": "random"}
  config.caveats = ("None of this means anything.",)
  start = tiny_runs.sft_config(files, "lora")
  start.data.update(ratings(files, "A"))
  start.sample_prompts.update(ratings(files, "A", prefix_tokens=2))
  start.schedule.steps = 4
  config.sft = start
  for name, split in (("reward", "A"), ("gold", "B")):
    judge = tiny_runs.reward_config(files, "head", "", "")
    judge.data.update(ratings(files, split, pairs=400, end_token=False))
    judge.heldout.update(ratings(files, "test", pairs=100, end_token=False))
    config[name] = judge
  learner = tiny_runs.policy_config(files, "lora", "", "")
  learner.prompts.update(ratings(files, "A", prefix_tokens=2))
  learner.schedule.steps = 3
  config.policy = learner
  config.sft.generate.temperature = learner.generate.temperature
  last = config.evaluation
  last.mesh.devices = 1
  last.model.update(source=files.model, lora_rank=2)
  last.prompts.update(ratings(files, "test", prefix_tokens=2))
  last.generate.update(learner.generate.to_dict())
  last.generate.num_samples = 1
  last.update(count=16, batch_size=8, lexicon=True)
  return config


def other_stage(files, pipeline):
  """Returns a policy stage of another pipeline, in few steps."""
  config = getattr(defaults, pipeline)()
  learner = tiny_runs.policy_config(files, "lora", "", "")
  config.mesh.devices = 1
  for name in ("model", "trainable", "generate"):
    if name in config:
      config[name].update(learner[name].to_dict())
  config.optimizer.update(learning_rate=1e-2, warmup_steps=0)
  config.schedule.update(batch_size=8, steps=2, save_every=2)
  if pipeline == "preference":
    config.data.update(source=files.comparisons, max_length=24)
    return config
  config.prompts.update(ratings(files, "A", prefix_tokens=2))
  config.generate.num_samples = 2
  if pipeline == "rejection":
    config.rounds.update(count=2, prompts=16, batch_size=8)
    config.rounds.update(keep_truncated=True, start="previous")
  return config


@pytest.fixture(scope="module")
def finished(files):
  folder = files.root / "rlhf"
  return folder, pipelines.run(make_config(files), folder)


def read_off(folder):
  """Returns numbers of the summary, from the answers and scores of a run."""
  rows = tiny_runs.rows_of(folder / "evaluation", evaluate.TEXTS_FILE)
  column = lambda name: np.array([row[name] for row in rows])  # noqa: E731
  expected = {"kl_nats": np.mean(column("kl"))}
  for name in ("proxy", "gold"):
    before, after = column(f"{name}_before"), column(f"{name}_after")
    change = (after - before) / np.std(before)
    wins = (after > before) + 0.5 * (after == before)
    expected |= {
      f"{name}_before": 0.0,  # in units of `before` itself
      f"{name}_after": np.mean(change),
      f"{name}_standard_error": np.std(change, ddof=1) / np.sqrt(len(rows)),
      f"{name}_win_rate": np.mean(wins),
      f"{name}_win_rate_standard_error": np.std(wins, ddof=1)
      / np.sqrt(len(rows)),
    }
  for name in ("before", "after"):
    words = [row[name].lower().split() for row in rows]
    pairs = [pair for w in words for pair in zip(w, w[1:], strict=False)]
    expected[f"distinct_2_{name}"] = len(set(pairs)) / len(pairs)
    texts = [row["prompt"] + row[name] for row in rows]
    expected[f"vader_{name}"] = np.mean(lexicon.vader_scores(texts))
  return expected


def test_the_summary_holds_all_promised_numbers(finished):
  folder, numbers = finished
  assert json.loads((folder / "summary.json").read_text()) == numbers
  assert set(PROMISED) <= set(numbers)
  expected = read_off(folder)
  for name, of_stage in (("reward", "reward_model"), ("gold", "gold_model")):
    info = stages.read_stage(folder / name)
    expected[f"{of_stage}_accuracy"] = info["diagnosis"][
      "reward_model/accuracy"
    ]
    if name == "reward":
      expected["reward_model_accuracy_ceiling"] = info["ceiling"]
  for name, value in expected.items():
    assert numbers[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
  assert numbers["reward_model_accuracy"] > 0.7
  assert numbers["reward_model_accuracy_ceiling"] > 0.7
  assert set(numbers["phase_seconds"]) == {"load", *rlhf.STAGES}
  total = sum(numbers["phase_seconds"].values())
  assert numbers["seconds_total"] == pytest.approx(total)


def test_everything_that_is_promised_is_written(finished):
  folder, numbers = finished
  report = (folder / "report.html").read_text()
  assert "None of this means anything." in report
  assert f"{numbers['gold_win_rate']:.3f}" in report
  assert (folder / "overview.png").read_bytes().startswith(b"\x89PNG")
  for stage in ("sft", "reward", "gold", "policy"):
    assert stages.read_stage(folder / stage) is not None
    assert tiny_runs.rows_of(folder / stage)
  assert tiny_runs.rows_of(folder / "policy", "samples.jsonl")
  rows = tiny_runs.rows_of(folder / "evaluation", evaluate.TEXTS_FILE)
  assert len(rows) == 16
  assert {"prompt", "before", "after", "gold_after"} <= set(rows[0])


def test_what_was_read_and_where_tokens_moved_is_kept(finished):
  folder, _ = finished
  for stage in rlhf.STAGES:
    found = statistics.read(folder / stage)
    assert found and all(x["kept"] > 0 and x["lengths"] for x in found.values())
  texts = evaluate.read_texts(folder / "evaluation")
  pieces = evaluate.read_pieces(folder / "evaluation")
  assert sorted(pieces) == list(range(len(texts)))
  for i, row in enumerate(texts):
    assert "".join(text for text, _ in pieces[i]) == row["after"]
    total = sum(ratio for _, ratio in pieces[i])
    assert total == pytest.approx(row["kl"], abs=1e-4)
  page = (folder / "report.html").read_text()
  for tab in ("SFT", "Reward model", "Gold model", "Policy", "Samples", "Data"):
    assert f">{tab}</label>" in page
  named = re.findall(r"figures/(\w+)\.png, \.csv", page)
  files = {path.name for path in (folder / "figures").iterdir()}
  assert len(named) > 15 and len(set(named)) == len(named)
  assert files == {f"{x}.{end}" for x in named for end in ("png", "csv")}


def test_proxy_and_gold_read_disjoint_sentences(files, finished):
  config = make_config(files)
  tokenizer = tiny_runs.load_base(config.sft).tokenizer
  jobs = pipelines.read(config, finished[0]).settings.jobs
  parts = [
    {record.text for record in dataset.records(data, tokenizer)[0]}
    for data in (
      jobs["reward"].settings.data,
      jobs["gold"].settings.data,
      jobs["gold"].settings.heldout,
    )
  ]
  assert [len(part) for part in parts] == [90, 90, 60]
  assert len(set.union(*parts)) == 240
  assert len({job.settings.seed for job in jobs.values()}) == 5


def refuse(patch, *names):
  """Makes pipelines fail that are run although their stage is finished."""

  def run(settings, world):
    raise AssertionError("a finished stage was run again")

  for name in names:
    changed = dataclasses.replace(PIPELINES[name], run=run)
    patch.setitem(PIPELINES, name, changed)


def test_a_second_call_repeats_nothing(files, finished, monkeypatch):
  folder, numbers = finished
  refuse(monkeypatch, "sft", "reward", "policy", "evaluate")
  again = pipelines.run(make_config(files), folder)
  times = ("seconds_total", "phase_seconds")
  assert {k: v for k, v in again.items() if k not in times} == {
    k: v for k, v in numbers.items() if k not in times
  }


def test_reuse_takes_the_stages_before_from_another_run(
  files, finished, monkeypatch
):
  refuse(monkeypatch, "sft", "reward")
  config = make_config(files)
  config.reuse = str(finished[0])
  config.policy.schedule.steps = 1
  folder = files.root / "rlhf_reused"
  numbers = pipelines.run(config, folder)
  assert not (folder / "sft").exists() and not (folder / "gold").exists()
  stage = stages.read_stage(folder / "policy")
  named = folder / "policy" / stage["init_from"]
  assert named.resolve() == (finished[0] / "sft").resolve()
  for name in ("reward_model_accuracy", "gold_model_accuracy"):
    assert numbers[name] == finished[1][name]
  config.reuse = str(files.root / "nothing_here")
  with pytest.raises(UserError, match="is not finished"):
    pipelines.run(config, files.root / "rlhf_reused_2")


def prepare(config, folder):
  """Makes the folder ready for a run, or refuses it, as the command does."""
  workdir.prepare(config, pipelines.read(config, folder), folder)


STAGES = [
  ("preference", "DPO"),
  pytest.param("rejection", "rejection sampling", marks=pytest.mark.slow),
  pytest.param("online_preference", "online DPO", marks=pytest.mark.slow),
  pytest.param("bond", "J-BOND", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("pipeline, name", STAGES)
def test_the_policy_stage_may_be_another_pipeline(
  files, finished, pipeline, name
):
  config = make_config(files)
  config.reuse = str(finished[0])
  config.policy = other_stage(files, pipeline)
  folder = files.root / f"rlhf_{pipeline}"
  prepare(config, folder)
  numbers = pipelines.run(config, folder)
  stage = stages.read_stage(folder / "policy")
  assert stage["pipeline"] == pipeline
  named = folder / "policy" / stage["init_from"]
  assert named.resolve() == (finished[0] / "sft").resolve()
  for field, value in read_off(folder).items():
    assert numbers[field] == pytest.approx(value, rel=1e-4, abs=1e-4), field
  assert numbers["kl_nats"] != 0.0
  report = (folder / "report.html").read_text()
  assert f"prefers the {name} answer" in report
  unit = "rounds" if pipeline == "rejection" else "steps"
  assert f"{numbers['policy_steps']} {unit} of {name}" in report
  (folder / workdir.CONFIG_FILE).write_text(
    json.dumps({"config": config.to_dict()})
  )
  other = make_config(files)
  other.reuse = config.reuse
  with pytest.raises(UserError, match="config.policy.pipeline="):
    prepare(other, folder)


def test_a_begun_stage_of_rounds_is_not_taken_over(files):
  """Rejection sampling has no checkpoints of its own before it ends."""
  config = make_config(files)
  config.policy = other_stage(files, "rejection")
  folder = files.root / "rlhf_begun"
  (folder / "policy" / "round_1").mkdir(parents=True)
  (folder / "policy" / "metrics.jsonl").write_text("")
  (folder / workdir.CONFIG_FILE).write_text(
    json.dumps({"config": config.to_dict()})
  )
  prepare(config, folder)
  config.policy = other_stage(files, "bond")
  with pytest.raises(UserError, match="'rejection', and this is .*'bond'"):
    prepare(config, folder)


def policy_of(config):
  """Returns (FLOPs of the policy stage, what the forecast says of it)."""
  settings = tiny_runs.settings_of(config)
  folders = {name: settings.folder(name, Path()) for name in rlhf.STAGES}
  world = tiny_runs.world_of(config)
  found = forecast.flops(settings.jobs, folders, world)
  assert list(found) == list(rlhf.STAGES)
  job = settings.jobs["policy"]
  return found["policy"], job.pipeline.describe(job.settings)


def test_the_forecast_says_what_runs_and_counts_it(files):
  config = make_config(files)
  config.policy.value.pretrain_steps = 0
  ppo, _ = policy_of(config)
  config.policy.schedule.steps *= 2
  assert policy_of(config) == (2 * ppo, "6 steps of 8 prompts (PPO)")
  config.policy.value.pretrain_steps = 2
  assert policy_of(config)[0] > 2 * ppo
  with_reuse = config.copy_and_resolve_references()
  with_reuse.reuse = "elsewhere"  # the stages are of the same kinds there
  assert policy_of(with_reuse) == policy_of(config)
  config.policy = other_stage(files, "rejection")
  with_steps, text = policy_of(config)
  assert text == "2 rounds of 16 prompts (best of n)"
  config.policy.schedule.batch_size *= 2
  assert policy_of(config)[0] > with_steps
  config.policy = other_stage(files, "preference")
  dpo, _ = policy_of(config)
  config.policy.algorithm.name = "orpo"  # reads no reference
  assert 0.0 < policy_of(config)[0] < dpo
  config.policy.schedule.update(steps=0, epochs=2.0)
  assert policy_of(config) == (None, "2 epochs of comparisons (ORPO)")


def test_the_forecast_of_a_start_that_was_trained_whole(files):
  """The policy's own model section says which factors it has."""
  config = make_config(files)
  found, _ = policy_of(config)
  config.sft.model.lora_rank = 0
  config.sft.trainable.update(mode="full", first_layer=0)
  assert policy_of(config)[0] >= found


def test_settings_of_another_policy_stage_are_named_where_they_are(files):
  config = make_config(files)
  config.policy = other_stage(files, "rejection")
  config.policy.verifier.name = "exact"
  with pytest.raises(UserError, match="this run trains a reward model"):
    tiny_runs.checked(config)
  config.policy.verifier.name = ""
  config.policy.rounds.pool = True
  with pytest.raises(UserError, match=r"config\.policy\.rounds\.pool=True"):
    tiny_runs.checked(config)
  config.policy.pipeline = "reward"
  with pytest.raises(UserError, match="config.policy.pipeline='reward': must"):
    tiny_runs.checked(config)


def test_reuse_of_some_stages(files, finished):
  config = make_config(files)
  config.reuse = str(finished[0])
  config.reuse_stages = ("sft", "gold")
  own = files.root / "rlhf_own_reward"
  settings = pipelines.read(config, own).settings
  assert settings.folder("reward", own) == own / "reward"
  assert settings.folder("gold", own) == finished[0] / "gold"
  assert settings.policy.settings.reward == str(own / "reward")
  assert settings.policy.settings.monitors == {
    "gold": str(finished[0] / "gold")
  }
  assert settings.reward.settings.reference_samples == str(
    finished[0] / "sft" / "samples.npz"
  )
  for wrong in (("reward", "gold"), ("sft", "policy")):
    config.reuse_stages = wrong
    with pytest.raises(UserError, match="must hold 'sft'"):
      pipelines.read(config, own)


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("policy.init_from", "elsewhere", "the run itself sets it"),
    ("reward.seed", 5, "the run itself sets it"),
    ("sft.samples", 1, "normalised on samples"),
    ("policy.generate.temperature", 0.5, "must be equal"),
    ("evaluation.generate.temperature", 0.0, "no|must be equal"),
    ("evaluation.generate.top_k", 3, "full distributions"),
    ("evaluation.generate.num_samples", 2, "not independent"),
    ("policy.shaping.kl_horizon", 1.0, "kl_horizon=1: must be more"),
    ("policy.shaping.kl_coefficient", 0.0, "would stay 0"),
  ],
)
def test_settings_that_mean_nothing_are_refused(files, field, value, message):
  config = make_config(files)
  section, _, name = field.rpartition(".")
  part = config
  for key in section.split("."):
    part = part[key]
  part[name] = value
  with pytest.raises((UserError, ValueError), match=message):
    tiny_runs.checked(config)


@pytest.mark.parametrize("field, value", [("seed", 7), ("reuse", "other")])
def test_a_begun_run_keeps_its_seed_and_origin(files, finished, field, value):
  folder, _ = finished
  config = make_config(files)
  (folder / workdir.CONFIG_FILE).write_text(
    json.dumps({"config": config.to_dict()})
  )
  prepare(config, folder)
  config[field] = value
  with pytest.raises(UserError, match=f"config.{field}="):
    prepare(config, folder)
