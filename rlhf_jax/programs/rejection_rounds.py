"""The rounds of rejection sampling on disk, and how one of them is sampled.

round_N/kept.jsonl        what is trained on, see rejection_samples.py
round_N/combination.json  where several judge, what combined them
round_N/signs.jsonl       of its answers, for the monitors
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import metrics
from rlhf_jax.programs import (
  heldout,
  own_samples,
  rejection_samples,
  rejection_signs,
  watch,
)
from rlhf_jax.programs.rejection_samples import Rounds
from rlhf_jax.programs.rollouts import Source
from rlhf_jax.runs.loop import Measure, Schedule
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree

KEPT_FILE = "kept.jsonl"
STATE_FILE = "combination.json"
SIGNS_FILE = "signs.jsonl"


def folder_of(workdir: Path, number: int) -> Path:
  """Returns the folder of a round, counted from 1."""
  return workdir / f"round_{number}"


def files(workdir: Path, rounds: Rounds, number: int) -> list[Path]:
  """Returns what a round trains on, the file of its own samples last."""
  first = 1 if rounds.pool else number
  return [folder_of(workdir, n) / KEPT_FILE for n in range(first, number + 1)]


def _check_enough(count: int, schedule: Schedule, number: int) -> None:
  if count < schedule.batch_size:
    raise FieldError(
      f"schedule.batch_size={schedule.batch_size}: round {number} keeps "
      f"{count} samples, which do not fill a batch. Lower it or selection."
      "minimum_score, or raise rounds.prompts or generate.num_samples; the "
      "same command goes on with this round."
    )


def sample(
  settings: Any,
  opened: own_samples.Opened,
  source: Source,
  params: PyTree,
  number: int,
  writer: metrics.MetricsWriter,
  name: str,
) -> None:
  """Samples, judges and selects; writes kept.jsonl and a row of metrics.

  Args:
    settings: of the run.
    opened: roles.
    source: at the prompts of this round.
    params: trainable tree of the policy so far.
    number: of the round.
    writer: of the run's metrics.
    name: of the pipeline, in metrics and messages.

  Raises:
    FieldError: fewer samples are kept than fill a batch.
  """
  rounds, workdir = settings.rounds, opened.world.workdir
  make = settings.first_state
  pool = rejection_samples.collect(
    source,
    params,
    jax.random.fold_in(jax.random.key(settings.seed), number),
    rounds.prompts // rounds.batch_size,
    settings.generate.num_samples,
    tuple(settings.monitors),
    None if make is None else make(),
  )
  kept, row = rejection_samples.select(pool, rounds, settings.selection)
  row |= rejection_samples.report(pool, kept, source.panel)
  signs = rejection_signs.signs(pool, opened.base.tokenizer)
  row |= rejection_signs.means(signs)
  writer.truncate_after(number - 1, name)
  writer.write(number, row, name)
  rows = rejection_samples.kept_rows(pool, kept, opened.base.tokenizer, number)
  earlier, _ = rejection_samples.read_kept(files(workdir, rounds, number)[:-1])
  _check_enough(len(earlier) + len(rows), settings.schedule, number)
  folder = folder_of(workdir, number)
  if pool.state is not None:
    rejection_samples.write_state(folder / STATE_FILE, pool.state)
  rejection_samples.write_kept(folder / SIGNS_FILE, signs)
  rejection_samples.write_kept(folder / KEPT_FILE, rows)
  print(
    f"{name}: round {number} of {rounds.count}: best of "
    f"{settings.generate.num_samples} {row['rejection/score_max']:+.3f}, "
    f"median {row['rejection/score_median']:+.3f}, {len(rows)} samples kept"
  )
  for at, sentence in alarms(settings, workdir, number):
    if at == number:
      print(f"{name}: warning in round {at}: {sentence}")


def alarms(settings: Any, workdir: Path, count: int) -> list[list]:
  """Returns [round, sentence] of what rang in the first rounds."""
  files = [folder_of(workdir, n) / SIGNS_FILE for n in range(1, count + 1)]
  return rejection_signs.alarms(files, watch.watched(settings))


def measure_of(
  settings: Any, measure: heldout.Heldout | None, folder: Path
) -> Measure | None:
  """Returns what measures in a round: its judges say what those of it said."""
  make = settings.first_state
  if measure is None or make is None:
    return measure
  state = rejection_samples.read_state(folder / STATE_FILE, make())
  return functools.partial(measure, state=state)
