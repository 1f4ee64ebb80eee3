"""Runs the trials of a sweep, remembers how each ended, and goes on.

WORKDIR/003.json says how trial 003 stands, WORKDIR/003.log is what it printed.

  done      ended with 0; not run again
  failed    a mistake, a bug, a loss that was not finite; run again only with
            --retry_failed. A mistake before any trial is done is probably one
            of all of them: nothing more is started
  stopped   ended by a signal, or another process of it died; run again, up to
            AGAIN times at once, then by the next command
  halved    stopped early by successive halving
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlhf_jax import strict_json, terminal
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.runs import numbers
from rlhf_jax.sweeps import halving, processes, status, trials
from rlhf_jax.sweeps.trials import Trial

WAITING, RUNNING, DONE = "waiting", "running", "done"
FAILED, STOPPED, HALVED = "failed", "stopped", "halved"
AGAIN = 2  # times that a trial is run again which somebody else ended
# Exit codes of a run that goes on, see main.py; beside them all signals.
_GOES_ON = (42, 75)
_MISTAKE = 2


@dataclasses.dataclass
class State:
  """How a trial stands.

  code: exit code of its last process; negative of one that a signal ended.
  seconds: of all its processes.
  starts: processes.
  steps: of its last start, with halving.
  rungs: steps -> the metric then, with halving.
  pid, born: of the process that runs.
  """

  status: str = WAITING
  code: int | None = None
  seconds: float = 0.0
  starts: int = 0
  steps: int = 0
  rungs: dict[str, float | None] = dataclasses.field(default_factory=dict)
  pid: int = 0
  born: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the trials of a sweep are run.

  workdir: of the sweep, which is there.
  file: the experiment.
  common: options for all trials.
  jobs: trials at once.
  chips: accelerator chips of each of them; 0: each sees all.
  retries_failed: whether failed ones are run again.
  is_smoke: whether each is a short trial.
  program: words before the options of a trial.
  """

  workdir: Path
  file: str
  common: Sequence[str] = ()
  jobs: int = 1
  chips: int = 0
  retries_failed: bool = False
  is_smoke: bool = False
  program: Sequence[str] = ()

  def command(self, trial: Trial, more: Sequence[str] = ()) -> list[str]:
    """Returns the command of a trial; `more` are further options."""
    own = ["-m", "rlhf_jax.sweeps.trial_process", str(os.getpid())]
    return [
      *(self.program if self.program else [sys.executable, *own]),
      *trials.arguments(trial, self.file, self.common),
      *more,
      f"--workdir={self.workdir / trial.id}",
      *(["--smoke"] if self.is_smoke else []),
    ]

  def environment(self, slot: int) -> dict[str, str]:
    """Returns the variables of the trial in a slot: which chips it sees."""
    if not self.chips:
      return dict(os.environ)
    first = slot * self.chips
    seen = ",".join(str(first + i) for i in range(self.chips))
    return {
      **os.environ,
      "CUDA_VISIBLE_DEVICES": seen,
      "ROCR_VISIBLE_DEVICES": seen,
      "TPU_VISIBLE_CHIPS": seen,
      "TPU_PROCESS_BOUNDS": "1,1,1",
      "TPU_CHIPS_PER_PROCESS_BOUNDS": f"1,{self.chips},1",
    }


@dataclasses.dataclass(frozen=True)
class Halving:
  """Successive halving of a sweep; see halving.py.

  field: of the steps.
  rungs: steps of each.
  """

  field: str
  rungs: Sequence[int]
  eta: int
  metric: str
  best: str


def read_state(workdir: Path, trial: Trial) -> State:
  """Returns how a trial stands; a new State if it never ran here.

  Raises:
    UserError: its file is damaged.
  """
  path = workdir / f"{trial.id}.json"
  if not path.is_file():
    return State()
  remedy = "It is damaged. Delete it; what the trial has done is kept."
  found = strict_json.read_object(path, remedy, allows_nan=True)
  known = {field.name for field in dataclasses.fields(State)}
  return State(**{k: v for k, v in found.items() if k in known})


def _write(workdir: Path, trial: Trial, state: State) -> None:
  facts = {"settings": dict(trial.overrides), **dataclasses.asdict(state)}
  text = json.dumps(facts, indent=2) + "\n"
  workdir_lib.write_durably(workdir / f"{trial.id}.json", text)


