"""Exports as a pipeline: from any stage, once, with the run's own numbers."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax import export, main
from rlhf_jax.models import heads, pretrained
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Role
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import defaults, evaluate
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.schema import UserError
from tests.exports import sources
from tests.pipelines import tiny_runs

ONE = mesh_lib.Config(devices=1)
STEPS = (2, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A whole run whose stages were drawn: two steps of each are kept."""
  root = tmp_path_factory.mktemp("export_run")
  source = sources.make(root / "model")
  base = pretrained.load_base(
    Model(source=str(source)), mesh_lib.make_mesh(ONE)
  )
  run = root / "run"
  config = base.config
  adapted = dataclasses.replace(config, lora_rank=2, lora_scale=0.5)
  lora = Role(adapted, "lora")
  leave(run / "sft", "sft", base, lora, "lora", examples=40)
  leave(
    run / "policy",
    "policy",
    base,
    lora,
    "lora",
    init_from=run / "sft",
    algorithm={"name": "ppo"},
    halted=None,
  )
  judge = Role(config, "head", stop_layer=1, head=heads.Config("last"))
  leave(
    run / "reward",
    "reward",
    base,
    judge,
    "head",
    reads_end_token=False,
    normalisation={"mean": 0.25, "std": 2.0},
    diagnosis={"reward_model/accuracy": 0.75, "reward_model/pairs": 8.0},
    guards=[["warn", "it likes long answers"]],
  )
  record = {
    "pipeline": "rlhf",
    "sft": {"data": {"source": "asset:movie-review-ratings"}},
    "policy": {"prompts": {"source": "prompts.jsonl"}},
    "reward": {"data": {"source": "pairs.jsonl"}},
  }
  record = {"config": record, "is_smoke": True}
  (run / "config.json").write_text(json.dumps(record))
  (run / "summary.json").write_text("{}")
  judged = run / "evaluation"
  judged.mkdir()
  numbers = {
    "evaluation_prompts": 64,
    "gold_win_rate": 0.875,
    "gold_win_rate_standard_error": 0.0625,
    "kl_nats": 3.5,
    "origins": {"policy": stages.stage_fingerprint(run / "policy")},
  }
  (judged / evaluate.RESULT_FILE).write_text(json.dumps(numbers))
  return root


def leave(folder, pipeline, base, role, part, **facts):
  """Writes a finished stage with two kept steps, and its metrics."""
  shapes = pretrained.variable_shapes(role)[part]
  rows = []
  with checkpoint.Checkpoints(
    str(folder / "checkpoints"), keep=len(STEPS)
  ) as saved:
    for step in STEPS:
      random = np.random.default_rng(step)
      tree = jax.tree.map(
        lambda x, random=random: jnp.asarray(
          random.standard_normal(x.shape), x.dtype
        ),
        shapes,
      )
      state = {"train": {"params": {part: tree}}}
      is_final = step == STEPS[-1]
      saved.save(step, state, base.identity, is_final=is_final)
      rows.append({"step": step, "phase": pipeline, "rollout/kl_k1_sum": step})
  text = "".join(f"{json.dumps(row)}\n" for row in rows)
  (folder / "metrics.jsonl").write_text(text)
  facts = {"steps": STEPS[-1]} | facts
  stages.write_stage(folder, pipeline, base, role, **facts)


def config_of(run, **changes):
  config = defaults.export()
  config.mesh.devices = 1
  config.run = str(run)
  config.update(changes)
  return config


def card_of(folder):
  return (folder / "README.md").read_text()


def test_a_policy_leaves_once_with_the_numbers_of_its_run(
  root, tmp_path, capsys
):
  config = config_of(root / "run" / "policy")
  assert main.run(config, tmp_path / "out") == 0
  folder = tmp_path / "out" / "model"
  said = capsys.readouterr().out
  assert f"in {folder}" in said and "model.safetensors" in said
  card = card_of(folder)
  for line in (
    "| trained by | sft (4 steps), then ppo (4 steps) |",
    "- sft: asset:movie-review-ratings (10,605 movie-review",
    "- policy: prompts.jsonl",
    "| KL to the reference (nats an answer), step 4 | 4 |",
    "| held-out prompts | 64 |",
    "| win rate, judged by a held-out reward model | 0.875 ± 0.062 |",
    "| KL to the policy before (nats an answer) | 3.500 |",
    "- The run was a short trial (--smoke): its numbers mean nothing.",
  ):
    assert line in card, card
  before = (folder / "model.safetensors").stat().st_mtime_ns
  assert main.run(config, tmp_path / "out") == 0
  assert (folder / "model.safetensors").stat().st_mtime_ns == before
  config.dtype = "bfloat16"
  assert main.run(config, tmp_path / "out") == main.EXIT_USAGE
  assert "holds finished work with 'float32'" in capsys.readouterr().err


