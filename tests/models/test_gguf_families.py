"""Every family in GGUF, against files of llama.cpp's own converter.

gguf.json holds the keys and the digest of each tensor of such files, of the
tiny models of families.json (tests/oracles/make_gguf_goldens.py).
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import (
  families,
  gguf,
  gguf_keys,
  gguf_writer,
  huggingface,
  rotary,
  transformer,
  trees,
)
from rlhf_jax.models.pretrained import stack_layers
from rlhf_jax.schema import UserError
from tests.models.test_family_goldens import write as write_folder
from tests.oracles import gguf_cases

ORACLES = Path(__file__).parents[1] / "oracles"
KNOWN = json.loads((ORACLES / "families.json").read_text())
CONVERTED = json.loads((ORACLES / "gguf.json").read_text())
# Keys that the converter writes otherwise, and why that is the same model.
OTHER_KEYS = {
  "mistral": {"llama.context_length": 9},  # no key for its window
  "qwen2": {"qwen2.context_length": 9},
  "phi3": {"phi3.rope.scaling.original_context_length": None},  # not scaled
  "phi3_long": {"phi3.context_length": 32},  # its second factors are not read
}
# What the converter does not write of these.
FORGOTTEN = {
  "mistral": {"local_layers", "window"},
  "qwen2": {"local_layers", "window"},
  "gemma3": {"local_layers", "rope_scaling"},  # of which the angles follow
  "gpt_neox_serial": {"rope_theta", "rope_scaling"},
}
LLAMA_3 = rotary.Scaling("llama3", factor=8.0, first_length=16)
TOKENS = np.random.default_rng(3).integers(3, 61, size=(2, 24))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns (config, params, the GGUF file that we write), once a model."""
  root = tmp_path_factory.mktemp("gguf_families")

  @functools.cache
  def make(name):
    known = KNOWN[name] | {"config": gguf_cases.entries(name, KNOWN[name])}
    write_folder(root / name, known)
    config, params = huggingface.load(root / name)
    params = jax.tree.map(np.asarray, params)
    path = gguf_writer.write(
      root / f"{name}.gguf", config, params, gguf_cases.letters(), "f32"
    )
    return config, params, path

  return make


def metadata(path, architecture):
  reader = gguf_package.GGUFReader(path)
  return {
    key: field.contents()
    for key, field in reader.fields.items()
    if key.startswith(f"{architecture}.")
  }


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_is_what_the_converter_of_llama_cpp_writes(name, made):
  _, _, path = made(name)
  expected = CONVERTED[name]
  tensors = {
    tensor.name: [
      list(tensor.data.shape),
      hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest()[
        :16
      ],
    ]
    for tensor in gguf_package.GGUFReader(path).tensors
  }
  assert tensors.keys() == expected["tensors"].keys()
  # The converter computes the first in float32; we read one set of factors.
  other = {"rope_freqs.weight", "rope_factors_long.weight"}
  for key in tensors.keys() - other:
    assert tensors[key] == expected["tensors"][key], key
  keys = metadata(path, expected["architecture"])
  wanted = expected["keys"] | OTHER_KEYS.get(name, {})
  for key, value in wanted.items():
    assert keys.get(key) == value, key


def write_file(path, name, tensors):
  """Writes a file with the converter's keys."""
  expected = CONVERTED[name]
  writer = gguf_package.GGUFWriter(None, expected["architecture"])
  for key, value in expected["keys"].items():
    gguf_writer.add(writer, key, value)
  for tensor, array in tensors.items():
    writer.add_tensor(tensor, array)
  writer.write_header_to_file(path)
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_of_the_converter_is_the_model_it_was_made_of(
  name, made, tmp_path
):
  config, params, path = made(name)
  tensors = {
    tensor.name: np.asarray(tensor.data)
    for tensor in gguf_package.GGUFReader(path).tensors
  }
  write_file(tmp_path / "m.gguf", name, tensors)
  found, weights = gguf.load(tmp_path / "m.gguf")
  same_weights(params, jax.tree.map(np.asarray, weights), config)
  differing = gguf_keys.differing(config, found)
  assert set(differing) == FORGOTTEN.get(name, set()), differing


