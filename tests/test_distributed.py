"""Two processes: one never comes, one dies, both share work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.distributed import EXIT_PEER_LOST
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
CHILD = r"""
import os, sys, time
import jax
from rlhf_jax import distributed
distributed.initialise(sys.argv[1])
os.write(1, b"ready\n")
if sys.argv[2] == "abort":
  os.abort()
if sys.argv[2] == "share":
  import numpy as np
  me = jax.process_index()
  for count in (5, 1):
    print("mine", *distributed.by_share(
      lambda rows: {"of": np.full(rows.stop - rows.start, me),
                    "row": np.arange(rows.start, rows.stop)}, count
    ).values(), flush=True)
if sys.argv[2] == "farewell":
  distributed.farewell()
  time.sleep(1)
for _ in range({"farewell": 0, "share": 0, "sleep": 100}.get(sys.argv[2], 600)):
  time.sleep(0.1)
distributed.farewell()
"""


def start(port, index, what):
  return subprocess.Popen(
    [sys.executable, "-c", CHILD, f"127.0.0.1:{port},2,{index}", what],
    cwd=ROOT,
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "RLHF_JAX_JOIN_SECONDS": "10" if what == "alone" else "60",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_until_ready(process):
  """Gloo says who is connected, and may do so in the middle of any line."""
  line = process.stdout.readline()
  while line and "ready" not in line:
    line = process.stdout.readline()
  assert line, process.stderr.read()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_who_is_alone_leaves_in_time(index):
  process = start(free_port(), index, "alone")
  _, error = process.communicate(timeout=90)
  assert process.returncode == EXIT_PEER_LOST, error[-2000:]
  assert "not all processes of this run joined within 10 s" in error


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_leaves_when_a_process_dies(victim):
  """Neither is in a collective, so only the coordination notices."""
  port = free_port()
  processes = [start(port, index, "wait") for index in (0, 1)]
  try:
    for process in processes:
      wait_until_ready(process)
    processes[victim].kill()
    assert processes[victim].wait() == -signal.SIGKILL
    _, error = processes[1 - victim].communicate(timeout=90)
  finally:
    for process in processes:
      process.kill()
  assert processes[1 - victim].returncode == EXIT_PEER_LOST, error[-2000:]
  assert "another process of this run died" in error


@pytest.mark.slow
def test_the_abort_of_a_bug_stays_one():
  port = free_port()
  first, second = start(port, 0, "wait"), start(port, 1, "abort")
  try:
    _, error = second.communicate(timeout=90)
    assert second.returncode == -signal.SIGABRT, error[-2000:]
    _, error = first.communicate(timeout=90)
    assert first.returncode == EXIT_PEER_LOST, error[-2000:]
  finally:
    first.kill()
    second.kill()


@pytest.mark.slow
def test_a_process_that_says_farewell_is_not_taken_for_dead():
  port = free_port()
  first, second = start(port, 0, "sleep"), start(port, 1, "farewell")
  try:
    _, error = first.communicate(timeout=90)
    assert first.returncode == 0, error[-2000:]
    _, error = second.communicate(timeout=90)
    assert second.returncode == 0, error[-2000:]
  finally:
    first.kill()
    second.kill()


@pytest.mark.slow
def test_each_row_is_computed_by_one_process_and_known_to_both():
  """A time limit may pass on one and not on the other."""
  port = free_port()
  processes = [start(port, index, "share") for index in (0, 1)]
  for process in processes:
    out, error = process.communicate(timeout=90)
    assert process.returncode == 0, error[-2000:]
    shown = [line for line in out.splitlines() if line.startswith("mine")]
    assert shown == ["mine [0 0 0 1 1] [0 1 2 3 4]", "mine [0] [0]"]


@pytest.mark.slow
def test_a_port_of_another_run_is_refused():
  """gRPC would share it, and processes of two runs would meet."""
  port = free_port()
  processes = [start(port, index, "wait") for index in (0, 1)]
  try:
    for process in processes:
      wait_until_ready(process)
    stranger = start(port, 0, "wait")
    _, error = stranger.communicate(timeout=90)
    assert stranger.returncode == 1  # main.py says it in one line
    assert f"process 0 cannot listen at port {port}" in error
    assert "give each run a port of its own" in error
    assert [process.poll() for process in processes] == [None, None]
  finally:
    for process in processes:
      process.kill()
