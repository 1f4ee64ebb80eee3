"""Every pipeline is planned, alone and as a stage of a whole run."""

import dataclasses
import re

import pytest

from rlhf_jax import plan
from rlhf_jax.pipelines import defaults
from rlhf_jax.planning import report, topology
from tests.planning.tiny_plans import (
  EIGHT,
  close,
  line_of,
  load,
  policy_config,
)

pytestmark = pytest.mark.usefixtures("tiny_shape")


def sampled_config(pipeline, **sections):
  config = getattr(defaults, pipeline)()
  config.model.update(source="shape:tiny", scan_layers=True, lora_rank=2)
  config.trainable.mode = "lora"
  config.prompts.max_length = 24
  config.generate.update(max_new_tokens=8, num_samples=2)
  config.schedule.update(batch_size=16, steps=3)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  for name, values in sections.items():
    config[name].update(values)
  return config


def grpo_config():
  config = policy_config("lora")
  config.algorithm = defaults.policy("grpo").algorithm
  config.verifier.name = "exact"
  config.generate.num_samples = 2
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  return config


def measured_config():
  config = grpo_config()
  config.schedule.eval_every = 2
  config.heldout.max_length = 24
  config.evaluation.count = 24
  return config


def preference_config(name):
  config = defaults.preference(name)
  config.model.update(source="shape:tiny", scan_layers=True)
  config.data.max_length = 24
  config.schedule.update(batch_size=16, steps=3)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  return config


def evaluate_config(pipeline="evaluate", **fields):
  config = defaults.of(pipeline)
  config.model.update(source="shape:tiny", scan_layers=True, lora_rank=2)
  config.prompts.max_length = 24
  config.generate.max_new_tokens = 8
  config.update({"count": 32, "batch_size": 16} | fields)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  return config


def remax_config():
  config = policy_config("lora")
  config.algorithm = defaults.policy("remax").algorithm
  config.generate.num_samples = 2
  config.epochs.update(epochs=1, minibatches=1)
  return config


