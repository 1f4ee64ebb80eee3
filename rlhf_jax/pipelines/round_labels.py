"""Who judges the comparisons of a round, and whether they agree.

Simulated annotators answer at once. People are waited for: the state is on the
disk, and the same command goes on when they are done.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import distributed, imported, interrupt
from rlhf_jax.labelling import agreement, judgements, simulated
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.schema import FieldError, UserError

STORE = "labelling"  # of the run: what people say on the page


class WaitingError(interrupt.Stopped):
  """A round waits for labels; the same command goes on when they are there."""

  def __init__(self, text: str) -> None:
    super().__init__(0, None)
    self.args = (text,)


def collect(of: Any) -> None:
  """Has the items of a round judged: labels.jsonl.

  Args:
    of: a labelled_rounds.Round.

  Raises:
    WaitingError: people are not done.
    UserError: judgements that are none of these items.
  """
  path = of.folder / iterated.LABELS
  by = of.settings.labels.by
  if by == iterated_settings.FILE and not path.is_file():
    raise WaitingError(
      f"round {of.number} waits for {path}: judgements of "
      f"{of.folder / iterated.ITEMS}, a record of the format 'ranking' a line, "
      "with its `item`"
    )
  if path.is_file():
    return
  items = iterated.read(of.folder / iterated.ITEMS)
  if by == iterated_settings.SIMULATED:
    records = _simulated(of, items)
  elif by == iterated_settings.JUDGE:
    records = _of_feedback(of.feedback(), items)
  elif by == iterated_settings.PAGE:
    records = _by_people(of, items) if distributed.is_first() else []
  else:
    records = _judged(of, items)
  if distributed.is_first():
    iterated.write(path, records)
  distributed.barrier(f"round {of.number} labels")


def _simulated(of: Any, items: Sequence[dict]) -> list[dict]:
  scores = {}
  for name in of.settings.objectives:
    preferences = of.preferences(name)
    scores[name] = [preferences[item["item"]] for item in items]
  return simulated.label(
    items,
    scores.get("", scores),
    of.settings.annotators,
    seed=of.settings.seed,
    overlap=of.settings.labels.overlap,
    time=_now(),
  )


def _judged(of: Any, items: Sequence[dict]) -> list[dict]:
  """Returns what a judge says that the experiment names by import path."""
  path = of.settings.labels.by
  judge = imported.load(path, "labels.by")
  found = judge(items=items, folder=of.folder / "judge", seed=of.settings.seed)
  if not isinstance(found, Sequence) or isinstance(found, str):
    raise FieldError(
      f"labels.by={path!r}: returned a {type(found).__name__}. Return a list "
      "of records of the format 'ranking'."
    )
  known = {item["item"]: item for item in items}
  now = _now()
  return [
    known.get(record.get("item"), {}) | {"time": now} | dict(record)
    for record in found
  ]


def _by_people(of: Any, items: Sequence[dict]) -> list[dict]:
  """Serves the page, and returns what people say of the items there.

  All of it is in the folder labelling/ of the run, so a run that is stopped
  goes on, and the page with it.
  """
  from rlhf_jax.labelling import loop
  from rlhf_jax.labelling.store import Store
  from rlhf_jax.labelling.task import Task

  settings, batch = of.settings, f"round {of.number}"
  task = Task(
    overlap=settings.labels.overlap,
    seed=settings.seed,
    dimensions=settings.labels.objectives,
  )
  with Store(of.world.workdir / STORE, task) as store:
    for name in settings.labels.names:
      store.add_annotator(name)
    store.add_items(items, batch=batch)
    with loop.serve(store, settings.labels.port) as page:
      print(
        f"{batch}: {len(items)} comparisons wait for people. Open one of\n"
        f"{page.links()}\nCtrl-C stops; the same command goes on.",
        flush=True,
      )
      found = loop.wait_for(store, batch)
    # What a decision overrules is kept beside it: it says how people agree.
    told = store.records(batch, is_adjudicated=False)
  decisions = [x for x in found or () if x.get("adjudicated")]
  return [*told, *decisions]


def _of_feedback(rows: Sequence[dict], items: Sequence[dict]) -> list[dict]:
  """Returns what a language model said of the items, in their order.

  It is asked in an order of its own; what it did not answer in form is not
  there.
  """
  said = {_key(row): row for row in rows}
  records, now = [], _now()
  for item in items:
    row = said.get(_key(item))
    if row is None:
      continue
    is_turned = list(row["answers"]) != list(item["answers"])
    ranks = row["ranks"][::-1] if is_turned else row["ranks"]
    label = 1.0 - row["label"] if is_turned else row["label"]
    kept = ("annotator", "principles", "reason", "mass")
    records.append(
      dict(item)
      | {name: row[name] for name in kept if name in row}
      | {"ranks": ranks, "label": label, "time": now}
    )
  return records


def _key(row: Mapping[str, Any]) -> str:
  return json.dumps([row["prompt"], sorted(row["answers"])])


def _now() -> str:
  """Returns the time, to the second, with its zone."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_judged(record: Mapping, objectives: Sequence[str]) -> bool:
  """Says whether a record orders answers by any of the objectives."""
  return any(iterated.ordered_pairs(record, name) for name in objectives)


