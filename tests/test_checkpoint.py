"""Checkpoints survive kills, full disks, flipped bits and the wrong model."""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import checkpoint, integrity, optimizer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.types import TrainState

WIDTH, OUT = 6, 3
OPTIMIZER = optimizer.make_labelled(
  {
    "policy": optimizer.Config(learning_rate=0.1, clip_norm=None),
    "value": optimizer.Config(learning_rate=0.3),
  }
)


def fresh(seed: int = 0, width: int = WIDTH) -> dict:
  """Returns {"train": TrainState, "key": typed key}."""
  draw = jax.random.normal(jax.random.key(seed), (width, OUT))
  params = {
    "policy": {"proj": {"kernel": draw, "bias": jnp.arange(3.0)}},
    "value": {"output": {"kernel": draw[:, :1].astype(jnp.bfloat16)}},
  }
  train = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=OPTIMIZER.init(params),
    skipped=jnp.int32(0),
  )
  return {"train": train, "key": jax.random.key(seed + 1)}


@jax.jit
def one_update(state: dict) -> dict:
  """Returns the state after a step on data drawn from its key."""
  train, (key, data_key) = state["train"], jax.random.split(state["key"])
  x = jax.random.normal(data_key, (5, WIDTH))

  def loss(params):
    y = x @ params["policy"]["proj"]["kernel"]
    y = y + params["policy"]["proj"]["bias"][None]
    v = x @ params["value"]["output"]["kernel"].astype(jnp.float32)
    return jnp.mean(jnp.square(y)) + jnp.mean(jnp.square(v - 1.0))

  grads = jax.grad(loss)(train.params)
  updates, opt_state = OPTIMIZER.update(grads, train.opt_state, train.params)
  train = train.replace(
    step=train.step + 1,
    params=optax.apply_updates(train.params, updates),
    opt_state=opt_state,
  )
  return {"train": train, "key": key}


def bits(tree) -> dict[str, bytes]:
  leaves = integrity.named_leaves(tree)
  for path, x in leaves.items():
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      leaves[path] = jax.random.key_data(x)
  return {path: np.asarray(x).tobytes() for path, x in leaves.items()}


def abstract(tree):
  return jax.eval_shape(lambda: tree)


def files_of(step_directory: Path) -> list[Path]:
  return [
    path
    for path in sorted(step_directory.rglob("*"))
    if path.is_file() and path.name != integrity.MANIFEST
  ]


def flip_bit(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(bytes(content))


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
  with checkpoint.Checkpoints(tmp_path, asynchronous=True) as checkpoints:
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
  with checkpoint.Checkpoints(tmp_path, asynchronous=True) as checkpoints:
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
  state = fresh()
  with checkpoint.Checkpoints(tmp_path, keep=2, every_steps=3) as checkpoints:
    assert [s for s in range(1, 8) if checkpoints.due(s)] == [3, 6]
    checkpoints.save(1, state, {})
    checkpoints.save(2, state, {}, final=True)
    assert checkpoints.is_final()
    for step in (3, 4, 5):
      checkpoints.save(step, state, {})
    assert checkpoints.steps() == [2, 4, 5]
    assert not checkpoints.is_final()
    checkpoints.save(5, state, {}, final=True)  # marks it, writes no arrays
    assert checkpoints.is_final()
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


def test_damaged_step_is_named_and_passed_over(tmp_path):
  state = fresh()
  with checkpoint.Checkpoints(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state, {"step": step})
  data = max(files_of(tmp_path / "3"), key=lambda p: p.stat().st_size)
  flip_bit(data)
  victim = files_of(tmp_path / "2")[-1]
  victim.unlink()
  with checkpoint.Checkpoints(tmp_path, keep=3) as checkpoints:
    with pytest.warns(UserWarning) as caught:
      _, meta = checkpoints.restore(abstract(state))
    assert meta == {"step": 1} and checkpoints.restored_step == 1
    messages = [str(w.message) for w in caught]
    assert any(data.name in m and "step 3" in m for m in messages)
    assert any(victim.name in m and "missing" in m for m in messages)
    checkpoints.save(2, state, {"step": "2 again"})  # replaces the damaged one
    assert checkpoints.steps() == [1, 2]  # step 3 would have misled a resume
    assert checkpoints.restore(abstract(state))[1] == {"step": "2 again"}


def test_own_step_that_was_damaged_since_is_written_again(tmp_path):
  state = fresh()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {"step": 1})
    checkpoints.save(2, state, {"step": 2})
    flip_bit(files_of(tmp_path / "2")[0])
    with pytest.warns(UserWarning, match="step 2"):
      checkpoints.restore(abstract(state))
    checkpoints.save(2, state, {"step": "2 again"})
    assert checkpoints.restore(abstract(state))[1] == {"step": "2 again"}


