"""Reward models of rankings, choices and scores, as runs from a config."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.programs import preference_data
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import Killed, kill_at, stage_of

OTHERS = tiny_runs.WORDS[1:]


def records(count=240):
  """Returns rankings of 2 to 4 answers; planted words, fewer and fewer."""
  rng = np.random.default_rng(1)
  found = []
  for n in range(count):
    size = 2 + n % 3
    order = [int(i) for i in rng.permutation(size)]
    answers = []
    for rank in order:
      words = [*rng.choice(OTHERS, 3), *[tiny_runs.PLANTED] * (3 - rank)]
      answers.append(" " + " ".join(rng.permutation(words)))
    said = {"ranks": order, "scores": [3.0 - rank for rank in order]}
    said |= {"annotator": n % 5, "strength": "slightly" if size == 2 else None}
    prompt = " ".join(rng.choice(OTHERS, 2 + n % 2))
    found.append({"prompt": f"{prompt} {n % 24}", "answers": answers} | said)
  return found


@pytest.fixture(scope="module")
def source(files):
  path = files.root / "rankings.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in records()))
  return str(path)


def config_of(files, source, mode="head", **loss):
  config = tiny_runs.reward_config(files, mode, "", "")
  config.data.update(
    source=source, format="ranking", rankings="whole", max_length=24
  )
  config.schedule.update(batch_size=32, steps=40, save_every=20)
  config.loss.update(loss)
  return config


@pytest.mark.parametrize(
  "objective",
  ["k-wise", "plackett-luce", "choice", "regression", "ordinal"],
)
def test_each_loss_learns_the_planted_order(files, source, objective, capsys):
  config = config_of(files, source, objective=objective)
  folder = files.root / f"rankings_{objective}"
  pipelines.run(config, folder)
  info = stages.read_stage(folder)
  assert info["diagnosis"]["reward_model/accuracy"] > 0.75
  first, *_, last = tiny_runs.rows_of(folder)
  assert last["reward_model/loss"] < 0.9 * first["reward_model/loss"]
  assert last["reward_model/accuracy"] > 0.75
  said = capsys.readouterr().out
  is_scored = objective in ("regression", "ordinal")
  left = "ranks (240), strength (80)"
  left = left if is_scored else "scores (240), strength (80)"
  assert "does not read these judgements: " + left in said
  assert ("target" in info) == is_scored
  if is_scored:
    assert info["diagnosis"]["reward_model/target_correlation"] > 0.5


def test_members_of_an_ensemble_learn_rankings(files, source):
  config = config_of(files, source, objective="k-wise")
  config.ensemble.members = 2
  config.schedule.steps = 10
  folder = files.root / "rankings_members"
  pipelines.run(config, folder)
  info = stages.read_stage(folder)
  assert info["diagnosis"]["reward_model/accuracy"] > 0.7
  assert len(info["outputs"]) == 2


def test_a_prompt_that_stands_once_changes_no_number(files, source):
  """Rows of 2 to 4 answers, packed with their prompt once, and one a row."""
  rows = []
  for share in ("always", "never"):
    # Centring: Adam would follow the rounding of a slope that is 0.
    loss = {"objective": "k-wise", "centering": 0.1}
    config = config_of(files, source, "full", **loss)
    config.data.share_prompts = share
    config.schedule.update(steps=2, batch_size=8, save_every=2)
    folder = files.root / f"rankings_share_{share}"
    pipelines.run(config, folder)
    rows.append(tiny_runs.rows_of(folder))
  tiny_runs.assert_close_rows(*rows)


def test_t16_trap_12_rankings_on_eight_devices(files, source):
  rows = []
  for devices in (1, 8):
    loss = {"objective": "plackett-luce", "centering": 0.1}
    config = config_of(files, source, **loss)
    config.mesh.update(devices=devices, data=devices)
    config.schedule.steps = 3
    folder = files.root / f"rankings_{devices}_devices"
    pipelines.run(config, folder)
    rows.append(tiny_runs.rows_of(folder))
  tiny_runs.assert_close_rows(*rows)


def test_t20_trap_23_rankings_resume_bit_for_bit(files, source, monkeypatch):
  config = config_of(files, source, objective="k-wise")
  config.schedule.update(steps=12, save_every=4)
  folder = files.root / "resumed" / "rankings"
  whole = files.root / "whole" / "rankings"
  with monkeypatch.context() as patch:
    kill_at(patch, 7)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  assert len(tiny_runs.rows_of(folder)) == 6
  pipelines.run(config, folder)
  pipelines.run(config, whole)
  assert tiny_runs.rows_of(folder) == tiny_runs.rows_of(whole)
  tiny_runs.assert_equal_arrays(
    tiny_runs.saved_arrays(folder), tiny_runs.saved_arrays(whole)
  )
  assert stage_of(folder) == stage_of(whole)


def test_pairs_of_rankings_with_llama_2_margins(files, source, capsys):
  config = config_of(files, source, margins="large")
  config.data.rankings = "pairs"
  config.schedule.steps = 4
  folder = files.root / "rankings_margins"
  pipelines.run(config, folder)
  info = stages.read_stage(folder)
  assert info["comparisons"] + info["diagnosis"]["reward_model/pairs"] == 800
  said = capsys.readouterr().out
  assert "comparisons have no strength: their margin is 0" in said
  assert "does not read these judgements: scores (240)" in said
  plain = config_of(files, source)
  plain.data.rankings = "pairs"
  plain.schedule.steps = 4
  without = files.root / "rankings_no_margins"
  pipelines.run(plain, without)
  found, expected = (
    tiny_runs.rows_of(x)[0]["reward_model/loss"] for x in (folder, without)
  )
  assert found > expected + 0.01  # a step of the same weights


def test_a_run_ends_when_held_out_pairs_get_no_better(files, source, capsys):
  config = config_of(files, source, objective="k-wise")
  config.optimizer.learning_rate = 0.0
  config.schedule.update(
    steps=30, eval_every=3, keep_best="validation/loss", patience=2
  )
  folder = files.root / "rankings_early"
  pipelines.run(config, folder)
  info = stages.read_stage(folder)
  assert info["steps"] == 9  # measured at 3, 6 and 9
  assert "in 2 measurements" in info["halted"]
  assert "ended early" in capsys.readouterr().out
  assert len(tiny_runs.rows_of(folder)) == 9
  assert pipelines.run(config, folder)["steps"] == 9  # it is finished


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss.objective": "pairwise"}, "'whole' with loss.objective='pairwise'"),
    (
      {"loss.objective": "regression", "data.rankings": "pairs"},
      "reads the score of each answer once",
    ),
    ({"data.rankings": "refuse"}, "rankings have more than two answers"),
    ({"data.objective": "kind"}, "no record is judged by it"),
    ({"data.ties": "soft"}, "keeps its ties"),
    ({"data.answers": 3}, "the longest ranking has 4"),
    ({"data.format": "comparison"}, "data.rankings='whole': nothing reads it"),
    (
      {"loss.margins": "given", "data.rankings": "pairs"}
      | {"loss.objective": "pairwise"},
      "loss.margins='given': it reads numbers",
    ),
  ],
)
def test_what_does_not_go_together_is_refused(files, source, changes, message):
  config = config_of(files, source, objective="k-wise")
  for name, value in changes.items():
    section, field = name.split(".")
    config[section][field] = value
  with pytest.raises((FieldError, ValueError), match=message):
    pipelines.run(config, files.root / "rankings_refused")


def test_dpo_reads_rankings_as_pairs_and_names_the_rest(files, source, capsys):
  config = tiny_runs.dpo_config(files, "")
  config.data.update(source=source, format="ranking", rankings="pairs")
  config.heldout_fraction = 0.25
  settings = tiny_runs.settings_of(config)
  base = tiny_runs.load_base(config)
  train, held = preference_data.load(settings, base, "preference")
  assert train.pairs.shape[1] == 2 and train.ranks is None
  assert len(train.pairs) + len(held.pairs) == 800
  said = capsys.readouterr().out
  assert (
    "algorithm.name='dpo' does not read these judgements: scores (240), "
    "strength (80)" in said
  )


@pytest.mark.parametrize(
  "name, rankings, message",
  [
    ("dpo", "whole", "'dpo' compares two answers. Set 'pairs'"),
    ("kto", "pairs", "would be desirable and undesirable. Set 'ends'"),
    ("dpo", "all", "rankings='all'"),
  ],
)
def test_policies_refuse_what_they_cannot_read(
  files, source, name, rankings, message
):
  config = tiny_runs.dpo_config(files, "")
  config.algorithm.name = name
  config.data.update(source=source, format="ranking", rankings=rankings)
  with pytest.raises((FieldError, ValueError), match=message):
    tiny_runs.checked(config)
