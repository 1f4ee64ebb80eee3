"""Plans of tiny models on eight simulated devices."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import pytest

from rlhf_jax import plan
from rlhf_jax.models import roles
from rlhf_jax.pipelines import defaults
from rlhf_jax.planning import compiled, report, table, topology
from rlhf_jax.programs import abstract
from rlhf_jax.programs.work import Passes
from rlhf_jax.schema import UserError
from tests.planning.tiny_plans import (
  EIGHT,
  LAYER,
  LAYER_FACTORS,
  PARAMETERS,
  ROOT,
  TINY,
  close,
  line_of,
  load,
  policy_config,
  sft_config,
)

pytestmark = pytest.mark.usefixtures("tiny_shape")


def test_weights_and_optimizer_as_the_compiler_counts_them():
  """One update, split over 8 devices: by hand, by shape, by compiler."""
  (phase,) = report.phases(sft_config(), EIGHT.devices)
  by_shape = abstract.bytes_of(phase.trained, phase.optimizer)
  by_hand = 3 * 4 * PARAMETERS / 8
  close(by_shape, by_hand)
  devices = topology.compile_devices(EIGHT)
  (phase,) = report.phases(sft_config(), devices)
  found, _ = compiled.measure(phase, phase.programs[0], {}, compiles=True)
  text = abstract.bytes_of(abstract.token_batch(phase.mesh, 16, 24, False))
  close(found.arguments - text, by_shape)
  assert found.outputs < by_shape / 2  # the state is donated
  assert found.counts.sent["all-gather"] > 0


@pytest.mark.slow
def test_a_policy_compiles_as_it_is_estimated():
  """LoRA on 2 x 2 x 2: every program, chained through real shardings."""
  config = policy_config("lora")
  guess = report.make(config, EIGHT, compiles=False)
  found = report.make(config, EIGHT, compiles=True)
  names = ["merge", "prefill", "decode", "judge", "prepare", "update"]
  assert [line.program for line in found.lines] == names
  assert all(line.is_compiled for line in found.lines)
  for line, other in zip(found.lines, guess.lines, strict=True):
    assert line.weights == other.weights
    assert line.optimizer == other.optimizer
    close(line.inputs, other.inputs)
  # prefill, decode: matrix products as counted from the model
  for name in ("prefill", "judge"):
    line = line_of(found, name)
    assert 0.8 < line.hlo_flops / line.flops < 2.0
  assert line_of(found, "decode").unknown_loops == 1
  text = table.render(found)
  assert "COMPILED" in text and "data=2 x fsdp=2 x tensor=2" in text
  assert "calls asynchronous" in " ".join(text.split())
  assert json.loads(json.dumps(table.as_json(found)))["fits"]


@pytest.mark.slow
def test_decoding_gathers_each_weight_once_and_none_per_token():
  """Seven matrices of the scanned layers, the embedding and the unembedding."""
  config = policy_config("full")
  config.mesh.update(data=1, fsdp=8, tensor=1)
  (phase,) = report.phases(config, topology.compile_devices(EIGHT))
  flow: dict = {}
  for program in phase.programs[:2]:
    found, result = compiled.measure(
      phase, program, flow, compiles=program.name == "decode"
    )
    flow[program.result] = result
  assert program.name == "decode" and program.trips > 1
  assert found.counts.loops == 1  # which counts as often as it has trips
  assert found.counts.calls["all-gather"] == 7 + 2
  # Of every token, two numbers: which shard has most rows, the longest of them.
  assert found.counts.calls.keys() == {"all-gather", "all-reduce"}
  assert found.counts.sent["all-reduce"] <= 2 * 2 * 4 * program.trips


def test_full_roles_hold_what_a_run_holds():
  """Base, start and reward model; policy and critic; moments of the two."""
  config = policy_config("full")
  config.mesh.update(data=1, fsdp=8, tensor=1)
  found = report.make(config, EIGHT, compiles=False)
  line = line_of(found, "update")
  close(line.weights, (3 + 2) * 4 * PARAMETERS / 8)
  close(line.optimizer, 2 * 2 * 4 * PARAMETERS / 8)


def test_lora_roles_share_one_base():
  """Policy, critic, reference and reward model: each matrix is one array."""
  (phase,) = report.phases(policy_config("lora"), EIGHT.devices)
  named = jax.tree_util.tree_leaves_with_path((phase.frozen, phase.trained))
  matrices = {
    id(leaf)
    for path, leaf in named
    if "_proj" in str(path) and "kernel" in str(path)
  }
  assert len(matrices) == 7  # layers are stacked
  factors = 4 * LAYER_FACTORS * 2 * TINY.n_layers  # of policy and critic
  assert abstract.bytes_of(phase.trained) < 1.1 * factors


@pytest.mark.slow
def test_decoding_gathers_weights_once_not_for_every_token():
  """Left alone, the compiler gathers all weights in the body of the loop."""
  sent = []
  for new in (4, 12):
    config = policy_config("lora")
    config.generate.max_new_tokens = new
    config.mesh.update(data=1, fsdp=8, tensor=1)
    (phase,) = report.phases(config, topology.compile_devices(EIGHT))
    flow = {}
    for program in phase.programs[:3]:
      found, flow[program.result] = compiled.measure(
        phase, program, flow, compiles=True
      )
    sent.append(found.counts.sent["all-gather"])
  weights = 4 * 2 * (LAYER - 2 * 32)
  assert sent[0] > weights / 2  # they are gathered, once
  assert sent[1] - sent[0] < weights


def test_flops_by_hand():
  """Forward: 2 a weight and token, 4 a query, key and head entry."""
  rows, length = 16, 24
  (phase,) = report.phases(sft_config(), 8)
  role = roles.Role(model=phase.model)
  matrices = LAYER - 2 * 32
  forward = 2 * rows * length * (2 * matrices + 64 * 32)
  attention = 2 * 4 * rows * length * length * 4 * 8
  found = Passes(phase.mesh).forward([role], rows, length, length)
  assert found.flops == forward + attention
  # backward twice the forward, and once more because of remat
  assert phase["update"].work().flops == 4 * (forward + attention)


def test_what_does_not_fit_is_refused_with_remedies(monkeypatch, capsys):
  small = dataclasses.replace(topology.CHIPS["v5e"], usable=2**-13)
  monkeypatch.setitem(topology.CHIPS, "v5e", small)
  config = sft_config()
  config.model.remat = False
  config.mesh.update(data=4, fsdp=1)
  code = plan.run(config, "v5e:2x2", analytic=True, phase="", file="")
  text = capsys.readouterr().out
  assert code == 2
  assert "DOES NOT FIT" in text
  for remedy in ("mesh.fsdp=-1", "model.remat=True", "loss.microbatches="):
    assert f"--config.{remedy}" in text or remedy in text
  assert text.count("GiB alone") >= 2


def test_recipes_say_what_they_accept():
  config = load("configs/recipes/ppo.py", "model=gemma_2b,roles=full")
  assert config.model.source == "shape:gemma_2b"
  assert config.trainable.mode == "full"
  with pytest.raises(ValueError, match="roles=both"):
    load("configs/recipes/ppo.py", "roles=both")


def test_mistakes():
  config = sft_config()
  with pytest.raises(UserError, match="no such phase"):
    report.make(config, EIGHT, compiles=False, only="policy")
  config.schedule.batch_size = 12
  with pytest.raises(
    UserError, match="batch_size=12: not a multiple of the 8 dev"
  ):
    report.phases(config, 8)
  config.schedule.batch_size, config.loss.microbatches = 16, 4
  with pytest.raises(UserError, match="of loss.microbatches=4 x the 8 devices"):
    report.phases(config, 8)
  with pytest.raises(UserError, match="epochs: minibatches=4 x microb"):
    policy = policy_config("lora")
    policy.epochs.update(minibatches=4, microbatches=2)
    report.phases(policy, 8)
  config.loss.microbatches = 1
  config.mesh.update(fsdp=3)
  with pytest.raises(UserError, match=r"config\.mesh: .* on 8 devices"):
    report.phases(config, 8)
  whole = defaults.rlhf()
  whole.sft.mesh.fsdp = 3
  with pytest.raises(UserError, match=r"config\.sft\.mesh: .* on 8 devices"):
    report.phases(whole, 8)
  whole.policy.pipeline = "bnd"
  with pytest.raises(UserError, match="policy.pipeline='bnd': must be one"):
    report.phases(whole, 8)


SMALL = (
  ("configs/sft.py", "sft", ("schedule.steps=9", "schedule.epochs=0")),
  ("configs/recipes/smollm2.py", "policy", ()),
  (  # rows of 1024 tokens: splash attention
    "configs/recipes/ppo.py:model=gemma_2b,roles=lora",
    "policy",
    ("model.source=shape:smollm2_135m",),
  ),
)
# The frozen lower layers are handed to its update, and not read.
DROPS = "configs/recipes/smollm2.py"


@pytest.mark.slow
@pytest.mark.parametrize(("file", "phase", "overrides"), SMALL)
def test_a_real_slice(file, phase, overrides, tmp_path):
  """v5e:4x4 through libtpu, in a process of its own."""
  if not topology.has_compiler(topology.parse("v5e:4x4")):
    pytest.skip("libtpu is not installed: pip install '.[tpu]'")
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  found = {}
  for how in ("analytic", "noanalytic"):
    result = tmp_path / f"{how}.json"
    arguments = [
      f"--config={file}",
      *(f"--config.{override}" for override in overrides),
      "--topology=v5e:4x4",
      f"--phase={phase}",
      f"--json={result}",
      f"--{how}",
    ]
    subprocess.run(
      [sys.executable, "-m", "rlhf_jax.plan", *arguments],
      cwd=ROOT,
      env=environment | plan.ENVIRONMENT,
      check=True,
    )
    found[how] = json.loads(result.read_text())["lines"]
  for line, guess in zip(found["noanalytic"], found["analytic"], strict=True):
    assert line["is_compiled"] and line["fits"]
    if line["program"] == "update" and file != DROPS:
      # nearly all weights and optimizer; a base of two roles counts twice
      close(line["arguments"], guess["arguments"])
      resident = guess["weights"] + guess["optimizer"] - guess["idle"]
      assert line["arguments"] > 0.85 * resident
    elif line["program"] == "update":
      assert guess["optimizer"] < line["arguments"] < guess["arguments"]
