"""One reward model of several objectives: an output of the head for each."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhf_jax import pipelines
from rlhf_jax.data.comparison_rows import Comparisons
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import several_objectives
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

NAMES = ("liked", "seated")


def comparisons(pairs, keys, **fields):
  count = int(np.max(pairs)) + 1
  rows = [
    {"tokens": np.array([n]), "loss_mask": np.ones(1)} for n in range(count)
  ]
  numbers = sorted(set(keys), key=keys.index)
  return Comparisons(
    rows=rows,
    pairs=np.asarray(pairs, np.int32),
    labels=np.ones(len(pairs), np.float32),
    groups=np.asarray([[numbers.index(k)] for k in keys], np.int32),
    dropped=Counter(),
    ceiling=None,
    keys=dict(enumerate(numbers)),
    **fields,
  )


def test_comparisons_stand_behind_each_other_and_prompts_are_one():
  """An objective that lacks a prompt numbers the others otherwise."""
  first = comparisons([[0, 1], [2, 3]], ["p", "q"])
  second = comparisons(
    [[0, 1, 2]], ["q"], ranks=np.zeros((1, 3), np.float32), weights=[2.0]
  )
  found = several_objectives.joined([first, second])
  np.testing.assert_array_equal(
    found.pairs, [[0, 1, -1], [2, 3, -1], [4, 5, 6]]
  )
  assert found.groups[:, 0].tolist() == [0, 1, 1]
  assert found.members.tolist() == [0, 0, 1]
  assert found.row_members.tolist() == [0] * 4 + [1] * 3
  np.testing.assert_array_equal(found.weights, [1.0, 1.0, 2.0])
  assert np.isnan(found.ranks[:2]).all()
  np.testing.assert_array_equal(
    several_objectives.weights(found, 2), [[1, 0], [1, 0], [0, 1]]
  )
  scores = np.arange(14.0).reshape(7, 2)
  own = several_objectives.own_scores(scores, found)
  assert own.tolist() == [0, 2, 4, 6, 9, 11, 13]
  kept, places = several_objectives.distinct(found.rows)
  assert [row["tokens"][0] for row in kept] == [0, 1, 2, 3]
  assert places.tolist() == [0, 1, 2, 3, 0, 1, 2]


@pytest.fixture(scope="module")
def ranked(files):
  """Pairs judged by one word and by another, which say different things."""
  rows = []
  for line in Path(files.comparisons).read_text().splitlines():
    told = json.loads(line)
    answers = [told["chosen"], told["rejected"]]
    counts = [x.count("sat") for x in answers]
    rows.append(
      {
        "prompt": told["prompt"],
        "answers": answers,
        "objectives": {
          "liked": [0, 1],
          "seated": [int(x < max(counts)) for x in counts],
        },
        "reason": "none",
      }
    )
  path = files.root / "two_objectives.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def make_config(files, ranked, samples=""):
  config = tiny_runs.reward_config(files, "head", "", samples)
  config.data.update(source=ranked, format="ranking")
  config.objectives = NAMES
  return config


@pytest.fixture(scope="module")
def finished(files, ranked, sft_lora):
  folder = files.root / "reward_of_two"
  config = make_config(files, ranked, sft_lora / "samples.npz")
  return folder, pipelines.run(config, folder)


def test_each_output_learns_its_own_objective(finished):
  folder, info = finished
  assert [x["name"] for x in info["outputs"]] == list(NAMES)
  assert info["role"]["members"] == 2 and info["objectives"] == list(NAMES)
  accuracy = [x["reward_model/accuracy"] for x in info["members"]]
  assert min(accuracy) > 0.65
  assert abs(info["agreement"]) < 0.8  # they are no copies
  pairs = [x["reward_model/pairs"] for x in info["members"]]
  whole = info["diagnosis"]
  np.testing.assert_allclose(
    whole["reward_model/accuracy"], np.average(accuracy, weights=pairs)
  )
  assert "deviation" not in info["normalisation"]
  assert stages.read_stage(folder)["objectives"] == list(NAMES)


def test_the_report_card_is_by_objective(finished, files, ranked, tmp_path):
  folder, _ = finished
  config = defaults.report_card()
  config.mesh.devices = 1
  config.update(reward=str(folder), probes=0)
  with pytest.raises(UserError, match="does not say which comparisons it"):
    pipelines.run(config, tmp_path / "own")
  config.data.update(source=ranked, format="ranking", max_length=24)
  found = pipelines.run(config, tmp_path / "card")
  rows = found["members"]["rows"]
  assert list(rows) == list(NAMES)
  for name in NAMES:
    assert rows[name]["own_objective"]["value"] > 0.65


@pytest.mark.slow
def test_judges_name_an_output_and_one_judge_combines_them(
  finished, files, sft_lora, tmp_path
):
  folder, _ = finished
  one = tiny_runs.policy_config(files, "lora", sft_lora, folder)
  one.schedule.steps = 2
  one.value.pretrain_steps = 0
  pipelines.run(one, tmp_path / "one")
  row = tiny_runs.rows_of(tmp_path / "one")[0]
  each = [row[f"reward/component/reward_{name}"] for name in NAMES]
  np.testing.assert_allclose(
    row["rollout/score_mean"], np.mean(each), rtol=1e-4, atol=1e-5
  )
  assert "reward/component/reward_deviation" not in row
  config = tiny_runs.policy_config(files, "lora", sft_lora, "")
  config.schedule.steps = 2
  config.judges = ConfigDict(
    {x: {"reward": str(folder), "output": x} for x in NAMES}
  )
  config.value.update(pretrain_steps=0, judge="liked")
  pipelines.run(config, tmp_path / "two")
  found = tiny_runs.rows_of(tmp_path / "two")[0]
  for name, value in zip(NAMES, each, strict=True):
    np.testing.assert_allclose(
      found[f"reward/component/{name}"], value, rtol=1e-4, atol=1e-5
    )
  config.judges.liked.output = "kind"
  with pytest.raises(
    UserError, match="output='kind': .* outputs liked, seated"
  ):
    pipelines.run(config, tmp_path / "wrong")


@pytest.mark.parametrize(
  "message,changes",
  [
    ("objectives=.'liked',.: are two or more", {"objectives": ("liked",)}),
    ("ensemble.members=3 with objectives", {"ensemble": {"members": 3}}),
    ("each output reads its own", {"data": {"objective": "liked"}}),
  ],
)
def test_what_does_not_go_with_several_objectives(
  files, ranked, message, changes
):
  config = make_config(files, ranked)
  config.update(ConfigDict(changes))
  with pytest.raises(UserError, match=message):
    tiny_runs.checked(config)


def test_a_critic_starts_as_a_judge_that_is_a_reward_model(files, sft_lora):
  config = tiny_runs.policy_config(files, "lora", sft_lora, "")
  config.judges = ConfigDict({"a": {"verifier": {"name": "number"}}})
  config.value.judge = "a"
  with pytest.raises(UserError, match="value.judge='a': must be one of judges"):
    tiny_runs.checked(config)
  config.value.init = "random"
  with pytest.raises(UserError, match="is the judge that the critic starts as"):
    tiny_runs.checked(config)
