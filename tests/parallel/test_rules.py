"""Every array of every tree finds its rule, and the right one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax import integrity, optimizer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.types import TrainState

V, D, F, HEADS, KV_HEADS, DIM, R, K = 40, 16, 24, 4, 2, 8, 6, 3
N_LAYERS = 5
SHAPES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2)]

# path below a layer -> (shape, spec), written by hand
LAYER = {
  "attention_norm/scale": ((D,), P(None)),
  "attention_norm/bias": ((D,), P(None)),
  "attention/q_proj/kernel": ((D, HEADS * DIM), P("fsdp", "tensor")),
  "attention/k_proj/kernel": ((D, KV_HEADS * DIM), P("fsdp", "tensor")),
  "attention/v_proj/kernel": ((D, KV_HEADS * DIM), P("fsdp", "tensor")),
  "attention/o_proj/kernel": ((HEADS * DIM, D), P("tensor", "fsdp")),
  "attention/q_proj/bias": ((HEADS * DIM,), P("tensor")),
  "attention/k_proj/bias": ((KV_HEADS * DIM,), P("tensor")),
  "attention/v_proj/bias": ((KV_HEADS * DIM,), P("tensor")),
  "mlp_norm/scale": ((D,), P(None)),
  "mlp/gate_proj/kernel": ((D, F), P("fsdp", "tensor")),
  "mlp/up_proj/kernel": ((D, F), P("fsdp", "tensor")),
  "mlp/down_proj/kernel": ((F, D), P("tensor", "fsdp")),
  "attention/q_proj/lora_a": ((D, R), P("fsdp", None)),
  "attention/q_proj/lora_b": ((R, HEADS * DIM), P(None, "tensor")),
  "attention/v_proj/lora_a": ((D, R), P("fsdp", None)),
  "attention/v_proj/lora_b": ((R, KV_HEADS * DIM), P(None, "tensor")),
  "attention/o_proj/lora_a": ((HEADS * DIM, R), P("tensor", None)),
  "attention/o_proj/lora_b": ((R, D), P(None, "fsdp")),
  "mlp/up_proj/lora_a": ((D, R), P("fsdp", None)),
  "mlp/up_proj/lora_b": ((R, F), P(None, "tensor")),
  "mlp/down_proj/lora_a": ((F, R), P("tensor", None)),
  "mlp/down_proj/lora_b": ((R, D), P(None, "fsdp")),
}
FEW_BITS = {
  "attention/k_proj/kernel/values": ((D, KV_HEADS * DIM), P("fsdp", "tensor")),
  "attention/k_proj/kernel/scales": ((8, KV_HEADS * DIM), P("fsdp", "tensor")),
  "mlp/gate_proj/kernel/values": ((D, F), P("fsdp", "tensor")),
  "mlp/gate_proj/kernel/offsets": ((8, F), P("fsdp", "tensor")),
  "mlp/down_proj/kernel/values": ((F, D), P("tensor", "fsdp")),
  "mlp/down_proj/kernel/scales": ((8, D), P("tensor", "fsdp")),
  "mlp/up_proj/kernel/factors/0/lora_a": ((D, R), P("fsdp", None)),
  "mlp/down_proj/kernel/factors/11/lora_b": ((R, D), P(None, "fsdp")),
}
FEW_BITS_ABOVE = {
  "embedding/embedding/values": ((V, D), P("tensor", "fsdp")),
  "embedding/embedding/scales": ((V, 8), P("tensor", "fsdp")),
  "lm_head/kernel/values": ((D, V), P("fsdp", "tensor")),
  "lm_head/kernel/offsets": ((8, V), P("fsdp", "tensor")),
}
BATCH = ("data", "fsdp")
CACHE = {
  "key": ((8, KV_HEADS, 7, DIM), P(BATCH, "tensor", None, None)),
  "value": ((8, KV_HEADS, 7, DIM), P(BATCH, "tensor", None, None)),
}
OTHERS = {
  "embedding/embedding": ((V, D), P("tensor", "fsdp")),
  "position_embedding/embedding": ((9, D), P(None, "fsdp")),
  "final_norm/scale": ((D,), P(None)),
  "lm_head/kernel": ((D, V), P("fsdp", "tensor")),
  "reward_head/output/kernel": ((2 * D, K), P(None, None)),
  "reward_head/output/bias": ((K,), P(None)),
  "value_head/hidden/kernel": ((D, 7), P(None, None)),
  "value_head/hidden/bias": ((7,), P(None)),
  "value_head/residual/kernel": ((7, 1), P(None, None)),
}


def table(*, is_scanned: bool) -> dict[str, tuple]:
  """Returns {path: (shape, spec)} of a whole tree."""
  entries = dict(OTHERS)
  for name, (shape, spec) in (LAYER | CACHE).items():
    if is_scanned:
      entries[f"layers/{name}"] = ((N_LAYERS, *shape), P(None, *spec))
    else:
      for i in (0, 11):
        entries[f"layer_{i}/{name}"] = (shape, spec)
  return entries


def tree_of(entries: dict[str, tuple]) -> dict:
  """Returns nested dicts of abstract arrays."""
  tree: dict = {}
  for path, (shape, _) in entries.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return tree


def spec_for(path, shape):
  """The table's entry: on a mesh of one device every dimension divides."""
  mesh = mesh_lib.make_mesh(mesh_lib.Config(), jax.devices()[:1])
  leaf = jax.ShapeDtypeStruct(shape, "float32")
  return rules.sharding_tree(mesh, {path: leaf})[path].spec


