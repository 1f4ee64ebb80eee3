"""Checkpoints survive kills, full disks and flipped bits."""

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
import pytest
from etils import epath

from rlhf_jax import integrity
from rlhf_jax.runs import checkpoint
from tests.tiny_states import (
  abstract,
  bits,
  files_of,
  flip_bit,
  fresh,
  one_update,
)


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


def test_a_manifest_of_another_hand_is_damaged(tmp_path):
  """Whole JSON, the right files, and one number that was not written."""
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": jnp.zeros(3)}, {"kl_coefficient": 0.1})
  folder = epath.Path(tmp_path / "1")
  assert integrity.read_manifest(folder)["meta"] == {"kl_coefficient": 0.1}
  path = tmp_path / "1" / integrity.MANIFEST
  path.write_text(path.read_text().replace("0.1", "0.2"))
  assert json.loads(path.read_text())["meta"] == {"kl_coefficient": 0.2}
  assert integrity.read_manifest(folder) is None
  assert integrity.damage(folder) == "manifest.json is damaged"


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
  import conftest
  from rlhf_jax.runs import checkpoint
  from tests import tiny_states

  state = tiny_states.fresh()
  kl_coefficient = 0.15
  with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
    for step in (1, 2, 3):
      state = tiny_states.one_update(state)
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
