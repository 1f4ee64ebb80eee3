"""What came out: records, progress, how people do, what they dispute."""

from __future__ import annotations

import collections
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.labelling import assignment, verdicts
from rlhf_jax.labelling.database import Database
from rlhf_jax.labelling.task import Task

KINDS = ("item", "gold", "check", "qualification")
SAID = (  # of a record: what a person said
  *("ranks", "choice", "objectives", "strength", "acceptable", "scores"),
  *("reason", "seconds", "skipped"),
)
ADJUDICATOR = "adjudicator"
_HOLDING = """
  SELECT judgements.id, judgements.body AS said, judgements.time, items.batch,
    assignments.annotator, assignments.kind, assignments.shown,
    assignments.guideline, items.name, items.body, items.chosen_by,
    annotators.fields, items.kind AS item_kind, items.deviation,
    items.probability
  FROM judgements JOIN assignments ON assignments.id = judgements.assignment
  JOIN items ON items.name = assignments.item
  JOIN annotators ON annotators.name = assignments.annotator
  WHERE judgements.undone IS NULL ORDER BY judgements.number"""


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a judgement as a record of the format "ranking"."""
  item, said = json.loads(row["body"]), json.loads(row["said"])
  count = len(item["answers"])
  record = item["fields"] | {"prompt": item["prompt"]}
  record |= {"answers": item["answers"], "item": row["name"]}
  if said.get("skipped"):
    said = said | {"ranks": [None] * count}
  record |= {key: value for key, value in said.items() if value is not None}
  if said.get("acceptable") and "choice" in said:
    record["choice"] = None
  record |= {
    "annotator": row["annotator"],
    "shown": json.loads(row["shown"]),
    "time": row["time"],
    "judgement": row["id"],
  }
  further = {
    "guideline": row["guideline"],
    "chosen_by": row["chosen_by"] if row["kind"] == "item" else "",
    "batch": row["batch"],
    "annotator_fields": json.loads(row["fields"]),
    "gold": row["item_kind"] == "gold",
    "qualification": row["item_kind"] == "qualification",
    "check": row["kind"] == "check",
    "gold_ranks": item["ranks"],
  }
  record |= {key: value for key, value in further.items() if value}
  numbers = {key: row[key] for key in ("deviation", "probability")}
  return record | {k: v for k, v in numbers.items() if v is not None}


def records(
  database: Database,
  batch: str | None = None,
  kinds: Sequence[str] = ("item",),
  *,
  with_skips: bool = False,
  is_adjudicated: bool = True,
) -> list[dict[str, Any]]:
  """Returns what Store.records says."""
  decided = _decided(database) if is_adjudicated else {}
  found = []
  for row in database.rows(_HOLDING):
    if row["kind"] not in kinds or (
      batch is not None and row["batch"] != batch
    ):
      continue
    if row["kind"] == "item" and row["name"] in decided:
      continue
    record = _record(row)
    if with_skips or not record.get("skipped"):
      found.append(record)
  if "item" in kinds:
    found += [
      x for x in decided.values() if batch in (None, x.get("batch", ""))
    ]
  return found


def _decided(database: Database) -> dict[str, dict[str, Any]]:
  """Returns item -> the record of its adjudication, the newest."""
  rows = database.rows(
    "SELECT adjudications.body AS said, adjudications.time, shown, items.name, "
    "items.body, items.batch, items.chosen_by, items.kind AS item_kind, "
    "items.deviation, items.probability, "
    "'item' AS kind, '' AS guideline, '{}' AS fields, ? AS annotator, "
    "'adjudication ' || adjudications.number AS id FROM adjudications JOIN "
    "items ON items.name = adjudications.item ORDER BY adjudications.number",
    (ADJUDICATOR,),
  )
  return {row["name"]: _record(row) | {"adjudicated": True} for row in rows}


def everything(database: Database) -> list[dict[str, Any]]:
  """Returns every judgement that holds, marked as what it is.

  People's own and decisions about them, checks, qualification, skips; for each
  gold and qualification item that was judged also a record without an annotator
  that says what is right.
  """
  found = records(database, kinds=KINDS, with_skips=True, is_adjudicated=False)
  own = (*SAID, "annotator", "shown", "time", "judgement", "guideline")
  own += ("annotator_fields", "check", "gold_ranks", "chosen_by")
  known = {
    x["item"]: {k: v for k, v in x.items() if k not in own}
    | {"ranks": x["gold_ranks"]}
    for x in found
    if "gold_ranks" in x
  }
  return [*known.values(), *found, *_decided(database).values()]


def export(database: Database, path: Path) -> int:
  """Writes `everything`, one record a line; returns how many."""
  found = everything(database)
  part = path.with_name(path.name + ".part")
  with part.open("w", encoding="utf-8") as file:
    for record in found:
      file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)
  return len(found)


def progress(
  database: Database, task: Task, batch: str | None = None
) -> dict[str, int]:
  """Returns what Store.progress says."""
  rows = database.rows(
    f"""SELECT items.withdrawn, items.begun,
      COALESCE(counts.done, 0) AS done,
      COALESCE(counts.skipped, 0) AS skipped,
      COALESCE(counts.skipped, 0) > 0 AND NOT EXISTS (
        SELECT 1 FROM annotators WHERE state <> 'refused' AND NOT EXISTS (
          SELECT 1 FROM assignments AS theirs
          WHERE theirs.item = items.name AND theirs.kind = 'item'
          AND theirs.annotator = annotators.name
          AND theirs.state IN ('done', 'skipped'))) AS is_left_by_all
    FROM items LEFT JOIN ({assignment.COUNTS}) AS counts
      ON counts.item = items.name
    WHERE items.kind = 'item' AND (:batch IS NULL OR items.batch = :batch)""",
    {"stale": assignment.stale_before(task), "batch": batch},
  )
  closed = [
    row
    for row in rows
    if row["withdrawn"]
    or row["is_left_by_all"]
    or max(row["done"], row["skipped"]) >= task.overlap
  ]
  return {
    "items": len(rows),
    "begun": sum(row["done"] > 0 for row in rows),
    "closed": len(closed),
    "judgements": sum(row["done"] for row in rows),
    "skipped": sum(row["skipped"] for row in rows),
    "wanted": len(rows) * task.overlap,
  }


def people(database: Database) -> list[dict[str, Any]]:
  """Returns a row a person: how much, how fast, how well, how even.

  gold_right of gold; check_same of checks: earlier preferences that were told
  again when the answers stood the other way round; first_share: how often the
  answer at the first place won, of strict preferences (0.5 where places do not
  matter); median_seconds of an item.
  """
  by_person: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
  for row in database.rows(_HOLDING):
    by_person[row["annotator"]].append(row)
  rows = database.rows("SELECT * FROM annotators ORDER BY rowid")
  return [_person(row, by_person[row["name"]]) for row in rows]


def _person(
  person: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  said = [(row, json.loads(row["said"])) for row in rows]
  told = [(row, x) for row, x in said if not x.get("skipped")]
  seconds = [x["seconds"] for _, x in told if x.get("seconds") is not None]
  gold = [
    verdicts.is_right(x, json.loads(row["body"])["ranks"])
    for row, x in told
    if row["kind"] == "gold"
  ]
  firsts = list(_firsts(told))
  checks = list(_checks(told))
  return {
    "name": person["name"],
    "state": person["state"],
    "is_paused": bool(person["is_paused"]),
    "judgements": sum(row["kind"] == "item" for row, _ in told),
    "skipped": len(said) - len(told),
    "gold": len(gold),
    "gold_right": sum(gold),
    "checks": len(checks),
    "check_same": sum(checks),
    "first_share": statistics.fmean(firsts) if firsts else None,
    "median_seconds": statistics.median(seconds) if seconds else None,
  }


def _firsts(told: Sequence[tuple[Mapping[str, Any], Any]]) -> Iterator[bool]:
  for row, said in told:
    shown = json.loads(row["shown"])
    ranks = verdicts.ranks_of(said, len(shown))
    known = [rank for rank in ranks if rank is not None]
    best = [answer for answer in shown if known and ranks[answer] == min(known)]
    if len(best) == 1:
      yield best[0] == shown[0]


def _checks(told: Sequence[tuple[Mapping[str, Any], Any]]) -> Iterator[bool]:
  first = {row["name"]: x for row, x in told if row["kind"] == "item"}
  for row, again in told:
    if row["kind"] == "check" and row["name"] in first:
      count = len(json.loads(row["shown"]))
      one = verdicts.ranks_of(first[row["name"]], count)
      yield verdicts.signs(one) == verdicts.signs(
        verdicts.ranks_of(again, count)
      )


def disputed(database: Database) -> list[dict[str, Any]]:
  """Returns items on which people disagree, with what each of them said.

  Each: item, prompt, answers, pictures, judgements (records), decision (a
  record or None). Undecided ones come first.
  """
  by_item: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
  for record in records(database, is_adjudicated=False):
    by_item[record["item"]].append(record)
  decided = _decided(database)
  found = [
    {
      "item": name,
      "prompt": said[0]["prompt"],
      "answers": said[0]["answers"],
      "pictures": _pictures(database, name),
      "judgements": said,
      "decision": decided.get(name),
    }
    for name, said in by_item.items()
    if verdicts.is_disputed(said, len(said[0]["answers"]))
  ]
  return sorted(found, key=lambda x: x["decision"] is not None)


def _pictures(database: Database, item: str) -> list[str]:
  """Returns the SVG of each answer of an item, [] for none."""
  [row] = database.rows("SELECT body FROM items WHERE name = ?", (item,))
  return json.loads(row["body"]).get("pictures", [])


def judged_by(database: Database, annotator: str) -> int:
  """Returns how many answers of a person hold, skips among them."""
  [row] = database.rows(
    "SELECT COUNT(*) AS count FROM assignments WHERE annotator = ? AND state "
    "IN ('done', 'skipped')",
    (annotator,),
  )
  return row["count"]
