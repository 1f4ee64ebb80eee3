"""GGUF files: a synthetic one against its source, a real one against goldens.

The tests of the real file are marked slow and need RLHF_JAX_TEST_ASSETS: "1"
fetches the file, anything else is the path of a
SmolLM2-135M-Instruct.Q4_1.gguf. The goldens come from
tests/oracles/make_transformers_goldens.py.
"""

import json
import os
from pathlib import Path

import gguf as gguf_writer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.models import gguf, huggingface, transformer, trees

ORACLES = Path(__file__).parents[1] / "oracles"
KIND = ("general.type", "adapter")
NAMES = ("tiny_llama", "tiny_llama_untied")
Quantized = gguf_writer.GGMLQuantizationType

real_file = [
  pytest.mark.slow,
  pytest.mark.skipif(
    "RLHF_JAX_TEST_ASSETS" not in os.environ,
    reason="set RLHF_JAX_TEST_ASSETS=1 or to the path of the GGUF file",
  ),
]


def interleave(weight, heads):
  """Reorders rows of q and k as llama.cpp does when it converts."""
  out, width = weight.shape
  halves = weight.reshape(heads, 2, out // heads // 2, width)
  return halves.swapaxes(1, 2).reshape(out, width)


def gguf_tensors(name):
  """Returns {GGUF name: array} of a tiny model."""
  config = json.loads((ORACLES / name / "config.json").read_text())
  renamed = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
  }
  tensors = {}
  source = load_file(ORACLES / name / "model.safetensors")
  for key, weight in source.items():
    if "q_proj" in key:
      weight = interleave(weight, config["num_attention_heads"])
    if "k_proj" in key:
      weight = interleave(weight, config["num_key_value_heads"])
    for theirs, ours in renamed.items():
      key = key.replace(theirs, ours)
    tensors[key] = weight
  return tensors


