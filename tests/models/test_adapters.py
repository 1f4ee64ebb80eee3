"""PEFT folders as a start: logits of peft, what is refused, round trips."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rlhf_jax.models import (
  adapters,
  families,
  lora,
  peft,
  roles,
  transformer,
  trees,
)
from rlhf_jax.models.pretrained import stack_layers
from rlhf_jax.schema import UserError
from tests.models.test_family_goldens import EVERY, GOLDEN, KNOWN, load, write
from tests.oracles.family_weights import weight

ORACLES = Path(__file__).parents[1] / "oracles"
ADAPTERS = json.loads((ORACLES / "peft.json").read_text())
LOGITS = np.load(ORACLES / "peft.npz")


def written(folder, name, tensors=None, **changes):
  """Writes the adapter of a golden, some of its entries changed."""
  known = ADAPTERS[name]
  folder.mkdir(exist_ok=True)
  said = known["config"] | changes
  (folder / peft.CONFIG_FILE).write_text(json.dumps(said))
  if tensors is None:
    tensors = {n: weight(n, shape) for n, shape in known["tensors"].items()}
  save_file(tensors, folder / peft.WEIGHTS_FILE)
  return folder


def config_of(model):
  entries = KNOWN[model]["config"]
  kind = entries["model_type"]
  return families.FAMILIES[kind].config(kind, entries)


@pytest.mark.parametrize(
  "name",
  [
    name
    if name in ("llama_some", "gpt2")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in ADAPTERS
  ],
)
def test_logits_equal_pefts(name, tmp_path):
  """Merged into the weights, and in one family applied inside the blocks.

  That the two are the same elsewhere: test_lora_targets.py, test_roles.py.
  """
  model = ADAPTERS[name]["model"]
  write(tmp_path / "base", KNOWN[model])
  config, params = load(tmp_path / "base")
  found = adapters.read(written(tmp_path / "adapter", name), config)
  factors = jax.tree.map(np.asarray, found.tree["lora"])
  adapted = found.on(config)
  tokens = GOLDEN["tokens"]
  apply = jax.jit(transformer.Transformer(adapted).apply)
  ones = jnp.ones(tokens.shape)
  expected = LOGITS[name]
  assert np.abs(GOLDEN[f"{model}/logits"] - expected).max() > 0.1
  if name == "llama_some":
    logits = apply({"params": params, "lora": factors}, tokens, ones)
    np.testing.assert_allclose(
      logits[:, ::EVERY], expected, rtol=1e-5, atol=4e-5
    )
  merged = lora.merge(params, factors, adapted.lora_scale)
  logits = apply({"params": merged}, tokens, ones)
  np.testing.assert_allclose(logits[:, ::EVERY], expected, rtol=1e-5, atol=4e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_a_role_trains_is_what_the_folder_holds(name, tmp_path):
  config = config_of(ADAPTERS[name]["model"])
  found = adapters.read(written(tmp_path / "adapter", name), config)
  role = roles.Role(found.on(config), "lora", found.first_layer)
  fresh = trees.flatten(
    jax.eval_shape(lambda k: roles.fresh_lora(role, k), jax.random.key(0))
  )
  assert fresh.keys() == found.factors.keys()
  for path, leaf in fresh.items():
    assert leaf.shape == tuple(found.factors[path].shape), path


def test_fused_maps_that_we_wrote_are_read_as_they_were(tmp_path):
  """peft.write puts q, k and v of c_attn side by side, at three times r."""
  config = dataclasses.replace(config_of("gpt2"), lora_rank=2)
  role = roles.Role(config, "lora", 1)
  fresh = roles.fresh_lora(role, jax.random.key(0))
  random = np.random.default_rng(0)
  factors = jax.tree.map(
    lambda x: random.standard_normal(x.shape).astype(np.float32), fresh
  )
  peft.write(tmp_path, config, factors, scale=0.75, base="gpt2")
  found = adapters.read(tmp_path, config)
  assert (found.rank, found.scale, found.targets) == (2, 0.75, ())
  assert found.first_layer == 1
  flat = trees.flatten(factors)
  assert flat.keys() == found.factors.keys()
  for path, leaf in flat.items():
    np.testing.assert_array_equal(leaf, np.asarray(found.factors[path]))


def test_scanned_layers_hold_the_same_factors(tmp_path):
  config = dataclasses.replace(config_of("llama3"), scan_layers=True)
  folder = written(tmp_path / "adapter", "llama_all")
  stacked = trees.flatten(adapters.read(folder, config).tree["lora"])
  plain = dataclasses.replace(config, scan_layers=False)
  apart = adapters.read(folder, plain).tree["lora"]
  expected = trees.flatten(stack_layers(apart, config.n_layers))
  assert stacked.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(
      np.asarray(stacked[path]), np.asarray(leaf), err_msg=path
    )
  some = written(tmp_path / "some", "smollm3_pattern")
  scanned = dataclasses.replace(config_of("smollm3"), scan_layers=True)
  with pytest.raises(UserError, match="other maps in some layers"):
    adapters.read(some, scanned)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"use_dora": True}, "use_dora=True: DoRA is not implemented"),
    ({"peft_type": "LOHA"}, "peft_type='LOHA': only LORA"),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS': only adapters of"),
    ({"bias": "lora_only"}, "bias='lora_only': biases"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]: not"),
    ({"init_lora_weights": "pissa_niter_4"}, "with another base model"),
    ({"rank_pattern": {"q_proj": 2}}, "has rank 4, and adapter_config.json"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern gives .*q_proj a scale"),
    ({"r": 0}, "r=0: must be a whole number above 0"),
    ({"lora_alpha": None}, "lora_alpha=None: must be a number"),
    ({"mystery": 3}, "mystery=3: not implemented, and it changes"),
    ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]"),
  ],
)
def test_entries_that_are_refused(changes, words, tmp_path):
  folder = written(tmp_path / "adapter", "llama_all", **changes)
  with pytest.raises(UserError, match=words):
    adapters.read(folder, config_of("llama3"))


def _layer(which, shape, key="self_attn.q_proj", layer=0):
  name = f"base_model.model.model.layers.{layer}.{key}.lora_{which}.weight"
  return {name: np.ones(shape, np.float32)}


@pytest.mark.parametrize(
  ("tensors", "words"),
  [
    (_layer("A", (4, 32)), "only one of its two factors"),
    ({"lm_head.weight": np.ones((2, 2), np.float32)}, "only factors lora_A"),
    (
      _layer("A", (4, 32)) | _layer("B", (31, 4)),
      r"shape \(4, 31\), and the map is 32 x 32: the adapter was made for",
    ),
    (
      _layer("A", (4, 32), layer=2) | _layer("B", (32, 4), layer=2),
      "layers.2.self_attn.q_proj is no linear map of a block",
    ),
    ({}, "holds no factors"),
  ],
)
def test_tensors_that_are_refused(tensors, words, tmp_path):
  folder = written(tmp_path / "adapter", "llama_all", tensors)
  with pytest.raises(UserError, match=words):
    adapters.read(folder, config_of("llama3"))


def test_ranks_of_several_sizes_are_refused(tmp_path):
  """A rank of c_attn that is no sum of blocks of its maps."""
  known = ADAPTERS["gpt2"]["tensors"]
  tensors = {
    n: weight(n, [8 if x == 4 else x for x in shape])
    if "c_attn" in n
    else weight(n, shape)
    for n, shape in known.items()
  }
  folder = written(
    tmp_path / "adapter",
    "gpt2",
    tensors,
    rank_pattern={"c_attn": 8},
    alpha_pattern={"c_attn": 8},
  )
  with pytest.raises(UserError, match="rank_pattern gives .*c_attn the rank 8"):
    adapters.read(folder, config_of("gpt2"))
