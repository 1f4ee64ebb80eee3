"""A trial's process: rlhf_jax.main, which is asked to stop when nobody waits.

    python -m rlhf_jax.sweeps.trial_process PARENT --config=... --workdir=...

PARENT is the process number of the sweep. Once it is no longer the parent (it
was killed), the trial gets SIGTERM: it saves a checkpoint and ends, and does
not go on unseen.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

POLL_SECONDS = 0.5


def watch(parent: int) -> None:
  """Sends this process SIGTERM when its parent is another."""
  while os.getppid() == parent:
    time.sleep(POLL_SECONDS)
  os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> None:
  """Runs rlhf_jax.main with all arguments but the first."""
  parent = int(argv[1])
  threading.Thread(target=watch, args=(parent,), daemon=True).start()
  sys.argv = ["rlhf_jax.main", *argv[2:]]
  runpy.run_module("rlhf_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main(sys.argv)
