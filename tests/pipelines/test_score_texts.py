"""Texts in, scores out: the same numbers as in training, an ensemble, rules."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import dataset
from rlhf_jax.pipelines import defaults, score_texts
from rlhf_jax.programs import features
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import test_evaluate_numbers as two
from tests.pipelines import tiny_runs


@pytest.fixture(scope="module")
def drawn(files, tmp_path_factory):
  """Returns a folder with two reward models, and texts that people compared."""
  root = tmp_path_factory.mktemp("scored")
  two.make_stages(two.make_config(files), root)
  rows = tiny_runs.rows_of(files.root, "comparisons.jsonl")[:6]
  texts = [
    {"prompt": row["prompt"], "response": row[name], "kept": name}
    for row in rows
    for name in ("chosen", "rejected")
  ]
  write(root / "texts.jsonl", texts)
  return root


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_config(root):
  config = defaults.score_texts()
  config.mesh.devices = 1
  config.data.source = str(root / "texts.jsonl")
  return config


@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_training(files, drawn, chat):
  """Rows of compared answers, encoded and scored as the reward run does."""
  config, folder = make_config(drawn), drawn / f"both_{chat}"
  config.data.chat = chat
  config.rewards = f"{drawn / 'reward'},{drawn / 'gold'}"
  facts = pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder, score_texts.SCORES_FILE)
  assert [row["kept"] for row in rows] == ["chosen", "rejected"] * 6
  of_run = two.make_config(files)
  world, base = tiny_runs.world_of(of_run), tiny_runs.load_base(of_run)
  compared = tiny_runs.reward_config(files, "head", "", "")
  data = tiny_runs.settings_of(compared).data
  for name in ("reward", "gold"):
    stage = stages.load(drawn / name, stages.REWARD, base, world)
    limited = type(data)(
      source=data.source,
      max_length=60,
      limit=6,
      chat=chat,
      end_token=stage.info["reads_end_token"],
    )
    held = dataset.comparisons(limited, base.tokenizer, 0)
    params, frozen = stage.parts
    raw = features.row_scores(
      base, stage.role, params, frozen, held.rows, None, 4, world.mesh
    )
    expected = (raw[held.pairs].reshape(-1) - 0.25) / 2.0
    found = [row["scores"][name] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    mean = facts["scores"][name]["mean"]
    assert mean == pytest.approx(np.mean(expected), abs=1e-5)
  both = np.array(
    [[row["scores"][n] for n in ("reward", "gold")] for row in rows]
  )
  ensemble = [row["scores"][score_texts.ENSEMBLE] for row in rows]
  np.testing.assert_allclose(ensemble, both.mean(axis=1), atol=1e-6)
  spread = [row["scores"][score_texts.SPREAD] for row in rows]
  apart = np.abs(both[:, 0] - both[:, 1]) / 2
  np.testing.assert_allclose(spread, apart, atol=1e-6)
  assert pipelines.run(config, folder) == facts


def test_a_verifier_judges_against_the_reference_of_each_text(tmp_path, capsys):
  path = tmp_path / "texts.jsonl"
  rows = [
    {"prompt": "2 + 2?", "response": "It is #### 4", "reference": "4"},
    {"prompt": "2 + 3?", "response": "It is #### 4", "reference": "5"},
    {"prompt": "2 + 4?", "response": "#### 6", "reference": "6"},
    {"prompt": "2 + 5?", "response": "I do not know", "reference": "7"},
  ]
  write(path, rows)
  config = make_config(tmp_path)
  config.verifier.name = "number"
  facts = pipelines.run(config, tmp_path / "verified")
  found = tiny_runs.rows_of(tmp_path / "verified", score_texts.SCORES_FILE)
  assert [row["scores"]["verifier"] for row in found] == [1.0, 0.0, 1.0, 0.0]
  assert facts["texts"] == 4 and facts["scores"]["verifier"]["correct"] == 0.5
  job = pipelines.read(config)
  job.pipeline.tell(job.settings, tmp_path / "verified")
  assert "4 texts" in capsys.readouterr().out
  write(path, rows[:1] + [{"prompt": "a", "response": "b"}])
  with pytest.raises(
    UserError, match="texts.jsonl:2: has no field 'reference'"
  ):
    pipelines.run(config, tmp_path / "without")


def test_a_function_of_ones_own_reads_the_last_answer(tmp_path):
  code = tmp_path / "own.py"
  code.write_text(
    "def words(texts):\n  return [len(t.split()) for t in texts]\n"
  )
  asked = {"role": "user", "content": "hello there you"}
  rows = [
    {"messages": [asked, {"role": "assistant", "content": "one two"}]},
    {"messages": [asked, {"role": "assistant", "content": "one"}]},
  ]
  write(tmp_path / "texts.jsonl", rows)
  config = make_config(tmp_path)
  config.data.format, config.reward_fn = "messages", f"{code}:words"
  facts = pipelines.run(config, tmp_path / "own")
  assert facts["scores"]["verifier"] == {
    "mean": 1.5,
    "std": 0.5,
    "min": 1.0,
    "median": 1.5,
    "max": 2.0,
  }


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({}, "rewards is empty: name folders"),
    ({"rewards": "/nowhere"}, "config.rewards='/nowhere': wanted a finished"),
    ({"rewards": "a,./a"}, "rewards='a,./a': one of them stands there twice"),
    ({"verifier.name": "exact", "data.source": ""}, "data.source is empty"),
    (
      {"verifier.name": "exact", "data.train_on_prompt": True},
      "data.train_on_prompt=True: nothing trains",
    ),
    ({"verifier.name": "exact", "reward_fn": "a.py:b"}, "one of them judges"),
  ],
)
def test_what_cannot_be_scored_is_refused(drawn, changes, words):
  config = make_config(drawn)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)
