"""Process reward models as a pipeline: planted errors, scores, policies."""

import functools
import json

import jax
import numpy as np
import pytest

from rlhf_jax import lab, pipelines
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.data import steps
from rlhf_jax.models import outputs
from rlhf_jax.models.rows import Rows
from rlhf_jax.pipelines import defaults
from rlhf_jax.planning import report, topology
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards import reader as reader_lib
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stages
from rlhf_jax.schema import UserError
from tests.pipelines import (
  test_pipeline_resume,
  test_pipeline_rlhf,
  tiny_runs,
)

ERROR = "with"  # a step is wrong from the first one that says it
DELIMITER = " and"  # what the tiny model says, too


@pytest.fixture(scope="module")
def judged(files):
  """Returns the path of 160 answers of one to four steps."""
  rng = np.random.default_rng(0)
  words = [w for w in tiny_runs.WORDS if w not in ("and", ERROR)]
  path, lines = files.root / "steps.jsonl", []
  for _ in range(160):
    texts, labels, is_right = [], [], 1
    for _ in range(int(rng.integers(1, 5))):
      said = list(rng.choice(words, int(rng.integers(1, 3))))
      if rng.random() < 0.3:
        said, is_right = [*said, ERROR], 0
      texts.append("".join(f" {word}" for word in said))
      labels.append(is_right)
    prompt = "".join(f" {word}" for word in rng.choice(words, 4))
    record = {"prompt": prompt, "steps": texts}
    lines.append(json.dumps(record | {"labels": labels}))
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def make_config(files, judged, mode="head", samples=""):
  config = defaults.process_reward()
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2 * (mode == "lora"))
  config.trainable.mode = mode
  config.head.pooling = "mean_last"
  config.steps.delimiter = DELIMITER
  config.data.update(source=judged, max_length=48, end_token=False)
  config.heldout_fraction = 0.25
  config.reference_samples = str(samples)
  config.schedule.update(batch_size=8, steps=8, save_every=4)
  config.optimizer.update(learning_rate=2e-2, schedule="constant")
  if mode == "head":
    config.stop_layer = tiny_runs.LORA_LAYER
    config.schedule.update(batch_size=32, steps=240, save_every=120)
    config.optimizer.learning_rate = 5e-2
  return config


@pytest.fixture(scope="module")
def process_head(files, judged, sft_lora):
  folder = files.root / "process_head"
  samples = sft_lora / "samples.npz"
  config = make_config(files, judged, samples=samples)
  config.schedule.update(eval_every=120, keep_best="validation/auc", best="max")
  pipelines.run(config, folder)
  return folder


def loaded(files, judged, folder):
  config = make_config(files, judged)
  base = tiny_runs.load_base(config)
  return base, *reward_model.load(folder, base, tiny_runs.world_of(config))


def probabilities(scorer, weights, ids):
  """Returns [n] the probability of each prefix of one unpadded row."""
  row, places = np.asarray(ids)[None], np.arange(len(ids))[None]
  rows = Rows(row, np.ones(row.shape), places)
  logits = outputs.prefix_scores(scorer.role, weights.variables, rows)
  return 1 / (1 + np.exp(-np.asarray(logits)[0, :, 0]))


def test_planted_errors_are_learned(process_head):
  info = stages.read_stage(process_head)
  found = info["diagnosis"]
  assert found["process/auc"] > 0.75 and found["process/f1"] > 0.4
  assert found["process/heldout_accuracy"] > found["process/always_right"]
  assert found["process/answer_auc_min"] > 0.75
  assert info["process"] == {"delimiter": DELIMITER, "score": "min"}
  assert not any(level == "refuse" for level, _ in info["guards"])
  rows = tiny_runs.rows_of(process_head)
  assert rows[-1]["validation/auc"] == pytest.approx(found["process/auc"])
  saved = tiny_runs.saved_arrays(process_head)
  trained = [p for p in saved if p.startswith("train/params/")]
  assert sorted(trained) == [
    "train/params/head/output/bias",
    "train/params/head/output/kernel",
  ]


