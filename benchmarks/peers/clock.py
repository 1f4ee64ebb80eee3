"""Times of steps, as both sides of a comparison write them. Imports nothing."""

import json
import resource
import time


class Clock:
  """Wall and CPU seconds at the end of each step of a process.

  CPU seconds are those of all threads. Peak memory is that of the process.
  """

  def __init__(self) -> None:
    self.begin = time.perf_counter(), time.process_time()
    self.steps: list[tuple[float, float]] = []
    self.losses: list[float] = []

  def tick(self, loss: float | None = None) -> None:
    """Notes that a step is done."""
    wall, cpu = self.begin
    now = time.perf_counter() - wall, time.process_time() - cpu
    self.steps.append(now)
    if loss is not None:
      self.losses.append(float(loss))

  def write(self, path: str, **facts: object) -> None:
    """Writes everything as JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"steps": self.steps, "losses": self.losses, "peak_mib": peak}
    with open(path, "w") as file:
      json.dump(found | facts, file)
