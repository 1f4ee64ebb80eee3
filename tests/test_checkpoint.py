"""Checkpoints come back bit for bit, and into nothing but their own model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import integrity
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.runs import checkpoint
from tests.tiny_states import (
  OUT,
  WIDTH,
  abstract,
  bits,
  fresh,
  one_update,
)


def test_round_trip_is_exact(tmp_path):
  state = one_update(fresh())
  meta = {"kl_coefficient": 0.1 + 0.2, "position": {"epoch": 1}, "none": None}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(7, state, meta)
    assert checkpoints.latest() == 7
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    restored, found = checkpoints.restore(abstract(state))
    assert checkpoints.restored_step == 7
  assert found == meta
  assert bits(restored) == bits(state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert [x.dtype for x in jax.tree.leaves(restored)] == [
    x.dtype for x in jax.tree.leaves(state)
  ]


def test_asynchronous_saves_count_once_finished(tmp_path):
  states = {1: fresh(1), 2: fresh(2)}
  with checkpoint.Checkpoints(tmp_path, is_asynchronous=True) as checkpoints:
    for step, state in states.items():
      checkpoints.save(step, state, {"seed": step})
      assert step not in checkpoints.steps()
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    for step, state in states.items():
      restored, meta = checkpoints.restore(abstract(state), step=step)
      assert bits(restored) == bits(state) and meta == {"seed": step}


def test_buffers_given_away_during_an_asynchronous_save_are_kept(tmp_path):
  """The next update donates the state and overwrites it at once."""
  overwrite = jax.jit(lambda x: jnp.flip(x) * 0.0 - 1.0, donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path, is_asynchronous=True) as checkpoints:
    for step in (1, 2, 3):
      x = jnp.full((1500, 1000), float(step))
      checkpoints.save(step, {"x": x}, {})
      for _ in range(4):
        x = overwrite(x)
      jax.block_until_ready(x)
    checkpoints.wait()
    restored, _ = checkpoints.restore({"x": jnp.zeros((1500, 1000))}, step=3)
  np.testing.assert_array_equal(restored["x"], np.full((1500, 1000), 3.0))


def test_keeps_newest_and_final_steps(tmp_path):
  def is_final(step):
    return integrity.read_manifest(tmp_path / str(step))["final"]

  state = fresh()
  with checkpoint.Checkpoints(tmp_path, keep=2, every_steps=3) as checkpoints:
    assert [s for s in range(1, 8) if checkpoints.due(s)] == [3, 6]
    checkpoints.save(1, state, {})
    checkpoints.save(2, state, {}, is_final=True)
    assert is_final(2)
    for step in (3, 4, 5):
      checkpoints.save(step, state, {})
    assert checkpoints.steps() == [2, 4, 5]
    assert not is_final(5)
    checkpoints.save(5, state, {}, is_final=True)  # marks it, writes no arrays
    assert is_final(5)
    checkpoints.restore(abstract(state))
    assert checkpoints.restored_step == 5


@pytest.mark.parametrize("best, kept", [("max", 2), ("min", 4)])
def test_the_best_step_is_kept_besides_the_newest(tmp_path, best, kept):
  scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.1, 5: 0.7, 6: 0.8}
  with checkpoint.Checkpoints(str(tmp_path), keep=1, best=best) as saved:
    assert saved.best() is None
    for step, score in scores.items():
      saved.save(step, fresh(step), {}, score=score)
  with checkpoint.Checkpoints(str(tmp_path), keep=1, best=best) as saved:
    assert saved.steps() == [kept, 6]
    assert saved.best() == kept
    saved.save(7, fresh(7), {}, score=0.9)  # equals: the newest
    assert saved.best() == (7 if best == "max" else kept)


def test_restores_eight_devices_to_one_with_identical_bits(tmp_path):
  mesh = mesh_lib.make_mesh(mesh_lib.Config(data=2, fsdp=4))
  value = jax.random.normal(jax.random.key(0), (8, 12))
  spread = NamedSharding(mesh, PartitionSpec("fsdp", "data"))
  state = {"w": jax.device_put(value, spread), "key": jax.random.key(5)}
  alone = jax.sharding.SingleDeviceSharding(jax.devices()[3])
  halves = NamedSharding(mesh, PartitionSpec("data"))
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    for sharding in (alone, halves, spread):
      template = {
        "w": jax.ShapeDtypeStruct((8, 12), jnp.float32, sharding=sharding),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
      }
      restored, _ = checkpoints.restore(template)
      assert restored["w"].sharding.is_equivalent_to(sharding, 2)
      assert bits(restored) == bits(state)


def test_other_model_is_refused_with_both_shapes(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, fresh(), {})
    with pytest.raises(checkpoint.CheckpointError) as caught:
      checkpoints.restore(abstract(fresh(width=8)))
    message = str(caught.value)
    assert "params/policy/proj/kernel" in message
    assert "(6, 3) float32" in message and "(8, 3) float32" in message
    assert caught.value.__cause__ is None
    wrong = abstract(fresh()) | {"extra": jax.ShapeDtypeStruct((2,), jnp.int8)}
    with pytest.raises(checkpoint.CheckpointError, match=r"extra: .*none, thi"):
      checkpoints.restore(wrong)
    with pytest.raises(checkpoint.CheckpointError, match="key: .*key<fry>, th"):
      checkpoints.restore({"train": abstract(fresh())["train"]})


def test_check_meta_names_field_and_both_values():
  meta = {"tokenizer_fingerprint": "aa", "seed": 0}
  integrity.check_meta(meta, {"tokenizer_fingerprint": "aa", "seed": 0})
  with pytest.raises(checkpoint.CheckpointError) as caught:
    integrity.check_meta(meta, {"tokenizer_fingerprint": "bb"})
  for part in ("tokenizer_fingerprint", "'aa'", "'bb'", "Resume with the tok"):
    assert part in str(caught.value)
  of_before = "model_fingerprint: the checkpoint does not say.*with that vers"
  with pytest.raises(checkpoint.CheckpointError, match=of_before):
    integrity.check_meta(meta, {"model_fingerprint": "cc"})
  integrity.check_meta(meta, {"reward_fingerprint": ""})
  integrity.check_meta(meta, {"reward_fn_fingerprint": "dd"})  # of before


def test_restore_params_casts_and_leaves_the_directory_alone(tmp_path, caplog):
  state = one_update(fresh())
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state, {})
  running = tmp_path / "4.orbax-checkpoint-tmp"  # another run's save
  running.mkdir()
  template = {"kernel": jax.ShapeDtypeStruct((WIDTH, OUT), jnp.bfloat16)}
  prefix = "train/params/policy/proj"
  part = checkpoint.restore_params(tmp_path, template, prefix=prefix)
  assert not caplog.records  # Orbax warns of each option that is for writing
  kernel = state["train"].params["policy"]["proj"]["kernel"]
  assert part["kernel"].dtype == jnp.bfloat16
  assert bits(part) == bits({"kernel": kernel.astype(jnp.bfloat16)})
  assert running.exists()
  wrong = {"kernel": jax.ShapeDtypeStruct((WIDTH, OUT + 1), jnp.float32)}
  with pytest.raises(checkpoint.CheckpointError, match=r"\(6, 3\).*\(6, 4\)"):
    checkpoint.restore_params(tmp_path, wrong, prefix=prefix)
  with pytest.raises(checkpoint.CheckpointError, match="nowhere/kernel"):
    checkpoint.restore_params(tmp_path, template, prefix="nowhere")
  with pytest.raises(checkpoint.CheckpointError, match="does not exist"):
    checkpoint.restore_params(tmp_path / "typo", template, prefix=prefix)


def test_trap_30_fingerprint_sees_every_bit_and_no_mesh():
  params = {
    "kernel": jax.random.normal(jax.random.key(0), (8, 5)),
    "int8": jnp.arange(-6, 6, dtype=jnp.int8).reshape(3, 4),
    "half": jnp.ones((7,), jnp.bfloat16),
  }
  original = integrity.fingerprint_params(params)
  mesh = mesh_lib.make_mesh(mesh_lib.Config())
  spread = NamedSharding(mesh, PartitionSpec("data"))
  assert original == integrity.fingerprint_params(
    params | {"kernel": jax.device_put(params["kernel"], spread)}
  )
  kernel = np.array(params["kernel"])
  seen = {original}
  for row in range(8):
    for bit in (0, 31):
      changed = kernel.copy()
      changed.view(np.uint32)[row, row % 5] ^= np.uint32(1 << bit)
      seen.add(integrity.fingerprint_params(params | {"kernel": changed}))
  assert len(seen) == 17
  swapped = params | {"kernel": kernel[::-1]}
  renamed = {"other": params["kernel"]} | params
  reshaped = params | {"kernel": kernel.reshape(5, 8)}
  minus_zero = params | {"half": params["half"] * -1}
  for other in (swapped, renamed, reshaped, minus_zero):
    assert integrity.fingerprint_params(other) != original


def test_fingerprint_of_settings_ignores_order_only():
  one = integrity.fingerprint({"a": 1, "b": [1, 2]})
  assert one == integrity.fingerprint({"b": [1, 2], "a": 1})
  assert one != integrity.fingerprint({"b": [2, 1], "a": 1})


def test_refuses_what_would_not_come_back(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    for meta in ({"kl": float("nan")}, {"x": (1, 2)}, {"x": {1: 2}}):
      with pytest.raises(ValueError, match="does not survive JSON"):
        checkpoints.save(1, fresh(), meta)
    with pytest.raises(TypeError, match="train is a float"):
      checkpoints.save(1, {"train": 1.0}, {})
    assert checkpoints.latest() is None
    checkpoints.save(1, fresh(), {})
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(checkpoint.CheckpointError, match="another run"):
      checkpoints.save(1, fresh(), {})
  for arguments in ({"keep": 0}, {"every_steps": 0}):
    with pytest.raises(ValueError, match=">= 1"):
      checkpoint.Checkpoints(tmp_path, **arguments)


def test_manifest_lists_arrays_and_meta_readably(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": jnp.zeros((2, 3))}, {"tokenizer": "abc"})
  manifest = json.loads((tmp_path / "1" / integrity.MANIFEST).read_text())
  assert manifest["arrays"] == {"w": [[2, 3], "float32"]}
  assert manifest["meta"] == {"tokenizer": "abc"}