def test_scores_are_the_least_of_its_steps(files, judged, process_head):
  """One sample at a time, unpadded, by hand; mean 0 and deviation 1."""
  base, scorer, weights, _ = loaded(files, judged, process_head)
  samples = tiny_runs.load_samples(files.root / "sft_lora" / "samples.npz")
  found = reward_model.make_score(scorer)(weights, samples)
  read = jax.jit(functools.partial(reward_model.prefixes, scorer))
  prefixes = read(weights, samples)
  np.testing.assert_allclose(np.mean(found), 0.0, atol=2e-5)
  np.testing.assert_allclose(np.std(found), 1.0, atol=2e-5)
  table = steps.table(DELIMITER, base.tokenizer, base.config.vocab_size)
  kept = np.asarray(reward_model.judged_mask(scorer, samples)) > 0
  counts = []
  for n in range(16):
    ids = np.asarray(samples.tokens[n])[kept[n]]
    answer = np.asarray(samples.response_mask[n])[kept[n]]
    places = steps.ends(ids, answer, table)
    p = probabilities(scorer, weights, ids)[places]
    expected = (p.min() - weights.mean) / weights.std if len(p) else found[n]
    np.testing.assert_allclose(found[n], expected, atol=2e-4)
    own = np.asarray(prefixes["prefix_mask"][n])[kept[n]]
    np.testing.assert_array_equal(np.flatnonzero(own), places)
    counts.append(len(places))
  assert max(counts) > 1  # the model does say " and"
  shape = packing.Shape(48, 24, 32, 1)
  layout = packing.plan(samples, shape)
  rows = Rows(
    packing.pack(samples.tokens, layout),
    packing.pack(samples.valid_mask, layout),
    layout.positions,
    layout.segment_ids,
  )
  packed = reward_model.score(
    scorer, weights, samples, None, rows, layout.place
  )
  np.testing.assert_allclose(packed, found, atol=1e-4)
  assert len(layout.segment_ids) < len(found)


def test_a_reader_of_text_finds_the_same_steps(files, judged, process_head):
  """Of texts, which score_texts and other tokenizers read."""
  base, scorer, weights, _ = loaded(files, judged, process_head)
  reader = Reader("reward", scorer, weights, base.tokenizer)
  prompt, answer = " the and on", " cat sat and with a and is"
  told = reader_lib.retold.told(
    reader_lib.retold.Asked(lambda n: base.tokenizer.encode(prompt)),
    reader_lib.retold.Said(answer, True),
    base.tokenizer,
    32,
    end_token=False,
  )
  assert told.answer == 7
  world = tiny_runs.world_of(make_config(files, judged))
  (found,) = reader.scores([told.ids], world.mesh, [told.answer])
  ids = np.asarray(told.ids)
  mask = np.arange(len(ids)) >= len(ids) - 7
  places = steps.ends(ids, mask, np.asarray(weights.delimiter))
  assert len(places) == 3 and places[0] == len(ids) - 5
  p = probabilities(scorer, weights, ids)[places]
  np.testing.assert_allclose(
    found, (p.min() - weights.mean) / weights.std, atol=2e-4
  )


@pytest.fixture(scope="module")
def process_full(files, judged):
  folder = files.root / "process_full"
  config = make_config(files, judged, "full")
  config.data.pack = "none"
  pipelines.run(config, folder)
  return folder


@pytest.mark.parametrize("change", ["batch", "mesh"])
def test_layout_and_devices_do_not_matter(files, judged, process_full, change):
  config = make_config(files, judged, "full")
  config.data.pack = "batch" if change == "batch" else "none"
  if change == "mesh":
    config.mesh.update(devices=8, data=4, fsdp=2)
  folder = files.root / f"process_{change}"
  pipelines.run(config, folder)
  tiny_runs.assert_close_rows(
    tiny_runs.rows_of(folder), tiny_runs.rows_of(process_full)
  )


def test_t20_a_run_that_was_killed_ends_as_one_that_was_not(
  files, judged, process_full, monkeypatch
):
  config = make_config(files, judged, "full")
  config.data.pack = "none"
  folder = files.root / "again" / process_full.name
  with monkeypatch.context() as patch:
    test_pipeline_resume.kill_at(patch, 6)
    with pytest.raises(test_pipeline_resume.Killed):
      pipelines.run(config, folder)
  pipelines.run(config, folder)
  test_pipeline_resume.assert_same_run(folder, process_full, 8)


