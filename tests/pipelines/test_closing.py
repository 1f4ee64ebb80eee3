"""What a finished run says last can be typed, and holds its numbers."""

import dataclasses
import json
import shutil

import pytest

from rlhf_jax import pipelines
from rlhf_jax.evaluation import comparison
from rlhf_jax.pipelines import closing, evaluate, provenance
from rlhf_jax.runs import history
from tests.pipelines import tiny_runs


def said(config, folder, capsys, *options, is_smoke=False):
  """Returns the lines that a finished run ends with."""
  job = pipelines.read(config, folder)
  argv = ["main", "--config=configs/sft.py", *options]
  capsys.readouterr()
  closing.say(job, folder, argv, is_smoke)
  return capsys.readouterr().out.splitlines()


def test_after_sft_comes_a_reward_model(files, sft_lora, capsys):
  config = tiny_runs.sft_config(files, "lora")
  lines = said(config, sft_lora, capsys, is_smoke=True)
  info = json.loads((sft_lora / "stage.json").read_text())
  loss = tiny_runs.rows_of(sft_lora)[-1]["sft/loss"]
  assert f"steps {info['steps']}, examples {info['examples']}" in lines[1]
  assert f"loss {loss:.3g}" in lines[1]
  assert lines[2] == f"In {sft_lora}:"
  assert any(line.startswith("  checkpoints") for line in lines)
  assert lines[-2].startswith("Next, a reward model")
  assert lines[-1] == (
    "  python -m rlhf_jax.main --config=configs/reward.py "
    f"--config.data.source=pairs.jsonl --config.init_from={sft_lora} "
    f"--config.model.source={files.model} "
    f"--workdir={sft_lora.parent / 'reward'} --smoke"
  )


def test_after_a_reward_model_comes_ppo(files, reward_head, sft_lora, capsys):
  config = tiny_runs.reward_config(files, "head", "", sft_lora / "samples.npz")
  lines = said(config, reward_head, capsys)
  held = json.loads((reward_head / "stage.json").read_text())["diagnosis"]
  accuracy = held["reward_model/accuracy"]
  assert f"held-out accuracy {accuracy:.3g}" in lines[1]
  assert "--config=configs/ppo.py" in lines[-1]
  assert f"--config.reward={reward_head}" in lines[-1]
  assert f"--config.init_from={reward_head.parent / 'sft'}" in lines[-1]


@pytest.mark.parametrize("level", ["refuse", "warn"])
def test_a_reward_model_at_chance_is_not_offered_without_a_word(
  files, reward_head, sft_lora, tmp_path, capsys, level
):
  folder = tmp_path / "reward"
  shutil.copytree(reward_head, folder)
  info = json.loads((folder / "stage.json").read_text())
  info["guards"] = [[level, "near chance"]]
  (folder / "stage.json").write_text(json.dumps(info))
  config = tiny_runs.reward_config(files, "head", "", sft_lora / "samples.npz")
  lines = said(config, folder, capsys)
  assert lines[-2].startswith("Next, a policy that it judges")
  assert ("unless with --config.force=True" in lines[-2]) == (level == "refuse")


def test_a_policy_counts_in_steps_and_says_its_updates(
  files, policy_lora, sft_lora, reward_head, capsys
):
  config = tiny_runs.policy_config(files, "lora", sft_lora, reward_head)
  lines = said(config, policy_lora, capsys)
  updates = json.loads((policy_lora / "stage.json").read_text())["steps"]
  assert updates > 20
  assert f"steps 20, updates {updates}, score" in lines[1]
  assert history.history(policy_lora)[-1][1] == 20  # a model card's too
  assert "--config=configs/evaluate.py" in lines[-1]
  assert f"--config.reward={reward_head}" in lines[-1]


def test_an_evaluation_prints_its_table(files, tmp_path, capsys):
  facts = {
    "evaluation_prompts": 2,
    "verifier_before": 0.25,
    "verifier_after": 0.5,
    "verifier_standard_error": 0.125,
    "verifier_win_rate": 0.75,
    "verifier_win_rate_standard_error": 0.25,
    "kl_nats": -0.004,
    "kl_standard_error": 0.001,
    "length_before": 3.0,
    "length_after": 4.0,
  }
  (tmp_path / evaluate.RESULT_FILE).write_text(json.dumps(facts))
  texts = {"prompt": "2 + 2 =", "before": " 5", "after": " 4"}
  (tmp_path / evaluate.TEXTS_FILE).write_text(json.dumps(texts) + "\n")
  settings = dataclasses.replace(evaluate.Settings(), policy="runs/ppo")
  evaluate.tell(settings, tmp_path)
  lines = capsys.readouterr().out.splitlines()
  assert "runs/ppo (after) against its start (before), 2 held-out" in lines[1]
  table = [line.split() for line in lines]
  assert ["Verifier", "score", "0.250", "0.500", "0.125"] in table
  assert ["KL", "to", "the", "other", "policy", "(nats)", "0.00"] == next(
    row[:7] for row in table if row[:1] == ["KL"]
  )
  assert "Win rate against other (verifier)  0.500   0.750  0.250" in lines
  assert lines[-1] == "  after:  4"
  assert not any("-0.00" in line or "gold" in line for line in lines)


def test_rows_without_a_number_are_left_out():
  rows = comparison.summary_rows({"kl_nats": 1.0}, "PPO")
  assert [row.name for row in rows] == ["KL to the SFT policy (nats)"]


def test_the_report_says_what_the_run_was_made_with(files, sft_lora):
  config = tiny_runs.sft_config(files, "lora")
  job = pipelines.read(config, sft_lora)
  facts = dict(provenance.facts({"sft": job}, 7))
  assert facts["seeds"] == f"7 (sft {config.seed})"
  assert facts["data, sft"] == files.demonstrations
  for name in ("rlhf_jax", "jax", "jaxlib", "flax", "Python"):
    assert f"{name} " in facts["versions"]
  assert "rlhf_jax.main" in facts["command"]
  assert "cpu" in facts["hardware"] and "CPU cores" in facts["hardware"]


def test_what_a_pipeline_leaves_has_a_line():
  left = {x.result for x in pipelines.PIPELINES.values() if x.result}
  assert left <= set(closing.FILES) | {"stage.json"}


@pytest.mark.parametrize("name", ["reward", "ppo", "evaluate", "dpo"])
def test_experiments_that_are_named_are_there(name):
  beside = closing.__file__.partition("rlhf_jax/pipelines")[0]
  assert closing.Path(beside, "configs", f"{name}.py").is_file()
