"""Supervised fine-tuning as a pipeline: what it learns, writes and skips."""

import json

import jax
import numpy as np
import optax
import pytest

from rlhf_jax import ops, pipelines
from rlhf_jax.data import batches, dataset, layout
from rlhf_jax.models import transformer, trees
from rlhf_jax.rewards.texts import sample_texts
from rlhf_jax.runs import loop, stages
from rlhf_jax.schema import UserError
from tests.pipelines import tiny_runs


def cross_entropy(config, params, batch):
  """Returns nats a target of a TokenBatch, from the logits of whole rows."""
  logits = jax.jit(transformer.Transformer(config).apply)(
    {"params": params}, batch.tokens, batch.valid_mask
  )
  logits = ops.hide_rows(logits, config.empty_rows)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], batch.tokens[:, 1:]
  )
  mask = batch.loss_mask[:, 1:]
  return np.sum(np.asarray(loss) * mask) / mask.sum()


@pytest.mark.parametrize("stage", ["sft_full", "sft_lora"])
def test_loss_falls(stage, request):
  folder = request.getfixturevalue(stage)
  rows = tiny_runs.rows_of(folder)
  assert [row["step"] for row in rows] == list(range(1, 13))
  assert rows[-1]["sft/loss"] < rows[0]["sft/loss"] - 0.4
  info = stages.read_stage(folder)
  assert info["steps"] == 12 and info["examples"] == 40


def test_a_run_that_ends_early_says_when_and_why(files, capsys):
  config = tiny_runs.sft_config(files, "full")
  config.optimizer.learning_rate = 0.0
  config.schedule.update(
    steps=20, eval_every=2, keep_best="validation/loss", patience=2
  )
  folder = files.root / "sft_early"
  info = pipelines.run(config, folder)
  assert info["steps"] == 6 == len(tiny_runs.rows_of(folder))
  assert "in 2 measurements" in info["halted"]
  config.schedule.steps = 30  # it has no later end
  assert pipelines.run(config, folder)["steps"] == 6
  said = capsys.readouterr().out
  assert "It ended early: at step 6 validation/loss had" in said
  assert "raise its steps" not in said


def test_validation_loss_is_the_mean_over_tokens(files, sft_full):
  config = tiny_runs.sft_config(files, "full")
  base = tiny_runs.load_base(config)
  stage = stages.load(sft_full, stages.POLICY, base, tiny_runs.world_of(config))
  data = tiny_runs.settings_of(config).validation
  rows, _ = dataset.demonstrations(data, base.tokenizer)
  assert len(rows) % config.schedule.batch_size  # a last batch to fill up
  batch = batches.collate_tokens(rows, 32, pad_id=7)
  found = stages.read_stage(sft_full)["validation_loss"]
  expected = cross_entropy(stage.role.model, stage.variables["params"], batch)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found < tiny_runs.rows_of(sft_full)[0]["sft/loss"] - 0.4


def test_samples_are_written_for_the_reward_model(files, sft_lora):
  samples = tiny_runs.load_samples(sft_lora / "samples.npz")
  assert samples.tokens.shape[0] == 32
  assert np.all(np.asarray(samples.response_mask).sum(1) >= 1)
  texts = tiny_runs.rows_of(sft_lora, "samples.jsonl")
  assert len(texts) == 32
  config = tiny_runs.sft_config(files, "lora")
  base = tiny_runs.load_base(config)
  first = texts[0]
  known = [json.loads(line)["prompt"] for line in open(files.prompts)]
  assert first["prompt"] in known
  expected = sample_texts(base.tokenizer, samples)
  assert [(t["prompt"], t["response"]) for t in texts] == expected


def test_a_finished_run_is_not_repeated(files, sft_lora, monkeypatch, capsys):
  def refuse(*args, **options):
    raise AssertionError("trained again")

  monkeypatch.setattr(loop, "run_steps", refuse)
  before = (sft_lora / "metrics.jsonl").read_text()
  info = pipelines.run(tiny_runs.sft_config(files, "lora"), sft_lora)
  assert info == stages.read_stage(sft_lora)
  assert (sft_lora / "metrics.jsonl").read_text() == before
  assert "is finished" in capsys.readouterr().out


