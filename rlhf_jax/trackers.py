"""wandb and MLflow beside metrics.jsonl: the same rows, names and steps.

`--track=wandb,mlflow` opens one run of a tracker for a working directory; all
stages of it write there. A metric has the name of its TensorBoard tag,
PHASE/area/name, and the step of its phase; a stage that lies deeper has its
folder before that (round_2/policy/area/name), for its phase is another one's,
too. tracker.json keeps which run it is
and the last step that each phase has sent: the same command goes on with the
same run, and a step that is taken again after a kill is not sent again.

Where and as whom is told to the trackers as they want it: WANDB_PROJECT,
WANDB_MODE=offline, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME ... A tracker
that cannot be opened ends the command before it trains; one that fails later
costs nothing but its rows, which are tried again and stay in metrics.jsonl.

Left out: samples, checkpoints as artifacts; hosted alerts.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.schema import UserError

STATE_FILE = "tracker.json"
PROJECT = "rlhf_jax"  # where the environment names none
RETRY_SECONDS = 60.0  # between two tries to reach a tracker that failed
MLFLOW_PARAMETERS = 100  # of one call, as its server allows
MLFLOW_TEXT = 500  # characters of a parameter, of the oldest server
_current: contextvars.ContextVar[Tracking | None] = contextvars.ContextVar(
  "tracking", default=None
)


class Wandb:
  """A run of wandb; steps are columns PHASE/step, as each phase has its own."""

  name = "wandb"

  def __init__(self, folder: Path, run: str, config: Mapping) -> None:
    """Opens a run, or goes on with one.

    Args:
      folder: working directory; offline runs lie in wandb/ there.
      run: its id, "" for a new one.
      config: the experiment.
    """
    import wandb

    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      name=folder.name,
      dir=str(folder),
      id=run if run else None,
      resume="allow",
      config=dict(config),
      settings=wandb.Settings(console="off"),
    )
    self._phases: set[str] = set()
    self.run = str(self._run.id)

  def write(self, phase: str, step: int, row: Mapping, now: float) -> None:
    """Sends the values of a step by their tags."""
    del now
    if phase not in self._phases:
      axis = tag_of(phase, "step")
      self._run.define_metric(axis, hidden=True)
      self._run.define_metric(tag_of(phase, "*"), step_metric=axis)
      self._phases.add(phase)
    self._run.log(dict(row) | {tag_of(phase, "step"): step})

  def close(self, is_done: bool) -> None:
    """Ends the run, for now or for good."""
    self._run.finish(exit_code=0 if is_done else 1)


class Mlflow:
  """A run of MLflow, by its client alone: nothing global is set."""

  name = "mlflow"

  def __init__(self, folder: Path, run: str, config: Mapping) -> None:
    """Opens a run, or goes on with one; see Wandb."""
    import mlflow
    from mlflow import entities

    self._entities, self._client = entities, mlflow.MlflowClient()
    if run:
      self._client.update_run(run, status="RUNNING")
      self.run = run
      return
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = self._client.get_experiment_by_name(title)
    experiment = (
      self._client.create_experiment(title)
      if found is None
      else found.experiment_id
    )
    opened = self._client.create_run(experiment, run_name=folder.name)
    self.run = str(opened.info.run_id)
    parameters = [
      entities.Param(name, str(value)[:MLFLOW_TEXT])
      for name, value in flat(config).items()
    ]
    for i in range(0, len(parameters), MLFLOW_PARAMETERS):
      part = parameters[i : i + MLFLOW_PARAMETERS]
      self._client.log_batch(self.run, params=part)

  def write(self, phase: str, step: int, row: Mapping, now: float) -> None:
    """Sends the values of a step by their tags."""
    del phase
    metrics = [
      self._entities.Metric(tag, float(value), int(1000 * now), step)
      for tag, value in row.items()
    ]
    self._client.log_batch(self.run, metrics=metrics)

  def close(self, is_done: bool) -> None:
    """Says that the run ended, or that it was stopped."""
    status = "FINISHED" if is_done else "KILLED"
    self._client.set_terminated(self.run, status=status)


TRACKERS: dict[str, Callable[..., Any]] = {"wandb": Wandb, "mlflow": Mlflow}


def tag_of(phase: str, name: str) -> str:
  """Returns the name of a metric in TensorBoard and in trackers."""
  return f"{phase}/{name}" if phase else name


def phase_in(workdir: Path, folder: Path, phase: str) -> str:
  """Returns a phase that no other stage of a working directory has.

  Args:
    workdir: of the run.
    folder: of the stage, there or below.
    phase: of its rows.
  """
  inner = os.path.relpath(folder, workdir)
  parts = Path(inner).parts
  if not parts or parts[0] == os.pardir:
    return phase
  return "/".join(parts if parts[-1] == phase else (*parts, phase))


def flat(tree: Mapping, prefix: str = "") -> dict[str, Any]:
  """Returns {"section.field": value} of a config."""
  found: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      found |= flat(value, f"{prefix}{name}.")
    else:
      found[f"{prefix}{name}"] = value
  return found


def parse(text: str) -> tuple[str, ...]:
  """Returns the names of --track.

  Raises:
    UserError: no such tracker, or its package is not there.
  """
  names = tuple(dict.fromkeys(x.strip() for x in text.split(",") if x.strip()))
  for name in names:
    if name not in TRACKERS:
      raise UserError(
        f"--track={text}: {name!r} is no tracker. Choose from "
        f"{', '.join(TRACKERS)}, with commas between."
      )
    try:
      __import__(name)
    except ImportError as error:
      raise UserError(
        f"--track={text}: the package {name} cannot be imported ({error}). "
        f"pip install 'rlhf_jax[{name}]', or leave it out."
      ) from error
  return names


class _Sink:
  """One tracker and what it was not sent yet."""

  def __init__(self, tracker: Any, sent: dict[str, int], clock: Any) -> None:
    self.tracker, self.sent = tracker, sent
    self._clock = clock
    self._waiting: list[tuple[str, int, dict, float]] = []
    self._not_before = 0.0

  def add(self, phase: str, step: int, row: dict, now: float) -> bool:
    """Sends a row that was not sent before; says whether `sent` changed."""
    if step <= self.sent.get(phase, -1):
      return False
    self._waiting.append((phase, step, row, now))
    return self._clock() >= self._not_before and self._send()

  def _send(self) -> bool:
    """Sends what waits, in its order, up to the first that cannot be sent."""
    before = len(self._waiting)
    while self._waiting:
      phase, step, row, now = self._waiting[0]
      try:
        self.tracker.write(phase, step, row, now)
      except Exception as error:  # whatever a tracker raises: training goes on
        self._not_before = self._clock() + RETRY_SECONDS
        print(
          f"{self.tracker.name}: step {step} of {phase} could not be sent "
          f"({error!r:.200}); it is tried again in {RETRY_SECONDS:.0f} s"
        )
        break
      self.sent[phase] = max(step, self.sent.get(phase, -1))
      del self._waiting[0]
    return len(self._waiting) < before

  def close(self, is_done: bool) -> None:
    """Sends what waits once more, and ends the tracker's run."""
    self._send()
    name, lost = self.tracker.name, len(self._waiting)
    if lost:
      print(f"{name}: rows not sent: {lost}; metrics.jsonl has them")
    try:
      self.tracker.close(is_done)
    except Exception as error:
      print(f"{name}: could not be closed ({error!r:.200})")


