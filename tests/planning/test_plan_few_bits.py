"""Plans know the bytes of matrices of few bits."""

import pytest

from rlhf_jax.planning import report
from rlhf_jax.programs import abstract
from tests.planning.tiny_plans import EIGHT, line_of, policy_config

pytestmark = pytest.mark.usefixtures("tiny_shape")
WIDTH, KEYS, MLP, TOKENS = 32, 16, 48, 64  # of the tiny shape, by hand
LAYERS = 2
BITS = {  # by kernel: numbers of a layer and bits of each, scales included
  "int8": {
    2 * WIDTH * WIDTH + WIDTH * KEYS + 3 * WIDTH * MLP: 8 + 2 * 16 / 16,
    WIDTH * KEYS: 16,  # of values
  },
  "int4": {
    2 * WIDTH * WIDTH + WIDTH * KEYS + 2 * WIDTH * MLP: 4 + 16 / 32,
    WIDTH * MLP: 4 + 16 / 16,  # 48 inputs of down_proj: blocks of 16
    WIDTH * KEYS: 8 + 2 * 16 / 16,
  },
}


def config_of(kind):
  config = policy_config("lora")
  config.model.quantize = kind
  config.mesh.update(data=1, fsdp=-1, tensor=1)
  return config


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_base_is_as_large_as_counted_by_hand(kind):
  (phase,) = report.phases(config_of(kind), 1)
  base = phase.frozen[0]
  matrices = LAYERS * sum(n * bits for n, bits in BITS[kind].items()) / 8
  ends = 2 * TOKENS * WIDTH * (8 + 2 * 16 / 16) / 8
  norms = 4 * WIDTH * (2 * LAYERS + 1)
  assert abstract.bytes_of(base) == matrices + ends + norms


def test_a_run_has_no_program_that_merges():
  """Factors stay beside such matrices; the policy is the base, by identity."""
  found = report.make(config_of("int4"), EIGHT, compiles=False)
  names = [line.program for line in found.lines]
  assert names == ["prefill", "decode", "judge", "prepare", "update"]
  wide = report.make(config_of("none"), EIGHT, compiles=False)
  assert found.parameters == wide.parameters
  for name in ("decode", "update"):
    assert line_of(found, name).peak < line_of(wide, name).peak


@pytest.mark.slow
def test_it_compiles_on_a_mesh():
  config = config_of("int8")
  config.mesh.update(data=2, fsdp=2, tensor=2)
  found = report.make(config, EIGHT, compiles=True)
  assert all(line.is_compiled for line in found.lines)