def checked(
  records: Sequence[Mapping],
  items: Sequence[Mapping],
  objectives: Sequence[str] = ("",),
) -> Counter:
  """Returns counts of what records say; each must be of one of the items.

  Raises:
    UserError: another item, or other answers.
  """
  known = {item["item"]: item for item in items}
  counts: Counter = Counter()
  for number, record in enumerate(records, 1):
    where = f"{iterated.LABELS}:{number}"
    item = known.get(record.get("item"))
    if item is None:
      raise UserError(
        f"{where}: item {record.get('item')!r} was not compared in this round. "
        f"Its items stand in {iterated.ITEMS}."
      )
    if list(record.get("answers", ())) != list(item["answers"]):
      raise UserError(
        f"{where}: other answers than item {item['item']!r} has. Leave prompt "
        "and answers as they are, in their order."
      )
    if not record.get("annotator"):
      raise UserError(f"{where}: no 'annotator'. Say who judged.")
    is_judged = _is_judged(record, objectives)
    counts["judged" if is_judged else "unjudged"] += 1
  return counts


def pass_gate(of: Any) -> None:
  """Measures agreement; stops, warns, or writes the records to learn from.

  Args:
    of: a labelled_rounds.Round.

  Raises:
    UserError: the annotators agree too little, and agreement.action="stop".
  """
  folder, settings = of.folder, of.settings
  records = iterated.read(folder / iterated.LABELS)
  items = iterated.read(folder / iterated.ITEMS)
  names = settings.objectives
  counts = checked(records, items, names)
  told = [x for x in records if not x.get("adjudicated")]
  found = {name: _agreement(told, name) for name in names}
  # Of several objectives the one on which annotators agree the least counts.
  share, pairs = min(
    found.values(), key=lambda x: -1.0 if x[0] is None else x[0]
  )
  judged = {x["item"] for x in records if _is_judged(x, names)}
  facts = {
    "records": len(told),
    "decided": len(records) - len(told),
    "unjudged": counts["unjudged"],
    "items": len(items),
    "judged_items": len(judged),
    "annotators": len({x["annotator"] for x in told}),
    "raw": share,
    "pairs": pairs,
    "threshold": settings.agreement.threshold,
    "action": settings.agreement.action,
  }
  if settings.labels.objectives:
    facts["objectives"] = {
      name: {"raw": raw, "pairs": count} for name, (raw, count) in found.items()
    }
  print(
    f"round {of.number}: {len(told)} judgements of {len(judged)} "
    f"comparisons by {facts['annotators']} annotators; "
    + (f"agreement {share:.1%} of {pairs}" if pairs else "no two of the same")
  )
  _decide(of, facts)
  if not distributed.is_first():
    return
  kept = [x for x in learned(records) if x["item"] in judged]
  tested = {x["item"] for x in items[: _tested(of)]}
  iterated.write(
    folder / iterated.TRAINED, [x for x in kept if x["item"] not in tested]
  )
  if tested:
    iterated.write(
      folder / iterated.TEST, [x for x in kept if x["item"] in tested]
    )
  iterated.replace(
    folder / iterated.AGREEMENT, json.dumps(facts, indent=2) + "\n"
  )


def learned(records: Sequence[dict]) -> list[dict]:
  """Returns records without skips, and without what a decision overrules."""
  decided = {x["item"] for x in records if x.get("adjudicated")}
  return [
    x
    for x in records
    if not x.get("skipped")
    and (x["item"] not in decided or x.get("adjudicated"))
  ]


def _agreement(
  records: Sequence[dict], objective: str = ""
) -> tuple[float | None, int]:
  """Returns how often two annotators say the same, and of how many pairs.

  None where no two judged the same answers.
  """
  found, _ = judgements.of_records(
    (f"{iterated.LABELS}:{number}", record)
    for number, record in enumerate(records, 1)
  )
  table = judgements.votes(found, objective or judgements.OVERALL).table
  pairs = int(np.sum((~np.isnan(table)).sum(axis=0) >= 2))
  return (agreement.raw_agreement(table) if pairs else None), pairs


def _tested(of: Any) -> int:
  return of.settings.comparisons.test if of.number == 1 else 0


def _decide(of: Any, facts: Mapping[str, Any]) -> None:
  """Stops or warns where annotators do not agree."""
  gate, share = of.settings.agreement, facts["raw"]
  if gate.action == "off" or (share is not None and share >= gate.threshold):
    return
  found = "no two annotators judged the same answers"
  if share is not None:
    found = f"two annotators agree in {share:.1%} of {facts['pairs']} pairs"
  text = (
    f"agreement.threshold={gate.threshold}: in round {of.number} {found}. A "
    "reward model cannot be surer than they are: sharpen the guidelines, train "
    "the annotators, or drop the items that divide them"
  )
  if gate.action == "warn":
    print(f"warning: {text}.")
    return
  kept = f"delete {of.folder / iterated.LABELS}"
  if of.settings.labels.by == iterated_settings.PAGE:  # it has them too
    kept += f", move {of.world.workdir / STORE} away"
  raise FieldError(
    f"{text}; then {kept} and label again. Or set agreement.action='warn' to "
    "go on."
  )
