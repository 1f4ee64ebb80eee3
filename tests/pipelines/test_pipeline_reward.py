"""Reward models as a pipeline: the planted word, splits, normalisation."""

import functools
import json

import jax
import numpy as np
import pytest

from rlhf_jax import pipelines, schema
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import roles, trees
from rlhf_jax.pipelines import reward
from rlhf_jax.programs import features
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs

STAGES = [
  "reward_head",
  pytest.param("reward_lora", marks=pytest.mark.slow),
  "reward_full",
]


def loaded(files, folder, mode):
  config = tiny_runs.reward_config(files, mode, "", "")
  base = tiny_runs.load_base(config)
  return base, reward_model.load(folder, base, tiny_runs.world_of(config))


@pytest.mark.parametrize("stage", STAGES)
def test_the_planted_word_is_learned(stage, request):
  info = stages.read_stage(request.getfixturevalue(stage))
  assert info["diagnosis"]["reward_model/accuracy"] > 0.8
  assert info["diagnosis"]["reward_model/pairs"] == 60  # a quarter of 240
  assert info["comparisons"] == 180
  assert not any(level == "refuse" for level, _ in info["guards"])
  pairs = {name: np.array(x) for name, x in info["heldout_pairs"].items()}
  scores, lengths = pairs["score_difference"], pairs["length_difference"]
  assert len(scores) == 60 and np.all(pairs["label"] == 1.0)
  for name, value in (
    ("accuracy", np.mean(scores > 0)),
    ("margin", np.mean(scores)),
    ("loss", np.mean(np.log1p(np.exp(-scores)))),
    (
      "length_pearson",
      np.sum(scores * lengths)
      / np.sqrt(np.sum(scores**2) * np.sum(lengths**2)),
    ),
  ):
    np.testing.assert_allclose(
      info["diagnosis"][f"reward_model/{name}"], value, rtol=1e-5, err_msg=name
    )


@pytest.mark.parametrize("stage", STAGES)
def test_reference_samples_have_mean_0_and_deviation_1(files, stage, request):
  folder, mode = request.getfixturevalue(stage), stage.removeprefix("reward_")
  _, (scorer, weights, info) = loaded(files, folder, mode)
  start = "sft_full" if mode == "full" else "sft_lora"
  samples = tiny_runs.load_samples(files.root / start / "samples.npz")
  score = jax.jit(functools.partial(reward_model.score, scorer))
  scores = np.asarray(score(weights, samples))
  np.testing.assert_allclose(scores.mean(), 0.0, atol=2e-5)
  np.testing.assert_allclose(scores.std(), 1.0, atol=2e-5)
  assert info["normalisation"]["count"] == 32


@pytest.mark.parametrize("objective", ["k-wise", "plackett-luce"])
def test_t09_rankings_of_two_train_the_head_as_pairs_do(
  files, reward_head, objective
):
  """With cached features too, where a batch holds no tokens."""
  samples = files.root / "sft_lora" / "samples.npz"
  config = tiny_runs.reward_config(files, "head", "", samples)
  config.loss.objective = objective
  folder = files.root / objective / reward_head.name
  pipelines.run(config, folder)
  for found, expected in zip(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(reward_head), strict=True
  ):
    np.testing.assert_allclose(
      found["reward_model/loss"], expected["reward_model/loss"], rtol=1e-4
    )
  assert found["reward_model/loss"] < 0.9 * np.log(2)


def test_a_ranking_of_ties_is_refused(files):
  config = tiny_runs.reward_config(files, "head", "", "")
  config.data.update(
    source=files.ratings, format="ratings", pairs=50, ties="soft", max_length=32
  )
  config.loss.objective = "k-wise"
  with pytest.raises(UserError, match="loss.objective='k-wise': .* 0.5"):
    pipelines.run(config, files.root / "ranked_ties")


def test_a_head_trains_on_features_as_on_rows(files, reward_head):
  """Cached features, batched by length, against one row at a time."""
  base, (scorer, weights, _) = loaded(files, reward_head, "head")
  config = tiny_runs.reward_config(files, "head", "", "")
  data = dataset.comparisons(
    schema.read(Data, config.data, "data"), base.tokenizer, 0
  )
  world = tiny_runs.world_of(config)
  length = max(len(row["tokens"]) for row in data.rows)
  phase, _, _, _ = reward.wire(
    tiny_runs.settings_of(config), world, base, 1, length
  )
  mesh = world.mesh
  cached = features.row_features(phase, base.params, data.rows)
  head = {"head": weights.variables["head"]}
  scores = features.row_scores(
    base, scorer.role, head, {}, data.rows, cached, batch_size=8, mesh=mesh
  )
  trunk = {"params": base.params}
  alone = features.row_scores(
    base, scorer.role, head, trunk, data.rows[:9], None, batch_size=4, mesh=mesh
  )
  np.testing.assert_allclose(scores[:9], alone, atol=2e-5)


