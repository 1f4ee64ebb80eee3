"""Held-out numbers while a run trains: right, repeatable, no disturbance."""

import json
import types

import numpy as np
import pytest

from rlhf_jax import generate, pipelines
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import heldout, heldout_settings, own_samples
from rlhf_jax.programs.rejection_rounds import folder_of
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import (
  test_pipeline_online,
  test_pipeline_rejection,
  tiny_runs,
)
from tests.pipelines.test_pipeline_resume import Killed, kill_at


def measured(folder, name):
  """Returns {step: value} of the rows that have a metric."""
  rows = tiny_runs.rows_of(folder)
  return {row["step"]: row[name] for row in rows if name in row}


def assert_undisturbed(found, expected):
  """Asserts that two runs trained alike, whether measured or not."""
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(found), tiny_runs.saved_arrays(expected)
  )
  rows = [
    {
      name: value
      for name, value in row.items()
      if not name.startswith(("validation/", "heldout/", "phase"))
    }
    for row in tiny_runs.rows_of(found)
  ]
  others = tiny_runs.rows_of(expected)
  assert rows == [
    {k: x for k, x in row.items() if k != "phase"} for row in others
  ]


def test_sft_is_validated_while_it_trains(files, sft_lora):
  config = tiny_runs.sft_config(files, "lora")
  data = {"source": files.demonstrations, "format": "demonstration"}
  config.validation.update(data, max_length=24, limit=20)
  config.schedule.update(eval_every=5, keep=1, keep_best="validation/loss")
  folder = files.root / "sft_measured"
  info = pipelines.run(config, folder)
  assert_undisturbed(folder, sft_lora)
  found = measured(folder, "validation/loss")
  assert list(found) == [5, 10, 12]
  assert found[12] == info["validation_loss"] < found[5]
  best = min(found, key=found.get)
  assert stages.step_of(f"{folder}@best") == best


def test_a_reward_model_is_validated_while_it_trains(
  files, sft_lora, reward_head
):
  config = tiny_runs.reward_config(files, "head", "", sft_lora / "samples.npz")
  config.schedule.update(eval_every=25, keep_best="validation/accuracy")
  folder = files.root / "reward_measured"
  diagnosis = pipelines.run(config, folder)["diagnosis"]
  assert_undisturbed(folder, reward_head)
  for name in ("loss", "accuracy"):
    found = measured(folder, f"validation/{name}")
    assert list(found) == [25, 50, 60]
    assert found[60] == diagnosis[f"reward_model/{name}"]


@pytest.mark.slow
def test_a_policy_on_comparisons_is_validated_while_it_trains(files, sft_full):
  folders = [files.root / f"dpo_measured_{every}" for every in (0, 3)]
  for every, folder in zip((0, 3), folders, strict=True):
    config = tiny_runs.dpo_config(files, sft_full)
    config.schedule.update(steps=4, save_every=4, eval_every=every)
    info = pipelines.run(config, folder)
  assert_undisturbed(folders[1], folders[0])
  for name, value in info["heldout"].items():
    found = measured(folders[1], name.replace("preference/", "validation/"))
    assert list(found) == [3, 4] and found[4] == value


def verified_config(files, start, folder):
  """Policy training without a critic, against a verifier."""
  config = defaults.policy("rloo")
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
  config.init_from = str(start)
  config.verifier.name = "pattern"
  config.verifier.settings.update(pattern=tiny_runs.PLANTED, mode="search")
  rows = tiny_runs.rows_of(files.root, "prompts.jsonl")
  for name, part in (("prompts", rows[:16]), ("heldout", rows[16:])):
    path = folder / f"{name}.jsonl"
    path.write_text(
      "".join(json.dumps(row | {"reference": ""}) + "\n" for row in part)
    )
    config[name].update(source=str(path), format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=2)
  config.schedule.update(batch_size=8, steps=4, save_every=2)
  config.policy_optimizer.learning_rate = 2e-2
  config.packing.row_tokens = 0
  return config


