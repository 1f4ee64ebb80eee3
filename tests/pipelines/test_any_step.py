"""Any kept step of a run as a start, a judge, or what is evaluated.

FOLDER is the last step, FOLDER@best the best kept one, FOLDER@STEP any other.
What is loaded is compared bit for bit with what the checkpoint of that step
holds; the steps of a run differ, so that another one would show.
"""

import os
import shutil

import jax
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.interrupt import Stopped
from rlhf_jax.models import roles, trees
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import actors, compared
from rlhf_jax.programs.world import Planned
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import history, loop, stages
from rlhf_jax.runs.checkpoint import CheckpointError
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.tiny_runs import trained_arrays

STEPS = 6
LOSS = "sft/loss"


def run_sft(files, name, **schedule):
  """Returns the folder of a LoRA run that saves each of its 6 steps."""
  config = tiny_runs.sft_config(files, "lora")
  config.samples, config.sample_prompts.source = 0, ""
  config.optimizer.learning_rate = 3e-2
  config.schedule.update(steps=STEPS, save_every=1, **schedule)
  pipelines.run(config, files.root / name)
  return files.root / name


@pytest.fixture(scope="module")
def every_step(files):
  """Keeps all steps."""
  return run_sft(files, "every_step", keep=STEPS)


@pytest.fixture(scope="module")
def best_steps(files):
  """Returns {"min" or "max": run that keeps that step and the last two}."""
  return {
    best: run_sft(files, f"{best}_step", keep=1, keep_best=LOSS, best=best)
    for best in ("min", "max")
  }


def load(files, folder, mode="lora"):
  """Returns a policy stage, with @STEP or not, and the base under it."""
  config = tiny_runs.sft_config(files, mode)
  world = tiny_runs.world_of(config)
  base = world.base(tiny_runs.settings_of(config).model)
  return stages.load(folder, stages.POLICY, base, world), base


def assert_trained(stage, expected):
  """Asserts that a stage's trained leaves are these, in each bit."""
  flat = trees.flatten(stage.variables)
  found = {p: flat[p] for p in flat if roles.is_trainable(stage.role, p)}
  assert found
  tiny_runs.assert_equal_arrays(found, expected)


def differs(one, other):
  return any(not np.array_equal(one[path], other[path]) for path in one)


def kept_steps(folder):
  path = folder / "checkpoints"
  return sorted(int(p.parent.name) for p in path.glob("*/manifest.json"))


def policy_config(files, start, scorer):
  """One rollout, nothing for the critic alone."""
  config = tiny_runs.policy_config(files, "lora", start, scorer)
  config.value.pretrain_steps = 0
  config.schedule.update(steps=1, asynchronous=False, keep_best="")
  return config


def load_actors(config):
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  return actors.load(
    settings, base, world, settings.row_targets(1, "einsum"), settings.value
  )


def test_every_kept_step_is_loaded_as_it_was_saved(files, every_step):
  assert kept_steps(every_step) == list(range(1, STEPS + 1))
  saved = [trained_arrays(every_step, step) for step in range(1, STEPS + 1)]
  for step, expected in enumerate(saved, 1):
    stage, base = load(files, f"{every_step}@{step}")
    assert_trained(stage, expected)
    whole = trees.flatten(stage.variables)
    for path, leaf in trees.flatten({"params": base.params}).items():
      np.testing.assert_array_equal(whole[path], leaf)
  assert_trained(load(files, every_step)[0], saved[-1])
  assert all(differs(saved[i], saved[i + 1]) for i in range(STEPS - 1))


@pytest.mark.parametrize("best", ["min", "max"])
def test_the_best_step_is_that_of_the_schedule(
  files, every_step, best_steps, best
):
  """Whichever of them is not the last one: both are, of the same numbers."""
  folder = best_steps[best]
  losses = [row[LOSS] for row in tiny_runs.rows_of(every_step)]
  assert [row[LOSS] for row in tiny_runs.rows_of(folder)] == losses
  assert len(set(losses)) == STEPS
  step = 1 + losses.index({"min": min, "max": max}[best](losses))
  assert kept_steps(folder) == sorted({step, STEPS - 1, STEPS})
  assert stages.step_of(f"{folder}@best") == step
  assert history.history(f"{folder}@best") == [("sft", step)]
  expected = trained_arrays(every_step, step)
  assert_trained(load(files, f"{folder}@best")[0], expected)
  assert_trained(load(files, f"{folder}@{step}")[0], expected)
  last = trained_arrays(every_step, STEPS)
  assert_trained(load(files, folder)[0], last)
  assert differs(expected, last) == (step != STEPS)


