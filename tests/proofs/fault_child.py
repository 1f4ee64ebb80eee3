"""rlhf_jax.main in a process that is killed at a given moment.

    FAULT=PHASE,COUNT,DELAY,SIGNAL \\
        python -m tests.proofs.fault_child --config=... --workdir=...

PHASE is start (of the process), rollout, score, update or save; the signal
comes DELAY seconds after it begins for the COUNT-th time, from a thread, in
whatever the process does then. Without FAULT it is the plain program.
"""

import contextlib
import os
import runpy
import signal
import threading

PHASES = ("start", "rollout", "score", "update", "save")


def _arm(delay: float, number: int) -> None:
  def fire() -> None:
    os.kill(os.getpid(), number)

  timer = threading.Timer(delay, fire)
  timer.daemon = True
  timer.start()


def plant(fault: str) -> None:
  """Arranges the kill that `fault` describes."""
  phase, count, delay, name = fault.split(",")
  number = signal.Signals[name]
  if phase == "start":
    _arm(float(delay), number)
    return
  seen = [0]

  def begins(found: str) -> None:
    seen[0] += found == phase
    if seen[0] == int(count) and found == phase:
      _arm(float(delay), number)

  from rlhf_jax import metrics
  from rlhf_jax.runs import checkpoint

  timed, save = metrics.Timer.__call__, checkpoint.Checkpoints.save

  @contextlib.contextmanager
  def watched(self, name):
    begins(name)
    with timed(self, name):
      yield

  def watched_save(self, *args, **kwargs):
    begins("save")
    return save(self, *args, **kwargs)

  metrics.Timer.__call__ = watched
  checkpoint.Checkpoints.save = watched_save


if __name__ == "__main__":
  if os.environ.get("FAULT"):
    plant(os.environ["FAULT"])
  runpy.run_module("rlhf_jax.main", run_name="__main__")
