"""Rounds of labels: who answers, what is compared, whether people agree.

Everything here is of records, on the host: pipelines/iterate.py has the stages
between them. A comparison is an item before it is judged and a record of the
format "ranking" (docs/data.md) afterwards; both carry where their answers come
from: `policies`, a name for each answer, and `round`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json

# Files of a round.
ITEMS, LABELS, AGREEMENT = "items.jsonl", "labels.jsonl", "agreement.json"
TRAINED, TEST = "comparisons.jsonl", "test.jsonl"
FRESHNESS, CANDIDATES = "freshness.json", "candidates.jsonl"
RANKING = "ranking"  # format of what is judged


def by_objective(name: str, objective: str) -> str:
  """Returns the name of a stage for one of several objectives, "" for one."""
  return f"{name}_{objective}" if objective else name


def shares(count: int, parts: int) -> list[int]:
  """Returns count cut into parts that differ by one at most."""
  return [count // parts + (i < count % parts) for i in range(parts)]


def grouped(
  rows: Sequence[Mapping[str, Any]], policy: str, each: int
) -> list[dict]:
  """Returns answers by prompt: {"prompt", "answers", "policies", "scores"?}.

  Args:
    rows: of answers.jsonl, `each` of a prompt in a row.
    policy: name of who wrote them.
    each: answers to a prompt.
  """
  found = []
  for first in range(0, len(rows), each):
    those = rows[first : first + each]
    said = [_answer(row) for row in those]
    group = {
      "prompt": _prompt(those[0]),
      "answers": said,
      "policies": [policy] * each,
    }
    if "proxy" in those[0]:
      group["scores"] = [row["proxy"] for row in those]
    found.append(group)
  return found


def _prompt(row: Mapping[str, Any]) -> Any:
  return row["messages"][:-1] if "messages" in row else row["prompt"]


def _answer(row: Mapping[str, Any]) -> str:
  return (
    row["messages"][-1]["content"] if "messages" in row else row["response"]
  )


def across(groups: Sequence[Sequence[Mapping]], answers: int) -> list[dict]:
  """Returns groups of the same prompts, their answers of several policies.

  Policies take turns, so each writes as many answers as another.

  Args:
    groups: of each policy, on the same prompts.
    answers: to a prompt.
  """
  found = []
  for number, those in enumerate(zip(*groups, strict=True)):
    members = [(number + i) % len(those) for i in range(answers)]
    places = [i // len(those) for i in range(answers)]
    joined: dict[str, Any] = {"prompt": those[0]["prompt"]}
    for name in ("answers", "policies", "scores"):
      if name in those[0]:
        joined[name] = [
          those[m][name][p] for m, p in zip(members, places, strict=True)
        ]
    found.append(joined)
  return found


def distinct(groups: Sequence[Mapping[str, Any]]) -> tuple[list[dict], int]:
  """Returns groups of answers that differ, and how many groups have none.

  Of an answer that stands there twice the first is kept, an empty one is not,
  which no reward model reads; a group of one answer is left out and counted.
  """
  found, lost = [], 0
  for group in groups:
    told = [
      (i, text) for i, text in enumerate(group["answers"]) if text.strip()
    ]
    kept = sorted({text: i for i, text in reversed(told)}.values())
    if len(kept) < 2:
      lost += 1
      continue
    lists = {
      name: [group[name][i] for i in kept]
      for name in ("answers", "policies", "scores")
      if name in group
    }
    found.append(dict(group) | lists)
  return found, lost


def chosen(
  groups: Sequence[Mapping[str, Any]],
  count: int,
  how: str,
  rng: np.random.Generator,
) -> list[dict]:
  """Returns the comparisons that are labelled, at most `count`.

  Args:
    groups: candidates.
    count: how many.
    how: of iterated_settings.CHOICES.
    rng: of the draw, and of what comes first of equal ones.
  """
  order = rng.permutation(len(groups))
  first = groups[0] if groups else {}
  if how == "uncertainty" and "scores" in first:
    spread = [np.std(groups[i]["scores"]) for i in order]
    order = order[np.argsort(spread, kind="stable")]
  if how == "disagreement" and "members" in first:
    apart = [-disagreement(groups[i]["members"]) for i in order]
    order = order[np.argsort(apart, kind="stable")]
  return [dict(groups[i]) for i in order[:count]]


def disagreement(members: Sequence[Sequence[float]]) -> float:
  """Returns how far members differ in how far apart answers are.

  The deviation over members of the difference of two answers' scores; of more
  than two answers the root of its mean square over pairs.

  Args:
    members: [K, M], scores of each answer.
  """
  scores = np.asarray(members, np.float64)
  first, second = np.triu_indices(len(scores), 1)
  return float(np.sqrt(np.mean(np.var(scores[first] - scores[second], axis=1))))


def as_items(groups: Sequence[Mapping[str, Any]], number: int) -> list[dict]:
  """Returns items: groups with a name, their round, and what is thought.

  probability: that the first of two answers wins, as the reward model of the
    round before thinks. deviation: of its members, see `disagreement`.
  """
  items = []
  for place, group in enumerate(groups):
    item = {
      "item": f"round-{number}-{place:05d}",
      "prompt": group["prompt"],
      "answers": list(group["answers"]),
      "policies": list(group["policies"]),
      "round": number,
    }
    scores = group.get("scores", ())
    if len(scores) == 2:
      difference = np.clip(scores[0] - scores[1], -30.0, 30.0)
      item["probability"] = float(1.0 / (1.0 + np.exp(-difference)))
    if "members" in group:
      item["deviation"] = disagreement(group["members"])
    items.append(item)
  return items


def ranks_of(
  record: Mapping[str, Any], objective: str = ""
) -> list[int | None]:
  """Returns the rank of each answer of a record, None where it has none.

  Args:
    record: judged.
    objective: "" for the answers as a whole.
  """
  count = len(record["answers"])
  if objective:
    return list(
      (record.get("objectives") or {}).get(objective) or [None] * count
    )
  if record.get("ranks") is not None:
    return list(record["ranks"])
  choice = record.get("choice")
  if choice is None:
    return [None] * count
  return [0 if i == choice else 1 for i in range(count)]


def ordered_pairs(
  record: Mapping[str, Any], objective: str = ""
) -> dict[tuple[int, int], int]:
  """Returns (i, j), i < j -> 1 where i is better, -1 where j is, 0 for a tie.

  After a choice of the best the others are not compared.

  Args:
    record, objective: as in `ranks_of`.
  """
  ranks = ranks_of(record, objective)
  is_choice = not objective and record.get("ranks") is None
  found = {}
  for i in range(len(ranks)):
    for j in range(i + 1, len(ranks)):
      a, b = ranks[i], ranks[j]
      if a is None or b is None or (is_choice and a == b):
        continue
      found[i, j] = int(np.sign(b - a))
  return found


def accuracy(
  records: Sequence[Mapping[str, Any]],
  scores: Mapping[str, Sequence[float]],
  objective: str = "",
) -> tuple[int, int]:
  """Returns how many ordered pairs scores order alike, and how many there are.

  Ties of annotators are left out; equal scores are wrong.

  Args:
    records: judged.
    scores: item -> the score of each of its answers.
    objective: by which they were judged, "" for the answers as a whole.
  """
  right = total = 0
  for record in records:
    of_item = scores[record["item"]]
    for (i, j), sign in ordered_pairs(record, objective).items():
      if sign:
        right += sign * (of_item[i] - of_item[j]) > 0
        total += 1
  return int(right), total


def read(path: Path) -> list[dict]:
  """Returns the rows of a file of items or records.

  Raises:
    UserError: it is damaged.
  """
  return strict_json.read_rows(
    path, {}, "Delete it; the same command makes it again."
  )


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows of JSON, all or nothing."""
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  replace(path, "".join(f"{line}\n" for line in lines))


def replace(path: Path, text: str) -> None:
  """Writes a file that is absent, old or complete."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)


def part_weights(sizes: Sequence[float], old_share: float) -> str:
  """Returns Data.weights of parts of records, the newest last.

  Args:
    sizes: records of each part.
    old_share: of all but the last; -1 for as many as they have.
  """
  if old_share < 0.0 or len(sizes) < 2:
    return ""
  old = sum(sizes[:-1])
  shares = [old_share * size / old for size in sizes[:-1]]
  return ",".join(f"{x:.6g}" for x in (*shares, 1.0 - old_share))
