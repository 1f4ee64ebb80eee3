"""Processes that wait for others that never came, or whose process 0 died."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.distributed import EXIT_PEER_LOST

ROOT = Path(__file__).parent.parent
CHILD = """
import os, sys, time
from rlhf_jax import distributed
distributed.initialise(sys.argv[1])
print("ready", flush=True)
if sys.argv[2] == "abort":
  os.abort()
for _ in range(600):
  time.sleep(0.1)
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


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_who_is_alone_leaves_in_time(index):
  process = start(free_port(), index, "alone")
  _, error = process.communicate(timeout=90)
  assert process.returncode == EXIT_PEER_LOST, error[-2000:]
  assert "not all processes of this run joined within 10 s" in error


@pytest.mark.slow
@pytest.mark.parametrize("what", ["wait", "abort"])
def test_the_others_leave_and_a_bugs_abort_stays_one(what):
  port = free_port()
  first, second = start(port, 0, "wait"), start(port, 1, what)
  try:
    assert first.stdout.readline() == "ready\n"
    assert second.stdout.readline() == "ready\n"
    if what == "wait":
      first.kill()
    _, error = second.communicate(timeout=60)
  finally:
    first.kill()
    second.kill()
  if what == "wait":
    assert second.returncode == EXIT_PEER_LOST, error[-2000:]
    assert "process 0 of this run died" in error
  else:
    assert second.returncode == -signal.SIGABRT, error[-2000:]
