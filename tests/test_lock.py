"""Trap 44: one run at a time in a folder, and nothing to clean up after one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf_jax.runs import lock

HOLD = (
  "import sys, time; from pathlib import Path; from rlhf_jax.runs import lock\n"
  "with lock.held(Path(sys.argv[1])):\n"
  "  print('held', flush=True); time.sleep(600)\n"
)


def left(folder, **changes):
  """Writes the file of another run, which the kernel does not hold."""
  owner = lock._me() | {"pid": 2**22 + 1, "born": "1"} | changes
  (folder / lock.FILE).write_text(json.dumps(owner))
  return folder / lock.FILE


def test_trap_44_a_second_run_is_refused_by_name_and_writes_nothing(tmp_path):
  with lock.held(tmp_path):
    before = (tmp_path / lock.FILE).read_text()
    for _ in range(3):
      with pytest.raises(lock.HeldError) as caught, lock.held(tmp_path):
        pytest.fail("two runs")
    said = str(caught.value)
    assert f"process {os.getpid()} of " in said and "since 0 min" in said
    assert said.startswith("--workdir=") and "choose another folder" in said
    assert (tmp_path / lock.FILE).read_text() == before
    assert os.listdir(tmp_path) == [lock.FILE]
    (tmp_path / "other").mkdir()
    with lock.held(tmp_path / "other"):
      pass
  assert not (tmp_path / lock.FILE).exists()
  with lock.held(tmp_path):
    pass


def test_an_error_inside_ends_it(tmp_path):
  with pytest.raises(KeyError), lock.held(tmp_path):
    raise KeyError
  assert not (tmp_path / lock.FILE).exists()


def test_a_killed_run_is_taken_over_with_a_word(tmp_path, capsys):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"held\n"
  with pytest.raises(lock.HeldError, match=f"process {process.pid} of"):
    with lock.held(tmp_path):
      pass
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  with lock.held(tmp_path):
    assert f"process {process.pid} of" in capsys.readouterr().out
    assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_file_that_names_nobody_is_nobodys(tmp_path, content):
  (tmp_path / lock.FILE).write_text(content)
  with lock.held(tmp_path):
    pass


def test_without_locks_of_the_kernel_the_process_decides(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  me = lock._me()
  for gone in (
    {},
    {"pid": me["pid"], "born": "1"},  # its number is another's now
    {"boot": "before", **{k: me[k] for k in ("pid", "born")}},
  ):
    left(tmp_path, **gone)
    with lock.held(tmp_path):
      pass
  left(tmp_path, pid=me["pid"], born=me["born"])
  with pytest.raises(lock.HeldError), lock.held(tmp_path):
    pass


def test_another_machine_counts_while_it_touches_the_file(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(lock, "QUIET_SECONDS", 0.4)
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
  path, done = left(tmp_path, host="elsewhere", boot=""), threading.Event()

  def touch():
    while not done.wait(0.05):
      os.utime(path)

  thread = threading.Thread(target=touch)
  thread.start()
  try:
    with pytest.raises(lock.HeldError, match="on elsewhere"):
      with lock.held(tmp_path):
        pass
  finally:
    done.set()
    thread.join()
  with lock.held(tmp_path):  # nobody touched it
    assert "elsewhere" in capsys.readouterr().out
    begun = os.stat(path).st_mtime_ns
    time.sleep(0.3)
    assert os.stat(path).st_mtime_ns > begun  # this run does
  monkeypatch.setattr(lock, "QUIET_SECONDS", 600.0)
  left(tmp_path, host="elsewhere", boot="")
  os.utime(path, (0, time.time() - 2 * lock.OLD_SECONDS))
  with lock.held(tmp_path):  # too old to watch
    pass
