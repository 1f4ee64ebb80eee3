"""A start below its floor carries no reward model and no RL, unless forced."""

import json
import shutil

import pytest

from rlhf_jax import pipelines
from rlhf_jax.programs import floor
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import tiny_runs


def levels(**facts):
  return [level for level, _ in floor.of_sft(facts)]


def test_what_speaks_against_an_sft_run():
  assert levels() == []
  assert levels(validation_loss=2.0, validation_loss_before=2.1) == []
  assert levels(validation_loss=2.1, validation_loss_before=2.0) == ["refuse"]
  assert levels(empty_share=0.5, ended_share=0.5) == []
  assert levels(empty_share=0.6, ended_share=0.4) == ["refuse", "warn"]


def test_an_sft_run_says_what_it_reached(sft_full, sft_lora):
  info = stages.read_stage(sft_full)
  assert 0.0 < info["validation_loss"] < info["validation_loss_before"] - 0.1
  assert 0.0 <= info["ended_share"] <= 1.0
  assert [level for level, _ in info["guards"] if level == "refuse"] == []
  assert "validation_loss_before" not in stages.read_stage(sft_lora)


def check(start, tmp_path, force=False, **asked):
  config = floor.Config(**asked)
  world = tiny_runs.world_of(CONFIG[0], tmp_path)
  floor.check_start(config, str(start), world, force)


CONFIG = []


@pytest.fixture(autouse=True)
def config(files):
  CONFIG[:] = [tiny_runs.sft_config(files, "full")]


def test_numbers_below_the_floor(sft_full, tmp_path, capsys):
  info = stages.read_stage(sft_full)
  loss, ended = info["validation_loss"], info["ended_share"]
  check(sft_full, tmp_path, loss=loss + 0.01, ended=ended)
  with pytest.raises(FieldError, match=r"floor.loss=0.1: .*--config.force"):
    check(sft_full, tmp_path, loss=0.1)
  capsys.readouterr()
  check(sft_full, tmp_path, loss=0.1, force=True)
  assert "refuse: floor.loss=0.1" in capsys.readouterr().out
  with pytest.raises(FieldError, match="floor.ended=1.0"):
    check(sft_full, tmp_path, ended=1.0)


def test_a_step_of_an_sft_run_is_held_to_its_own_numbers(files, tmp_path):
  """A run that got worse at last has a best step that did not."""
  folder = tmp_path / "sft"
  config = tiny_runs.sft_config(files, "full")
  config.schedule.update(steps=6, save_every=2, eval_every=2, keep=3)
  pipelines.run(config, folder)
  info = stages.read_stage(folder)
  measured = {
    row["step"]: row["validation/loss"]
    for row in tiny_runs.rows_of(folder)
    if "validation/loss" in row
  }
  info |= {"validation_loss": 99.0}  # as if the last step were spoilt
  info["guards"] = floor.of_sft(info)
  (folder / stages.STAGE_FILE).write_text(json.dumps(info))
  with pytest.raises(FieldError, match="validation_loss=99.0: it was"):
    check(folder, tmp_path)
  check(f"{folder}@4", tmp_path, loss=measured[4] + 1e-6)
  with pytest.raises(FieldError, match=f"floor.loss=.*{measured[4]:.4g}"):
    check(f"{folder}@4", tmp_path, loss=measured[4] - 1e-3)
  with pytest.raises(FieldError, match=r"ended=0.1: nothing says it of .*@4"):
    check(f"{folder}@4", tmp_path, ended=0.1)
  with pytest.raises(FieldError, match="validation_loss=99.0: it was"):
    check(f"{folder}@6", tmp_path)  # the last


def test_what_nobody_measured_is_no_floor(sft_lora, tmp_path):
  for start in (sft_lora, ""):
    with pytest.raises(FieldError, match="floor.loss=2.0: nothing says it"):
      check(start, tmp_path, loss=2.0)
  with pytest.raises(FieldError, match="Set both, or neither"):
    floor.Config(win_rate=0.5)


def test_the_win_rate_is_of_an_evaluation_of_this_start(sft_full, tmp_path):
  folder = tmp_path / "evaluation"
  folder.mkdir()
  asked = {"evaluation": str(folder), "win_rate": 0.5}
  with pytest.raises(FieldError, match=r"no evaluation.json is there"):
    check(sft_full, tmp_path, **asked)
  found = {"gold_win_rate": 0.4, "origins": {"policy": "another"}}
  (folder / "evaluation.json").write_text(json.dumps(found))
  with pytest.raises(FieldError, match="its policy is not init_from"):
    check(sft_full, tmp_path, **asked)
  found["origins"]["policy"] = stages.stage_fingerprint(sft_full)
  (folder / "evaluation.json").write_text(json.dumps(found))
  with pytest.raises(FieldError, match=r"floor.win_rate=0.5: it has 0.4"):
    check(sft_full, tmp_path, **asked)
  check(sft_full, tmp_path, **asked | {"win_rate": 0.3})
  with pytest.raises(FieldError, match="floor.win_rate=0.3: nothing says"):
    check(sft_full, tmp_path, **asked | {"win_rate": 0.3, "judge": "verifier"})


def test_a_failed_start_is_refused_by_reward_model_and_ppo(
  files, sft_full, reward_full, tmp_path, capsys
):
  start = tmp_path / "sft"
  shutil.copytree(sft_full, start)
  info = stages.read_stage(start) | {"validation_loss": 99.0}
  info["guards"] = floor.of_sft(info)
  (start / stages.STAGE_FILE).write_text(json.dumps(info))
  made = {
    "reward": tiny_runs.reward_config(
      files, "full", start, start / "samples.npz"
    ),
    "ppo": tiny_runs.policy_config(files, "full", start, reward_full),
  }
  for name, config in made.items():
    with pytest.raises(UserError, match=r"validation_loss=99.0: it was"):
      pipelines.run(config, tmp_path / name)
  config = made["reward"]
  config.force = True
  config.schedule.steps = 2
  pipelines.run(config, tmp_path / "reward")
  assert (
    "force=True goes on past refuse: validation_loss=99.0"
    in capsys.readouterr().out
  )
