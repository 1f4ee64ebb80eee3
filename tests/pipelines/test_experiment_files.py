"""Every file of configs/ loads, and all its sections are what they must be."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rlhf_jax import pipelines, schema
from rlhf_jax.experiments import real_pipeline
from rlhf_jax.pipelines import PIPELINES, defaults, find, smoke
from rlhf_jax.programs.pipeline import Job
from rlhf_jax.programs.sampled_settings import Sampled
from rlhf_jax.schema import Method, UserError
from tests.pipelines.tiny_runs import checked

FILES = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.py"))


HH = {
  "chosen": "\n\nHuman: Is it?\n\nAssistant: It is.",
  "rejected": "\n\nHuman: Is it?\n\nAssistant: No.",
}


def load(path):
  return runpy.run_path(str(path))["get_config"]()


def test_there_are_files():
  assert {"sft", "reward", "ppo", "quickstart"} <= {p.stem for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_sections_parse(
  path, files, sft_lora, reward_head, reward_full, tmp_path
):
  """As the command checks it, with the files that a user would name."""
  config = load(path)
  transcripts = tmp_path / "hh.jsonl"
  transcripts.write_text(json.dumps(HH) + "\n")
  judged = tmp_path / "judged.jsonl"
  judged.write_text('{"prompt": "Is it?", "response": "No.", "label": true}\n')
  ranked = tmp_path / "ranked.jsonl"
  ranked.write_text(
    '{"prompt": "Is it?", "answers": ["a", "b"], "choice": 0}\n'
  )
  steps = tmp_path / "steps.jsonl"
  steps.write_text('{"prompt": "Is it?", "steps": ["No."], "labels": [1]}\n')
  if "data" in config:
    config.data.source = {
      "ranking": str(ranked),
      "steps": str(steps),
      "demonstration": files.demonstrations,
      "comparison": files.comparisons,
      "hh": str(transcripts),
      "labelled": str(judged),
    }[config.data.format]
  if issubclass(find(config.pipeline).Settings, Sampled):
    problem = tmp_path / "problems.jsonl"
    problem.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    if not config.prompts.source:
      known = {"prompt": files.prompts, "gsm8k": str(problem)}
      config.prompts.source = known[config.prompts.format]
    config.init_from = str(sft_lora)
    for judge in config.judges.values():
      if "reward" in judge:
        judge.reward = str(reward_head)
    if not config.verifier.name and not config.judges:
      config.reward = str(reward_head)
  if config.pipeline in ("evaluate", "generate_answers"):
    config.prompts.source, config.policy = files.prompts, str(sft_lora)
  if config.pipeline == "self_play":
    talks = tmp_path / "talks.jsonl"
    turns = [("user", "Is it?"), ("assistant", "No.")]
    said = [{"role": role, "content": text} for role, text in turns]
    talks.write_text(json.dumps({"messages": said}) + "\n")
    config.sampling.prompts.source = str(talks)
    config.init_from = str(sft_lora)
  if config.pipeline in ("constitution", "ghost_attention"):
    config.prompts.source = files.prompts
  if config.pipeline == "report_card":
    config.reward = str(reward_head)
  if config.pipeline == "score_texts":
    config.rewards = str(reward_head)
  if config.pipeline == "average_rewards":
    ends = f"{reward_full},{reward_full}@30"  # one run is alike at both
    config.runs, config.heldout.source = ends, files.comparisons
    config.heldout.end_token = False
  if config.pipeline == "export":
    config.run = str(sft_lora)
  for stage in (config, *config.values()):
    if isinstance(stage, ConfigDict) and "mesh" in stage:
      stage.mesh.devices = 1
  checked(config)
  smoke.shorten(config, tmp_path)
  checked(config)
  job = pipelines.read(config, tmp_path)
  stages = job.pipeline.stages
  names = stages(job.settings) if stages else ()
  for stage in (config, *(config[name] for name in names)):
    if "mesh" in stage and "schedule" in stage:
      assert (stage.schedule.steps, stage.schedule.epochs) == (2, 0.0)
      assert stage.schedule.batch_size <= 16
  known = set(getattr(defaults, config.pipeline)())
  assert set(config) == known


QUICKSTART = runpy.run_path(str(FILES[0].parent / "quickstart_method.py"))


@pytest.mark.parametrize("name", QUICKSTART["METHODS"])
def test_every_method_has_the_same_budget(name, files):
  """64 answers a rollout, sampled or, offline, at most as many trained on."""
  config = QUICKSTART["get_config"](f"{name},rollouts=6")
  policy = config.policy
  sampled = policy.schedule.steps * policy.schedule.batch_size
  if policy.pipeline == "preference":
    policy.data.source = files.comparisons
    sampled *= 1 if name == "kto" else 2
  elif policy.pipeline == "rejection":
    sampled = policy.rounds.count * policy.rounds.prompts * 4
  else:
    own = 1 if policy.pipeline == "bond" else 0
    sampled *= policy.generate.num_samples + own
  assert sampled == 6 * 64
  if name != "kto":  # reads another layout
    for stage in config.values():
      if isinstance(stage, ConfigDict) and "mesh" in stage:
        stage.mesh.devices = 1
    checked(config)


METHOD = runpy.run_path(str(FILES[0].parent / "method.py"))


@pytest.mark.parametrize("name", METHOD["METHODS"])
def test_every_method_has_a_recipe(name, tmp_path):
  config = METHOD["get_config"](name)
  path = tmp_path / "prompts.jsonl"
  path.write_text('{"prompt": "1 + 1?", "reference": "2"}\n')
  config.prompts.source = str(path)
  config.verifier.name = "exact"
  config.mesh.devices = 1
  checked(config)


@pytest.mark.parametrize("argument", ["rlo", "rloo,steps=2", "raft,rollouts=4"])
def test_a_budget_that_means_nothing_is_refused(argument):
  with pytest.raises(ValueError, match=argument.split(",")[0]):
    QUICKSTART["get_config"](argument)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_misspelt_field_is_named(path):
  config = load(path)
  first = [name for name in ("sft", "sampling") if name in config]
  stage = config[first[0]] if first else config
  prefix = f"{first[0]}." if first else ""
  section, wrong, right = "model", "lora_rnak", "lora_rank"
  if section not in stage:
    section, wrong, right = "mesh", "fsdq", "fsdp"
  with stage[section].unlocked():
    stage[section][wrong] = 4
  with pytest.raises(UserError) as caught:
    checked(config)
  assert f"config.{prefix}{section}.{wrong}" in str(caught.value)
  assert right in str(caught.value)


@pytest.mark.parametrize("name", ["lab", "clean"])
def test_trials_of_the_lab_on_the_real_model_fit_together(name, tmp_path):
  file = f"configs/overoptimisation_{name}.py"
  plan = real_pipeline.Plan(tmp_path, [tmp_path / "whole"], 3, file)
  judges = {x.judge: x for x in plan.judges}
  rungs = [(k, v) for x in judges.values() for k, v in x.ladders.items()]
  assert len(rungs) == len(set(rungs))
  for judge in judges.values():
    assert (judge.rule == "single") == (not judge.single)
    if judge.single:
      of_one = plan.rewards(0)[judges[judge.single].reward]
      of_all = plan.rewards(0)[judge.reward]
      assert of_all == of_one | {"ensemble.members": 5}
  splits = {plan.rewards(seed)["layer 6"]["data.splits"] for seed in range(3)}
  assert len(splits) == 3  # each seed has sentences of its own
  source = runpy.run_path(file)
  for own in plan.rewards(0).values():
    config = source["get_config"]("reward")
    config.update_from_flattened_dict(own)
    checked(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_shows_the_command(path):
  text = path.read_text()
  assert f"--config=configs/{path.name}" in text


@pytest.mark.parametrize("name", PIPELINES)
def test_default_sections_are_the_dataclasses_defaults(name):
  """tree() and read() are each other's inverse."""
  config = defaults.of(name)
  settings = find(name).Settings
  for field in dataclasses.fields(settings):
    section = schema.hints(settings)[field.name]
    if not dataclasses.is_dataclass(section) or section in (Job, Method):
      continue
    assert set(config[field.name]) == set(schema.hints(section))
    found = schema.read(section, config[field.name], field.name)
    assert found == field.default
