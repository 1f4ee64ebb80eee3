"""Outcomes of tasks on disk: one file a policy, read again when a run goes on.

The first line says what was measured; each further one is an outcome.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax import distributed, strict_json
from rlhf_jax.data import batches
from rlhf_jax.evaluation.tasks import outcomes
from rlhf_jax.evaluation.tasks.items import GENERATE, Item, Outcome
from rlhf_jax.programs.task_runs import Outcomes
from rlhf_jax.programs.task_suites import Config, Suite
from rlhf_jax.schema import UserError

_REMEDY = "Delete the file to measure again."


def head(suite: Suite, config: Config) -> dict[str, Any]:
  """Returns what outcomes must agree with to be read again.

  Args:
    suite: encoded.
    config: how its tasks are told.
  """
  asked = {
    name: [[x.kind, x.prompt, x.choices, x.answer] for x in task.items]
    for name, task in suite.tasks.items()
  }
  text = json.dumps(asked, sort_keys=True, default=str)
  return {
    "tasks": config.tasks,
    "items": batches.fingerprint(text),
    "told": [config.shots, config.limit, config.chat, config.window],
  }


def kept(
  path: Path,
  wanted: dict[str, Any],
  suite: Suite,
  measure: Callable[[], Outcomes],
) -> Outcomes:
  """Returns outcomes of a file, measured first where it is not there.

  Args:
    path: of the file.
    wanted: of `head`, and whatever else must agree.
    suite: what is measured.
    measure: returns outcomes.

  Raises:
    UserError: the file is of other tasks or another policy.
  """
  is_there = path.is_file()
  distributed.barrier(f"tasks/{path.name}")  # all have looked
  if is_there:
    return read(path, wanted, suite)
  found = measure()
  if distributed.is_first():
    write(path, wanted, found)
  return found


def forget_unless(path: Path, name: str, value: Any) -> None:
  """Deletes outcomes whose first line says another value, or none.

  Args:
    path: of the file; it need not be there.
    name, value: what the first line must say.
  """
  if distributed.is_first() and path.is_file():
    told = strict_json.read_rows(path, {}, _REMEDY)[:1]
    if [line.get(name) for line in told] != [value]:
      path.unlink()
  distributed.barrier(f"tasks/{path.name}/{name}")  # it is gone, or stays


def write(path: Path, told: dict[str, Any], found: Outcomes) -> None:
  """Writes outcomes, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [told]
  for task, each in found.items():
    lines += [{"task": task} | _row(x) for x in each]
  temporary = path.with_suffix(".tmp")
  text = [json.dumps(line, ensure_ascii=False) for line in lines]
  temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
  os.replace(temporary, path)


def read(path: Path, wanted: dict[str, Any], suite: Suite) -> Outcomes:
  """Returns the outcomes of a file.

  Args:
    path: of the file.
    wanted: what its first line must say.
    suite: whose items they are of.

  Raises:
    UserError: another thing was measured, or the file is damaged.
  """
  first, *lines = strict_json.read_rows(path, {}, _REMEDY)
  for name, value in json.loads(json.dumps(wanted)).items():
    if first.get(name) != value:
      raise UserError(
        f"{path}: holds outcomes of another {name} ({first.get(name)!r}, not "
        f"{value!r}). {_REMEDY[:-1]}, or choose another --workdir."
      )
  found: Outcomes = {}
  for line in lines:
    task = line.pop("task")
    own = found.setdefault(task, [])
    if task in suite.tasks:
      item = suite.tasks[task].items[len(own)]
      own.append(outcomes.outcome_of(item, line))
    else:  # of lm-eval
      own.append(_of_harness(line))
  return found


def _row(outcome: Outcome) -> dict[str, Any]:
  return outcomes.row(outcome) | (
    {"metric": outcome.item.fields["metric"]}
    if "metric" in outcome.item.fields
    else {}
  )


def _of_harness(line: dict[str, Any]) -> Outcome:
  """Returns an outcome of lm-eval, whose item is in no file of ours."""
  item = Item(
    where=line["where"],
    kind=GENERATE,
    prompt="",
    fields={"metric": line["metric"]},
  )
  return Outcome(item, text=line["text"], score=line["score"])


def rows(found: dict[str, Outcomes]) -> list[dict[str, Any]]:
  """Returns a row an item, with what each policy made of it."""
  first, *_ = found.values()
  return [
    {
      "task": task,
      "where": one.item.where,
      "outcomes": {
        name: {
          k: v for k, v in outcomes.row(own[task][n]).items() if k != "where"
        }
        for name, own in found.items()
      },
    }
    for task, each in first.items()
    for n, one in enumerate(each)
  ]
