"""Hugging Face folders against logits frozen from transformers.

The goldens and the two tiny models come from
tests/oracles/make_transformers_goldens.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import (
  families,
  family_names,
  gguf_names,
  huggingface,
  transformer,
  trees,
)

ORACLES = Path(__file__).parents[1] / "oracles"
NAMES = ("tiny_llama", "tiny_llama_untied")
EMBEDDING = "model.embed_tokens.weight"
LLAMA_31_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}


@pytest.fixture
def folder(tmp_path):
  """A writable copy of the tied model."""
  return Path(shutil.copytree(ORACLES / "tiny_llama", tmp_path / "model"))


def edit_config(folder, drop=(), **changes):
  path = folder / "config.json"
  config = json.loads(path.read_text()) | changes
  for key in drop:
    del config[key]
  path.write_text(json.dumps(config))


def load(folder):
  config, params = huggingface.load(folder)
  return config, jax.tree.map(np.asarray, params)


def edit_tensors(folder, drop=(), **changes):
  path = folder / "model.safetensors"
  tensors = load_file(path) | changes
  for name in drop:
    del tensors[name]
  save_file(tensors, path)


def assert_trees_equal(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert found.keys() == expected.keys()
  for path in expected:
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
    assert found[path].dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name):
  golden = np.load(ORACLES / "tiny_llama_logits.npz")
  config, params = load(ORACLES / name)
  apply = jax.jit(transformer.Transformer(config).apply)
  tokens = golden["tokens"]
  whole = apply({"params": params}, tokens, jnp.ones(tokens.shape))
  expected = golden[f"{name}/logits"]
  assert np.abs(expected).max() > 1.0
  np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_trap_09_padded_logits_equal_transformers(name):
  golden = np.load(ORACLES / "tiny_llama_logits.npz")
  config, params = load(ORACLES / name)
  apply = jax.jit(transformer.Transformer(config).apply)
  mask = golden["mask"]
  assert (mask.sum(1) < mask.shape[1]).sum() == 2
  padded = apply({"params": params}, golden["tokens"], jnp.asarray(mask))
  expected = golden[f"{name}/padded_logits"]
  real = mask > 0
  np.testing.assert_allclose(
    np.asarray(padded)[real], expected[real], rtol=0, atol=1e-5
  )


def test_config_of_each_golden():
  tied = huggingface.read_config(ORACLES / "tiny_llama")
  assert tied == (
    "llama",
    transformer.Config(
      vocab_size=61,
      width=32,
      n_layers=2,
      n_heads=4,
      n_kv_heads=2,
      head_dim=8,
      mlp_width=40,
      norm_epsilon=1e-5,
      rope_theta=5000.0,
      max_length=64,
      tie_embeddings=True,
    ),
  )
  _, untied = huggingface.read_config(ORACLES / "tiny_llama_untied")
  assert (untied.head_dim, untied.tie_embeddings) == (12, False)
  assert (untied.rope_theta, untied.norm_epsilon) == (250.0, 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_save_then_load_is_bit_identical(name, tmp_path):
  config, params = load(ORACLES / name)
  huggingface.save(tmp_path / "out", config, params)
  again, reloaded = load(tmp_path / "out")
  assert again == config
  assert_trees_equal(reloaded, params)
  exported = load_file(tmp_path / "out" / "model.safetensors")
  original = load_file(ORACLES / name / "model.safetensors")
  assert exported.keys() == original.keys()
  for key in original:
    np.testing.assert_array_equal(exported[key], original[key], err_msg=key)


def test_save_writes_stacked_layers_apart(tmp_path):
  config, params = load(ORACLES / "tiny_llama")
  layers = [params[f"layer_{i}"] for i in range(config.n_layers)]
  stacked = {k: v for k, v in params.items() if not k.startswith("layer_")}
  stacked["layers"] = jax.tree.map(lambda *x: np.stack(x), *layers)
  scanned = dataclasses.replace(config, scan_layers=True)
  huggingface.save(tmp_path, scanned, stacked)
  assert_trees_equal(load(tmp_path)[1], params)


@pytest.mark.parametrize(
  "changes",
  [
    {"rope_theta": 5000.0},
    {"rope_theta": 5000.0, "rope_scaling": None},
    {"rope_theta": 5000.0, "rope_scaling": {"type": "default"}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5000.0},
  ],
)
def test_older_and_newer_rope_keys(folder, changes):
  _, expected = huggingface.read_config(ORACLES / "tiny_llama")
  edit_config(folder, drop=["rope_parameters"])
  edit_config(folder, **changes)
  assert huggingface.read_config(folder)[1] == expected


def test_defaults_of_an_old_config(folder):
  edit_config(
    folder,
    drop=["rope_parameters", "num_key_value_heads", "head_dim", "hidden_act"],
  )
  _, config = huggingface.read_config(folder)
  assert (config.rope_theta, config.n_kv_heads, config.head_dim) == (1e4, 4, 8)


def test_bfloat16_and_shards(folder):
  _, params = load(folder)
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = sorted(tensors)
  weight_map = {}
  for shard, part in enumerate((names[:5], names[5:])):
    file = f"model-0000{shard + 1}-of-00002.safetensors"
    weight_map |= dict.fromkeys(part, file)
    save_file(
      {n: tensors[n].astype(ml_dtypes.bfloat16) for n in part}, folder / file
    )
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  _, found = load(folder)
  rounded = jax.tree.map(
    lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params
  )
  assert_trees_equal(found, rounded)


def test_a_tied_head_is_the_embedding_and_rotary_tables_are_not_read(folder):
  _, params = load(folder)
  embedding = load_file(folder / "model.safetensors")[EMBEDDING]
  edit_tensors(
    folder,
    **{
      "lm_head.weight": embedding,
      "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    },
  )
  assert_trees_equal(load(folder)[1], params)
  other = embedding.copy()
  other[60, 31] += 1.0
  edit_tensors(folder, **{"lm_head.weight": other})
  with pytest.raises(ValueError, match="'lm_head.weight' differs from 'model"):
    load(folder)


def test_missing_tensor(folder):
  name = "model.layers.1.mlp.up_proj.weight"
  edit_tensors(folder, drop=[name])
  with pytest.raises(ValueError, match=f"1 tensors are missing.*'{name}'"):
    load(folder)


def test_misshapen_tensor(folder):
  edit_config(folder, intermediate_size=36)
  with pytest.raises(ValueError, match=r"mlp/\w+/kernel has shape .*36"):
    load(folder)


def test_unknown_tensor(folder):
  name = "model.layers.0.self_attn.q_proj.bias"
  edit_tensors(folder, **{name: np.zeros(32, np.float32)})
  with pytest.raises(ValueError, match=f"no place in the llama.*'{name}'"):
    load(folder)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "mamba"}, r"model_type='mamba' is not one of \['gemma', "),
    ({"rope_parameters": LLAMA_31_ROPE}, "'llama3' names no 'low_freq_fac"),
    (
      {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
      "rope type='linear'",
    ),
    ({"attention_bias": True}, "8 tensors are missing.*q_proj.bias"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
  ],
)
def test_settings_that_are_refused(folder, changes, message):
  edit_config(folder, **changes)
  with pytest.raises(ValueError, match=message):
    load(folder)


def test_incomplete_config(folder):
  edit_config(folder, drop=["hidden_size"])
  with pytest.raises(ValueError, match="names no 'hidden_size'"):
    load(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file(folder, file):
  (folder / file).unlink()
  with pytest.raises(FileNotFoundError, match=file):
    load(folder)


@pytest.mark.parametrize(
  "changes",
  [
    {"positions": "learned"},
    {"norm": "layer"},
    {"gated_mlp": False},
    {"activation": "gelu"},
    {"attention_bias": True},
  ],
)
def test_save_refuses_what_llama_cannot_express(changes, tmp_path):
  config, params = load(ORACLES / "tiny_llama")
  config = dataclasses.replace(config, **changes)
  with pytest.raises(ValueError, match="only the llama family"):
    huggingface.save(tmp_path / "out", config, params)
  assert not (tmp_path / "out").exists()


def test_every_weight_of_the_model_has_a_name():
  for tied in (True, False):
    config, _ = load(ORACLES / NAMES[0])
    config = dataclasses.replace(config, tie_embeddings=tied)
    shapes = jax.eval_shape(
      lambda key, config=config: transformer.init(config, key),
      jax.random.key(0),
    )
    expected = trees.flatten(shapes["params"]).keys()
    for table in (family_names.LLAMA, gguf_names.LLAMA):
      assert families.names_of_layers(table, config).keys() == expected