def test_min_and_max_are_not_the_same_step(best_steps):
  found = {stages.step_of(f"{folder}@best") for folder in best_steps.values()}
  assert len(found) == 2


@pytest.mark.parametrize(
  "name, words",
  [
    (
      "min_step@best2",
      "wanted a finished policy run, found no such folder. For a step of a "
      "run write .*min_step@best or .*min_step@120",
    ),
    ("min_step@-1", "found no such folder. For a step"),
    ("min_step@²", "found no such folder. For a step"),
    ("min_step@", "found no such folder. For a step"),
    ("nowhere@best", "found no such folder. Finish it first"),
    ("nowhere@3", "found no such folder. Finish it first"),
    (f"every_step@{STEPS + 1}", rf"no step {STEPS + 1} was kept .*\[1, 2, 3"),
    ("every_step@0", r"no step 0 was kept there; there are \[1, 2, 3"),
    ("every_step@best", "no best step was kept there; .*schedule.keep_best"),
  ],
)
def test_a_step_that_is_not_there_is_refused(
  files, every_step, best_steps, reward_head, name, words
):
  """Before a model is loaded, with the field and what there is instead."""
  config = policy_config(files, files.root / name, reward_head)
  with pytest.raises(UserError, match=words) as caught:
    tiny_runs.checked(config)
  message = str(caught.value)
  assert message.startswith(f"config.init_from='{files.root / name}': ")


def test_a_step_that_was_not_kept_is_refused(files, best_steps, reward_head):
  folder = best_steps["min"]
  gone = next(
    step for step in range(1, STEPS) if step not in kept_steps(folder)
  )
  config = policy_config(files, f"{folder}@{gone}", reward_head)
  with pytest.raises(UserError, match=f"no step {gone} was kept"):
    pipelines.run(config, files.root / "policy_of_a_gone_step")
  assert not (files.root / "policy_of_a_gone_step").exists()


def test_a_step_of_a_run_that_is_not_finished_is_refused(
  every_step, tmp_path, files, reward_head
):
  shutil.copytree(every_step, tmp_path / "sft")
  os.remove(tmp_path / "sft" / stages.STAGE_FILE)
  config = policy_config(files, tmp_path / "sft@3", reward_head)
  with pytest.raises(UserError, match="found one that is not finished"):
    tiny_runs.checked(config)


def test_a_step_of_another_kind_is_refused(files, every_step, reward_head):
  config = policy_config(files, f"{reward_head}@40", f"{every_step}@3")
  with pytest.raises(UserError, match="config.init_from.*found a reward run"):
    tiny_runs.checked(config)
  config.init_from = ""
  with pytest.raises(UserError, match="config.reward.*found a sft run"):
    tiny_runs.checked(config)


def test_a_folder_that_is_called_so_is_that_folder(files, every_step):
  """As it was before steps could be named."""
  folder = files.root / "rate@3"
  shutil.copytree(every_step, folder)
  stage, _ = load(files, folder)
  assert_trained(stage, trained_arrays(every_step, STEPS))
  stage, _ = load(files, f"{folder}@2")
  assert_trained(stage, trained_arrays(every_step, 2))


def test_a_policy_starts_from_the_named_step(files, best_steps, reward_head):
  """It goes on with that step's factors, which are its reference too."""
  folder = best_steps["max"]
  best = stages.step_of(f"{folder}@best")
  expected = trained_arrays(folder, best)
  for name in ("best", best, STEPS):
    step = best if name == "best" else name
    found = load_actors(policy_config(files, f"{folder}@{name}", reward_head))
    policy = trees.flatten(found.params["policy"])
    tiny_runs.assert_equal_arrays(policy, trained_arrays(folder, step))
    reference = trees.flatten(found.weights.reference)
    for path, leaf in trained_arrays(folder, step).items():
      np.testing.assert_array_equal(reference[path], leaf, err_msg=path)
  assert differs(expected, trained_arrays(folder, STEPS)) == (best != STEPS)


@pytest.mark.slow
def test_a_run_that_goes_on_from_another_step_is_noticed(
  files, every_step, reward_head, monkeypatch, tmp_path
):
  """FOLDER@6 is FOLDER when it ended there; FOLDER@2 is another start."""
  config = policy_config(files, f"{every_step}@{STEPS}", reward_head)
  config.schedule.steps = 2
  with monkeypatch.context() as patch:
    patch.setattr(loop.Interrupt, "should_stop", lambda self, now: now == 1)
    with pytest.raises(Stopped):
      pipelines.run(config, tmp_path / "run")
  config.init_from = f"{every_step}@2"
  with pytest.raises(CheckpointError, match="init_from_fingerprint"):
    pipelines.run(config, tmp_path / "run")
  config.init_from = str(every_step)
  info = pipelines.run(config, tmp_path / "run")
  assert info["init_from"] == os.path.relpath(every_step, tmp_path / "run")
  rows = tiny_runs.rows_of(tmp_path / "run")
  assert [row["step"] for row in rows] == [1, 2]
  assert rows[0]["rollout/kl_k3_sum"] < 1e-5  # starts as its reference


