"""A field of records by which losses, preferences and scores are told.

Two made-up languages: one whose answers end with " on the", and one whose
answers are of other words. SFT on the first teaches it and forgets the other.
"""

import json
import types

import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import by_value, pairs
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

ENDINGS = {"aa": " on the", "bb": " cat and"}


@pytest.fixture(scope="module")
def languages(files):
  """Returns kind -> a file with both languages."""
  rng = np.random.default_rng(2)

  def text(count):
    return "".join(f" {w}" for w in rng.choice(tiny_runs.WORDS, count))

  def write(name, rows):
    path = files.root / f"languages_{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

  both = [
    (language, ending)
    for _ in range(40)
    for language, ending in ENDINGS.items()
  ]
  return {
    "demonstrations": write(
      "demonstrations",
      [
        {"prompt": text(2), "response": text(1) + end, "language": name}
        for name, end in both
      ],
    ),
    "comparisons": write(
      "comparisons",
      [
        {
          "prompt": text(2),
          "chosen": text(1) + end,
          "rejected": text(3),
          "language": name,
        }
        for name, end in both
      ],
    ),
    "prompts": write(
      "prompts",
      [{"prompt": text(2), "language": name} for name, _ in both[:24]],
    ),
  }


def sft(files, languages, **data):
  config = tiny_runs.sft_config(files, "full")
  config.data.update(source=languages["demonstrations"], **data)
  config.validation.update(
    source=languages["demonstrations"], by="language", limit=40
  )
  config.schedule.update(steps=16, save_every=16, eval_every=8)
  config.samples = 0
  config.sample_prompts.source = ""
  return config


def test_sft_says_what_it_taught_and_what_it_forgot(files, languages, capsys):
  config = sft(files, languages, only="language=aa")
  folder = files.root / "languages_sft"
  info = pipelines.run(config, folder)
  assert info["by"]["field"] == "language"
  aa, bb = info["by"]["values"]["aa"], info["by"]["values"]["bb"]
  assert aa["loss"] < aa["loss_before"] - 1.0
  assert aa["loss"] < bb["loss"] - 0.5
  # As many targets of each: the whole is their mean.
  np.testing.assert_allclose(
    info["validation_loss"], (aa["loss"] + bb["loss"]) / 2, rtol=1e-5
  )
  rows = [r for r in tiny_runs.rows_of(folder) if "validation/loss" in r]
  assert len(rows) == 2
  np.testing.assert_allclose(
    rows[-1]["validation/loss_aa"], aa["loss"], rtol=1e-5
  )
  assert "loss before" in capsys.readouterr().out
  # Control: with both in the data the other one is learned, too.
  config = sft(files, languages, by="language", weights="aa:1,bb:1")
  info = pipelines.run(config, files.root / "languages_both")
  assert info["by"]["values"]["bb"]["loss"] < bb["loss"] - 0.5


def test_numbers_of_a_value_are_of_its_own_comparisons():
  held = types.SimpleNamespace(values=np.array(["b", "a", "b"], object))

  def evaluate(params, numbers):
    of = f"{params}{numbers.tolist()}"
    names = ("loss", "accuracy", "logprob_chosen")
    return {f"preference/{name}": len(of) + 0.0 for name in names} | {
      "preference/loss": of
    }

  found = pairs.measure_by(evaluate, held, "x")
  assert found["validation/loss_a"] == "x[1]"
  assert found["validation/loss_b"] == "x[0, 2]"
  assert found["validation/nll_chosen_a"] == -4.0
  assert pairs.measure_by(evaluate, types.SimpleNamespace(values=None), 0) == {}


def test_what_rose_is_a_warning():
  values = {
    "aa": {"loss_before": 2.0, "loss": 1.0},
    "bb": {
      "loss_before": 2.0,
      "loss": 2.5,
      "accuracy_before": 0,
      "accuracy": 1,
    },
  }
  (line,) = by_value.forgotten("language", values)
  assert line.startswith("language=bb: held-out loss rose from 2.0000 to 2.5")


@pytest.mark.slow
def test_dpo_tells_each_language(files, languages, sft_full):
  config = tiny_runs.dpo_config(files, sft_full)
  config.data.update(source=languages["comparisons"], by="language")
  config.heldout_fraction = 0.25
  info = pipelines.run(config, files.root / "languages_dpo")
  values = info["by"]["values"]
  assert list(values) == ["aa", "bb"]
  for numbers in values.values():
    np.testing.assert_allclose(numbers["loss_before"], np.log(2), rtol=1e-4)
    assert numbers["loss"] < numbers["loss_before"]
    assert numbers["nll_chosen"] > 0.0
  held = info["heldout"]
  low, high = sorted(x["loss"] for x in values.values())
  assert low <= held["preference/loss"] <= high


@pytest.mark.slow
def test_evaluation_tells_each_language(
  files, languages, sft_full, reward_full
):
  config = defaults.evaluate_many()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policies, config.reward = f"model,{sft_full}", str(reward_full)
  config.prompts.update(
    source=languages["prompts"], format="prompt", max_length=24, by="language"
  )
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.update(count=24, batch_size=8)
  info = pipelines.run(config, files.root / "languages_many")
  values = info["by"]["values"]
  assert [x["evaluation_prompts"] for x in values.values()] == [12, 12]
  name = list(info["policies"])[1]
  whole = info["policies"][name]
  for key in ("proxy", "proxy_win_rate"):
    parts = [x["policies"][name][key] for x in values.values()]
    np.testing.assert_allclose(np.mean(parts), whole[key], rtol=1e-5)
  config = defaults.evaluate()
  config.mesh.devices = 1
  config.model.source = files.model
  config.policy, config.reward = str(sft_full), str(reward_full)
  config.prompts.update(
    source=languages["prompts"], format="prompt", max_length=24, by="language"
  )
  config.generate.max_new_tokens = tiny_runs.NEW_TOKENS
  config.update(count=16, batch_size=8)
  info = pipelines.run(config, files.root / "languages_two")
  rates = [x["proxy_win_rate"] for x in info["by"]["values"].values()]
  np.testing.assert_allclose(np.mean(rates), info["proxy_win_rate"], rtol=1e-5)


def test_what_is_told_by_no_field_is_refused(files, languages, sft_full):
  config = tiny_runs.dpo_config(files, sft_full)
  config.data.update(source=languages["comparisons"], by="language")
  config.heldout.update(source=languages["comparisons"], max_length=24)
  with pytest.raises(UserError, match=r"heldout.by='': data.by is 'language'"):
    tiny_runs.checked(config)
