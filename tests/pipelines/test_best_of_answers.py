"""FOLDER@best_of=n answers: in evaluations, in files of answers, refused."""

import json

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults
from rlhf_jax.runs import answerers
from rlhf_jax.schema import FieldError, UserError
from tests.pipelines import tiny_runs


def test_the_name_says_how_many():
  assert answerers.split("runs/x") == ("runs/x", 1)
  assert answerers.split("runs/x@best") == ("runs/x@best", 1)
  assert answerers.split("runs/x@12@best_of=16") == ("runs/x@12", 16)
  for wrong in ("1", "0", "x", "", "-4", "2.0"):
    with pytest.raises(FieldError, match="whole number from 2 on"):
      answerers.split(f"runs/x@best_of={wrong}")
  np.testing.assert_allclose(answerers.kl_bound(4), 0.636294, rtol=1e-5)


def many(files, policies, reward):
  config = defaults.evaluate_many()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policies, config.reward = policies, str(reward)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.update(count=24, batch_size=8)
  return config


@pytest.fixture(scope="module")
def found(files, sft_full, reward_full):
  folder = files.root / "best_of_many"
  policies = f"{sft_full},{sft_full}@best_of=8"
  return pipelines.run(many(files, policies, reward_full), folder), folder


def test_the_best_of_eight_beats_one_as_often_as_it_must(found):
  """Win rate of the best of n without ties: n / (n + 1); ties count half."""
  info, folder = found
  plain, best = info["policies"].values()
  assert list(info["policies"])[1].endswith("@best_of=8")
  assert 0.78 < best["proxy_win_rate"] < 0.99
  assert best["proxy_difference"] > 4 * best["proxy_difference_standard_error"]
  assert "kl_nats" not in best and "best_of_kl_bound" not in plain
  np.testing.assert_allclose(
    best["best_of_kl_bound"], np.log(8) - 7 / 8, rtol=1e-6
  )
  rows = [
    json.loads(line)
    for line in (folder / "texts.jsonl").read_text().splitlines()
  ]
  assert len(rows) == 24 and all(len(row["answers"]) == 2 for row in rows)


@pytest.mark.slow
def test_the_answer_is_one_that_the_policy_drew(
  files, sft_full, reward_full, found
):
  """With its own key: the best of the eight that generate writes down."""
  config = defaults.generate_answers()
  config.mesh.devices = 1
  config.model.source = files.model
  config.reward = str(reward_full)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.batch_size = 8

  def rows(name, **changes):
    config.update(changes)
    pipelines.run(config, files.root / name)
    text = (files.root / name / "answers.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]

  best = rows("best_of_named", policy=f"{sft_full}@best_of=8")
  config.generate.num_samples = 8
  kept = rows("best_of_chosen", policy=str(sft_full), choose="proxy")
  assert len(best) == len(kept) == 24
  assert [row["response"] for row in best] == [row["response"] for row in kept]


@pytest.mark.slow
def test_before_and_after_may_answer_so_too(files, sft_full, reward_full):
  config = defaults.evaluate()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policy, config.init_from = f"{sft_full}@best_of=4", str(sft_full)
  config.reward = str(reward_full)
  config.prompts.update(source=files.prompts, format="prompt", max_length=24)
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.update(count=16, batch_size=8)
  info = pipelines.run(config, files.root / "best_of_evaluate")
  assert info["proxy_after"] > info["proxy_before"] + 0.2
  assert "kl_nats" not in info
  np.testing.assert_allclose(
    info["best_of_kl_bound"], np.log(4) - 3 / 4, rtol=1e-6
  )


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"reward": ""}, "no verifier chooses. Set verifier"),
    ({"chooser": "gold"}, "no gold chooses. Set gold"),
    ({"generate.num_samples": 2}, "draws its own several answers"),
    ({"generate.temperature": 0.0}, "would all be the same"),
    ({"policies": "{sft}@best_of=1"}, "whole number from 2 on"),
    ({"policies": "{sft}", "chooser": "proxy"}, "no policy chooses"),
  ],
)
def test_what_cannot_choose_is_refused(
  files, sft_full, reward_full, changes, words
):
  config = many(files, f"{sft_full}@best_of=4", reward_full)
  config.update_from_flattened_dict(
    {
      k: x.format(sft=sft_full) if isinstance(x, str) else x
      for k, x in changes.items()
    }
  )
  with pytest.raises(UserError, match=words):
    tiny_runs.checked(config)


def test_who_trains_does_not_understand_it(files, sft_full, reward_full):
  start = f"{sft_full}@best_of=4"
  config = tiny_runs.policy_config(files, "full", start, reward_full)
  with pytest.raises(UserError, match="no such folder"):
    tiny_runs.checked(config)