@pytest.mark.slow
def test_a_policy_answers_held_out_prompts_while_it_trains(
  files, sft_lora, tmp_path, monkeypatch
):
  """Killed and resumed, measured or not, it ends the same in each bit."""
  config = verified_config(files, sft_lora, tmp_path)
  source, config.heldout.source = config.heldout.source, ""
  pipelines.run(config, tmp_path / "plain")
  config.heldout.source = source
  config.evaluation.update(count=5, num_samples=3)
  config.schedule.update(eval_every=3, keep_best="heldout/pass1")
  pipelines.run(config, tmp_path / "measured")
  assert_undisturbed(tmp_path / "measured", tmp_path / "plain")
  with monkeypatch.context() as patch:
    kill_at(patch, 4)
    with pytest.raises(Killed):
      pipelines.run(config, tmp_path / "killed")
  pipelines.run(config, tmp_path / "killed")
  names = [tmp_path / name for name in ("killed", "measured")]
  assert tiny_runs.rows_of(names[0]) == tiny_runs.rows_of(names[1])
  scores = measured(names[0], "heldout/score")
  assert list(scores) == [3, 4]
  assert measured(names[0], "heldout/pass1") == scores  # of 0 and 1
  best = measured(names[0], "heldout/score_best")
  assert best == measured(names[0], "heldout/passG")
  assert all(0.0 <= scores[n] <= best[n] <= 1.0 for n in scores)
  assert all(15 * x == pytest.approx(round(15 * x)) for x in scores.values())
  assert np.isfinite(list(measured(names[0], "heldout/kl").values())).all()


@pytest.fixture(scope="module")
def asked(files, sft_lora, tmp_path_factory):
  """Returns (settings, source, params) of a policy that a function judges."""
  folder = tmp_path_factory.mktemp("asked")
  path = folder / "scores.py"
  path.write_text("def letters(texts):\n  return [len(t) for t in texts]\n")
  config = defaults.online_preference()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.trainable.update(mode="lora", first_layer=tiny_runs.LORA_LAYER)
  config.init_from, config.reward_fn = str(sft_lora), f"{path}:letters"
  for name in ("prompts", "heldout"):
    config[name].update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=2)
  config.schedule.update(batch_size=8, steps=2, eval_every=1)
  config.evaluation.count = 11
  settings = tiny_runs.checked(config)
  world = tiny_runs.world_of(config, folder)
  opened = own_samples.Opened.of(settings, world, world.base(settings.model))
  source, _ = opened.source(8)
  return config, source, opened.actors.params["policy"]


@pytest.mark.slow
def test_what_fills_a_batch_does_not_count(asked):
  """11 prompts in batches of 8, 4 and 11 have the same mean."""
  config, source, params = asked
  found = []
  for size in (8, 4, 16):
    config.schedule.batch_size = size
    settings = tiny_runs.settings_of(config)
    measure = heldout.Heldout.of(settings, source, "test")
    sizes = [len(batch.tokens) for batch in measure.batches]
    assert sizes == {8: [8, 8], 4: [4] * 3, 16: [11]}[size]
    found.append(measure(params))
  assert set(found[0]) == {
    f"heldout/{name}" for name in ("score", "length", "eos_share", "kl")
  } | {"heldout/component/raised"}
  for other in found[1:]:
    for name, value in found[0].items():
      np.testing.assert_allclose(other[name], value, atol=1e-4, err_msg=name)
  assert abs(found[0]["heldout/kl"]) < 1e-4  # it has not moved yet


def test_greedy_answers_have_no_kl(asked):
  config, source, params = asked
  config.schedule.batch_size, config.evaluation.temperature = 8, 0.0
  measure = heldout.Heldout.of(tiny_runs.settings_of(config), source, "test")
  found = measure(params)
  assert "heldout/kl" not in found
  config.seed = 7
  measure = heldout.Heldout.of(tiny_runs.settings_of(config), source, "test")
  assert measure(params) == found  # of no random key