def test_trap_31_a_head_run_saves_the_head_alone(reward_head):
  saved = tiny_runs.saved_arrays(reward_head)
  trained = [p for p in saved if p.startswith("train/params/")]
  assert sorted(trained) == [
    "train/params/head/output/bias",
    "train/params/head/output/kernel",
  ]


@pytest.mark.parametrize(
  "mode", [pytest.param("lora", marks=pytest.mark.slow), "full"]
)
def test_trap_31_frozen_parts_of_a_reward_model_are_the_sft_models(
  files, mode, request
):
  folder = request.getfixturevalue(f"reward_{mode}")
  start = request.getfixturevalue(f"sft_{mode}")
  base, (scorer, weights, info) = loaded(files, folder, mode)
  assert info["merged_from"] == f"../{start.name}"  # both may be moved
  world = tiny_runs.world_of(tiny_runs.reward_config(files, mode, "", ""))
  merged = trees.flatten({"params": stages.start_params(start, base, world)})
  found = trees.flatten(weights.variables)
  frozen = [p for p in merged if not roles.is_trainable(scorer.role, p)]
  assert frozen
  for path in frozen:
    np.testing.assert_array_equal(found[path], merged[path], err_msg=path)
  moved = {p for p in merged if not np.array_equal(found[p], merged[p])}
  assert bool(moved) == (mode == "full")


def test_a_prompt_is_on_one_side_of_the_split(files):
  config = tiny_runs.reward_config(files, "head", "", "")
  tokenizer = tiny_runs.load_base(config).tokenizer
  data = schema.read(Data, config.data, "data")
  everything = dataset.comparisons(data, tokenizer, 0)
  train, held = features.split_heldout(everything, 0.25, seed=3)
  assert len(train.pairs) == 180 and len(held.pairs) == 60
  records = [json.loads(line) for line in open(files.comparisons)]
  sides = [
    {records[first // 2]["prompt"] for first in part.pairs[:, 0]}
    for part in (train, held)
  ]
  assert len(sides[0]) == 18 and len(sides[1]) == 6
  assert not sides[0] & sides[1]


def test_a_rated_sentence_is_on_one_side_of_the_split(files, capsys):
  config = tiny_runs.reward_config(files, "head", "", "")
  config.data.update(
    source=files.ratings, format="ratings", prompt="the", pairs=500
  )
  tokenizer = tiny_runs.load_base(config).tokenizer
  data = schema.read(Data, config.data, "data")
  everything = dataset.comparisons(data, tokenizer, 0)
  train, held = features.split_heldout(everything, 0.25, seed=3)
  assert not set(train.pairs.ravel()) & set(held.pairs.ravel())
  assert len(train.pairs) > 200 and len(held.pairs) > 10
  lost = 500 - len(train.pairs) - len(held.pairs)
  assert f"{lost} comparisons" in capsys.readouterr().out
  with pytest.raises(UserError, match="heldout_fraction=0.01"):
    features.split_heldout(everything, 0.01, seed=3)


HH = [
  ("Is it the cat?", "It is a cat.", "It is."),
  ("Where?", "On the mat, a cat.", "On the log."),
  ("And who sat?", "The cat sat.", "No one sat."),
  ("With whom?", "With a cat.", "With a dog of the log."),
]


def test_hh_transcripts(files, tmp_path, capsys):
  path = tmp_path / "hh.jsonl"
  lines = []
  for i in range(40):
    question, good, bad = HH[i % 4]
    start = f"\n\nHuman: {question} {i}\n\nAssistant:"
    lines.append({"chosen": f"{start} {good}", "rejected": f"{start} {bad}"})
  lines.append(
    {"chosen": f"{start} a", "rejected": "\n\nHuman: b\n\nAssistant: c"}
  )
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config = tiny_runs.reward_config(files, "head", "", "")
  config.data.update(source=str(path), format="hh", max_length=64)
  config.schedule.update(batch_size=16, steps=60)
  info = pipelines.run(config, tmp_path / "run")
  assert "1 prompts differ" in capsys.readouterr().out
  assert info["comparisons"] == 30
  assert info["diagnosis"]["reward_model/accuracy"] > 0.8
  assert info["normalisation"]["source"] == "training rows"