def test_every_flipped_file_is_noticed(tmp_path):
  state = fresh()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    manifest = tmp_path / "1" / integrity.MANIFEST
    tried = 0
    for path in [manifest, *files_of(tmp_path / "1")]:
      content = path.read_bytes()
      if not content:
        continue
      flip_bit(path)
      assert integrity.damage(tmp_path / "1") is not None, path
      path.write_bytes(content)
      tried += 1
    assert tried >= 5
    assert integrity.damage(tmp_path / "1") is None


def test_no_good_step_is_an_error_with_a_remedy(tmp_path):
  state = fresh()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint"):
      checkpoints.restore(abstract(state))
    checkpoints.save(4, state, {})
    with pytest.raises(checkpoint.CheckpointError, match=r"no step 9.*\[4\]"):
      checkpoints.restore(abstract(state), step=9)
    (tmp_path / "4" / integrity.MANIFEST).write_text("{")
    with pytest.warns(UserWarning, match="manifest.json is damaged"):
      with pytest.raises(checkpoint.CheckpointError, match="empty --workdir"):
        checkpoints.restore(abstract(state))


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
  checkpoint.check_meta(meta, {"tokenizer_fingerprint": "aa", "seed": 0})
  with pytest.raises(checkpoint.CheckpointError) as caught:
    checkpoint.check_meta(meta, {"tokenizer_fingerprint": "bb"})
  for part in ("tokenizer_fingerprint", "'aa'", "'bb'", "Resume with the tok"):
    assert part in str(caught.value)
  with pytest.raises(checkpoint.CheckpointError, match="model_fingerprint"):
    checkpoint.check_meta(meta, {"model_fingerprint": "cc"})


def test_restore_params_casts_and_leaves_the_directory_alone(tmp_path):
  state = one_update(fresh())
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state, {})
  running = tmp_path / "4.orbax-checkpoint-tmp"  # another run's save
  running.mkdir()
  template = {"kernel": jax.ShapeDtypeStruct((WIDTH, OUT), jnp.bfloat16)}
  prefix = "train/params/policy/proj"
  part = checkpoint.restore_params(tmp_path, template, prefix=prefix)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_leaves_the_last_step(tmp_path):
  small = fresh()  # the ballast is random, so that it does not compress
  big = small | {"ballast": jax.random.normal(jax.random.key(0), (300, 300))}
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, small, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
      with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoints.save(2, big, {})
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left" in str(caught.value)
    assert "last good checkpoint: step 1" in str(caught.value)
    assert checkpoints.steps() == [1]
    assert bits(checkpoints.restore(abstract(small))[0]) == bits(small)
    checkpoints.save(2, big, {})  # space was freed
    assert os.listdir(tmp_path) == ["2"]  # no temporary files are left either
  del caught
  gc.collect()  # Orbax's abandoned tasks complain here, not in another test