class Sweep:
  """The trials of a sweep while they run."""

  def __init__(
    self,
    plan: Plan,
    all_trials: Sequence[Trial],
    signals: processes.Signals,
    say: Callable[[str], None] = print,
  ) -> None:
    """Reads how each trial stands.

    Args:
      plan: how they run.
      all_trials: of the sweep.
      signals: entered.
      say: prints a line.
    """
    self.plan, self.trials, self.signals = plan, list(all_trials), signals
    self._say = say
    self.states = {
      trial.id: read_state(plan.workdir, trial) for trial in self.trials
    }
    self._by_id = {trial.id: trial for trial in self.trials}
    self._again: dict[str, int] = {}

  def run(self) -> None:
    """Runs all trials that are not over."""
    self._run([x for x in self.trials if not self._is_over(x)])

  def run_halving(self, how: Halving) -> None:
    """Runs all trials by successive halving.

    Raises:
      UserError: no trial has the metric.
    """
    alive = self.trials
    for steps in how.rungs:
      self._run([x for x in alive if not self._is_past(x, steps)], how, steps)
      if not self.signals.may_start:
        return
      if any(self._is_stopped_before(x, steps) for x in alive):
        self._say("halving waits for trials that were stopped; run it again")
        return
      if steps != how.rungs[-1]:
        alive = self._promoted(alive, steps, how)

  def _promoted(
    self, alive: list[Trial], steps: int, how: Halving
  ) -> list[Trial]:
    """Returns the trials that go on after a rung."""
    groups = halving.groups(alive)
    scores = {}
    for key, members in groups.items():
      found = [self.states[x.id].rungs.get(str(steps)) for x in members]
      is_whole = None not in found
      scores[key] = sum(found) / len(found) if is_whole else None
    going = halving.kept(scores, how.eta, how.best)
    if not going:
      for trial in alive:
        if self.states[trial.id].status == DONE:
          folder = self.plan.workdir / trial.id
          numbers.need(how.metric, numbers.numbers(folder))
    self._say(
      f"after {steps} steps {len(going)} of {len(groups)} settings go on"
    )
    for key, members in groups.items():
      for trial in members:
        state = self.states[trial.id]
        if key not in going and state.status == DONE:
          state.status = HALVED
          _write(self.plan.workdir, trial, state)
    return [x for key in going for x in groups[key]]

  def _is_stopped_before(self, trial: Trial, steps: int) -> bool:
    is_stopped = self.states[trial.id].status == STOPPED
    return is_stopped and not self._is_past(trial, steps)

  def _is_past(self, trial: Trial, steps: int) -> bool:
    has_rung = str(steps) in self.states[trial.id].rungs
    return has_rung or self._is_given_up(trial)

  def _is_given_up(self, trial: Trial) -> bool:
    is_failed = self.states[trial.id].status == FAILED
    return is_failed and not self.plan.retries_failed

  def _is_over(self, trial: Trial) -> bool:
    is_done = self.states[trial.id].status == DONE
    return is_done or self._is_given_up(trial)

  def _run(
    self, chosen: list[Trial], how: Halving | None = None, steps: int = 0
  ) -> None:
    """Runs trials; those of a rung to its steps."""
    for trial in chosen:
      self._await_orphan(trial)
    if not chosen or self.signals.number is not None:
      return
    more = [] if how is None else [trials.as_option(how.field, steps)]
    tasks = [
      processes.Task(
        name=trial.id,
        command=self.plan.command(trial, more),
        log=self.plan.workdir / f"{trial.id}.log",
      )
      for trial in chosen
    ]
    total = len(self.trials) if how is None else len(chosen)
    line = status.Status(total, total - len(chosen))

    def ended(task: processes.Task, code: int, seconds: float) -> bool:
      is_again, said = self._ended(task, code, seconds, how)
      line.note(said)
      if not is_again:
        line.over()
      return is_again

    def started(task: processes.Task, pid: int) -> None:
      self._started(task, pid, steps)
      line.note(f"{task.name} starts: {self._by_id[task.name].label}")

    def waiting(names: Sequence[str]) -> None:
      logs = {name: self.plan.workdir / f"{name}.log" for name in names}
      line.show(logs)

    processes.run_all(
      tasks,
      self.plan.jobs,
      self.signals,
      processes.Events(started, ended, waiting),
      self.plan.environment,
    )
    line.close()

  def _await_orphan(self, trial: Trial) -> None:
    """Waits for a process that a killed sweep has left behind."""
    state = self.states[trial.id]
    if state.status != RUNNING:
      return
    is_said = False
    while processes.is_alive(state.pid, state.born):
      if not is_said:
        self._say(f"{trial.id}: waiting for process {state.pid} of before")
        is_said = True
      if self.signals.number is not None:
        return
      time.sleep(processes.POLL_SECONDS)
    state.status, state.pid, state.born = STOPPED, 0, ""
    _write(self.plan.workdir, trial, state)

  def _started(self, task: processes.Task, pid: int, steps: int) -> None:
    state = self.states[task.name]
    state.status, state.code, state.steps = RUNNING, None, steps
    state.starts += 1
    state.pid, state.born = pid, processes.born(pid)
    _write(self.plan.workdir, self._by_id[task.name], state)

  def _ended(
    self,
    task: processes.Task,
    code: int,
    seconds: float,
    how: Halving | None,
  ) -> tuple[bool, str]:
    """Notes how a process ended; returns whether to repeat, and a line."""
    trial, state = self._by_id[task.name], self.states[task.name]
    state.code, state.seconds = code, state.seconds + seconds
    state.pid, state.born = 0, ""
    is_stopped = code < 0 or code in _GOES_ON
    state.status = DONE if code == 0 else STOPPED if is_stopped else FAILED
    if code == 0 and how is not None:
      state.rungs[str(state.steps)] = numbers.value(
        self.plan.workdir / trial.id, how.metric, how.best
      )
    _write(self.plan.workdir, trial, state)
    has_results = any(x.status == DONE for x in self.states.values())
    if code == _MISTAKE and not has_results:
      self.signals.is_over = True
    tries = self._again.get(trial.id, 0)
    self._again[trial.id] = tries + 1
    is_again = is_stopped and self.signals.number is None and tries < AGAIN
    said = f"{trial.id} {state.status} after "
    said += terminal.format_seconds(seconds)
    said += "" if code == 0 else f" (code {code})"
    said += "; it starts again" if is_again else ""
    if state.status == FAILED:
      said += f"; {status.reason(task.log)}\n  all of it: {task.log}"
    if self.signals.is_over:
      said += "\n  no trial is done yet, so nothing more is started"
    return is_again, said


def statuses(workdir: Path, all_trials: Sequence[Trial]) -> Mapping[str, State]:
  """Returns how each trial stands, also of those that ran elsewhere.

  A trial without a file of its state (tpu_scripts/sweep.sh ran it) is done if
  its folder holds a result.
  """
  found = {}
  for trial in all_trials:
    state = read_state(workdir, trial)
    if state.status == WAITING and numbers.is_finished(workdir / trial.id):
      state = State(status=DONE)
    found[trial.id] = state
  return found
