"""What trained beside a base of few bits leaves as it was computed."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.exports import folders
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.folders import How
from rlhf_jax.models import quantised, trees
from tests.exports import sources
from tests.exports.test_exported_weights import EIGHT, SCALE, adapted

MAP = "layer_1/mlp/down_proj"
TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return sources.make(tmp_path_factory.mktemp("quantised_exports") / "model")


@pytest.mark.parametrize("mesh", ["one", "eight"])
def test_factors_are_added_to_the_widened_matrix(mesh, source, tmp_path):
  options = {"mesh": EIGHT} if mesh == "eight" else {}
  leaving = adapted(source, quantize="int8", **options)
  folders.write(leaving, tmp_path / "out", How(), Facts())
  found = load_file(tmp_path / "out" / "model.safetensors")
  kernel = trees.flatten(leaving.variables["params"])[f"{MAP}/kernel"]
  lora = trees.flatten(leaving.variables["lora"])
  a, b = (np.asarray(lora[f"{MAP}/lora_{x}"]) for x in "ab")
  wide = np.asarray(quantised.widen(kernel, jnp.float32))
  expected = wide + SCALE * a @ b
  np.testing.assert_allclose(found[TENSOR].T, expected, rtol=1e-5, atol=1e-5)
  before = load_file(source / "model.safetensors")[TENSOR].T
  assert 1e-4 < np.abs(wide - before).max() < 0.05  # of few bits, and near


def test_stacks_of_few_bits_leave_layer_by_layer(source, tmp_path):
  one = adapted(source, quantize="int8")
  stacked = adapted(source, quantize="int8", scan_layers=True)
  for name, leaving in (("one", one), ("stacked", stacked)):
    variables = {"params": leaving.variables["params"]}
    plain = folders.Leaving(leaving.base, leaving.role, variables, {})
    folders.write(plain, tmp_path / name, How(), Facts())
  one, stacked = (
    load_file(tmp_path / name / "model.safetensors")
    for name in ("one", "stacked")
  )
  for name, value in one.items():
    np.testing.assert_array_equal(value, stacked[name], err_msg=name)


def test_an_adapter_says_beside_what_it_trained(source, tmp_path, capsys):
  leaving = adapted(source, quantize="int8")
  folders.write(leaving, tmp_path / "out", How(form="adapter"), Facts())
  assert "the run had its base in int8" in capsys.readouterr().out
  card = (tmp_path / "out" / "README.md").read_text()
  assert "LoRA factors alone, trained beside a base in int8 |" in card