def test_full_disk_before_any_checkpoint_says_so(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(integrity, "_write_durably", full)
      with pytest.raises(checkpoint.CheckpointError, match="none was saved"):
        checkpoints.save(1, fresh(), {})


def test_full_disk_while_the_manifest_is_written(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, fresh(), {})
    with monkeypatch.context() as patch:
      patch.setattr(integrity, "_write_durably", full)
      with pytest.raises(
        checkpoint.CheckpointError, match="checkpoint: step 1"
      ):
        checkpoints.save(2, fresh(), {})
    assert os.listdir(tmp_path) == ["1"]


def test_killed_between_arrays_and_manifest(tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  state = fresh()
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, state, {"step": 1})
    with monkeypatch.context() as patch:
      patch.setattr(integrity, "write_manifest", kill)
      with pytest.raises(Killed):
        checkpoints.save(2, state, {"step": 2})
  assert sorted(os.listdir(tmp_path)) == ["1", "2"]
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    assert checkpoints.latest() == 1
    with pytest.warns(UserWarning, match="step 2 .* save was interrupted"):
      assert checkpoints.restore(abstract(state))[1] == {"step": 1}
    checkpoints.save(2, state, {"step": "2 again"})
    assert checkpoints.restore(abstract(state))[1] == {"step": "2 again"}


CHILD = """
  import os, signal, sys, threading, time
  sys.path[:0] = [sys.argv[2], sys.argv[3]]
  import conftest, test_checkpoint
  from rlhf_jax import checkpoint

  state = test_checkpoint.fresh()
  kl_coefficient = 0.15
  with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
    for step in (1, 2, 3):
      state = test_checkpoint.one_update(state)
      kl_coefficient *= 1.1
      meta = {"kl_coefficient": kl_coefficient}
      if step == 3:  # die as soon as temporary files are seen
        def watch():
          while not any("tmp" in name for name in os.listdir(sys.argv[1])):
            pass
          os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=watch).start()
      checkpoints.save(step, state, meta)
"""


def test_trap_23_kill_in_a_save_and_resume_is_bit_exact(tmp_path):
  root = Path(__file__).parent
  child = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(CHILD), tmp_path, root.parent, root],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert child.returncode == -signal.SIGKILL, child.stderr
  assert not (tmp_path / "3" / integrity.MANIFEST).exists()
  with warnings.catch_warnings():  # step 3 may or may not be half there
    warnings.simplefilter("ignore")
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
      state, meta = checkpoints.restore(abstract(fresh()))
      assert checkpoints.restored_step == 2
  straight, kl_coefficient = fresh(), 0.15
  for _ in range(4):
    straight = one_update(straight)
    kl_coefficient *= 1.1
  for _ in range(2):
    state = one_update(state)
    meta["kl_coefficient"] *= 1.1
  assert bits(state) == bits(straight)
  assert meta == {"kl_coefficient": kl_coefficient}


def test_trap_30_fingerprint_sees_every_bit_and_no_mesh():
  params = {
    "kernel": jax.random.normal(jax.random.key(0), (8, 5)),
    "int8": jnp.arange(-6, 6, dtype=jnp.int8).reshape(3, 4),
    "half": jnp.ones((7,), jnp.bfloat16),
  }
  original = checkpoint.fingerprint_params(params)
  mesh = mesh_lib.make_mesh(mesh_lib.Config())
  spread = NamedSharding(mesh, PartitionSpec("data"))
  assert original == checkpoint.fingerprint_params(
    params | {"kernel": jax.device_put(params["kernel"], spread)}
  )
  kernel = np.array(params["kernel"])
  seen = {original}
  for row in range(8):
    for bit in (0, 31):
      changed = kernel.copy()
      changed.view(np.uint32)[row, row % 5] ^= np.uint32(1 << bit)
      seen.add(checkpoint.fingerprint_params(params | {"kernel": changed}))
  assert len(seen) == 17
  swapped = params | {"kernel": kernel[::-1]}
  renamed = {"other": params["kernel"]} | params
  reshaped = params | {"kernel": kernel.reshape(5, 8)}
  minus_zero = params | {"half": params["half"] * -1}
  for other in (swapped, renamed, reshaped, minus_zero):
    assert checkpoint.fingerprint_params(other) != original


def test_fingerprint_of_settings_ignores_order_only():
  one = checkpoint.fingerprint({"a": 1, "b": [1, 2]})
  assert one == checkpoint.fingerprint({"b": [1, 2], "a": 1})
  assert one != checkpoint.fingerprint({"b": [2, 1], "a": 1})


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