@pytest.mark.slow
def test_factors_train_on_packed_rows(files, judged, sft_lora):
  config = make_config(files, judged, "lora", sft_lora / "samples.npz")
  config.init_from = str(sft_lora)
  config.data.update(pack="all", max_length=64)
  config.schedule.update(steps=60, save_every=60)
  folder = files.root / "process_lora"
  info = pipelines.run(config, folder)
  assert info["diagnosis"]["process/auc"] > 0.6
  _, scorer, weights, _ = loaded(files, judged, folder)
  samples = tiny_runs.load_samples(sft_lora / "samples.npz")
  found = reward_model.make_score(scorer)(weights, samples)
  np.testing.assert_allclose(np.std(found), 1.0, atol=1e-3)


@pytest.mark.parametrize("mode", ["head", "full"])
def test_it_is_planned(files, judged, mode):
  config = make_config(files, judged, mode)
  config.mesh.update(devices=0, data=2, fsdp=4)
  config.schedule.batch_size = 8
  found = report.make(config, topology.parse("cpu:8"), compiles=False)
  names = [line.program for line in found.lines]
  assert names == ["features", "update"][mode == "full" :]
  assert not found.too_large


def policy_config(files, sft_lora, folder, mode):
  config = tiny_runs.policy_config(files, "lora", sft_lora, folder)
  config.value.update(init="random", pretrain_steps=0)
  config.schedule.update(steps=2, save_every=2, keep_best="")
  config.shaping.token_rewards = mode
  return config


@pytest.mark.parametrize("mode", ["potential", "raw"])
def test_a_policy_learns_from_its_steps(
  files, sft_lora, process_head, mode, capsys
):
  config = policy_config(files, sft_lora, process_head, mode)
  folder = files.root / f"policy_{mode}"
  pipelines.run(config, folder)
  rows = tiny_runs.rows_of(folder)
  assert len(rows) == 2
  for row in rows:
    if mode == "potential":  # the sum is that of the score: nothing before it
      np.testing.assert_allclose(row["reward/token_sum"], 0.0, atol=1e-5)
    assert row["reward/token_size"] > 0.0
  said = "is no potential" in capsys.readouterr().out
  assert said == (mode == "raw")


def test_prefixes_of_a_reward_model_are_a_potential(
  files, sft_lora, reward_head
):
  config = policy_config(files, sft_lora, reward_head, "potential")
  config.value.init = "reward"
  folder = files.root / "policy_prefixes"
  pipelines.run(config, folder)
  for row in tiny_runs.rows_of(folder):
    assert row["reward/token_size"] > 0.0 and row["reward/token_sum"] != 0.0


def test_what_cannot_be_is_refused(files, judged, sft_lora, process_head):
  config = policy_config(files, sft_lora, process_head, "none")
  config.value.init = "reward"
  with pytest.raises(UserError, match="value.init='reward': the reward model"):
    pipelines.run(config, files.root / "refused")
  config = policy_config(files, sft_lora, process_head, "potential")
  config.algorithm = defaults.policy("rloo").algorithm
  config.value = defaults.policy("rloo").value
  with pytest.raises(
    UserError, match="^config.shaping.token_rewards='potential': rloo gives"
  ):
    tiny_runs.checked(config)
  config = policy_config(files, sft_lora, "", "raw")
  config.reward_fn = f"{__file__}:score"
  with pytest.raises(
    UserError, match="token_rewards='raw': a verifier or function judges whole"
  ):
    tiny_runs.checked(config)
  config = make_config(files, judged)
  config.steps.delimiter = ""
  with pytest.raises(UserError, match="^config.steps.delimiter='': something"):
    tiny_runs.checked(config)
  config = make_config(files, files.demonstrations)
  config.data.format = "demonstration"
  with pytest.raises(UserError, match="holds no judged steps. Use 'steps'"):
    pipelines.run(config, files.root / "refused")
  config = make_config(files, judged)
  config.data.pack = "all"
  with pytest.raises(UserError, match="data.pack='all': nothing reads it for"):
    tiny_runs.checked(config)


def score(texts):
  return [0.0 for _ in texts]


def test_where_it_would_be_read_otherwise_it_is_refused(
  files, judged, process_head
):
  with pytest.raises(UserError, match="judges steps, which a notebook"):
    lab.load(str(process_head))
  config = defaults.export()
  config.run, config.mesh.devices = str(process_head), 1
  with pytest.raises(UserError, match="judges steps, and a classifier reads"):
    pipelines.run(config, files.root / "exported")
  config = test_pipeline_rlhf.make_config(files)
  config.reward = make_config(files, judged)
  with pytest.raises(
    UserError, match="^config.reward.pipeline='process_reward': learns from"
  ):
    tiny_runs.checked(config)
