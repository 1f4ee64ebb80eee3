"""Preference optimisation as a pipeline: planted word, reference, resume."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import pipelines
from rlhf_jax.data import dataset, judged
from rlhf_jax.models import outputs, trees
from rlhf_jax.models.rows import Rows
from rlhf_jax.pipelines import defaults, preference
from rlhf_jax.programs import pairs, preference_data, starts
from rlhf_jax.runs import reference, stages
from rlhf_jax.runs.checkpoint import CheckpointError
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs
from tests.pipelines.test_pipeline_resume import (
  Killed,
  assert_same_run,
  kill_at,
)

STEPS = 24


def make_config(files, name, mode, start):
  """A few steps on the planted word; mode "full" or "lora"."""
  config = defaults.preference(name)
  config.mesh.devices = 1
  config.model.update(source=files.model, lora_rank=2 * (mode == "lora"))
  config.trainable.update(
    mode=mode, first_layer=tiny_runs.LORA_LAYER * (mode == "lora")
  )
  config.init_from = str(start)
  config.data.update(source=files.comparisons, max_length=24)
  if name == "dpo":
    config.data.share_prompts = "always"
  config.heldout_fraction = 0.25
  config.schedule.update(batch_size=8, steps=STEPS, save_every=10)
  config.optimizer.update(learning_rate=1e-2, schedule="constant")
  return config


@pytest.fixture(scope="module")
def dpo_full(files, sft_full):
  folder = files.root / "dpo_full"
  pipelines.run(make_config(files, "dpo", "full", sft_full), folder)
  return folder


@pytest.fixture(scope="module")
def kto_lora(files, sft_lora):
  folder = files.root / "kto_lora"
  config = make_config(files, "kto", "lora", sft_lora)
  config.algorithm.beta = 0.5
  config.optimizer.learning_rate = 5e-2
  config.accumulation.microbatches = 2
  pipelines.run(config, folder)
  return folder


@pytest.fixture(scope="module")
def orpo_full(files):
  folder = files.root / "orpo_full"
  config = make_config(files, "orpo", "full", "")
  config.algorithm.odds_weight = 1.0
  pipelines.run(config, folder)
  return folder


def test_kto_needs_both_kinds_of_answers_to_train_on(files, sft_lora):
  """A held-out set that has both does not help."""
  config = make_config(files, "kto", "lora", sft_lora)
  path = files.root / "all_liked.jsonl"
  path.write_text(
    "".join(
      json.dumps({"prompt": f"a {i}", "response": " cat", "label": True}) + "\n"
      for i in range(20)
    )
  )
  config.data.update(source=str(path), format="labelled")
  config.heldout.update(source=files.comparisons, format="comparison")
  settings = tiny_runs.settings_of(config)
  base = tiny_runs.load_base(config)
  with pytest.raises(UserError, match="all 20 labels are 1"):
    preference_data.load(settings, base, "preference")


@pytest.mark.parametrize(
  "stage",
  [
    pytest.param("dpo_full", marks=pytest.mark.slow),
    "kto_lora",
    pytest.param("orpo_full", marks=pytest.mark.slow),
  ],
)
def test_the_planted_word_is_learned(stage, request):
  folder = request.getfixturevalue(stage)
  info = stages.read_stage(folder)
  rows = tiny_runs.rows_of(folder)
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
  # KTO sees one answer at a time; chance is 0.5, its error 0.06.
  assert info["heldout"]["preference/accuracy"] > (
    0.68 if stage == "kto_lora" else 0.8
  )
  assert info["heldout"]["preference/margin"] > 0.0
  count = 60 * (1 + (stage == "kto_lora"))
  assert info["heldout_examples"] == count
  assert info["examples"] == 3 * count


def test_held_out_numbers_are_means_over_all_pairs(files, sft_full, dpo_full):
  """60 pairs in batches of 8: the last has filler, which does not count."""
  base, start, (_, held) = loaded(files, "dpo", "full", sft_full)
  world = tiny_runs.world_of(make_config(files, "dpo", "full", ""))
  stage = stages.load(dpo_full, stages.POLICY, base, world)
  batch = pairs.collate(
    np.arange(len(held.pairs)), data=held, width=24, pad_id=0
  )
  logprobs = jax.jit(
    lambda variables: pairs.apply(variables, {}, batch, role=stage.role)
  )
  sums = [
    np.sum(np.asarray(logprobs(x.variables)) * batch.loss_mask, -1)
    for x in (stage, start)
  ]
  rewards = 0.1 * (sums[0] - sums[1])
  margin = rewards[:, 0] - rewards[:, 1]
  lengths = np.sum(batch.loss_mask, -1)
  expected = {
    "loss": np.mean(np.log1p(np.exp(-margin))),
    "accuracy": np.mean(margin > 0),
    "margin": np.mean(margin),
    "reward_chosen": np.mean(rewards[:, 0]),
    "reward_rejected": np.mean(rewards[:, 1]),
    "logprob_chosen": np.mean(sums[0][:, 0]),
    "logprob_rejected": np.mean(sums[0][:, 1]),
    "tokens_chosen": np.mean(lengths[:, 0]),
    "tokens_rejected": np.mean(lengths[:, 1]),
  }
  found = stages.read_stage(dpo_full)["heldout"]
  assert sorted(found) == sorted(f"preference/{name}" for name in expected)
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[f"preference/{name}"], value, rtol=1e-4, atol=1e-5, err_msg=name
    )


def test_a_run_that_ends_early_says_when_and_why(files, sft_full):
  config = tiny_runs.dpo_config(files, sft_full)
  config.optimizer.learning_rate = 0.0
  config.schedule.update(
    steps=20, eval_every=2, keep_best="validation/loss", patience=2
  )
  info = pipelines.run(config, files.root / "dpo_early")
  assert info["steps"] == 6 and info["halted"]
  assert info["epochs"] == 6 * 8 / info["examples"]


def test_t11_t17_the_first_step_is_at_the_reference(dpo_full, kto_lora):
  """Log-ratios are 0 there: log 2 for DPO, half of the weights for KTO."""
  first = tiny_runs.rows_of(dpo_full)[0]
  np.testing.assert_allclose(first["preference/loss"], np.log(2.0), atol=1e-5)
  np.testing.assert_allclose(first["preference/margin"], 0.0, atol=1e-4)
  first = tiny_runs.rows_of(kto_lora)[0]
  np.testing.assert_allclose(first["preference/loss"], 0.5, atol=1e-5)
  np.testing.assert_allclose(first["preference/kl"], 0.0, atol=1e-5)


def loaded(files, name, mode, start):
  """Returns base, starting stage and the data of a run, without reference."""
  config = make_config(files, name, mode, start)
  settings, world = tiny_runs.settings_of(config), tiny_runs.world_of(config)
  base = world.base(settings.model)
  stage = starts.starting_policy(settings, base, world)
  return base, stage, preference_data.load(settings, base, "preference")


@pytest.mark.slow
def test_trap_30_stored_log_probabilities_are_the_starting_policys(
  files, sft_lora, kto_lora
):
  """One row at a time, without padding, judged and mismatched answers."""
  _, stage, (train, held) = loaded(files, "kto", "lora", sft_lora)
  assert stage.info["merged_from"] == ""  # goes on with the SFT run's factors
  with np.load(kto_lora / reference.FILE) as stored:
    found = {name: stored[name] for name in ("train", "heldout")}
  for name, part in (("train", train), ("heldout", held)):
    assert found[name].dtype == np.float32
    counts = [int(row["loss_mask"].sum()) for row in part.rows]
    assert found[name].shape == (sum(counts),)
  start = 0
  for row in train.rows[:5]:
    tokens = jnp.asarray(row["tokens"])[None]
    mask = jnp.asarray(row["loss_mask"])[None]
    rows = Rows(tokens, jnp.ones_like(mask), jnp.arange(tokens.shape[1])[None])
    logprobs, _ = outputs.logprobs(stage.role, stage.variables, rows, mask)
    expected = np.asarray(logprobs)[np.asarray(mask) > 0]
    stop = start + len(expected)
    np.testing.assert_allclose(found["train"][start:stop], expected, atol=1e-5)
    start = stop


def test_t20_trap_23_resume_bit_for_bit(files, sft_full, dpo_full, monkeypatch):
  config = make_config(files, "dpo", "full", sft_full)
  folder = files.root / "dpo_resumed"
  with monkeypatch.context() as patch:
    kill_at(patch, 13)
    with pytest.raises(Killed):
      pipelines.run(config, folder)
  assert stages.read_stage(folder) is None
  stored = (folder / reference.FILE).read_bytes()
  with monkeypatch.context() as patch:  # what is stored is not computed again
    patch.setattr(reference, "compute", lambda *_, **__: pytest.fail("again"))
    pipelines.run(config, folder)
  assert (folder / reference.FILE).read_bytes() == stored
  assert_same_run(folder, dpo_full, STEPS)
  again = pipelines.run(config, folder)
  assert again == stages.read_stage(dpo_full)


def test_it_stands_where_an_sft_run_does(files, sft_full, dpo_full):
  base, start, _ = loaded(files, "dpo", "full", sft_full)
  world = tiny_runs.world_of(make_config(files, "dpo", "full", ""))
  policy = stages.load(dpo_full, stages.POLICY, base, world)
  saved = tiny_runs.saved_arrays(dpo_full)
  flat = trees.flatten(policy.variables)
  for path, leaf in flat.items():
    np.testing.assert_array_equal(leaf, saved[f"train/params/{path}"])
  before = trees.flatten(start.variables)
  moved = [p for p, x in flat.items() if not np.array_equal(x, before[p])]
  assert len(moved) == len(flat)
  info = stages.read_stage(dpo_full)
  assert info["init_from"] == f"../{sft_full.name}"
  with pytest.raises(UserError, match="wanted a finished reward run, found"):
    stages.need_stage(dpo_full, stages.REWARD)
  with pytest.raises(UserError, match="found a preference run"):
    pipelines.run(tiny_runs.sft_config(files, "full"), dpo_full)


@pytest.mark.slow
def test_a_second_round_keeps_what_the_first_was_merged_on(files, sft_full):
  """LoRA on a merged SFT run, then on with the same factors."""
  folders = files.root / "round_1", files.root / "round_2"
  start = sft_full
  for folder in folders:
    config = make_config(files, "simpo", "lora", start)
    config.schedule.update(steps=2)
    info = pipelines.run(config, folder)
    assert info["merged_from"] == f"../{sft_full.name}"
    start = folder
  base, _, _ = loaded(files, "dpo", "lora", sft_full)
  world = tiny_runs.world_of(config)
  merged = trees.flatten(stages.start_params(sft_full, base, world))
  for folder in folders:
    stage = stages.load(folder, stages.POLICY, base, world)
    for path, leaf in trees.flatten(stage.variables["params"]).items():
      np.testing.assert_array_equal(leaf, merged[path])


def test_the_reference_of_other_data_or_damage_is_refused(
  files, sft_full, dpo_full, tmp_path
):
  config = make_config(files, "dpo", "full", sft_full)
  stored = (dpo_full / reference.FILE).read_bytes()
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / reference.FILE).write_bytes(stored)
  config.data.limit = 100
  with pytest.raises(
    CheckpointError, match="of another start or of other rows"
  ):
    pipelines.run(config, tmp_path / "other")
  config.data.limit = 0
  (tmp_path / "cut").mkdir()
  (tmp_path / "cut" / reference.FILE).write_bytes(stored[:-40])
  with pytest.raises(CheckpointError, match="damaged .* Delete it"):
    pipelines.run(config, tmp_path / "cut")


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_kto_reads_labels_as_it_reads_comparisons(files, tmp_path):
  pairs = [json.loads(line) for line in open(files.comparisons)]
  source = write(
    tmp_path / "judged.jsonl",
    [
      {"prompt": p["prompt"], "response": p[side], "label": side == "chosen"}
      for p in pairs
      for side in ("chosen", "rejected")
    ],
  )
  tokenizer = tiny_runs.load_base(
    make_config(files, "kto", "full", "")
  ).tokenizer
  config = make_config(files, "kto", "full", "")
  given = tiny_runs.settings_of(config).data
  config.data.update(source=source, format="labelled")
  labelled = tiny_runs.settings_of(config).data
  expected, found = (
    judged.load(data, tokenizer, 0) for data in (given, labelled)
  )
  np.testing.assert_array_equal(found.labels, expected.labels)
  np.testing.assert_array_equal(found.labels[:2], [1.0, 0.0])
  np.testing.assert_array_equal(found.groups, expected.groups)
  for (a,), (b,) in zip(found.pairs, expected.pairs, strict=True):
    for key, x in found.rows[a].items():
      np.testing.assert_array_equal(x, expected.rows[b][key])
  with pytest.raises(UserError, match="holds no comparisons"):
    dataset.comparisons(labelled, tokenizer, 0)


def test_mismatched_answers_belong_to_other_prompts():
  prompts = np.array([0, 0, 0, 1, 2, 0, 0, 2])
  for seed in range(5):
    others = judged.other_prompts(prompts, seed)
    assert np.all(prompts[others] != prompts)

  def row(*ids, n):
    mask = [0.0] * n + [1.0] * (len(ids) - n)
    return {
      "tokens": np.array(ids, np.int32),
      "loss_mask": np.array(mask, np.float32),
    }

  data = dataset.Comparisons(
    rows=[row(1, 2, 3, n=2), row(9, n=0), row(4, 5, 6, 7, 8, n=1)],
    pairs=np.array([[0], [2]], np.int32),
    labels=np.array([1.0, 0.0], np.float32),
    groups=np.array([[0], [1]], np.int32),
    dropped=None,
    ceiling=None,
  )
  found = judged.with_mismatched(data, 5, 0, "x")
  np.testing.assert_array_equal(found.pairs, [[0, 3], [2, 4]])
  np.testing.assert_array_equal(found.rows[3]["tokens"], [1, 2, 5, 6, 7])
  np.testing.assert_array_equal(found.rows[3]["loss_mask"], [0, 0, 1, 1, 1])
  np.testing.assert_array_equal(found.rows[4]["tokens"], [4, 3])
  kept = judged.compact(found)
  assert len(kept.rows) == 4
  np.testing.assert_array_equal(kept.pairs, [[0, 2], [1, 3]])


PAIR = {"prompt": " the cat", "chosen": " sat", "rejected": " is"}


@pytest.mark.parametrize(
  ("name", "rows", "message"),
  [
    ("kto", [PAIR, {**PAIR, "label": 0.7}] * 20, "name='kto': .* 0.7"),
    ("spin", [PAIR, {**PAIR, "label": 0.0}] * 20, "name='spin': .* not 1"),
    ("kto", [PAIR] * 20, "all 20 answers have the same prompt"),
  ],
)
def test_data_that_a_method_cannot_use(files, tmp_path, name, rows, message):
  config = make_config(files, name, "full", "")
  rows = [
    row if "same prompt" in message else {**row, "prompt": f" the {' on' * n}"}
    for n, row in enumerate(rows[:8])
  ] + rows[:2] * 6
  config.data.source = write(tmp_path / "data.jsonl", rows)
  config.data.max_length = 40
  if "same prompt" in message:
    config.heldout.update(source=config.data.source, max_length=40)
  config.heldout_fraction = 0.4
  with pytest.raises(ValueError, match=message.replace("20", r"\d+")):
    pipelines.run(config, tmp_path / "run")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"algorithm.name": "dqo"}, "algorithm.name='dqo': .* mean 'dpo'"),
    ({"algorithm.tau": 0.1}, "algorithm.tau=0.1: 'dpo' has no such .* ipo"),
    ({"algorithm.beta": 0.0}, "config.algorithm.beta=0.0: must be > 0"),
    (
      {"accumulation.microbatches": 3},
      "batch_size=8: .* accumulation.microbatches",
    ),
    ({"trainable.mode": "head"}, "trainable.mode='head'"),
    ({"data.format": "labelled"}, "'labelled': single answers"),
    ({"data.source": ""}, "config.data.source is empty"),
    ({"heldout_fraction": 1.5}, "heldout_fraction=1.5"),
    ({"init_from": "nowhere"}, "init_from='nowhere': .* no such folder"),
  ],
)
def test_mistakes_are_found_before_a_model_loads(files, change, message):
  config = make_config(files, "dpo", "full", "")
  tiny_runs.checked(config)
  if change.get("data.format"):
    row = {"prompt": "a", "response": " b", "label": True}
    config.data.source = write(files.root / "judged.jsonl", [row])
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    tiny_runs.checked(config)


def test_the_command_knows_it():
  assert pipelines.find("preference") is preference.PIPELINE
