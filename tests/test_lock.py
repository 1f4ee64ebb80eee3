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


@pytest.mark.parametrize(
  "content",
  ["", "{", "[]", "null", "{}", '{"pid": "x"}', '{"pid": null, "since": "x"}'],
)
def test_a_file_that_names_nobody_is_nobodys(tmp_path, content):
  (tmp_path / lock.FILE).write_text(content)
  with lock.held(tmp_path):
    pass


def test_without_locks_of_the_kernel_the_process_decides(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)
  me = lock._me()
  for gone in (
    {},
    {"pid": me["pid"], "born": "1"},  # its number is another's now
    {"boot": "before", **{k: me[k] for k in ("pid", "born")}},
  ):
    path = left(tmp_path, **gone)
    if "boot" in gone:  # nobody touched it since this machine started
      os.utime(path, (0, lock._booted() - 1.0))
    with lock.held(tmp_path):
      pass
  left(tmp_path, pid=me["pid"], born=me["born"])
  with pytest.raises(lock.HeldError), lock.held(tmp_path):
    pass


def test_without_locks_of_the_kernel_the_last_of_two_at_once_stays(
  tmp_path, monkeypatch
):
  """Both read that nobody is there; the first sees the other's name."""

  def refuse(*_):
    raise OSError(37, "No locks available")

  monkeypatch.setattr(lock.fcntl, "flock", refuse)
  monkeypatch.setattr(lock.time, "sleep", lambda _: left(tmp_path))
  with pytest.raises(lock.HeldError, match=f"process {2**22 + 1} of"):
    with lock.held(tmp_path):
      pass
  assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == 2**22 + 1


@pytest.mark.parametrize(
  "other",
  [
    {"host": "another-container"},  # of this kernel, whose lock is free
    {"host": "another-container", "pids": "pid:[1]"},
    {"pid": os.getpid(), "born": lock._born(os.getpid())},
  ],
)
def test_what_this_kernel_does_not_hold_is_free_at_once(
  tmp_path, monkeypatch, other
):
  monkeypatch.setattr(lock, "_beats", lambda _: pytest.fail("it was watched"))
  left(tmp_path, **other)
  with lock.held(tmp_path):
    pass


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize(
  "other",
  [
    {"boot": "another machine of the same name"},
    {"boot": "", "host": "elsewhere"},
  ],
)
def test_a_name_tells_no_machine(tmp_path, monkeypatch, other, has_locks):
  """Clones are all called localhost: who touches the file lives."""
  if not has_locks:
    monkeypatch.setattr(lock, "_kernel_lock", lambda _: "none")
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.01)
  watched = []
  monkeypatch.setattr(lock, "_beats", lambda p: not watched.append(p))
  left(tmp_path, **other)
  with pytest.raises(lock.HeldError), lock.held(tmp_path):
    pass
  assert watched == [tmp_path / lock.FILE]


def test_another_containers_process_numbers_say_nothing(tmp_path, monkeypatch):
  """Of one kernel without locks on these files: its number is another's here"""
  monkeypatch.setattr(lock, "_kernel_lock", lambda _: "none")
  monkeypatch.setattr(lock, "_beats", lambda _: True)
  left(tmp_path, pids="pid:[1]", pid=os.getpid())
  with pytest.raises(lock.HeldError), lock.held(tmp_path):
    pass


def test_the_file_of_another_user_is_said(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(lock.os, "open", refuse)
  with pytest.raises(lock.HeldError, match="run.lock: is another user's"):
    with lock.held(tmp_path):
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
