"""The loop that every training stage runs: steps, log, save, stop, resume.

What is trained is one callable. What must survive a kill is `arrays` (a
pytree), `facts` (JSON) and the positions of the data iterators; nothing else
carries state, because all randomness is folded from (seed, step).
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, integrity, metrics, startup, terminal
from rlhf_jax.interrupt import Interrupt, Stopped
from rlhf_jax.runs import checkpoint, finite, stages
from rlhf_jax.runs.finite import NonFiniteError
from rlhf_jax.runs.schedule import MEASURED, Schedule
from rlhf_jax.schema import FieldError, as_field
from rlhf_jax.types import PyTree, TrainState

__all__ = ["NonFiniteError", "Schedule", "run_steps", "system_metrics"]
SKIPPED_LIMIT = 3  # refused updates in a row that end a run (METHODS N14)
OneStep = Callable[[int, PyTree, dict], tuple[PyTree, dict, dict]]
Measure = Callable[[PyTree], dict[str, float]]
Observe = Callable[[int, dict, dict], tuple[dict, dict]]
ALWAYS = "tax/"  # how metrics begin whose row is written whatever log_every is


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
  measure: Measure | None = None,
  observe: Observe | None = None,
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
    measure: arrays -> metrics of held-out data, whose names begin as MEASURED
      says; it is asked every schedule.eval_every steps, and changes nothing
      that the run goes on with.
    observe: (steps done, facts, row) -> facts, row: looks at the whole row of
      each step, held-out data included, and may add to both.

  Returns:
    The final arrays and facts.

  Raises:
    Stopped: a signal asked for it, be it in the last step; a checkpoint is
      saved.
    NonFiniteError: three refused updates in a row or in one step, or an end
      with NaN or inf.
    CheckpointError: cannot save, or another model's checkpoint.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (
    _checkpoints(workdir, schedule) as saved,
    metrics.MetricsWriter(workdir, is_enabled=distributed.is_first()) as writer,
    Interrupt() as interrupt,
  ):
    step, row, is_stopped = 0, {}, False
    is_known = bool(schedule.keep_best) and saved.best() is not None
    if saved.latest() is not None:
      step, arrays, facts = _resumed(
        saved, arrays, identity, iterators, total_steps
      )
      if step < total_steps:
        print(f"{phase}: goes on from step {step} of {total_steps}")
    if step < total_steps:
      stages.reopen(workdir)
    writer.truncate_after(step, phase)

    def tell() -> None:
      alarms, halted = facts.get("alarms", []), facts.get("halt")
      writer.write_progress(phase, total_steps, alarms, halted)

    def save(is_final: bool) -> None:
      positions = {name: it.get_state() for name, it in iterators.items()}
      saved.save(
        step,
        arrays,
        {"step": step, "facts": facts, "iterators": positions, **identity},
        is_final=is_final,
        score=_score(row, schedule.keep_best, is_known=is_known),
      )

    tell()
    with terminal.Progress(phase, total_steps, initial=step) as progress:
      startup.loaded()
      while step < total_steps and not facts.get("halt"):
        arrays, facts, row = one_step(step, arrays, facts)
        step += 1
        row = {k: float(v) for k, v in jax.device_get(row).items()}
        progress.note(startup.first_step())
        refused = _check_finite(phase, step, arrays, row, saved)
        is_last = step == total_steps or bool(facts.get("halt"))
        is_measured = schedule.measures(step, is_last=is_last)
        if is_measured and measure is not None:
          row |= _measured(measure, arrays)
        if observe is not None:
          facts, row = observe(step, facts, row)
        is_known |= schedule.keep_best in row
        score = _score(row, schedule.keep_best, is_known=is_known)
        if is_measured and schedule.patience and not is_last:
          facts = _waiting(facts, score, schedule, step)
          is_last = bool(facts.get("halt"))
        is_logged = is_measured or step % schedule.log_every == 0
        is_logged |= any(name.startswith(ALWAYS) for name in row)
        if is_logged or step == total_steps:
          writer.write(step, row | system_metrics(), phase)
        tell()
        progress.update(
          step, **{label: row[name] for name, label in show if name in row}
        )
        is_stopped = interrupt.should_stop(step)
        if is_stopped:
          break
        is_best = is_measured and saved.is_best(score)
        # While updates are refused the weights may be spoilt: the good
        # checkpoints stay until one is accepted.
        if (is_best or saved.due(step)) and not is_last and not refused:
          save(is_final=False)
    is_done = step == total_steps or bool(facts.get("halt"))
    if is_done:
      refused = _refused_in_a_row(arrays)
      finite.check_end(phase, step, refused, row, arrays, saved.latest())
    save(is_final=is_done)
    if is_stopped or interrupt.came_late():
      saved.wait()
      interrupt.saved()
      raise Stopped(step, interrupt.signal)
  return arrays, facts


def _checkpoints(workdir: Path, schedule: Schedule) -> checkpoint.Checkpoints:
  """Returns the checkpoints of a run, kept as its schedule says."""
  return checkpoint.Checkpoints(
    str(workdir / "checkpoints"),
    keep=schedule.keep,
    best=schedule.best_of,
    every_steps=schedule.save_every,
    is_asynchronous=schedule.asynchronous,
  )


def _resumed(
  saved: checkpoint.Checkpoints,
  arrays: PyTree,
  identity: dict,
  iterators: dict[str, Any],
  total_steps: int,
) -> tuple[int, PyTree, dict]:
  """Returns step, arrays and facts of the newest checkpoint; sets iterators."""
  arrays, meta = saved.restore(arrays)
  integrity.check_meta(meta, identity)
  step, facts = meta["step"], meta["facts"]
  if step > total_steps:
    raise FieldError(
      f"schedule: ends at step {total_steps}, and this run is at step "
      f"{step} already; steps are not taken back. Set the steps or epochs "
      f"for {step} or more, or choose another --workdir."
    )
  for name, iterator in iterators.items():
    if name not in meta["iterators"]:
      print(f"{name}: was not read before step {step}, and begins at its start")
      continue
    with as_field(f"{name}: "):
      iterator.set_state(meta["iterators"][name])
  return step, arrays, facts


def _waiting(
  facts: dict, score: float | None, schedule: Schedule, step: int
) -> dict:
  """Returns facts with the best score, how long ago it was, perhaps "halt".

  Args:
    facts: of the run.
    score: of this step, None where it is not finite.
    schedule: with patience.
    step: of the measurement.
  """
  best, waited = facts.get("best_score"), facts.get("waited", 0) + 1
  if score is not None:
    sign = -1.0 if schedule.best_of == "min" else 1.0
    if best is None or sign * score > sign * best:
      best, waited = score, 0
  facts = facts | {"best_score": best, "waited": waited}
  if waited < schedule.patience:
    return facts
  return facts | {
    "halt": f"at step {step} {schedule.keep_best} had not become better than "
    f"{best} in {waited} measurements (schedule.patience={schedule.patience}); "
    "the best step is this folder with @best"
  }


def _measured(measure: Measure, arrays: PyTree) -> dict[str, float]:
  """Returns the metrics of held-out data and how long they took.

  Metrics:
    time/heldout_seconds: of one measurement. Growth is bad.
  """
  begun = time.perf_counter()
  found = {name: float(value) for name, value in measure(arrays).items()}
  return found | {"time/heldout_seconds": time.perf_counter() - begun}


def _score(row: dict[str, float], name: str, *, is_known: bool) -> float | None:
  """Returns the metric that says how good a step is.

  None where none is set, and where this step has none: it is of data that are
  not measured on in each step, or a step before had it (of pairs, say, which
  were all ties now).
  """
  if not name or not row:  # no row: all steps were done before
    return None
  is_measured = any(key.startswith(MEASURED) for key in row)
  if name.startswith(MEASURED) and not is_measured:
    return None
  if name not in row and (is_known or name.startswith(ALWAYS)):
    return None
  if name not in row:
    raise FieldError(
      f"schedule.keep_best={name!r}: no metric of this name; there are "
      f"{', '.join(sorted(row))}."
    )
  return row[name] if math.isfinite(row[name]) else None


def system_metrics() -> dict[str, float]:
  """Returns what the machine did.

  sys/compiles: programs compiled so far. Growth after the first steps is bad.
  sys/memory_peak_gib: largest resident memory of this process. Up is bad.
  """
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "sys/compiles": float(startup.COMPILES.count),
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
  arrays: PyTree,
  row: dict[str, float],
  saved: checkpoint.Checkpoints,
) -> int:
  """Returns how many updates up to now were refused.

  Raises:
    NonFiniteError: the third in a row, or of one step of several updates.
  """
  skipped = max(
    _refused_in_a_row(arrays), int(row.get("sys/skipped_updates", 0.0))
  )
  if skipped < SKIPPED_LIMIT:
    return skipped
  bad = finite.bad_names(row)
  what = finite.shown(bad) if bad else "the loss or its gradient"
  what = f"{what} at step {step}: not finite in {skipped} updates"
  raise finite.diverged(f"{phase}: {what}", saved.latest())
