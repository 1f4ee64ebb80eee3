"""Factors written for PEFT multiply to what our own merge adds."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.models import families, lora, peft, roles, transformer, trees
from rlhf_jax.schema import UserError

KNOWN = json.loads(
  (Path(__file__).parents[1] / "oracles" / "families.json").read_text()
)
RANK, SCALE = 2, 0.75


def factors(name, first_layer=0):
  """Returns an architecture and random factors of all its linear maps."""
  entries = KNOWN[name]["config"]
  kind = entries["model_type"]
  config = families.FAMILIES[kind].config(kind, entries)
  role = roles.Role(
    dataclasses.replace(config, lora_rank=RANK), "lora", first_layer
  )
  shapes = jax.eval_shape(
    lambda key: roles.fresh_lora(role, key), jax.random.key(0)
  )
  random = np.random.default_rng(3)
  return config, jax.tree.map(
    lambda x: random.standard_normal(x.shape).astype(np.float32), shapes
  )


def stored_change(config, tree):
  """Returns {tensor of transformers: what merging adds, as it is stored}."""
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config), jax.random.key(0)
  )
  zero = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  merged = lora.merge(zero["params"], jax.tree.map(jnp.asarray, tree), SCALE)
  flat = trees.flatten(merged)
  found = {}
  for module in peft.modules(config).values():
    parts = []
    for stem in module.stems:
      delta = np.asarray(flat[f"{stem}/kernel"])
      part = module.stored[stem].part
      for mine, theirs in part.pieces(0, part.size) if part else []:
        parts.append((theirs.start, delta[:, mine]))
      if not part:
        parts.append((0, delta))
    found[module.name] = np.concatenate(
      [piece for _, piece in sorted(parts, key=lambda x: x[0])], axis=1
    )
  return found


@pytest.mark.parametrize("name", ["llama3", "phi3", "gpt2", "gpt_neox"])
def test_products_are_those_of_merging(name, tmp_path):
  config, tree = factors(name)
  said = peft.write(tmp_path, config, tree, scale=SCALE, base="base")
  tensors = load_file(tmp_path / peft.WEIGHTS_FILE)
  expected = stored_change(config, tree)
  assert len(tensors) == 2 * len(expected)
  for module, delta in expected.items():
    down = tensors[f"{peft.PREFIX}{module}.lora_A.weight"]
    up = tensors[f"{peft.PREFIX}{module}.lora_B.weight"]
    rank = said["rank_pattern"].get(module, said["r"])
    alpha = said["alpha_pattern"].get(module, said["lora_alpha"])
    assert down.shape[0] == rank
    product = alpha / rank * up @ down
    np.testing.assert_allclose(product.T, delta, rtol=1e-5, atol=1e-5)
  assert said["fan_in_fan_out"] == (name == "gpt2")
  assert said["base_model_name_or_path"] == "base"


def test_targets_name_what_has_factors_and_nothing_else():
  config, tree = factors("llama3")
  _, ranks = peft.tensors(config, tree)
  assert set(peft.targets(config, ranks)) == {
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
  }
  config, tree = factors("llama3", first_layer=1)
  _, ranks = peft.tensors(config, tree)
  names = peft.targets(config, ranks)
  assert len(names) == 7
  assert all(name.startswith("model.layers.1.") for name in names)


def test_a_fused_matrix_takes_factors_of_some_of_its_maps():
  config, tree = factors("gpt_neox")
  for layer in tree.values():
    del layer["attention"]["k_proj"]
  expected = stored_change(config, tree)
  tensors, ranks = peft.tensors(config, tree)
  name = "gpt_neox.layers.0.attention.query_key_value"
  assert ranks[name] == 2 * RANK
  up, down = (
    tensors[f"{peft.PREFIX}{name}.lora_{x}.weight"] for x in ("B", "A")
  )
  np.testing.assert_allclose(
    SCALE * (up @ down).T, expected[name], rtol=1e-5, atol=1e-5
  )


def test_scanned_layers_are_written_one_by_one():
  config, tree = factors("llama3")
  stacked = jax.tree.map(lambda *x: np.stack(x), *tree.values())
  whole, _ = peft.tensors(config, tree)
  found, _ = peft.tensors(config, {"layers": stacked})
  assert whole.keys() == found.keys()
  for name, value in whole.items():
    np.testing.assert_array_equal(value, found[name])


def test_what_peft_has_no_place_for_is_refused():
  config, tree = factors("llama3")
  tree["layer_0"]["attention"]["q_proj"]["other"] = np.zeros(3)
  with pytest.raises(UserError, match="q_proj/other: no PEFT tensor"):
    peft.tensors(config, tree)
