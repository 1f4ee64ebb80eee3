"""The loop that every training stage runs: steps, log, save, stop, resume.

What is trained is one callable. What must survive a kill is `arrays` (a
pytree), `facts` (JSON) and the positions of the data iterators; nothing else
carries state, because all randomness is folded from (seed, step).
"""

from __future__ import annotations

import dataclasses
import math
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, integrity, metrics
from rlhf_jax.interrupt import Interrupt, Stopped
from rlhf_jax.runs import checkpoint
from rlhf_jax.schema import FieldError, check_choice
from rlhf_jax.types import PyTree, TrainState

SKIPPED_LIMIT = 3  # refused updates in a row that end a run (METHODS N14)
OneStep = Callable[[int, PyTree, dict], tuple[PyTree, dict, dict]]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long, how often saved, how reported."""

  batch_size: int = 32  # rows (policy: prompts) a step, over all hosts
  steps: int = 0  # optimizer steps (policy: rollouts); 0: from epochs
  epochs: float = 0.0  # passes over the data; 0: from steps
  save_every: int = 50  # steps between checkpoints
  keep: int = 2  # newest checkpoints kept
  keep_best: str = ""  # metric by which the best saved step is kept besides;
  # "" for none
  best: str = "max"  # whether the best is the largest or smallest keep_best
  asynchronous: bool = False  # checkpoints are written while steps go on
  log_every: int = 1  # steps between metric rows

  def __post_init__(self) -> None:
    if self.batch_size < 1 or self.save_every < 1 or self.keep < 1:
      raise FieldError(
        f"batch_size={self.batch_size}, save_every={self.save_every}, keep="
        f"{self.keep}: all must be >= 1."
      )
    if self.steps < 0 or self.epochs < 0 or self.log_every < 1:
      raise FieldError(
        f"steps={self.steps}, epochs={self.epochs}, log_every="
        f"{self.log_every}: need steps, epochs >= 0 and log_every >= 1."
      )
    check_choice("best", self.best, ("max", "min"))
    if self.steps > 0 and self.epochs > 0:
      raise FieldError(
        f"steps={self.steps}, epochs={self.epochs}: set exactly one of them "
        "and the other to 0."
      )

  def total_steps(self, examples: int) -> int:
    """Returns the number of steps for a data set of `examples` rows."""
    if self.steps == 0 and self.epochs == 0:
      raise FieldError(
        f"schedule.steps={self.steps}, epochs={self.epochs}: nothing "
        "would be trained. Set one of them."
      )
    if self.steps:
      return self.steps
    return max(1, round(self.epochs * (examples // self.batch_size)))

  def describe(self) -> str:
    """Returns "20 steps of 64", or "2 epochs of", for people."""
    if self.steps:
      return f"{self.steps} steps of {self.batch_size}"
    return f"{self.epochs:g} epochs of"


class NonFiniteError(RuntimeError):
  """The loss was not finite several steps in a row."""


class CompileCounter:
  """Counts XLA compilations; a run that compiles after warm-up is a bug."""

  EVENT = "/jax/core/compile/backend_compile_duration"

  def __init__(self) -> None:
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, duration: float, **_: Any) -> None:
    del duration
    self.count += event == self.EVENT


_COMPILES = CompileCounter()


def run_steps(
  one_step: OneStep,
  *,
  phase: str,
  workdir: Path,
  schedule: Schedule,
  total_steps: int,
  arrays: PyTree,
  facts: dict,
  identity: dict,
  iterators: dict[str, Any],
  show: Iterable[tuple[str, str]],
) -> tuple[PyTree, dict]:
  """Runs steps until the total, from the newest checkpoint if there is one.

  Args:
    one_step: (step, arrays, facts) -> (arrays, facts, metrics). A sentence
      in facts["halt"] ends the run early.
    phase: name in logs.
    workdir: holds checkpoints/, metrics.jsonl, TensorBoard events.
    schedule: how often to save and log.
    total_steps: steps of the finished run.
    arrays: initial pytree, a dict; its TrainStates are watched for updates
      that were refused.
    facts: initial JSON state.
    identity: fields a checkpoint must agree with (model, tokenizer).
    iterators: name -> data iterator with get_state and set_state.
    show: (metric, short label) pairs of the progress line.

  Returns:
    The final arrays and facts.

  Raises:
    Stopped: a signal asked for it; a checkpoint is saved.
    NonFiniteError: three refused updates in a row.
    CheckpointError: cannot save, or another model's checkpoint.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (
    checkpoint.Checkpoints(
      str(workdir / "checkpoints"),
      keep=schedule.keep,
      best=schedule.best,
      every_steps=schedule.save_every,
      is_asynchronous=schedule.asynchronous,
    ) as saved,
    metrics.MetricsWriter(workdir, is_enabled=distributed.is_first()) as writer,
    Interrupt() as interrupt,
  ):
    step, row = 0, {}
    if saved.latest() is not None:
      arrays, meta = saved.restore(arrays)
      integrity.check_meta(meta, identity)
      step, facts = meta["step"], meta["facts"]
      for name, iterator in iterators.items():
        iterator.set_state(meta["iterators"][name])
      if step < total_steps:
        print(f"{phase}: goes on from step {step} of {total_steps}")
    writer.truncate_after(step, phase)

    def save(is_final: bool) -> None:
      positions = {name: it.get_state() for name, it in iterators.items()}
      saved.save(
        step,
        arrays,
        {"step": step, "facts": facts, "iterators": positions, **identity},
        is_final=is_final,
        score=_score(row, schedule.keep_best),
      )

    with metrics.Progress(phase, total_steps, initial=step) as progress:
      while step < total_steps and not facts.get("halt"):
        arrays, facts, row = one_step(step, arrays, facts)
        step += 1
        row = {k: float(v) for k, v in jax.device_get(row).items()}
        refused = max(
          _refused_in_a_row(arrays), int(row.get("sys/skipped_updates", 0.0))
        )
        _check_finite(phase, step, refused, row, saved)
        _score(row, schedule.keep_best)
        if step % schedule.log_every == 0 or step == total_steps:
          writer.write(step, row | system_metrics(), phase)
        progress.update(
          step, **{label: row[name] for name, label in show if name in row}
        )
        is_last = step == total_steps or bool(facts.get("halt"))
        if interrupt.should_stop(step) and not is_last:
          save(is_final=False)
          raise Stopped(step, interrupt.signal)
        # While updates are refused the weights may be spoilt: the good
        # checkpoints stay until one is accepted.
        if saved.due(step) and not is_last and not refused:
          save(is_final=False)
    save(is_final=True)
  return arrays, facts


