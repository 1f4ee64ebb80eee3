"""Every family against transformers: logits, padding, cache, and back."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax import generate
from rlhf_jax.models import families, huggingface, transformer
from rlhf_jax.models.pretrained import stack_layers
from rlhf_jax.schema import UserError
from rlhf_jax.types import PromptBatch
from tests.oracles.family_weights import weight

ORACLES = Path(__file__).parents[1] / "oracles"
KNOWN = json.loads((ORACLES / "families.json").read_text())
GOLDEN = np.load(ORACLES / "families.npz")
EVERY = 3
FIRST = "original_max_position_embeddings"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("families")
  for name, known in KNOWN.items():
    write(root / name, known)
  return root


def write(folder, known):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(known["config"]))
  tensors = {n: weight(n, shape) for n, shape in known["tensors"].items()}
  save_file(tensors, folder / "model.safetensors")


def load(folder):
  config, params = huggingface.load(folder)
  return config, jax.tree.map(np.asarray, params)


@pytest.mark.parametrize("name", KNOWN)
def test_logits_equal_transformers(name, folders):
  config, params = load(folders / name)
  apply = jax.jit(transformer.Transformer(config).apply)
  tokens, mask = GOLDEN["tokens"], GOLDEN["mask"]
  whole = apply({"params": params}, tokens, jnp.ones(tokens.shape))
  expected = GOLDEN[f"{name}/logits"]
  assert np.abs(expected).max() > 1.0
  np.testing.assert_allclose(whole[:, ::EVERY], expected, rtol=1e-5, atol=2e-5)
  padded = apply({"params": params}, tokens, jnp.asarray(mask))
  real = mask[:, ::EVERY] > 0
  np.testing.assert_allclose(
    np.asarray(padded)[:, ::EVERY][real],
    GOLDEN[f"{name}/padded"][real],
    rtol=1e-5,
    atol=2e-5,
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_greedy_continuations_with_a_cache_equal_transformers(name, folders):
  config, params = load(folders / name)
  tokens = jnp.asarray(GOLDEN["tokens"][:1])
  prompts = PromptBatch(
    tokens=tokens, valid_mask=jnp.ones(tokens.shape), index=jnp.zeros(1, int)
  )
  expected = GOLDEN[f"{name}/greedy"]
  samples = generate.generate(
    params,
    prompts,
    jax.random.key(0),
    model=config,
    config=generate.Config(max_new_tokens=len(expected), temperature=0.0),
    eos_ids=(config.vocab_size,),
    pad_id=0,
  )
  found = np.asarray(samples.tokens)[0, tokens.shape[1] :]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_written_is_what_was_read(name, folders, tmp_path):
  config, params = load(folders / name)
  entries = huggingface.read_entries(folders / name)
  huggingface.save(tmp_path / "out", config, params, original=entries)
  again, reloaded = load(tmp_path / "out")
  assert again == config
  jax.tree.map(np.testing.assert_array_equal, reloaded, params)
  before = load_file(folders / name / "model.safetensors")
  after = load_file(tmp_path / "out" / "model.safetensors")
  assert before.keys() == after.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(value, after[key], err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm3", "gemma3", "gpt2", "gpt_neox"])
def test_scanned_layers_equal_unrolled(name, folders):
  config, params = load(folders / name)
  scanned = dataclasses.replace(config, scan_layers=True)
  stacked = stack_layers(params, config.n_layers)
  stacked = jax.tree.map(np.asarray, stacked)
  tokens = GOLDEN["tokens"]
  found = transformer.Transformer(scanned).apply(
    {"params": stacked}, tokens, jnp.ones(tokens.shape)
  )
  expected = GOLDEN[f"{name}/logits"]
  np.testing.assert_allclose(found[:, ::EVERY], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt_neox"])
def test_folders_without_the_prefix_of_names(name, folders, tmp_path):
  known = KNOWN[name]
  prefix = families.FAMILIES[known["config"]["model_type"]].prefix
  bare = tmp_path / "bare"
  bare.mkdir()
  (bare / "config.json").write_text(json.dumps(known["config"]))
  tensors = {
    n.removeprefix(prefix): weight(n, shape)
    for n, shape in known["tensors"].items()
  }
  save_file(tensors, bare / "model.safetensors")
  jax.tree.map(
    np.testing.assert_array_equal, load(bare)[1], load(folders / name)[1]
  )


@pytest.mark.parametrize("name", KNOWN)
def test_an_entry_that_nobody_reads_is_refused(name):
  entries = KNOWN[name]["config"]
  kind = entries["model_type"]
  family = families.FAMILIES[kind]
  assert family.config(kind, entries).family == kind
  with pytest.raises(UserError, match=f"clip_qkv=8.0: the {kind} family does"):
    family.config(kind, entries | {"clip_qkv": 8.0})
  assert family.config(kind, entries | {"clip_qkv": None})


@pytest.mark.parametrize(
  ("name", "changes", "words"),
  [
    ("gemma3", {"layer_types": ["chunked"] * 4}, "layer_types holds 'chunked'"),
    ("gemma3", {"layer_types": ["full_attention"]}, "a list of 4 names"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "False only"),
    ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
    ("phi3", {"rope_scaling": {"type": "ntk"}}, "'ntk' stands beside it"),
    ("smollm3", {"no_rope_layers": [1]}, "must be a list of 4 zeros"),
    ("mistral", {"sliding_window": "4k"}, "sliding_window='4k': must be"),
    ("gemma", {"use_bidirectional_attention": True}, "False only"),
    ("gemma2", {"attn_logit_softcapping": 0}, "must be a positive number"),
    ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config="),
  ],
)
def test_settings_that_are_refused(name, changes, words):
  entries = KNOWN[name]["config"] | changes
  kind = entries["model_type"]
  with pytest.raises(UserError, match=words):
    families.FAMILIES[kind].config(kind, entries)


def test_a_context_is_at_most_what_is_read_as_a_whole():
  """Of two sets of factors of rotary positions, the first ends there."""
  lengths = {
    name: families.FAMILIES[known["config"]["model_type"]]
    .config(known["config"]["model_type"], known["config"])
    .max_length
    for name, known in KNOWN.items()
  }
  cut = {name: n for name, n in lengths.items() if n != 64}
  assert cut == {"phi3_long": 32}


@pytest.mark.parametrize(
  ("name", "place", "value", "words"),
  [
    ("qwen2", ["max_window_layers"], None, "max_window_layers=None: must be"),
    ("gemma3", ["_sliding_window_pattern"], False, "must be a whole number"),
    ("gemma3", ["sliding_window_pattern"], 0, "must be a whole number"),
    ("gemma3", ["rope_parameters", "full_attention"], None, "be an object"),
    ("gemma3", ["rope_parameters", "sliding_attention"], "x", "be an object"),
    ("gemma3", ["rope_parameters", "sliding_attention", "z"], 1, "hold 'z'"),
    ("phi3_long", ["rope_parameters", FIRST], 1, f"{FIRST}=1: must be above"),
  ],
)
def test_odd_values_are_named(name, place, value, words, tmp_path):
  """Found by putting 25 odd values into every entry of every family."""
  config = json.loads(json.dumps(KNOWN[name]["config"]))
  *outer, last = place
  inside = config
  for key in outer:
    inside = inside[key]
  inside[last] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match=f"config.json: .*{words}"):
    huggingface.read_config(tmp_path)