def write(path, name, tensors, *, architecture="llama", extra=()):
  """Writes a GGUF file; a tensor may be (bytes, quantisation)."""
  config = json.loads((ORACLES / name / "config.json").read_text())
  writer = gguf_writer.GGUFWriter(path, architecture)
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(config["num_attention_heads"])
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_key_length(config["head_dim"])
  writer.add_value_length(config["head_dim"])
  writer.add_rope_dimension_count(config["head_dim"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
  for key, value in extra:
    writer.add_string(key, value)
  for key, weight in tensors.items():
    if isinstance(weight, tuple):
      writer.add_tensor(key, weight[0], raw_dtype=weight[1])
    else:
      writer.add_tensor(key, weight)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.mark.parametrize("name", NAMES)
def test_synthetic_file_equals_its_source(name, tmp_path):
  path = write(tmp_path / "tiny.gguf", name, gguf_tensors(name))
  config, params = gguf.load(path)
  expected_config, expected = huggingface.load(ORACLES / name)
  params, expected = jax.tree.map(np.asarray, (params, expected))
  assert config == expected_config
  params, expected = trees.flatten(params), trees.flatten(expected)
  assert params.keys() == expected.keys()
  for key in expected:
    np.testing.assert_array_equal(params[key], expected[key], err_msg=key)
    assert params[key].dtype == np.float32


def test_quantised_blocks_by_their_definition(tmp_path):
  """Q8_0: 32 int8 times d. Q4_1: 32 nibbles, low ones first, d q + m."""
  random = np.random.default_rng(0)
  scale = random.uniform(0.01, 0.1, (40, 1)).astype(np.float16)
  floor = random.normal(size=(40, 1)).astype(np.float16)
  bytes_8 = random.integers(-128, 128, (40, 32)).astype(np.int8)
  bytes_4 = random.integers(0, 256, (40, 16)).astype(np.uint8)
  tensors = gguf_tensors("tiny_llama")
  tensors["blk.1.ffn_up.weight"] = (
    np.concatenate([scale.view(np.uint8), bytes_8.view(np.uint8)], axis=1),
    Quantized.Q8_0,
  )
  tensors["blk.1.ffn_gate.weight"] = (
    np.concatenate(
      [scale.view(np.uint8), floor.view(np.uint8), bytes_4], axis=1
    ),
    Quantized.Q4_1,
  )
  tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].astype(
    np.float16
  )
  path = write(tmp_path / "tiny.gguf", "tiny_llama", tensors)
  params = jax.tree.map(np.asarray, gguf.load(path)[1])
  wide_scale, wide_floor = scale.astype(np.float32), floor.astype(np.float32)
  up = params["layer_1"]["mlp"]["up_proj"]["kernel"]
  np.testing.assert_array_equal(up.T, bytes_8 * wide_scale)
  nibbles = np.concatenate([bytes_4 % 16, bytes_4 // 16], axis=1)
  gate = params["layer_1"]["mlp"]["gate_proj"]["kernel"]
  np.testing.assert_allclose(gate.T, nibbles * wide_scale + wide_floor, 1e-6)
  half = params["layer_0"]["mlp"]["up_proj"]["kernel"]
  np.testing.assert_array_equal(half.T, tensors["blk.0.ffn_up.weight"])


def test_errors_name_what_is_wrong(tmp_path):
  tensors = gguf_tensors("tiny_llama")

  def refuses(message, tensors, **options):
    path = tmp_path / "tiny.gguf"
    path.unlink(missing_ok=True)
    write(path, "tiny_llama", tensors, **options)
    with pytest.raises(ValueError, match=message):
      gguf.load(path)

  def without(key):
    return {k: v for k, v in tensors.items() if k != key}

  refuses("'mpt' is not one of", tensors, architecture="mpt")
  refuses("no tensor 'blk.1.attn_k.weight'", without("blk.1.attn_k.weight"))
  refuses("no tensor 'token_embd.weight'", without("token_embd.weight"))
  refuses(
    "factor=.* must be 4 positive",
    tensors | {"rope_freqs.weight": np.ones(5, np.float32)},
  )
  refuses(
    "1 tensors have no place in the llama architecture, .*'blk.0.attn_sinks",
    tensors | {"blk.0.attn_sinks.weight": np.ones(4, np.float32)},
  )
  refuses(
    "mlp/up_proj/kernel has shape",
    tensors | {"blk.0.ffn_up.weight": np.ones((36, 32), np.float32)},
  )
  refuses(
    "no metadata 'llama.rope.scaling.factor'",
    tensors,
    extra=[("llama.rope.scaling.type", "yarn")],
  )
  refuses(
    "rope.scaling.type='ntk': only 'none'",
    tensors,
    extra=[("llama.rope.scaling.type", "ntk")],
  )
  refuses(
    "llama.logit_scale='2': the llama architecture is read without it",
    tensors,
    extra=[("llama.logit_scale", "2")],
  )
  refuses("type 'adapter', no model", tensors, extra=[KIND])
  with pytest.raises(FileNotFoundError, match="absent.gguf: no such file"):
    gguf.load(tmp_path / "absent.gguf")


def real_path():
  value = os.environ["RLHF_JAX_TEST_ASSETS"]
  if value != "1":
    return Path(value)
  from rlhf_jax.data import assets

  return assets.fetch("smollm2-135m-instruct")


class TestRealFile:
  pytestmark = real_file

  def test_logits_equal_transformers(self):
    golden = np.load(ORACLES / "smollm2_logits.npz")
    config, params = gguf.load(real_path())
    params = jax.tree.map(np.asarray, params)
    apply = jax.jit(transformer.Transformer(config).apply)
    for i in range(3):
      tokens = golden[f"tokens_{i}"][None]
      logits = apply({"params": params}, tokens, jnp.ones(tokens.shape))[0]
      ids = golden[f"top_ids_{i}"]
      found = np.take_along_axis(np.asarray(logits), ids, axis=-1)
      # logits reach 40: float32 in another order of summation
      close = {"rtol": 5e-6, "atol": 1e-4}
      np.testing.assert_allclose(found, golden[f"top_logits_{i}"], **close)
      normaliser = jax.nn.logsumexp(logits, axis=-1)
      np.testing.assert_allclose(normaliser, golden[f"logsumexp_{i}"], **close)
      np.testing.assert_array_equal(np.argmax(logits, -1), ids[:, 0])

  def test_token_ids_equal_the_reference(self):
    from rlhf_jax.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(real_path())
    golden = json.loads((ORACLES / "smollm2_tokens.json").read_text())
    assert len(golden["rows"]) == 12
    for row in golden["rows"]:
      text = row["text"]
      assert tokenizer.encode(text) == row["ids"], text
      for key in ("ids", "special_ids", "transformers_ids"):
        assert tokenizer.decode(row[key], skip_special=False) == text, key
