"""Times of steps, as both sides of a comparison write them. Imports nothing."""

import json
import resource
import time

# What both sides do in a step.
BATCH = 16  # records of a supervised step
RANK = 16  # of LoRA factors
ANSWERS, GROUP, NEW = 64, 4, 64  # of a rollout; of a prompt in GRPO; tokens
MAX_LENGTH = 256  # tokens of a record


class Clock:
  """Wall and CPU seconds at the end of each step of a process.

  CPU seconds are those of all threads. Peak memory is that of the process.
  `marks` are numbers that must be the same on both sides where the work is: a
  loss or a log-probability of the first step, or tokens sampled.
  """

  def __init__(self) -> None:
    self.begin = time.perf_counter(), time.process_time()
    self.steps: list[tuple[float, float]] = []
    self.marks: list[float] = []

  def tick(self, mark: float | None = None) -> None:
    """Notes that a step is done."""
    wall, cpu = self.begin
    now = time.perf_counter() - wall, time.process_time() - cpu
    self.steps.append(now)
    if mark is not None:
      self.marks.append(float(mark))

  def write(self, path: str, **facts: object) -> None:
    """Writes everything as JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"steps": self.steps, "marks": self.marks, "peak_mib": peak}
    with open(path, "w") as file:
      json.dump(found | facts, file)