def parameters() -> dict[str, tuple]:
  return {
    path: entry
    for path, entry in table(is_scanned=False).items()
    if path.rsplit("/")[-1] not in CACHE
  }


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("prefix", ["", "params/policy/", "opt_state/1/0/mu/"])
def test_every_path_has_the_spec_written_by_hand(is_scanned, prefix):
  for path, (shape, spec) in table(is_scanned=is_scanned).items():
    assert spec_for(prefix + path, shape) == spec, path


def test_matrices_of_few_bits_lie_as_wide_ones():
  for path, (shape, spec) in (FEW_BITS | FEW_BITS_ABOVE).items():
    assert spec_for(f"params/{path}", shape) == spec, path
  for path, (shape, spec) in FEW_BITS.items():
    found = spec_for(f"layers/{path}", (N_LAYERS, *shape))
    assert found == P(None, *spec), path


@pytest.mark.parametrize("shape", SHAPES)
def test_sharding_tree_on_meshes(shape):
  devices = jax.devices()[: int(np.prod(shape))]
  mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape), devices)
  entries = table(is_scanned=False)
  shardings = rules.sharding_tree(mesh, tree_of(entries))
  named = integrity.named_leaves(shardings)
  assert named.keys() == entries.keys()
  for path, (array_shape, spec) in entries.items():
    assert named[path].spec == spec, path
    assert named[path].mesh == mesh
    named[path].shard_shape(array_shape)  # raises where it does not divide


def test_moments_follow_their_parameters_and_scalars_are_whole():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(2, 2, 2))
  params = {
    "policy": tree_of(parameters()),
    "value": tree_of({"value_head/output/kernel": ((D, 1), None)}),
  }
  config = optimizer.Config(learning_rate=1e-3, weight_decay=0.1)
  joint = optimizer.make_labelled({"policy": config, "value": config})
  state = jax.eval_shape(
    lambda p: TrainState(
      step=jnp.int32(0),
      params=p,
      opt_state=joint.init(p),
      skipped=jnp.int32(0),
    ),
    params,
  )
  named = integrity.named_leaves(rules.sharding_tree(mesh, state))
  n_moments = 0
  for path, sharding in named.items():
    if "/mu/" in path or "/nu/" in path:
      tail = path.split("/mu/")[-1].split("/nu/")[-1]
      assert sharding.spec == named[f"params/{tail}"].spec
      n_moments += 1
    elif not path.startswith("params/"):
      assert sharding.spec == P()
  assert n_moments == 2 * (len(parameters()) + 1)
  assert named["params/policy/layer_0/mlp/up_proj/kernel"].spec == P(
    "fsdp", "tensor"
  )


def test_cache_as_a_list_of_layers_or_stacked():
  assert spec_for("key", (5, 4, 2, 6, 8)) == P(None, *CACHE["key"][1])
  assert spec_for("0/key", (4, 2, 6, 8)) == CACHE["key"][1]
  assert spec_for("cache/12/value", (4, 2, 6, 8)) == CACHE["value"][1]


