"""What plan says of offload, of 8-bit moments and of bfloat16 weights."""

import ast
import dataclasses
import re

import jax
import pytest

from rlhf_jax import pipelines, plan
from rlhf_jax.pipelines import defaults
from rlhf_jax.planning import remedies, report, topology
from rlhf_jax.programs import offload
from tests.planning.tiny_plans import (
  EIGHT,
  PARAMETERS,
  close,
  line_of,
  policy_config,
)

pytestmark = pytest.mark.usefixtures("tiny_shape")
MODEL = 4 * PARAMETERS / 8  # bytes of a device, float32
SAMPLING, SCORE = ("prefill", "decode"), ("judge", "prepare")


def planned(**changes):
  config = policy_config("full")
  config.mesh.update(data=1, fsdp=8, tensor=1)
  config.update_from_flattened_dict(
    {k.replace("__", "."): v for k, v in changes.items()}
  )
  return report.make(config, EIGHT, compiles=False)


def test_what_is_away_is_counted_where_it_is_read():
  """Trained policy and critic stay; base goes, as nothing reads it."""
  trees = ("reference", "reward", "optimizer")
  for prefetch in (True, False):
    found = planned(offload__trees=trees, offload__prefetch=prefetch)
    for name in (*SAMPLING, *SCORE, "update"):
      line = line_of(found, name)
      reads = name == "judge" or (prefetch and name in SAMPLING)
      close(line.weights, (2 + 2 * reads) * MODEL)
      moments = name == "update" or (prefetch and name in SCORE)
      close(line.optimizer + MODEL, (1 + 4 * moments) * MODEL)
    parked = found.offload
    close(parked.to_device, (2 + 4) * MODEL)
    close(parked.to_host, 4 * MODEL)
    assert parked.host == 8 * parked.to_device


def test_with_factors_what_leaves_is_the_references_own():
  """The base stays, which the policy reads too."""
  config = policy_config("lora")
  config.offload.trees = ("reference", "optimizer")
  (phase,) = report.phases(config, EIGHT.devices)
  assert phase.away.keys() == {p.name for p in phase.programs}
  away = phase.away["update"]
  reference = jax.tree.leaves(phase.frozen[0][0].reference["lora"])
  assert {id(x) for x in away} == {id(x) for x in reference}
  assert not phase.away["judge"]


@pytest.mark.parametrize("name", ["online_preference", "bond", "rejection"])
def test_own_samples_are_planned_as_they_run(name):
  """Judges away while it trains; moments while it samples, if it has any."""
  config = getattr(defaults, name)()
  config.model.update(source="shape:tiny", scan_layers=True)
  config.trainable.mode = "full"
  config.reward = "planned"
  config.prompts.max_length = 24
  config.generate.update(max_new_tokens=8, num_samples=2)
  config.schedule.update(batch_size=16, steps=3)
  config.mesh.update(data=1, fsdp=8, tensor=1)
  has_moments = name != "rejection"
  trees = offload.TREES if has_moments else ("reward",)
  config.offload.trees = trees
  (phase,) = report.phases(config, EIGHT.devices)
  update = {id(x) for x in phase.away["update"]}
  held = {id(x) for x in jax.tree.leaves(phase.frozen)}
  assert update and update <= held
  moments = [
    x for x in jax.tree.leaves(phase.arrays["train"].opt_state) if x.ndim
  ]
  (decode,) = [key for key in phase.away if key.endswith("decode")][:1]
  away = {id(x) for x in phase.away[decode]}
  assert away == ({id(x) for x in moments} if has_moments else set())
  judges = [key for key in phase.away if key.endswith("judge")]
  assert not any(phase.away[key] for key in judges)


def test_bfloat16_weights_have_float32_moments():
  narrow = {"model__dtype": "bfloat16", "model__weights": "bfloat16"}
  found = line_of(planned(**narrow), "update")
  close(found.weights, 5 * MODEL / 2)  # heads are float32, and small
  close(found.optimizer, 4 * MODEL)


@pytest.mark.slow
def test_remedies_are_settings_that_exist_and_what_they_say(monkeypatch):
  small = dataclasses.replace(topology.CHIPS["v5e"], usable=2**-30)
  monkeypatch.setitem(topology.CHIPS, "v5e", small)
  config = policy_config("full")
  config.model.dtype = "bfloat16"
  config.model.scan_layers = True
  slice_ = topology.parse("v5e:2x4")
  found = report.make(config, slice_, compiles=False)
  advice = remedies.advice(config, found)
  assert "not possible" not in advice and "mplemented" not in advice
  lines = [x for x in advice.splitlines() if x.strip().startswith("--config")]
  text = "\n".join(lines)
  for name in (
    "offload.trees=('reference', 'reward', 'optimizer')",
    "offload.prefetch=False",
    "policy_optimizer.moments=8bit",
    "model.weights=bfloat16",
    "trainable.mode=lora",
    "model.lora_merge=False",
  ):
    assert f"--config.{name}" in text, advice
  if "quantize" in config.model:
    assert "--config.model.quantize=int8" in text
  for line in lines:
    changed = config.copy_and_resolve_references()
    for field, value in re.findall(
      r"--config\.([\w.]+)=(\(.*?\)|\S+?)(?=:? )", line
    ):
      changed.update_from_flattened_dict({field: _value(value)})
    pipelines.read(changed)


def _value(text):
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def test_what_does_not_fit_on_a_host(monkeypatch, capsys):
  tight = dataclasses.replace(topology.CHIPS["v5e"], host=2**-15)
  monkeypatch.setitem(topology.CHIPS, "v5e", tight)
  config = policy_config("full")
  config.offload.trees = ("optimizer",)
  assert plan.run(config, "v5e:2x4", analytic=True, phase="", file="") == 2
  text = capsys.readouterr().out
  assert "of offloaded trees" in text and "or fewer trees" in text