def test_queries_keys_and_values_in_one_tensor(made, tmp_path):
  config, params, path = made("llama_linear")
  tensors = {
    tensor.name: np.asarray(tensor.data)
    for tensor in gguf_package.GGUFReader(path).tensors
  }
  for layer in range(config.n_layers):
    for end in ("weight", "bias"):
      parts = [tensors.pop(f"blk.{layer}.attn_{x}.{end}") for x in "qkv"]
      tensors[f"blk.{layer}.attn_qkv.{end}"] = np.concatenate(parts)
  write_file(tmp_path / "m.gguf", "llama_linear", tensors)
  found, weights = gguf.load(tmp_path / "m.gguf")
  assert found == config
  same_weights(params, jax.tree.map(np.asarray, weights), config)


def same_weights(expected, found, config):
  """Bit for bit; of Gemma's gains, which a file holds with their 1, the sum."""
  expected, found = trees.flatten(expected), trees.flatten(found)
  assert expected.keys() == found.keys()
  for path, one in expected.items():
    if path.endswith("/scale") and config.norm_offset:
      one, found[path] = np.float32(1) + one, np.float32(1) + found[path]
    np.testing.assert_array_equal(one, found[path], err_msg=path)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_written_is_read_again(name, made):
  config, params, path = made(name)
  found, weights = gguf.load(path)
  same_weights(params, jax.tree.map(np.asarray, weights), config)
  kind = families.FAMILIES[found.family]
  assert kind.config(found.family, gguf.read_entries(path)) == found
  cut = {"mistral": {"max_length", "window", "local_layers"}}
  cut["qwen2"] = cut["mistral"]
  assert set(gguf_keys.differing(config, found)) == cut.get(name, set())


@pytest.mark.parametrize(
  "name", ["llama3", "gemma2", pytest.param("mistral", marks=pytest.mark.slow)]
)
def test_a_model_that_is_written_and_read_computes_the_same(name, made):
  config, params, path = made(name)
  found, weights = gguf.load(path)
  weights = jax.tree.map(np.asarray, weights)
  tokens = TOKENS[:, : min(24, found.max_length)]
  one, other = (
    transformer.Transformer(c).apply(
      {"params": p}, tokens, jnp.ones(tokens.shape)
    )
    for c, p in ((config, params), (found, weights))
  )
  np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_smaller_types(dtype, made, tmp_path):
  config, params, _ = made("gemma3")
  path = gguf_writer.write(
    tmp_path / "m.gguf", config, params, gguf_cases.letters(), dtype
  )
  kinds = {
    t.name: t.tensor_type.name for t in gguf_package.GGUFReader(path).tensors
  }
  assert kinds["blk.0.attn_norm.weight"] == "F32"
  assert kinds["blk.0.attn_q.weight"] == dtype.upper()
  down = "F16" if dtype == "q8_0" else dtype.upper()  # rows of 40 numbers
  assert kinds["blk.0.ffn_down.weight"] == down
  weights = trees.flatten(gguf.load(path)[1])
  step = {"f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 127}[dtype]
  for name, one in trees.flatten(params).items():
    worst = np.abs(one - np.asarray(weights[name])).max()
    assert worst <= step * np.abs(one).max(), name
    assert "norm" in name or worst > 0, name


def test_stacked_layers_are_written_one_by_one(made, tmp_path):
  config, params, path = made("qwen3")
  stacked = jax.tree.map(np.asarray, stack_layers(params, config.n_layers))
  scanned = dataclasses.replace(config, scan_layers=True)
  again = gguf_writer.write(
    tmp_path / "m.gguf", scanned, stacked, gguf_cases.letters(), "f32"
  )
  assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
  ("name", "changes", "words"),
  [
    ("gemma2", {"query_scale": 0.1}, "query_scale=0.1: llama.cpp's gemma2"),
    ("gemma3", {"attention_cap": 3.0}, "gemma3.attn_logit_softcapping=3.0"),
    ("gpt_neox", {"activation": "gelu_tanh"}, "activation='gelu_tanh': llama"),
    ("smollm3", {"still_layers": (0,)}, r"still_layers=\(0,\): llama.cpp's"),
    ("qwen3", {"rope_scaling": LLAMA_3}, "llama.cpp's qwen3 .* 'no factors'"),
    ("qwen2", {"head_dim": 16}, "head_dim=16: llama.cpp's qwen2 .* 8.0"),
    ("llama3", {"family": "bloom"}, "bloom family has no GGUF architecture"),
  ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
  name, changes, words, made, tmp_path
):
  config, params, _ = made(name)
  config = dataclasses.replace(config, **changes)
  with pytest.raises(UserError, match=words):
    gguf_writer.write(
      tmp_path / "m.gguf", config, params, gguf_cases.letters(), "f32"
    )
  assert not list(tmp_path.glob("m.gguf*"))
