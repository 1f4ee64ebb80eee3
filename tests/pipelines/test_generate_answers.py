"""Answers that are written: which, as what data, with which scores."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Demonstration, Prompt
from rlhf_jax.pipelines import defaults, generate_answers
from rlhf_jax.programs import answers
from rlhf_jax.schema import UserError
from tests.pipelines import test_evaluate_numbers as two
from tests.pipelines import tiny_runs

SAID = answers.Answers(
  prompts=["p", "p", "q", "q"],
  texts=["a", "b", "c", "d"],
  scores={
    "reward": np.array([1.0, 3.0, 2.0, 2.0]),
    "verifier": np.array([1.0, 0.0, 0.0, 1.0]),
  },
  kl=None,
  lengths=np.array([1.0, 2.0, 3.0, 4.0]),
  ended=np.array([True, False, True, True]),
  group=2,
)


def test_the_best_answer_is_kept_the_first_of_equals():
  assert generate_answers.chosen(SAID, "proxy").tolist() == [1, 2]
  assert generate_answers.chosen(SAID, "verifier").tolist() == [0, 3]
  assert generate_answers.chosen(SAID, "").tolist() == [0, 1, 2, 3]


def test_numbers_are_of_all_answers_and_of_those_kept():
  found = generate_answers._numbers(SAID, np.array([1, 2]), 0.5)
  assert (found["prompts"], found["samples"], found["answers"]) == (2, 2, 2)
  assert found["proxy"] == 2.0 and found["kept_proxy"] == 2.5
  assert found["verifier"] == 0.5 and found["kept_verifier"] == 0.0
  assert found["verifier_pass_2"] == pytest.approx(1.0)
  whole = generate_answers._numbers(SAID, np.arange(4), 0.5)
  assert "kept_proxy" not in whole


def test_an_answer_is_a_record_of_data():
  asked = [{"role": "user", "content": "u"}]
  records = [
    Prompt("f:1", "p", reference="7"),
    Prompt("f:2", asked),
  ]
  data = Data(chat=True)
  scores = {"proxy": 3.0, "verifier": 0.0, "sample": 1, "length": 2}
  assert (
    generate_answers._row(data, records, SAID, 1)
    == {
      "prompt": "p",
      "response": "b",
      "reference": "7",
      "has_ended": False,
    }
    | scores
  )
  found = generate_answers._row(data, records, SAID, 2)
  said = {"role": "assistant", "content": "c"}
  assert found["messages"] == [*asked, said] and "prompt" not in found
  records = [Demonstration("f:1", messages=[*asked, said])]
  assert generate_answers._row(data, records, SAID, 0)["messages"][:1] == asked


def make_config(files, root):
  config = defaults.generate_answers()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.update(max_new_tokens=tiny_runs.NEW_TOKENS, num_samples=3)
  config.update(count=5, batch_size=4)
  config.policy, config.reward = str(root / "policy"), str(root / "reward")
  return config


@pytest.fixture(scope="module")
def drawn(files, tmp_path_factory):
  root = tmp_path_factory.mktemp("generated")
  two.make_stages(two.make_config(files), root)
  return make_config(files, root), root


def test_the_best_of_three_is_that_of_all_three(files, drawn):
  """And an SFT run reads it."""
  config, root = drawn
  every = pipelines.run(config, root / "all")
  rows = tiny_runs.rows_of(root / "all", generate_answers.ANSWERS_FILE)
  asked = tiny_runs.rows_of(files.root, "prompts.jsonl")[:5]
  assert [row["prompt"] for row in rows] == [
    row["prompt"] for row in asked for _ in range(3)
  ]
  config.choose = "proxy"
  best = pipelines.run(config, root / "best")
  kept = tiny_runs.rows_of(root / "best", generate_answers.ANSWERS_FILE)
  expected = [
    max(rows[i : i + 3], key=lambda row: row["proxy"]) for i in range(0, 15, 3)
  ]
  assert kept == expected
  assert (every["answers"], best["answers"]) == (15, 5)
  assert best["kept_proxy"] == pytest.approx(best["proxy_best_of_3"], rel=1e-5)
  assert best["proxy"] == every["proxy"]
  sft = tiny_runs.sft_config(files, "lora")
  path = root / "best" / generate_answers.ANSWERS_FILE
  sft.data.source = str(path)
  tiny_runs.checked(sft)
  text = path.read_text()
  assert pipelines.run(config, root / "best") == best
  assert path.read_text() == text and json.loads(text.splitlines()[0])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"choose": "gold"}, "choose='gold': nobody judges so. Set gold"),
    ({"choose": "best"}, "choose='best': must be"),
    ({"choose": "proxy", "generate.num_samples": 1}, "nothing to choose from"),
    ({"prompts.source": ""}, "prompts.source is empty"),
    ({"policy": "/nowhere"}, "config.policy='/nowhere': wanted a finished"),
  ],
)
def test_what_cannot_be_answered_is_refused(drawn, changes, words):
  config, _ = drawn
  config = config.copy_and_resolve_references()
  config.choose = ""
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)