class Tracking:
  """The open trackers of a working directory."""

  def __init__(
    self,
    names: Sequence[str],
    folder: Path,
    config: Mapping[str, Any],
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    """Opens them, each with the run that tracker.json names.

    Raises:
      UserError: one cannot be opened, or tracker.json is damaged.
    """
    self._path = folder / STATE_FILE
    self._state = _read_state(self._path)
    self._sinks: list[_Sink] = []
    for name in names:
      known = self._state.setdefault(name, {"run": "", "sent": {}})
      try:
        tracker = TRACKERS[name](folder, known["run"], config)
      except Exception as error:
        self.close(is_done=False)
        raise UserError(
          f"--track: {name} cannot be opened ({error!r:.800}). Correct what it "
          "says (WANDB_MODE=offline needs no network), or leave it out."
        ) from error
      known["run"] = tracker.run
      self._sinks.append(_Sink(tracker, known["sent"], clock))
      print(f"{name}: run {tracker.run}")
    self._save()

  def write(
    self,
    step: int,
    row: Mapping[str, Any],
    phase: str,
    now: float,
    folder: Path | None = None,
  ) -> None:
    """Sends a row of metrics.jsonl.

    Args:
      step: of the phase.
      row: area/name -> number, None for one that was not finite.
      phase: as in metrics.jsonl.
      now: seconds since 1970.
      folder: of that file; None for the working directory.
    """
    if folder is not None:
      phase = phase_in(self._path.parent, folder, phase)
    named = {tag_of(phase, k): x for k, x in row.items() if x is not None}
    changed = [sink.add(phase, step, named, now) for sink in self._sinks]
    if any(changed):
      self._save()

  def close(self, is_done: bool) -> None:
    """Ends all of them; `is_done` says whether the run is finished."""
    for sink in self._sinks:
      sink.close(is_done)
    if self._sinks:
      self._save()

  def _save(self) -> None:
    temporary = self._path.with_name(f"{STATE_FILE}.tmp")
    temporary.write_text(json.dumps(self._state) + "\n")
    os.replace(temporary, self._path)


def _read_state(path: Path) -> dict[str, Any]:
  """Returns {tracker: {"run", "sent": phase -> step}}."""
  if not path.is_file():
    return {}
  try:
    state = json.loads(path.read_text())
    is_whole = all(
      isinstance(x["run"], str)
      and all(isinstance(step, int) for step in x["sent"].values())
      for x in state.values()
    )
  except (ValueError, KeyError, TypeError, AttributeError):
    is_whole = False
  if not is_whole:
    raise UserError(
      f"{path}: is damaged. Delete it; trackers then begin a new run."
    )
  return state


@contextlib.contextmanager
def tracking(
  names: Sequence[str], folder: Path, config: Mapping[str, Any]
) -> Iterator[None]:
  """Sends what is written inside `with` to trackers, too.

  Args:
    names: of TRACKERS; none of them does nothing.
    folder: working directory, made.
    config: the experiment, for the trackers to show.

  Raises:
    UserError: see Tracking.
  """
  if not names:
    yield
    return
  opened = Tracking(names, folder, config)
  token = _current.set(opened)
  is_done = False
  try:
    yield
    is_done = True
  finally:
    _current.reset(token)
    opened.close(is_done)


def current() -> Tracking | None:
  """Returns what rows are sent to here, or None."""
  return _current.get()