def _score(row: dict[str, float], name: str) -> float | None:
  """Returns the metric that says how good a step is; None where none is set."""
  if not name or not row:  # no row: all steps were done before
    return None
  if name not in row:
    raise FieldError(
      f"schedule.keep_best={name!r}: no metric of this name; there are "
      f"{', '.join(sorted(row))}."
    )
  return row[name] if math.isfinite(row[name]) else None


def system_metrics() -> dict[str, float]:
  """Returns compilations so far and peak host memory in GiB (up is bad)."""
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "sys/compiles": float(_COMPILES.count),
    "sys/memory_peak_gib": peak_kib / 2**20,
  }


def _refused_in_a_row(arrays: PyTree) -> int:
  """Returns how many updates up to now were refused, the worst state's."""
  return max(
    int(np.asarray(state.skipped))
    for state in arrays.values()
    if isinstance(state, TrainState)
  )


def _check_finite(
  phase: str,
  step: int,
  skipped: int,
  row: dict[str, float],
  saved: checkpoint.Checkpoints,
) -> None:
  """Raises NonFiniteError after the third refused update in a row."""
  if skipped < SKIPPED_LIMIT:
    return
  bad = [f"{k}={v}" for k, v in row.items() if not math.isfinite(v)]
  what = ", ".join(bad[:3]) if bad else "the loss or its gradient"
  last = saved.latest()
  where = "none was saved" if last is None else f"step {last}"
  raise NonFiniteError(
    f"{phase}: {what} at step {step}: not finite in {skipped} updates. "
    f"Last good checkpoint: {where}. Lower the learning rate and go on "
    "from there in the same --workdir (or start in an empty one if the weights "
    "are spoilt already), or look at the data of these steps."
  )