def test_trap_31_lora_stores_and_moves_nothing_but_factors(sft_lora):
  saved = tiny_runs.saved_arrays(sft_lora)
  trained = [p for p in saved if p.startswith("train/params/")]
  assert trained and all("/lora_" in path for path in trained)
  moments = [p for p in saved if "opt_state" in p and saved[p].ndim > 0]
  assert moments and all("/lora_" in path for path in moments)
  layers = {path.split("layer_")[1][0] for path in trained}
  assert layers == {"1"}  # the layer below first_layer has no factors


def test_t14_packing_changes_no_loss(files):
  """The same examples, one a row and several a row, in one step each."""
  found = {}
  for pack in ("none", "batch", "all"):
    config = tiny_runs.sft_config(files, "full")
    config.data.update(pack=pack, max_length=40, limit=16)
    rows, _ = dataset.demonstrations(
      tiny_runs.settings_of(config).data, tiny_runs.load_base(config).tokenizer
    )
    if pack == "all":
      rows, _ = layout.pack_examples(rows, 40)
      assert len(rows) < 8
    config.schedule.update(batch_size=len(rows), steps=1)
    config.validation.source = config.sample_prompts.source = ""
    config.samples = 0
    folder = files.root / f"sft_pack_{pack}"
    pipelines.run(config, folder)
    found[pack] = (tiny_runs.rows_of(folder)[0], tiny_runs.saved_arrays(folder))
  row, arrays = found.pop("none")
  for packed_row, packed_arrays in found.values():
    for name in ("sft/loss", "sft/gradient_norm"):
      np.testing.assert_allclose(packed_row[name], row[name], rtol=1e-5)
    for path, leaf in arrays.items():
      if "/mu/" in path:  # Adam's first moment is the gradient
        np.testing.assert_allclose(packed_arrays[path], leaf, atol=1e-6)


def test_trap_17_chat_data_trains_on_answers_only(files, tmp_path):
  dialogue = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "with a"},
  ]
  path = tmp_path / "chat.jsonl"
  path.write_text((json.dumps({"messages": dialogue}) + "\n") * 8)
  config = tiny_runs.sft_config(files, "full")
  config.data.update(
    source=str(path), format="messages", chat=True, max_length=60
  )
  config.schedule.update(steps=1)
  config.validation.source = config.sample_prompts.source = ""
  config.samples = 0
  base = tiny_runs.load_base(config)
  tokenizer = base.tokenizer
  rows, _ = dataset.demonstrations(
    tiny_runs.settings_of(config).data, tokenizer
  )
  learned = [
    token
    for token, m in zip(rows[0]["tokens"], rows[0]["loss_mask"], strict=True)
    if m > 0
  ]
  end = [tokenizer.eos_id]
  assert learned == [
    *tokenizer.encode("sat on"),
    *end,
    *tokenizer.encode("with a"),
    *end,
  ]
  pipelines.run(config, tmp_path / "run")
  found = tiny_runs.rows_of(tmp_path / "run")[0]["sft/loss"]
  batch = batches.collate_tokens(rows[:1], 32, pad_id=7)
  expected = cross_entropy(base.config, base.params, batch)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_policy_has_no_head(files, tmp_path):
  config = tiny_runs.sft_config(files, "full")
  config.trainable.mode = "head"
  with pytest.raises(UserError, match="a policy has no head"):
    pipelines.run(config, tmp_path)


def test_loading_gives_the_trained_weights(files, sft_full):
  config = tiny_runs.sft_config(files, "full")
  base = tiny_runs.load_base(config)
  stage = stages.load(sft_full, stages.POLICY, base, tiny_runs.world_of(config))
  saved = tiny_runs.saved_arrays(sft_full)
  for path, leaf in trees.flatten(stage.variables).items():
    np.testing.assert_array_equal(leaf, saved[f"train/params/{path}"])