@pytest.mark.slow
def test_rounds_answer_held_out_prompts(files, sft_lora, reward_head):
  """In each round's own rows; its best step is one that was measured."""
  config = test_pipeline_rejection.make_config(files, sft_lora, reward_head)
  held = {"source": files.prompts, "format": "prompt", "max_length": 24}
  config.heldout.update(held)
  config.evaluation.count = 10
  config.schedule.update(eval_every=3, keep_best="heldout/score", keep=1)
  folder = files.root / "rejection_measured"
  pipelines.run(config, folder)
  for number in (1, 2):
    of_round = folder_of(folder, number)
    scores = measured(of_round, "heldout/score")
    watched = measured(of_round, "heldout/again_score")
    assert list(scores) == [3, 4]
    assert watched == pytest.approx(scores, rel=1e-5)
    best = max(scores, key=scores.get)
    assert stages.step_of(f"{of_round}@best") == best
  assert scores[4] > measured(folder, "rejection/score_mean")[1]
  told = measured(folder, "heldout/score")  # of all rounds, in the run's rows
  kept = {}
  for number in (1, 2):
    scores = measured(folder_of(folder, number), "heldout/score")
    assert told[number] == scores[4]
    kept[number] = max(scores.values())
  best = max(kept, key=lambda number: (kept[number], number))
  inside = folder_of(folder, best)
  assert stages.place(f"{folder}@best") == (inside, "best")
  assert stages.step_of(f"{folder}@best") == stages.step_of(f"{inside}@best")
  assert stages.read_stage(folder)["rounds"][1]["heldout/score"] == told[2]
  rows = tiny_runs.rows_of(folder)
  pipelines.run(config, folder)
  assert tiny_runs.rows_of(folder) == rows  # told once


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_that_ends_early_says_how_long_it_was(files, sft_full, kind):
  config = tiny_runs.dpo_config(files, sft_full)
  if kind == "sft":
    config = tiny_runs.sft_config(files, "full")
    config.samples, config.sample_prompts.source = 0, ""
  config.optimizer.learning_rate = 0.0
  config.schedule.update(
    steps=12, eval_every=2, keep_best="validation/loss", patience=2
  )
  folder = files.root / f"{kind}_early"
  info = pipelines.run(config, folder)
  assert info["steps"] == 6  # measured at 2, 4 and 6
  assert "in 2 measurements" in info["halted"]
  assert info.get("epochs", 0.0) in (0.0, 6 * 8 / info["examples"])
  assert pipelines.run(config, folder)["steps"] == 6  # it is finished


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["online_preference", "bond"])
def test_own_samples_are_measured_too(files, sft_lora, reward_head, pipeline):
  """Where the reference is the start, a KL of held-out answers is told."""
  folders = []
  for every in (0, 2):
    config = test_pipeline_online.make_config(
      files, pipeline, sft_lora, reward_head, steps=3
    )
    if every:
      held = {"source": files.prompts, "format": "prompt", "max_length": 24}
      config.heldout.update(held)
      config.evaluation.count = 10
    config.schedule.eval_every = every
    folders.append(files.root / f"{pipeline}_measured_{every}")
    pipelines.run(config, folders[-1])
  assert_undisturbed(folders[1], folders[0])
  assert list(measured(folders[1], "heldout/score")) == [2, 3]
  assert measured(folders[1], "heldout/kl")[3] > 0.0


def test_numbers_of_answers_by_hand():
  """Two prompts, three answers; right above 0.5."""
  columns = {
    "score": np.array([[0.0, 1.0, 1.0], [0.0, 0.5, 0.25]]),
    "kl": np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
  }
  assert heldout.measured(columns, 0.5) == {
    "heldout/score": pytest.approx(2.75 / 6),
    "heldout/kl": 1.0,
    "heldout/score_best": 0.75,
    "heldout/pass1": pytest.approx(2 / 6),
    "heldout/passG": 0.5,
  }
  one = {"score": np.array([[2.0], [4.0]])}
  assert heldout.measured(one, None) == {"heldout/score": 3.0}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"schedule.eval_every": 0}, "heldout.source=.*nothing reads it with sch"),
    ({"heldout.source": ""}, "schedule.eval_every=1: there is nothing to mea"),
    ({"evaluation.count": 0}, "count=0, num_samples=1: must be"),
    ({"evaluation.temperature": -1.0}, "temperature=-1.0: must be >= 0"),
    (
      {"evaluation.temperature": 0.0, "evaluation.num_samples": 2},
      "num_samples=2 with temperature=0.0: greedy",
    ),
    ({"heldout.max_length": 6}, "heldout.max_length=6: leaves no room"),
    ({"heldout.pairs": 5}, "heldout.pairs=5: nothing reads it for prompts"),
  ],
)
def test_what_cannot_be_measured_is_refused(asked, changes, words):
  config, _, _ = asked
  config = config.copy_and_resolve_references()
  config.evaluation.temperature = None
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)


def test_a_policy_is_not_asked_more_prompts_than_there_are(asked):
  config, source, _ = asked
  config = config.copy_and_resolve_references()
  config.evaluation.count = 25
  with pytest.raises(UserError, match="evaluation.count=25: only 24 prompts"):
    heldout.Heldout.of(tiny_runs.settings_of(config), source, "test")


def test_demonstrations_are_needed_to_validate(files):
  config = tiny_runs.sft_config(files, "lora")
  config.schedule.eval_every = 2
  with pytest.raises(UserError, match="eval_every=2: .*Set validation.source"):
    tiny_runs.checked(config)


def test_portions_of_training_do_not_bind_held_out_answers():
  """Fewer rows than a portion are decoded together."""
  settings = types.SimpleNamespace(
    generate=generate.Config(num_samples=4, batch_size=16),
    evaluation=heldout_settings.Config(num_samples=2),
  )
  assert heldout_settings.sampling(settings, 4).batch_size is None
  assert heldout_settings.sampling(settings, 16).batch_size == 16