SAMPLING = ["merge", "prefill", "decode", "judge"]
WORKING = ("prefill", "decode", "judge", "reference", "refer", "update")
OTHERS = {
  "grpo": (grpo_config, [*SAMPLING, "prepare", "update"]),
  "held out": (
    measured_config,
    [
      *(*SAMPLING, "prepare", "update"),
      *(f"heldout {name}" for name in SAMPLING),
    ],
  ),
  "remax": (  # a greedy answer to each prompt beside the samples
    remax_config,
    [
      *SAMPLING[:3],
      *(f"greedy {name}" for name in SAMPLING[:3]),
      *("judge", "greedy judge", "prepare", "update"),
    ],
  ),
  "dpo": (lambda: preference_config("dpo"), ["reference", "update"]),
  "kto": (lambda: preference_config("kto"), ["reference", "update"]),
  "orpo": (lambda: preference_config("orpo"), ["update"]),
  "rejection": (
    lambda: sampled_config(
      "rejection", rounds=dict(prompts=16, batch_size=16, count=1)
    ),
    [*SAMPLING, "update"],
  ),
  "online_preference": (
    lambda: sampled_config("online_preference"),
    [*SAMPLING, "pairs", "update"],
  ),
  "moving reference": (
    lambda: sampled_config(
      "online_preference", pairing=dict(reference_every=2)
    ),
    [*SAMPLING, "pairs", "refer", "update"],
  ),
  "evaluate": (
    evaluate_config,
    [
      *("before prefill", "before decode", "before judge"),
      *("after prefill", "after decode", "after judge"),
    ],
  ),
  "evaluate many": (
    lambda: evaluate_config("evaluate_many", policies="model"),
    ["model prefill", "model decode", "model judge"],
  ),
  "generate": (
    lambda: evaluate_config("generate_answers"),
    ["policy prefill", "policy decode", "policy judge"],
  ),
  "bond": (
    lambda: sampled_config("bond"),
    [
      *(f"anchor {name}" for name in SAMPLING),
      *(f"own {name}" for name in SAMPLING),
      "update",
    ],
  ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines_are_planned(name):
  make, programs = OTHERS[name]
  found = report.make(make(), EIGHT, compiles=False)
  assert [line.program for line in found.lines] == programs
  assert all(line.flops > 0 for line in found.lines if line.program in WORKING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "rejection", "bond"])
def test_other_pipelines_that_do_not_fit_have_remedies(
  name, monkeypatch, capsys
):
  small = dataclasses.replace(topology.CHIPS["v5e"], usable=2**-13)
  monkeypatch.setitem(topology.CHIPS, "v5e", small)
  config = OTHERS[name][0]()
  assert plan.run(config, "v5e:2x4", analytic=True, phase="", file="") == 2
  text = capsys.readouterr().out
  assert "DOES NOT FIT" in text and "--config.model.remat=True" in text
  has_parts = name != "bond"  # BOND is one batch
  assert ("microbatches=" in text) == has_parts


def test_an_evaluation_that_does_not_fit_has_remedies(monkeypatch, capsys):
  """Nothing trains, so neither remat nor microbatches nor LoRA helps."""
  small = dataclasses.replace(topology.CHIPS["v5e"], usable=2**-13)
  monkeypatch.setitem(topology.CHIPS, "v5e", small)
  config = evaluate_config()
  assert plan.run(config, "v5e:2x4", analytic=True, phase="", file="") == 2
  text = capsys.readouterr().out
  assert "DOES NOT FIT" in text
  tried = re.findall(r"--config\.([a-z_.]+)=", text)
  wanted = ["mesh.data", "mesh.fsdp", "generate.batch_size", "batch_size"]
  assert tried == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines_compile_as_they_are_estimated(name):
  make, _ = OTHERS[name]
  guess = report.make(make(), EIGHT, compiles=False)
  found = report.make(make(), EIGHT, compiles=True)
  for line, other in zip(found.lines, guess.lines, strict=True):
    assert line.is_compiled
    close(line.inputs, other.inputs)
  line = found.lines[-1]
  resident = line.weights + line.optimizer - line.idle
  close(line.arguments, resident + line.inputs)


@pytest.mark.slow
def test_the_whole_quickstart_is_planned_without_its_assets(monkeypatch):
  """rlhf: five stages, heads on a frozen trunk, packed rows, monitors."""
  monkeypatch.setenv("RLHF_JAX_CACHE", "/nowhere")
  config = load("configs/recipes/smollm2.py")
  found = {
    phase.name: [program.name for program in phase.programs]
    for phase in report.phases(config, 8)
  }
  sampling = ["merge", "prefill", "decode"]
  assert found == {
    "sft": ["update", *sampling, "next prefill", "refill"],
    "reward": ["features", "update"],
    "gold": ["features", "update"],
    "policy": [*sampling, "judge", "recompute", "prepare", "update"],
    "evaluation": [
      *(f"before {name}" for name in SAMPLING),
      *(f"after {name}" for name in SAMPLING),
    ],
  }
  slice_ = topology.parse("v5e:2x4")
  reward = report.make(config, slice_, compiles=False, only="reward")
  assert reward.parameters == 134_515_008
  assert not reward.too_large
  # only a head trains: its activations are nothing beside the trunk's
  features, update = reward.lines
  assert update.temporaries < 0.1 * features.temporaries


def test_what_is_assumed_is_said_with_the_field_that_decides_it():
  config = policy_config("lora")
  config.value.mode = "full"
  (alone,) = report.phases(config, 8)
  assert alone.world.notes == [
    "assumed: a start trained as 'lora' (trainable.mode)",
    "assumed: reward models trained as 'full' (value.mode)",
  ]
  (evaluated,) = report.phases(evaluate_config(), 8)
  assert evaluated.world.notes[0] == "assumed: a start trained as 'full'"


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_ppo_beside_a_verifier_is_planned_with_a_critic(mode):
  config = policy_config(mode)
  with_reward = report.make(config, EIGHT, compiles=False)
  config.verifier.name, config.value.init = "exact", "random"
  found = report.make(config, EIGHT, compiles=False)
  assert line_of(found, "update").optimizer == pytest.approx(
    line_of(with_reward, "update").optimizer, rel=0.01
  )
  reads = line_of(found, "judge").weights
  assert reads < line_of(with_reward, "judge").weights  # no reward model


def test_a_shared_trunk_is_planned_as_one_network():
  """Half the weights to train; the judge still reads a rollout for values."""
  config = policy_config("full")
  config.verifier.name, config.value.init = "exact", "random"
  own = report.make(config, EIGHT, compiles=False)
  config.value.trunk = "shared"
  shared = report.make(config, EIGHT, compiles=False)
  update, other = line_of(shared, "update"), line_of(own, "update")
  assert update.optimizer == pytest.approx(other.optimizer / 2, rel=0.1)
  assert 0.5 < update.flops / other.flops < 0.7
  judges = [line_of(found, "judge").flops for found in (shared, own)]
  assert judges[0] == judges[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  "method, programs",
  [
    ("online_dpo", [*SAMPLING, "pairs", "update"]),
    ("raft", [*SAMPLING, "update"]),
    ("dpo", ["reference", "update"]),
  ],
)
def test_a_whole_run_is_planned_with_any_policy_stage(
  method, programs, monkeypatch
):
  monkeypatch.setenv("RLHF_JAX_CACHE", "/nowhere")
  config = load("configs/quickstart_method.py", method)
  one = topology.parse("cpu:1")
  found = report.make(config, one, compiles=False)
  names = [line.program for line in found.lines if line.phase == "policy"]
  assert names == programs
  stages = ["sft", "reward", "gold", "policy", "evaluation"]
  assert list(found.meshes) == stages
  assert not any(found.notes.values())  # earlier stages are known
