"""The alignment tax while a policy trains: what it forgets, and when to stop.

Capability tasks (task_suites.py) are done before the first step, every N steps
on the first items of each, and after the last step. All of them are compared
with what the policy did before, item by item (METHODS 14):

  warn   a share fell by more than 1.5 points, or the nats of texts rose by 2 %
  stop   it fell by more than 3 points (METHODS 19), or they rose by 10 %

and only where the 95 % interval over items has no 0 in it. A share stops a run
only where, besides, coins would part the items that moved so unevenly less than
once in 20 (Change.chance): every look at every task is a test, and the interval
alone stops one in eight runs that forget nothing (ten looks at 64 items of one
task). The points are METHODS' own; the two rises of nats are this package's.

Nothing of it touches the run: the numbers are greedy and of no random key, so a
run that is measured trains the same, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, strict_json
from rlhf_jax.evaluation import table_page
from rlhf_jax.evaluation.tasks import loading, outcomes, tables
from rlhf_jax.evaluation.tasks.outcomes import RATES, Change
from rlhf_jax.programs import task_files, task_suites
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.task_runs import Outcomes, Runner
from rlhf_jax.runs.loop import OneStep
from rlhf_jax.schema import FieldError, check_least
from rlhf_jax.types import PyTree

FOLDER = "tax"  # in a run's: outcomes before and after, and the page
BEFORE, AFTER = "before", "after"
CHANCE = 0.05  # of coins, from which on a fall stops nothing
PAGE_FILE = "tax.html"
ROUNDS_FILE = "rounds.json"


@dataclasses.dataclass(frozen=True)
class Config(task_suites.Config):
  """Which capabilities are watched while a policy trains."""

  every: int = 0  # steps (rejection: rounds) between measurements, besides
  # those before and after; 0: only these
  subset: int = 64  # items of each task that are done in between; 0 for all
  warn_points: float = 1.5  # fall of a share that is an alarm (METHODS 14)
  halt_points: float = 3.0  # fall of a share that stops the run; inf: never
  warn_nats: float = 0.02  # rise of the nats of texts that is an alarm, a share
  halt_nats: float = 0.1  # rise that stops the run, a share; inf: never

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, every=0, subset=0)
    for unit in ("points", "nats"):
      warn, halt = getattr(self, f"warn_{unit}"), getattr(self, f"halt_{unit}")
      if not 0.0 <= warn <= halt:
        raise FieldError(
          f"warn_{unit}={warn}, halt_{unit}={halt}: need 0 <= warn <= halt; "
          "inf for never."
        )
    if self.every and not self.tasks:
      raise FieldError(
        f"every={self.every} with tasks='': there is nothing to measure. Name "
        "tasks, or set 0."
      )


def check(config: Config) -> None:
  """Checks the tasks of a section `tax`; reads no model.

  Raises:
    FieldError: value, rule and remedy.
  """
  loading.check(config.own, "tax.tasks")
  if config.harness:
    raise FieldError(
      f"tax.tasks={config.tasks!r}: lm-eval's tasks are for configs/tasks.py, "
      "before and after a run. Name others here."
    )


@dataclasses.dataclass(frozen=True)
class Tax:
  """Watches capabilities of one run.

  config: how.
  runner: of the policy.
  suite, subset: all items, and the first of each task.
  folder: where outcomes are kept.
  name: of the run, for messages.
  """

  config: Config
  runner: Runner
  suite: task_suites.Suite
  subset: task_suites.Suite
  folder: Path
  name: str

  @staticmethod
  def of(
    config: Config, sampler: Sampler, mesh: Any, workdir: Path, name: str
  ) -> Tax | None:
    """Returns what watches a run, None where no tasks are named.

    Args:
      config: the section `tax`.
      sampler: of the policy.
      mesh: where it is.
      workdir: of the run.
      name: of the run, for messages.
    """
    if not config.tasks:
      return None
    base = sampler.base
    suite = task_suites.load(config, base, section="tax")
    subset = suite
    if config.subset and config.every:
      subset = task_suites.load(config, base, config.subset, section="tax")
    runner = Runner(sampler.role, sampler.frozen, base, mesh, config.batch_size)
    print(f"{name}: capabilities: {task_suites.describe(suite)}", flush=True)
    return Tax(config, runner, suite, subset, workdir / FOLDER, name)

  def measured(
    self, when: str, params: PyTree, step: int | None = None
  ) -> Outcomes:
    """Returns all outcomes BEFORE or AFTER the run, from their file if there.

    Args:
      when: BEFORE or AFTER.
      params: trained tree of the policy then.
      step: of the end, for AFTER. A run that goes on has another one, and what
        was measured at the end of before is measured anew.
    """
    path, head = (
      self.folder / f"{when}.jsonl",
      task_files.head(self.suite, self.config),
    )
    if step is not None:
      head |= {"step": step}
      task_files.forget_unless(path, "step", step)
    return task_files.kept(
      path, head, self.suite, lambda: self.runner(params, self.suite)
    )

  def watched(
    self,
    one_step: OneStep,
    policy: Callable[[PyTree], PyTree],
    total: int,
    start: PyTree,
  ) -> OneStep:
    """Returns a step of loop.run_steps that measures too, every N steps.

    What comes before is measured at once, on the start: a run that goes on may
    be told of tasks for the first time, when its policy has moved already.

    Args:
      one_step: of the run; its facts have "alarms".
      policy: arrays of the run -> the policy's trained tree.
      total: steps of the run.
      start: arrays before the first step.
    """
    self.measured(BEFORE, policy(start))

    def step_and_measure(step: int, arrays: PyTree, facts: dict):
      arrays, facts, row = one_step(step, arrays, facts)
      facts = facts | {"tax_step": step + 1}
      every = self.config.every
      is_due = every and (step + 1) % every == 0 and step + 1 < total
      if is_due and not facts.get("halt"):
        found, facts = self.look(policy(arrays), step + 1, facts)
        row = row | found
      return arrays, facts, row

    return step_and_measure

  def look(
    self, params: PyTree, step: int, facts: dict
  ) -> tuple[dict[str, float], dict]:
    """Returns metrics of the subset, and facts with alarms or "halt".

    Metrics:
      tax/NAME: accuracy, score or nats a token of a task on its first items.
        A share that falls and nats that rise are bad.
      tax/NAME_change: points, or nats, since the run began, paired by item. Of
        shares below 0 is bad, of nats above.
      tax/fall: the largest fall of a share in points; 0 where none fell. Up is
        bad.

    Args:
      params: trained tree of the policy.
      step: of the run.
      facts: of the run, with "alarms".
    """
    before = self.measured(BEFORE, params)
    after = self.runner(params, self.subset)
    row, falls = {}, [0.0]
    for task, new in after.items():
      old = before[task][: len(new)]
      change = main_change(old, new)
      row[f"tax/{task}"] = change.after
      row[f"tax/{task}_change"] = change.change
      if change.name not in RATES:
        falls.append(change.fall)
      facts = self._judged(task, change, step, facts)
    return row | {"tax/fall": max(falls)}, facts

  def _judged(self, task: str, change: Change, step: int, facts: dict) -> dict:
    """Returns facts with what a change of a task says."""
    verdict = judge(change, self.config)
    if not verdict:
      return facts
    text = sentence(task, change)
    if verdict == "halt":
      halt = f"stopped at step {step}: {text}, beyond {limit(change)}"
      print(f"\n{self.name}: {halt}")
      return facts | {"halt": halt}
    warned = facts.get("tax_warned", [])
    if task in warned:
      return facts
    print(f"\n{self.name}: warning at step {step}: {text}")
    return facts | {
      "alarms": [*facts["alarms"], [step, text]],
      "tax_warned": [*warned, task],
    }

  def finish(self, params: PyTree, facts: dict) -> dict[str, Any]:
    """Returns what stage.json says of the tax; writes the page.

    Args:
      params: trained tree of the policy in the end.
      facts: of the run; alarms are added to a copy.
    """
    found = {
      BEFORE: self.measured(BEFORE, params),
      AFTER: self.measured(AFTER, params, facts.get("tax_step", 0)),
    }
    told = tables.facts(found)
    alarms = list(facts.get("alarms", []))
    for task in found[BEFORE]:
      change = main_change(found[BEFORE][task], found[AFTER][task])
      if judge(change, self.config):
        text = sentence(task, change)
        print(f"\n{self.name}: warning at the end: {text}")
        alarms.append([facts.get("tax_step", 0), text])
    if distributed.is_first():
      about = [(x.name, f"{x.kind}:{x.source}") for x in self.config.named]
      page = tables.page(found, told, "Capabilities before and after", about)
      table_page.write(self.folder / PAGE_FILE, page)
    return {"tax": summary(told), "alarms": alarms}


def main_change(old: list, new: list) -> Change:
  """Returns the change of the number that a task is known by."""
  name = outcomes.main_number(old)
  return next(x for x in outcomes.changes(old, new) if x.name == name)


def judge(change: Change, config: Config) -> str:
  """Returns "halt", "warn" or "" for a change of a task.

  Args:
    change: of the number that it is known by.
    config: the limits.
  """
  if not change.is_clear:
    return ""
  fall, unit = change.fall, "points"
  if change.name in RATES:
    fall, unit = change.after / change.before - 1.0, "nats"
  by_chance = change.chance >= CHANCE  # not where nobody knows
  if fall > getattr(config, f"halt_{unit}") and not by_chance:
    return "halt"
  return "warn" if fall > getattr(config, f"warn_{unit}") else ""


def sentence(task: str, change: Change) -> str:
  """Returns a change for the worse in words."""
  low, high = sorted((abs(change.low), abs(change.high)))
  if change.name in RATES:
    return (
      f"texts of {task} cost {change.after:.3f} nats a token, and "
      f"{change.before:.3f} before: the policy forgets how they go"
    )
  return (
    f"{task} fell by {change.fall:.1f} points (95 % interval {low:.1f} to "
    f"{high:.1f}, {change.items} items): the policy forgets"
  )


def limit(change: Change) -> str:
  """Returns the field that stops a run for such a change."""
  return "tax.halt_nats" if change.name in RATES else "tax.halt_points"


def summary(told: dict[str, Any]) -> dict[str, Any]:
  """Returns tasks -> before, after, change, low, high, and "overall"."""
  found: dict[str, Any] = {}
  for task, numbers in told["changes"][AFTER].items():
    name = next(x for x in (*outcomes.SHARES, *RATES) if x in numbers)
    found[task] = numbers[name]
  if AFTER in told["overall"]:
    found["overall"] = told["overall"][AFTER]
  return found


def watched(
  tax: Tax | None,
  one_step: OneStep,
  policy: Callable[[PyTree], PyTree],
  total: int,
  start: PyTree,
) -> OneStep:
  """Returns one_step, watched where somebody watches; see Tax.watched."""
  if tax is None:
    return one_step
  return tax.watched(one_step, policy, total, start)


def finished(tax: Tax | None, params: PyTree, facts: dict) -> dict[str, Any]:
  """Returns "alarms", and "tax" where somebody watches, for stage.json."""
  if tax is None:
    return {"alarms": facts["alarms"]}
  return tax.finish(params, facts)


@dataclasses.dataclass
class Rounds:
  """Watches a run of rounds, whose facts are in a file of its own.

  tax: None where nobody watches.
  facts: "alarms", how many rounds were looked at, and perhaps "halt".
  """

  tax: Tax | None
  facts: dict[str, Any]

  @staticmethod
  def of(tax: Tax | None) -> Rounds:
    """Returns what watches, where it was if the run goes on."""
    facts: dict[str, Any] = {"alarms": [], "tax_step": 0}
    if tax is not None and (tax.folder / ROUNDS_FILE).is_file():
      remedy = "Delete the file to go on without it."
      facts = strict_json.read_object(tax.folder / ROUNDS_FILE, remedy)
    return Rounds(tax, facts)

  def ends_before(self, number: int) -> bool:
    """Says whether the run was stopped before a round."""
    return "halt" in self.facts and number > self.facts["tax_step"]

  def begin(self, params: PyTree) -> None:
    """Measures before the first round; params: trained tree of the policy."""
    if self.tax is not None:
      self.tax.measured(BEFORE, params)

  def after(self, params: PyTree, number: int, count: int) -> dict[str, float]:
    """Returns metrics after a round that was not looked at yet; else {}.

    Args:
      params: trained tree of the policy.
      number: of the round.
      count: rounds of the run.
    """
    if self.tax is None or number <= self.facts["tax_step"]:
      return {}
    row, every = {}, self.tax.config.every
    self.facts = self.facts | {"tax_step": number}
    if every and number % every == 0 and number < count:
      row, self.facts = self.tax.look(params, number, self.facts)
    if distributed.is_first():
      self.tax.folder.mkdir(parents=True, exist_ok=True)
      path = self.tax.folder / ROUNDS_FILE
      temporary = path.with_suffix(".tmp")
      temporary.write_text(json.dumps(self.facts) + "\n")
      os.replace(temporary, path)
    return row

  def finish(self, params: PyTree, rang: list) -> dict[str, Any]:
    """Returns what stage.json says, at least the alarms.

    Args:
      params: trained tree of the policy.
      rang: alarms of others, [round, sentence] each.
    """
    if self.tax is None:
      return {"alarms": rang}
    found = self.tax.finish(params, self.facts)
    alarms = [*rang, *found["alarms"]]
    return found | {"alarms": alarms, "halted": self.facts.get("halt")}
