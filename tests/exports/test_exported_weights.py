"""Weights leave one at a time, merged, whole or cut, from any mesh."""

import dataclasses
import functools
import json
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax import distributed
from rlhf_jax.exports import card, folders, weights
from rlhf_jax.exports.facts import Facts
from rlhf_jax.exports.folders import How
from rlhf_jax.exports.opened import Leaving
from rlhf_jax.models import (
  folder_writer,
  huggingface,
  peft,
  pretrained,
  roles,
  transformer,
  trees,
)
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Role
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.schema import FieldError, UserError
from tests.exports import sources

ONE = mesh_lib.Config(devices=1)
EIGHT = mesh_lib.Config(data=1, fsdp=4, tensor=2)
RANK, SCALE = 2, 0.5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = sources.make(tmp_path_factory.mktemp("exported_weights") / "model")
  (folder / "LICENSE").write_text("MIT, in full\n")
  return folder


def base_of(source, mesh=ONE, **options):
  model = Model(source=str(source), **options)
  return pretrained.load_base(model, mesh_lib.make_mesh(mesh))


def adapted(source, mesh=ONE, **options):
  """Returns a policy whose factors are random."""
  base = base_of(source, mesh, **options)
  config = dataclasses.replace(base.config, lora_rank=RANK, lora_scale=SCALE)
  role = Role(config, "lora")
  shapes = jax.eval_shape(
    functools.partial(roles.fresh_lora, role), jax.random.key(0)
  )
  random = np.random.default_rng(5)
  lora = jax.tree.map(
    lambda x: random.standard_normal(x.shape).astype(np.float32), shapes
  )
  tree = {"lora": lora}
  placed = mesh_lib.place(
    tree, rules.sharding_tree(mesh_lib.make_mesh(mesh), tree)
  )
  return Leaving(base, role, {"params": base.params} | placed, {})


def untrained(source, mesh=ONE, **options):
  base = base_of(source, mesh, **options)
  return Leaving(base, Role(base.config), {"params": base.params}, {})


def tensors(folder):
  found = {}
  for file in folder.glob("*.safetensors"):
    found |= load_file(file)
  return found


def test_nothing_trained_is_byte_for_byte_what_was_read(source, tmp_path):
  folders.write(untrained(source), tmp_path / "out", How(), Facts())
  before = (source / "model.safetensors").read_bytes()
  assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
  for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
    out = (tmp_path / "out" / name).read_bytes()
    assert out == (source / name).read_bytes()
  how = How(dtype="bfloat16")
  folders.write(untrained(source), tmp_path / "half", how, Facts())
  half = tmp_path / "half"
  folders.write(untrained(half), tmp_path / "again", how, Facts())
  again = (tmp_path / "again" / "model.safetensors").read_bytes()
  assert again == (half / "model.safetensors").read_bytes()


def test_all_meshes_and_stacks_write_the_same_files(source, tmp_path):
  made = {
    "one": adapted(source),
    "eight": adapted(source, EIGHT),
    "scanned": adapted(source, scan_layers=True),
  }
  # The factors of stacks are drawn as stacks: take those of "one".
  lora = made["one"].variables["lora"]
  layers = [lora[f"layer_{i}"] for i in range(len(lora))]
  made["scanned"].variables["lora"] = {
    "layers": jax.tree.map(lambda *x: np.stack(x), *layers)
  }
  for name, leaving in made.items():
    how = How(max_shard_size="20KB")
    files = folders.write(leaving, tmp_path / name, how, Facts())
    assert "model.safetensors.index.json" in files and len(files) > 8
  expected = tensors(tmp_path / "one")
  role, parts = made["one"].role, made["one"].variables
  merged = roles.sampling_params(
    role, {"lora": parts["lora"]}, {"params": parts["params"]}
  )
  huggingface.save(tmp_path / "merged", role.model, merged)
  merged = tensors(tmp_path / "merged")
  for name in ("eight", "scanned"):
    found = tensors(tmp_path / name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(value, merged[key], err_msg=key)
      np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-7)


def test_a_host_holds_one_weight_at_a_time(tmp_path, monkeypatch):
  """Of a model on 8 devices: neither JAX nor the writer keeps what it read."""
  config = transformer.Config(
    vocab_size=512,
    width=64,
    n_layers=6,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    mlp_width=256,
    tie_embeddings=False,
  )
  tree = {"params": sources.random_params(config)}
  flat = trees.flatten(tree["params"])
  expected = sum(x.nbytes for x in flat.values())
  largest = max(x.nbytes for x in flat.values())
  mesh = mesh_lib.make_mesh(EIGHT)
  placed = mesh_lib.place(tree, rules.sharding_tree(mesh, tree))
  del tree, flat
  sizes, fetch = [], distributed.fetch

  def watched(leaf):
    found = fetch(leaf)
    sizes.append(found.nbytes)
    return found

  monkeypatch.setattr(distributed, "fetch", watched)
  monkeypatch.setattr(folder_writer, "_PIECE", 1 << 11)
  unread = weights.of_role(Role(config), placed)
  huggingface.save(tmp_path / "warm", config, unread)
  assert sum(sizes) == expected and max(sizes) == largest
  tracemalloc.start()
  huggingface.save(tmp_path / "out", config, unread)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert 5 * largest < expected
  assert largest <= peak < 2 * largest
  arrays = jax.tree.leaves(placed)
  assert all(getattr(x, "_npy_value", None) is None for x in arrays)


