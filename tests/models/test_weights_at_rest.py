"""Weights that rest in bfloat16, and factors that are not merged to sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models import (
  huggingface,
  lora,
  pretrained,
  roles,
  transformer,
  trees,
)
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.programs import build
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PromptBatch
from tests import tiny

MODEL = transformer.Config(
  vocab_size=64,
  width=32,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=8,
  mlp_width=48,
  max_length=32,
  lora_rank=4,
  lora_scale=2.0,
)
APART = dataclasses.replace(MODEL, lora_merge=False)


def variables(model):
  """Returns weights, and factors of which neither is 0."""
  found = transformer.init(model, jax.random.key(0))
  found["params"]["embedding"]["embedding"] *= 20.0
  keys = iter(jax.random.split(jax.random.key(1), 99))
  found["lora"] = jax.tree.map(
    lambda x: 0.3 * jax.random.normal(next(keys), x.shape), found["lora"]
  )
  return found


def sample(role, found, mesh):
  """Returns samples of a role's policy."""
  weights = roles.sampling_params(role, *roles.split(role, found))
  prompts = PromptBatch(
    tokens=jax.random.randint(jax.random.key(2), (8, 5), 3, 64),
    valid_mask=jnp.ones((8, 5)),
    index=jnp.arange(8),
  )
  with mesh_lib.current(mesh):
    return generate.generate(
      weights,
      mesh_lib.shard_batch(mesh, prompts),
      jax.random.key(3),
      model=role.model,
      config=generate.Config(max_new_tokens=8, temperature=0.8),
      eos_ids=(1,),
      pad_id=0,
    )


@pytest.mark.slow
def test_a_sampler_that_leaves_factors_apart_gives_the_same_samples():
  """Scanned layers on a mesh, as large models are run."""
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=2, fsdp=2, tensor=2))
  found = {}
  for model in (MODEL, APART):
    model = dataclasses.replace(model, scan_layers=True)
    tree = variables(model)
    tree = jax.device_put(tree, rules.sharding_tree(mesh, tree))
    found[model.lora_merge] = sample(roles.Role(model, "lora"), tree, mesh)
  merged, apart = found[True], found[False]
  np.testing.assert_array_equal(merged.tokens, apart.tokens)
  np.testing.assert_allclose(
    merged.behaviour_logprobs, apart.behaviour_logprobs, atol=2e-5
  )


@pytest.mark.parametrize("length", [1, 5])
def test_factors_beside_their_kernels_are_read_as_those_of_training(length):
  found = variables(APART)
  tokens, mask = jnp.arange(2 * length).reshape(2, -1), jnp.ones((2, length))
  apply = transformer.Transformer(APART).apply
  beside = lora.beside(found["params"], found["lora"])
  logits = apply({"params": beside}, tokens, mask)
  np.testing.assert_array_equal(logits, apply(found, tokens, mask))
  plain = apply({"params": found["params"]}, tokens, mask)
  assert not np.allclose(logits, plain, atol=0.1)


def test_nothing_is_copied_where_factors_stay_apart():
  found = variables(APART)
  role = roles.Role(APART, "lora")
  made = roles.sampling_params(role, *roles.split(role, found))
  owned = {id(x) for x in jax.tree.leaves(found)}
  assert {id(x) for x in jax.tree.leaves(made)} == owned
  merged = lora.merge(found["params"], found["lora"], 2.0)
  assert sum(id(x) not in owned for x in jax.tree.leaves(merged)) == 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights") / "model"
  folder.mkdir()
  tiny.tiny_tokenizer_json(folder)
  size = load_tokenizer(folder).vocab_size
  config = dataclasses.replace(MODEL, vocab_size=size, lora_rank=0)
  params = transformer.init(config, jax.random.key(0))["params"]
  huggingface.save(folder, config, jax.tree.map(np.array, params))
  return str(folder)


@pytest.mark.parametrize(
  "scans", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_they_rest_in_half_the_bytes_and_are_the_files(folder, scans):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=2, fsdp=2, tensor=2))
  how = dict(source=folder, dtype="bfloat16", scan_layers=scans)
  wide = pretrained.load_base(pretrained.Model(**how), mesh)
  narrow = pretrained.load_base(
    pretrained.Model(weights="bfloat16", **how), mesh
  )
  assert narrow.fingerprint == wide.fingerprint
  flat = trees.flatten(narrow.params)
  shapes = trees.flatten(
    pretrained.variable_shapes(roles.Role(narrow.config))["params"]
  )
  for path, leaf in trees.flatten(wide.params).items():
    assert flat[path].dtype == shapes[path].dtype == jnp.bfloat16, path
    assert flat[path].sharding == leaf.sharding, path
    np.testing.assert_array_equal(flat[path], leaf.astype(jnp.bfloat16))
  tokens = jnp.arange(12).reshape(2, 6) % narrow.config.vocab_size
  logits = [
    transformer.Transformer(base.config).apply(
      {"params": base.params}, tokens, jnp.ones((2, 6))
    )
    for base in (wide, narrow)
  ]
  np.testing.assert_allclose(*logits, atol=0.03)


def test_settings_that_are_refused():
  with pytest.raises(FieldError, match="weights='bfloat16' with dtype='fl"):
    pretrained.Model(weights="bfloat16")
  apart = pretrained.Model(lora_merge=False)
  with pytest.raises(FieldError, match="lora_merge=False with trainable.mode"):
    build.check_trainable(apart, roles.Trainable("full"))
