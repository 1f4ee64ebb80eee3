"""Runs pytest again and again in processes that have imported much already.

    python tests/proofs/warm_pytest.py flax.linen pytest

imports what it is told to and reads jobs from stdin, one JSON object a line:
{"root": of the tree, "arguments": of pytest, "output": file for what it prints,
"patience": seconds}. It answers each with a line: the exit code, minus the
signal that ended it, or "time". It holds nothing of this repository, so each
job sees its own tree.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time


def work(root: str, arguments: list[str], output: str) -> None:
  """Runs pytest in this process, which ends with it."""
  os.setpgid(0, 0)
  file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
  for descriptor in (1, 2):
    os.dup2(file, descriptor)
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  os.chdir(root)
  os.environ["PYTHONPATH"] = root
  sys.path[0] = root
  import pytest

  code = pytest.main(arguments)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(int(code))


def wait(pid: int, patience: float) -> str:
  """Returns how a process ended; ends it when it takes longer."""
  end = time.monotonic() + patience
  while time.monotonic() < end:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return str(os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
  os.killpg(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  return "time"


def main() -> None:
  """Serves jobs until stdin ends."""
  for name in sys.argv[1:]:
    importlib.import_module(name)
  for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
      work(job["root"], job["arguments"], job["output"])
    print(wait(pid, job["patience"]), flush=True)


if __name__ == "__main__":
  main()