def test_unmatched_paths_are_named():
  with pytest.raises(ValueError, match="layer_0/moe/kernel.*parallel/rules.py"):
    spec_for("layer_0/moe/kernel", (4, 5))
  for path in ("xattention/q_proj/kernel", "q_proj/kernel", "head/kernel"):
    with pytest.raises(ValueError, match="no sharding rule"):
      spec_for(path, (4, 5))
  with pytest.raises(ValueError, match=r"\(5,\).*needs 2 dimensions"):
    spec_for("mlp/up_proj/kernel", (5,))
  assert spec_for("anything/count", ()) == P()


def test_dimensions_that_do_not_divide():
  mesh = mesh_lib.make_mesh(mesh_lib.Config(2, 2, 2))

  def shapes(**entries):
    return tree_of(
      {k.replace("__", "/"): (v, None) for k, v in entries.items()}
    )

  with pytest.raises(ValueError) as caught:
    rules.sharding_tree(mesh, shapes(mlp__up_proj__kernel=(16, 25)))
  for part in (
    "mlp/up_proj/kernel",
    "dimension 1",
    "25 / 2 = 12.5",
    "tensor=2",
  ):
    assert part in str(caught.value)
  with pytest.raises(ValueError, match="data=2 x fsdp=2 .6 / 4 = 1.5"):
    rules.sharding_tree(mesh, shapes(layer_0__key=(6, 2, 9, 8)))
  with pytest.warns(UserWarning, match="embedding/embedding.*replicated"):
    tree = rules.sharding_tree(mesh, shapes(embedding__embedding=(41, 16)))
  assert tree["embedding"]["embedding"].spec == P(None, "fsdp")
  with pytest.warns(UserWarning, match="dimension 1 of size 1 "):
    tree = rules.sharding_tree(mesh, shapes(layer_0__key=(8, 1, 9, 8)))
  assert tree["layer_0"]["key"].spec == P(BATCH, None, None, None)
  # scales of few blocks are whole, and nobody is told
  tree = rules.sharding_tree(mesh, shapes(mlp__up_proj__kernel__scales=(3, 8)))
  assert tree["mlp"]["up_proj"]["kernel"]["scales"].spec == P(None, "tensor")


def test_trap_29_sharded_init_equals_unsharded():
  abstract = tree_of(
    {
      "embedding/embedding": ((V, D), None),
      "layer_0/mlp/up_proj/kernel": ((D, F), None),
      "layer_0/attention/o_proj/lora_a": ((HEADS * DIM, R), None),
    }
  )

  def init(key):
    leaves, structure = jax.tree.flatten(abstract)
    keys = jax.random.split(key, len(leaves))
    drawn = [
      jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)

  expected = jax.jit(init)(jax.random.key(3))
  for shape in ((1, 4, 2), (2, 2, 2)):
    mesh = mesh_lib.make_mesh(mesh_lib.Config(*shape))
    found = rules.init_sharded(mesh, init, jax.random.key(3))
    kernel = found["layer_0"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (D // shape[1], F // 2)
    for path, leaf in integrity.named_leaves(found).items():
      # The random bits are equal; older XLA rounds a last bit by shard shape.
      wanted = integrity.named_leaves(expected)[path]
      np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", ["mlp/up_proj/kernel", "embedding/embedding"])
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_gathered_weights_have_the_value_and_the_gradient_of_split_ones(
  path, shape
):
  data, fsdp, tensor = shape
  mesh = mesh_lib.make_mesh(
    mesh_lib.Config(data=data, fsdp=fsdp, tensor=tensor)
  )
  weight = jax.random.normal(jax.random.key(0), (16, 24))
  x = jax.random.normal(jax.random.key(1), (8, 16))

  def loss(weight):
    used = rules.gather(path, weight) if mesh_lib.is_split() else weight
    return jnp.sum(jnp.tanh(x @ used))

  program = jax.jit(jax.value_and_grad(loss))
  value, gradient = program(weight)
  split = rules.sharding_tree(mesh, {path: weight})[path]
  with mesh_lib.current(mesh):
    found, owned = program(jax.device_put(weight, split))
  np.testing.assert_allclose(found, value, rtol=1e-6)
  np.testing.assert_allclose(owned, gradient, rtol=1e-5, atol=1e-6)
  assert owned.sharding.spec == split.spec