def test_an_adapter_names_its_base_and_multiplies_to_the_merged_weights(
  source, tmp_path
):
  leaving = adapted(source)
  how = How(form="adapter")
  files = folders.write(leaving, tmp_path / "adapter", how, Facts())
  assert {peft.CONFIG_FILE, peft.WEIGHTS_FILE, "README.md"} <= set(files)
  said = json.loads((tmp_path / "adapter" / peft.CONFIG_FILE).read_text())
  assert said["base_model_name_or_path"] == str(source)
  assert (said["r"], said["lora_alpha"]) == (RANK, SCALE * RANK)
  folders.write(leaving, tmp_path / "whole", How(), Facts())
  whole, before = tensors(tmp_path / "whole"), tensors(source)
  factors = load_file(tmp_path / "adapter" / peft.WEIGHTS_FILE)
  name = "model.layers.1.mlp.down_proj"
  up, down = (
    factors[f"{peft.PREFIX}{name}.lora_{x}.weight"] for x in ("B", "A")
  )
  np.testing.assert_allclose(
    before[f"{name}.weight"] + SCALE * up @ down,
    whole[f"{name}.weight"],
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_model_of_the_hub_is_named_with_its_commit_apart(source, tmp_path):
  leaving = adapted(source)
  name, commit = "somebody/model-1b", "0123456789abcdef0123456789abcdef01234567"
  base = dataclasses.replace(leaving.base, source=f"{name}@{commit}")
  leaving = dataclasses.replace(leaving, base=base)
  assert card.name_of(leaving) == name
  said = peft.adapter_config(
    leaving.role.model, {}, rank=1, scale=1.0, base=base.source
  )
  assert (said["base_model_name_or_path"], said["revision"]) == (name, commit)


def test_an_adapter_is_for_the_weights_below_it_and_no_others(source, tmp_path):
  leaving = adapted(source)
  whole = tmp_path / "whole"
  folders.write(leaving, whole, How(), Facts())
  half = tmp_path / "half"
  folders.write(untrained(source), half, How(dtype="bfloat16"), Facts())

  def write(name, named, **changes):
    model = dataclasses.replace(leaving, run="runs/x", **changes)
    how = How(form="adapter", base=str(named))
    folders.write(model, tmp_path / name, how, Facts())

  write("right", source)
  write("rounded", half)
  with pytest.raises(FieldError, match="differs by up to"):
    write("wrong", whole)
  with pytest.raises(FieldError, match="stand on the weights of runs/sft, and"):
    write("wrong", "", merged_from="runs/sft")
  with pytest.raises(FieldError, match="no such folder, and no name of"):
    write("wrong", "absent")
  asset = dataclasses.replace(leaving.base, source="asset:smollm2")
  with pytest.raises(FieldError, match="peft loads no base model from asset"):
    write("wrong", "", base=asset)
  full = dataclasses.replace(leaving.role, trainable="full")
  with pytest.raises(FieldError, match="runs/x trained all weights"):
    write("wrong", "", role=full)
  assert not (tmp_path / "wrong").exists()
  assert not (tmp_path / "wrong.partial").exists()


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ({"form": "onnx"}, "form='onnx': must be one of"),
    ({"dtype": "int8"}, "dtype='int8': must be one of"),
    ({"base": "x"}, "base='x': only form='adapter'"),
    ({"form": "adapter", "max_shard_size": "1GB"}, "an adapter is one file"),
    ({"max_shard_size": "big"}, "max_shard_size='big': must be a whole"),
  ],
)
def test_settings_that_nothing_reads_are_refused(how, words):
  with pytest.raises(FieldError, match=words):
    How(**how)


def test_a_killed_export_leaves_nothing_that_looks_whole(
  source, tmp_path, capsys
):
  out = tmp_path / "out"
  with pytest.raises(SystemExit), folders.filled(out) as path:
    (path / "model.safetensors").write_text("half of it")
    raise SystemExit  # as a signal: nothing is tidied up
  assert not out.exists() and (tmp_path / "out.partial").is_dir()
  folders.write(untrained(source), out, How(), Facts())
  assert "which an export left that was interrupted" in capsys.readouterr().out
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
  assert not list(out.glob(".*"))
  with pytest.raises(UserError, match="out: there is something already"):
    folders.write(untrained(source), out, How(), Facts())


def test_what_is_not_ours_is_not_removed(source, tmp_path):
  mine = tmp_path / "out.partial"
  mine.mkdir()
  (mine / "thesis.txt").touch()
  with pytest.raises(UserError, match="is in the way"):
    folders.write(untrained(source), tmp_path / "out", How(), Facts())
  assert (mine / "thesis.txt").exists()


def test_a_failed_export_cleans_up(source, tmp_path):
  leaving = untrained(source)
  params = dict(leaving.variables["params"])
  params["final_norm"] = {"scale": np.full(16, 1e5, np.float32)}
  large = dataclasses.replace(leaving, variables={"params": params})
  with pytest.raises(UserError, match="model.norm.weight holds 100000, which"):
    folders.write(large, tmp_path / "out", How(dtype="float16"), Facts())
  assert list(tmp_path.iterdir()) == []