def test_any_kept_step_leaves_without_numbers_of_another(root, tmp_path):
  policy = root / "run" / "policy"
  for name, run in (("last", policy), ("first", f"{policy}@2")):
    assert main.run(config_of(run), tmp_path / name) == 0
  first, last = (
    load_file(tmp_path / name / "model" / "model.safetensors")
    for name in ("first", "last")
  )
  name = "model.layers.0.mlp.up_proj.weight"
  assert np.abs(first[name] - last[name]).max() > 0.1
  card = card_of(tmp_path / "first" / "model")
  assert "step 2 | 2 |" in card and "This is step 2 of the run" in card
  assert "win rate" not in card  # the evaluation was of step 4


def test_a_reward_model_leaves_as_a_classifier(root, tmp_path, capsys):
  reward = root / "run" / "reward"
  assert main.run(config_of(reward), tmp_path / "out") == 0
  folder = tmp_path / "out" / "model"
  said = json.loads((folder / "config.json").read_text())
  assert said["architectures"] == ["LlamaForSequenceClassification"]
  assert (said["num_hidden_layers"], said["id2label"]) == (1, {"0": "reward"})
  assert (said["reward_mean"], said["reward_std"]) == (0.25, 2.0)
  # Rows have no end token, so one that is there is passed over.
  end = said["eos_token_id"]
  assert said["pad_token_id"] == (end[0] if isinstance(end, list) else end)
  assert load_file(folder / "model.safetensors")["score.weight"].shape == (
    1,
    16,
  )
  card = card_of(folder)
  for line in (
    "# model, a reward model",
    "| held-out pairs in the right order | 0.75 |",
    "- reward: pairs.jsonl",
    "- it likes long answers",
    "AutoModelForSequenceClassification",
  ):
    assert line in card, card
  bias = said["reward_bias"]
  assert bias and f"rewards are logits + {bias:g}" in capsys.readouterr().out


def test_an_evaluation_elsewhere_is_named_and_must_be_of_the_run(
  root, tmp_path, capsys
):
  sft, judged = root / "run" / "sft", root / "run" / "evaluation"
  other = config_of(sft, evaluation=str(judged))
  assert main.run(other, tmp_path / "out") == main.EXIT_USAGE
  assert "is not of" in capsys.readouterr().err
  shutil.copytree(judged, tmp_path / "judged")
  moved = shutil.copytree(root / "run" / "policy", tmp_path / "a" / "policy")
  named = config_of(moved, evaluation=str(tmp_path / "judged"))
  assert main.run(named, tmp_path / "named") == 0
  assert "0.875 ± 0.062" in card_of(tmp_path / "named" / "model")


def test_what_is_no_finished_stage_is_said_by_name(root, tmp_path, capsys):
  run = root / "run"
  unfinished = tmp_path / "unfinished"
  (unfinished / "checkpoints").mkdir(parents=True)
  lone = tmp_path / "lone"
  shutil.copytree(run / "evaluation", lone)
  record = {"config": {"pipeline": "evaluate", "policy": "runs/ppo"}}
  (lone / "config.json").write_text(json.dumps(record))
  for source, words in (
    ("", "config.run is empty: name the --workdir"),
    (tmp_path / "absent", "found no such folder"),
    (unfinished, "found one that is not finished"),
    (run, f"one of them: {run / 'policy'}, {run / 'reward'}, {run / 'sft'}"),
    (lone, "an evaluation, which trains nothing. Name the run that it judged"),
    (f"{run / 'policy'}@3", "no step 3 was kept there"),
    (f"{run / 'policy'}@best", "no best step was kept there"),
  ):
    assert main.run(config_of(source), tmp_path / "out") == main.EXIT_USAGE
    said = capsys.readouterr().err
    assert words in said, said
    assert not (tmp_path / "out" / "model").exists()
  adapter = config_of(run / "reward", form="adapter")
  assert main.run(adapter, tmp_path / "out") == main.EXIT_USAGE
  assert (
    "is a reward model, whose head belongs to it" in capsys.readouterr().err
  )
  changed = config_of(run / "policy", source=str(tmp_path / "gone"))
  assert main.run(changed, tmp_path / "out") == main.EXIT_USAGE
  assert "gone" in capsys.readouterr().err


def test_a_template_of_the_run_leaves_with_it(root, tmp_path):
  run = shutil.copytree(root / "run" / "sft", tmp_path / "sft")
  template = tmp_path / "mine.jinja"
  template.write_text(tiny_runs.CHAT + "{# mine #}")
  record = {"pipeline": "sft", "model": {"chat_template": str(template)}}
  (run / "config.json").write_text(json.dumps({"config": record}))
  assert main.run(config_of(run), tmp_path / "out") == 0
  found = tmp_path / "out" / "model" / "chat_template.jinja"
  assert found.read_text() == template.read_text()
  template.unlink()
  with pytest.raises(UserError, match="mine.jinja', which is not there"):
    export.export(run, tmp_path / "again")


def test_a_model_itself_is_written_as_it_is(root, tmp_path):
  source = root / "model"
  assert main.run(config_of(source), tmp_path / "out") == 0
  before = (source / "model.safetensors").read_bytes()
  folder = tmp_path / "out" / "model"
  assert (folder / "model.safetensors").read_bytes() == before
  assert "| trained by | nothing: the base model |" in card_of(folder)