def test_a_reward_model_of_an_earlier_step(files, reward_head, capsys):
  """Its arrays; that other numbers are of the last step is said."""
  assert kept_steps(reward_head) == [40, 60]
  config = tiny_runs.reward_config(files, "head", "", "")
  world = tiny_runs.world_of(config)
  base = world.base(tiny_runs.settings_of(config).model)
  for name, step in (("@40", 40), ("@60", 60), ("", 60)):
    folder = f"{reward_head}{name}"
    scorer, weights, _ = reward_model.load(folder, base, world)
    expected = trained_arrays(reward_head, step)
    head, _ = roles.split(scorer.role, weights.variables)
    tiny_runs.assert_equal_arrays(trees.flatten(head), expected)
    said = capsys.readouterr().out
    assert ("measured at step 60" in said) == (step == 40)
  assert differs(
    trained_arrays(reward_head, 40), trained_arrays(reward_head, 60)
  )


def evaluation_config(files, policy, scorer, start=""):
  config = defaults.evaluate()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.policy, config.reward = str(policy), str(scorer)
  config.init_from = str(start)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.update(count=24, batch_size=24)
  return config


def load_policies(config):
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  return compared.load_policies(settings, world, world.base(settings.model))


def test_a_step_is_evaluated(files, policy_lora, sft_lora, reward_head):
  """Of a run that keeps all its steps, @best by its score."""
  scores = {
    row["step"]: row["rollout/score_mean"]
    for row in tiny_runs.rows_of(policy_lora)
  }
  kept = kept_steps(policy_lora)
  best = max(kept, key=lambda step: (scores[step], step))
  start = trained_arrays(sft_lora)
  for name, step in (("@best", best), ("@4", 4), ("", 20)):
    folder = f"{policy_lora}{name}"
    found = load_policies(evaluation_config(files, folder, reward_head))
    assert_trained(
      found["after"], trained_arrays(policy_lora, step, stages.BESIDE_CRITIC)
    )
    assert_trained(found["before"], start)  # what that run started from


def test_two_steps_of_one_run_are_compared(files, policy_lora, reward_head):
  config = evaluation_config(
    files, f"{policy_lora}@20", reward_head, f"{policy_lora}@4"
  )
  found = load_policies(config)
  for name, step in (("before", 4), ("after", 20)):
    expected = trained_arrays(policy_lora, step, stages.BESIDE_CRITIC)
    assert_trained(found[name], expected)
  with pytest.raises(UserError, match="config.policy=.*no step 3 was kept"):
    config.policy = f"{policy_lora}@3"
    tiny_runs.checked(config)


@pytest.mark.slow
def test_an_evaluation_is_of_the_step_that_was_named(
  files, policy_lora, reward_head
):
  """The last step by its number is the run; the first saved one is not.

  After two steps only the critic had learned: the policy is its start.
  """
  facts = {
    name: pipelines.run(
      evaluation_config(files, f"{policy_lora}{name}", reward_head),
      files.root / f"evaluation{name}",
    )
    for name in ("", "@20", "@2")
  }
  assert facts["@20"] == facts[""]
  assert facts[""]["proxy_after"] > facts["@2"]["proxy_after"] + 0.5
  assert abs(facts["@2"]["kl_nats"]) < 1e-5 < 1e-2 < facts[""]["kl_nats"]


def test_a_plan_knows_a_stage_by_any_step(files, every_step, tmp_path):
  """What a planned stage leaves has the same shapes in all of its steps."""
  config = tiny_runs.sft_config(files, "lora")
  world = Planned.on(tiny_runs.settings_of(config).mesh, 1)
  base = world.base(tiny_runs.settings_of(config).model)
  role = load(files, every_step)[0].role
  world.leave(tmp_path / "sft", role, "")
  plain = stages.load(tmp_path / "sft", stages.POLICY, base, world)
  for name in ("sft@best", "sft@4"):
    stage = stages.load(tmp_path / name, stages.POLICY, base, world)
    assert stage.role == plain.role
    assert jax.tree.structure(stage.variables) == jax.tree.structure(
      plain.variables
    )
  assert not world.notes  # nothing had to be assumed
