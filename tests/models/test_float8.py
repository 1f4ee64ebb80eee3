"""8-bit floats with and without scales: the product, or a refusal by name."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import float8, huggingface, trees
from rlhf_jax.schema import UserError

ORACLE = Path(__file__).parents[1] / "oracles" / "tiny_llama"
WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"  # [40, 32]
BLOCKS = {"quant_method": "fp8", "weight_block_size": [16, 12]}


def compressed(strategy, **further):
  weights = {"num_bits": 8, "type": "float", "strategy": strategy}
  return {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": weights | further}},
    "ignore": ["lm_head"],
  }


@pytest.fixture
def folder(tmp_path):
  return Path(shutil.copytree(ORACLE, tmp_path / "model"))


def write(folder, config=None, **changes):
  tensors = load_file(folder / WEIGHTS) | changes
  save_file(tensors, folder / WEIGHTS)
  path = folder / "config.json"
  entries = json.loads(path.read_text())
  entries |= {} if config is None else {"quantization_config": config}
  path.write_text(json.dumps(entries))


def read(folder):
  flat = trees.flatten(huggingface.load(folder)[1])
  return np.asarray(flat["layer_1/mlp/up_proj/kernel"]).T


def eighth(folder, kind=ml_dtypes.float8_e4m3fn):
  return load_file(folder / WEIGHTS)[UP].astype(kind)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_all_weights_as_8_bit_floats(folder, kind):
  kind = getattr(ml_dtypes, kind)
  plain = jax.tree.map(np.asarray, trees.flatten(huggingface.load(folder)[1]))
  tensors = load_file(folder / WEIGHTS)
  save_file({n: x.astype(kind) for n, x in tensors.items()}, folder / WEIGHTS)
  found = trees.flatten(huggingface.load(folder)[1])
  for path, weight in plain.items():
    expected = weight.astype(kind).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(found[path]), expected)


def naive(weight, scale, rows, columns):
  """Returns the product, number by number."""
  weight = weight.astype(np.float32)
  return np.array(
    [
      [x * scale[i // rows][j // columns] for j, x in enumerate(row)]
      for i, row in enumerate(weight)
    ],
    np.float32,
  )


@pytest.mark.parametrize(
  ("config", "name", "shape", "rows", "columns"),
  [
    (BLOCKS, "weight_scale_inv", (3, 3), 16, 12),  # both edges are cut
    ({"quant_method": "fp8"}, "weight_scale_inv", (), 40, 32),
    (compressed("tensor"), "weight_scale", (1,), 40, 32),
    (compressed("channel"), "weight_scale", (40, 1), 1, 32),
    (compressed("channel"), "weight_scale", (40,), 1, 32),
    (
      compressed("block", block_structure=[8, 32]),
      "weight_scale",
      (5, 1),
      8,
      32,
    ),
  ],
)
def test_scales_multiply(folder, config, name, shape, rows, columns):
  scale = np.random.default_rng(0).uniform(0.5, 2.0, shape).astype(np.float32)
  small, key = eighth(folder), UP.replace("weight", name)
  write(folder, config, **{UP: small, key: scale})
  whole = read(folder)
  expected = naive(small, scale.reshape(-(-40 // rows), -1), rows, columns)
  np.testing.assert_array_equal(whole, expected)
  leaf = trees.flatten(huggingface.load(folder)[1])[
    "layer_1/mlp/up_proj/kernel"
  ]
  np.testing.assert_array_equal(leaf[5:30, 17:39].T, whole[17:39, 5:30])


def test_scales_of_activations_change_no_weight(folder):
  small, one = eighth(folder), np.ones(1, np.float32)
  scales = {
    UP.replace("weight", x): one for x in ("weight_scale", "input_scale")
  }
  config = {"quant_method": "fp8", "activation_scheme": "static"}
  write(folder, config, **{UP: small}, **scales)
  np.testing.assert_array_equal(read(folder), small.astype(np.float32))
  assert "quantization_config" not in huggingface.read_entries(folder)


SCALE = {UP + "_scale": np.ones((40, 1), np.float32)}


@pytest.mark.parametrize(
  ("config", "changes", "is_small", "words"),
  [
    (BLOCKS, {}, True, "up_proj.weight' is F8_E4M3 with the scales ..:"),
    (None, SCALE, True, "has a scale .*up_proj.weight_scale', and config.json"),
    (BLOCKS, SCALE, False, "up_proj.weight' is F32 with the scales"),
    (BLOCKS, SCALE, True, r"weight_scale' is \(40, 1\) .* gives \(3, 3\)"),
    (
      BLOCKS,
      SCALE | {UP + "_scale_inv": np.ones((3, 3), np.float32)},
      True,
      "with the scales ..model.*scale_inv', .*weight_scale'",
    ),
    (
      compressed("channel"),
      {UP + "_scale": np.ones((40, 2), np.float32)},
      True,
      r"weight_scale' is \(40, 2\) .* gives \(40, 1\)",
    ),
    (
      compressed("tensor"),
      {UP + "_scale": np.ones(1, np.int8)},
      True,
      "weight_scale' is I8 to a weight",
    ),
    (
      compressed("tensor"),
      {UP + "_scale": np.full(1, np.inf, np.float32)},
      True,
      "up_proj.weight' holds NaN",
    ),
  ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_scales_that_are_not_unambiguous(
  folder, config, changes, is_small, words
):
  changes = dict(changes)
  if is_small:
    changes[UP] = eighth(folder)
  write(folder, config, **changes)
  with pytest.raises(UserError, match=f"model.safetensors: tensor .*{words}"):
    jax.tree.map(np.asarray, huggingface.load(folder)[1])


@pytest.mark.parametrize(
  ("config", "words"),
  [
    ({"quant_method": "gptq", "bits": 4}, "quant_method='gptq' is not impl"),
    ({"load_in_4bit": True}, "quant_method=None"),
    ("fp8", "quant_method=None"),
    ({"quant_method": "fp8", "fmt": "e3m4"}, "fmt='e3m4'"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, r"block of \[128\]"),
    (
      {"quant_method": "fp8", "weight_block_size": [0, 1]},
      r"block of \[0, 1\]",
    ),
    ({"quant_method": "fp8", "turned": True}, "turned=True"),
    (compressed("group"), "'strategy': 'group'|weights="),
    (compressed("tensor") | {"format": "pack-quantized"}, "pack-quantized"),
    (compressed("tensor", num_bits=4), "'num_bits': 4"),
    (compressed("tensor", symmetric=False), "weights="),
    (compressed("tensor") | {"kv_cache_scheme": {"a": 1}}, "kv_cache_scheme="),
    (compressed("tensor") | {"config_groups": {}}, "config_groups={}"),
  ],
)
def test_other_quantisations_are_refused_by_name(folder, config, words):
  write(folder, config)
  with pytest.raises(UserError, match=f"config.json: quantization_c.*{words}"):
    huggingface.read_config(folder)
  with pytest.raises(UserError):
    float8.read({"quantization_config": config})
