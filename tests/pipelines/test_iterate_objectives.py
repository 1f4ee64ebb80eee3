"""Rounds whose answers are judged by two objectives, each for itself."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhf_jax import pipelines
from rlhf_jax.pipelines import labelled_rounds, round_labels
from rlhf_jax.programs import iterated
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_iterate import make_config as one_objective

NAMES = ("liked", "brief")
CODE = """
def liked(texts):
  return [text.count("cat") for text in texts]

def brief(texts):
  return [-len(text.split()) / 2 for text in texts]
"""


def make_config(files, rounds=2):
  """Two rounds of 16 comparisons, judged by a word and by length."""
  code = files.root / "two_objectives.py"
  code.write_text(CODE)
  config = one_objective(files, code)
  config.rounds.count = rounds
  config.labels.objectives = NAMES
  config.labels.preference = ",".join(f"{x}={code}:{x}" for x in NAMES)
  config.annotators.strengths = "2,1,0.5"
  config.policy.judges = ConfigDict({x: {"reward": ""} for x in NAMES})
  config.policy.combination.name = "switch"
  config.policy.combination.update(safety="brief", helpfulness="liked")
  config.policy.value.update(init="random", pretrain_steps=0)
  return config


@pytest.mark.slow
def test_each_objective_has_labels_a_reward_model_and_a_judge(files, tmp_path):
  config = make_config(files)
  found = pipelines.run(config, tmp_path)
  rows = found["rounds"]
  assert [(x["round"], x["objective"]) for x in rows] == [
    (n, name) for n in (1, 2) for name in NAMES
  ]
  for number in (1, 2):
    where = tmp_path / f"round_{number}"
    for record in iterated.read(where / "labels.jsonl"):
      assert set(record["objectives"]) == set(NAMES) == set(record["strength"])
      assert "ranks" not in record
    info = stages.read_stage(where / "policy")
    assert {k: x["what"] for k, x in info["judges"].items()} == {
      name: str(where / f"reward_{name}") for name in NAMES
    }
    texts = tiny_runs.rows_of(where / "evaluation_brief", "texts.jsonl")
    row = rows[2 * number - 1]
    lengths = [-len(x["after"].split()) / 2 for x in texts]
    np.testing.assert_allclose(row["judge_after"], np.mean(lengths))
  facts = json.loads((tmp_path / "round_1/agreement.json").read_text())
  apart = [x["raw"] for x in facts["objectives"].values()]
  assert facts["raw"] == min(apart) and len(set(apart)) == 2
  page = (tmp_path / "report.html").read_text()
  for name in NAMES:
    assert f"Win rate against the first policy: {name}" in page
  assert page.count(">KL to the first policy<") == 1


def test_the_stages_of_a_round_by_objective(files, tmp_path):
  """Each reward model reads its own objective, and judges by its name."""
  config = make_config(files)
  config.reward.loss.margins = "small"
  job = pipelines.read(config, tmp_path)
  second = labelled_rounds.Round(job.settings, job.open(tmp_path), 2)
  for number in (1, 2):
    rows = [{"item": "i"}]
    iterated.write(tmp_path / f"round_{number}/comparisons.jsonl", rows)
  found = second.reward_job("brief").settings
  assert found.data.objective == found.heldout.objective == "brief"
  judges = second.policy_job().settings.judges
  for name in NAMES:
    assert judges[name]["reward"] == str(tmp_path / f"round_2/reward_{name}")
  done = job.results(tmp_path)
  assert ("reward.", tmp_path / "round_2/reward_brief/stage.json") in done


def test_a_judgement_by_any_objective_counts():
  items = [{"item": "i", "prompt": "p", "answers": ["a", "b"]}]
  record = items[0] | {"annotator": "x", "objectives": {"brief": [0, 1]}}
  assert round_labels.checked([record], items, NAMES)["judged"] == 1
  assert round_labels.checked([record], items)["unjudged"] == 1
  scores = {"i": [0.0, 1.0]}
  assert iterated.accuracy([record], scores, "brief") == (0, 1)
  assert iterated.accuracy([record], scores, "liked") == (0, 0)
  told = [record, record | {"annotator": "y"}]
  assert round_labels._agreement(told, "brief") == (1.0, 1)
  assert round_labels._agreement(told, "liked") == (None, 0)


@pytest.mark.parametrize(
  "message,changes",
  [
    ("objectives=.'liked',.: are two or more", {"objectives": ("liked",)}),
    ("names a preference for each of", {"preference": "liked=lexicon"}),
    ("preference='nobody': must be one of", {"preference": "nobody"}),
    ("judges by its principles, the answer", {"by": "judge"}),
    ("add policy.judges.kind, such as", {"objectives": (*NAMES, "kind")}),
  ],
)
def test_objectives_that_do_not_fit_are_refused(files, message, changes):
  config = make_config(files)
  if "objectives" in changes:
    config.labels.preference = "lexicon"
  config.labels.update(changes)
  with pytest.raises(UserError, match=f"(?i){message}"):
    tiny_runs.checked(config)


def test_a_choice_of_comparisons_is_of_one_objective(files):
  config = make_config(files)
  config.comparisons.update(candidates=2, choose="uncertainty")
  with pytest.raises(UserError, match="would choose other comparisons"):
    tiny_runs.checked(config)
