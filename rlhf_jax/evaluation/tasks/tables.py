"""Outcomes of policies as facts of a file, as a printed table, and as a page.

The first policy is what the others are compared with. Facts are

  policies  name -> task -> numbers (outcomes.numbers)
  changes   name -> task -> number -> before, after, change, low, high, items,
            lost, gained
  overall   name -> the mean change of main shares over tasks, or nothing
  groups    task -> policy -> group -> numbers, of tasks that have groups
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import strict_json, terminal
from rlhf_jax.evaluation.pictures import number
from rlhf_jax.evaluation.table_page import Cell, Example, Page, Section, Table
from rlhf_jax.evaluation.tasks import outcomes
from rlhf_jax.evaluation.tasks.items import CHOICE, GENERATE, Outcome
from rlhf_jax.evaluation.tasks.outcomes import Change

Found = Mapping[str, Mapping[str, Sequence[Outcome]]]  # policy -> task -> items
LOST = 6  # items shown that a policy lost
POINTS = 3.0  # a fall that is marked, METHODS 14 and 19


def facts(found: Found) -> dict[str, Any]:
  """Returns the numbers of policies; see the module.

  Args:
    found: outcomes by policy and task, of the same items.
  """
  first, *others = found
  told: dict[str, Any] = {
    "policies": {
      name: {task: outcomes.numbers(x) for task, x in tasks.items()}
      for name, tasks in found.items()
    },
    "changes": {},
    "overall": {},
    "groups": {},
  }
  for name in others:
    told["changes"][name] = {
      task: {
        x.name: dataclasses.asdict(x)
        for x in outcomes.changes(found[first][task], after)
      }
      for task, after in found[name].items()
    }
    whole = outcomes.overall(found[first], found[name])
    if whole is not None:
      told["overall"][name] = dataclasses.asdict(whole)
  for task, own in found[first].items():
    if outcomes.by_group(own):
      told["groups"][task] = {
        name: outcomes.by_group(tasks[task]) for name, tasks in found.items()
      }
  return strict_json.plain(told)


def change_of(told: Mapping[str, Any]) -> Change:
  """Returns a change of facts."""
  may_lack = ("lost", "gained")
  return Change(
    **{
      k: math.nan if x is None and k not in may_lack else x
      for k, x in told.items()
    }
  )


def is_bad(change: Change) -> bool:
  """Whether a fall is marked: clear, and of a share above POINTS."""
  is_share = change.name not in outcomes.RATES
  return change.is_clear and (not is_share or change.fall > POINTS)


def _rows(told: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """Returns (task, number, shown) of each row of a table."""
  first = next(iter(told["policies"].values()))
  found = []
  for task, numbers in first.items():
    for name in (*outcomes.SHARES, *outcomes.RATES, "perplexity"):
      if name in numbers:
        found.append((task, name, f"{task}: {name.replace('_', ' ')}"))
  return found


def _text(change: Change | None, decimals: int) -> str:
  """Returns "-4.0 [-7.5, -0.5]", "" for no change."""
  if change is None:
    return ""
  shown = terminal.decimal(change.change, decimals, sign=True)
  if math.isnan(change.low):
    return shown
  low, high = (
    terminal.decimal(x, decimals, sign=True) for x in (change.low, change.high)
  )
  return f"{shown} [{low}, {high}]"


def _found_change(
  told: Mapping[str, Any], policy: str, task: str, name: str
) -> Change | None:
  known = told["changes"].get(policy, {}).get(task, {}).get(name)
  return None if known is None else change_of(known)


def show(told: Mapping[str, Any]) -> str:
  """Returns a table for a terminal: a row a number, a column a policy.

  Beside a number stands its change to the first policy with its 95 %
  interval: of shares in points, of nats and bits as they are.
  """
  rows = []
  for task, name, shown in _rows(told):
    cells = []
    for policy, tasks in told["policies"].items():
      text = terminal.decimal(tasks[task][name], 3)
      is_share = name in outcomes.SHARES
      change = _found_change(told, policy, task, name)
      more = _text(change, 1 if is_share else 3)
      cells.append(f"{text} {more}".strip())
    rows.append([shown, *cells])
  overall = told["overall"]
  if overall:
    cells = [
      _text(change_of(overall[x]), 1) if x in overall else ""
      for x in told["policies"]
    ]
    rows.append(["all tasks, points", *cells])
  return terminal.format_table(["", *told["policies"]], rows)


def table(told: Mapping[str, Any]) -> Table:
  """Returns the table of a page."""
  rows: list[list[Cell | str]] = []
  for task, name, shown in _rows(told):
    row: list[Cell | str] = [shown]
    for policy, tasks in told["policies"].items():
      change = _found_change(told, policy, task, name)
      row.append(
        Cell(
          number(tasks[task][name], 3),
          _text(change, 1 if name in outcomes.SHARES else 3),
          is_bad=change is not None and is_bad(change),
        )
      )
    rows.append(row)
  return Table(
    ["", *told["policies"]],
    rows,
    note="Below a number its change to the first policy with a 95 % bootstrap "
    "interval over items, paired: of shares in points (100 is all), of nats "
    "and bits as they are. Marked: a clear fall of more than "
    f"{POINTS:g} points, or a clear rise of nats.",
  )


def page(
  found: Found, told: Mapping[str, Any], title: str, about: Sequence[tuple]
) -> Page:
  """Returns the page of an evaluation.

  Args:
    found: outcomes by policy and task.
    told: of `facts`.
    title: of the page.
    about: (name, value) at its end.
  """
  first, *others = found
  tiles = [
    (
      f"{name}: all tasks",
      number(change["change"], 1, sign=True) + " points",
      f"{number(change['low'], 1, sign=True)} to "
      f"{number(change['high'], 1, sign=True)}, against {first}",
    )
    for name, change in told["overall"].items()
  ]
  sections = [Section("Tasks", tables=[table(told)])]
  for task, groups in told["groups"].items():
    sections.append(_groups(task, groups))
  for name in others:
    lost = _lost(found[first], found[name])
    if lost:
      sections.append(
        Section(
          f"What {name} lost",
          f"The first items that {first} had right and {name} has wrong.",
          examples=lost,
        )
      )
  return Page(
    title,
    f"{', '.join(found)}",
    tiles=tiles,
    sections=sections,
    facts=list(about),
  )


def _groups(task: str, groups: Mapping[str, Any]) -> Section:
  first = next(iter(groups.values()))
  name = next(
    x
    for x in (*outcomes.SHARES, *outcomes.RATES)
    if x in next(iter(first.values()))
  )
  rows = [
    [
      group,
      str(numbers["items"]),
      *(number(x[group].get(name), 3) for x in groups.values()),
    ]
    for group, numbers in first.items()
  ]
  heads = ["", "items", *groups]
  title = f"{task}, by group: {name.replace('_', ' ')}"
  return Section(title, tables=[Table(heads, rows)])


def _lost(
  before: Mapping[str, Sequence[Outcome]],
  after: Mapping[str, Sequence[Outcome]],
) -> list[Example]:
  found = []
  for task, old in before.items():
    for one, other in zip(old, after[task], strict=True):
      if _is_right(one) and not _is_right(other) and len(found) < LOST:
        parts = [("asked", _shown(one.item.prompt), one.item.where)]
        for label, x in (("before", one), ("after", other)):
          parts.append((label, _said(x), ""))
        found.append(Example(task, parts))
  return found


def _is_right(outcome: Outcome) -> bool:
  if outcome.item.kind == CHOICE:
    return outcome.chosen == outcome.item.answer
  return outcome.item.kind == GENERATE and bool(outcome.score)


def _said(outcome: Outcome) -> str:
  if outcome.item.kind == CHOICE:
    return outcome.item.choices[outcome.chosen].strip()
  return outcome.text


def _shown(prompt: Any) -> str:
  """Returns the end of a prompt, for people."""
  if not isinstance(prompt, str):
    prompt = "\n".join(f"{x['role']}: {x['content']}" for x in prompt)
  return prompt if len(prompt) <= 600 else f"... {prompt[-600:]}"
