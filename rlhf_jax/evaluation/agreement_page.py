"""The page of agreement among annotators: what labelling/summary.py found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.evaluation import table_page
from rlhf_jax.evaluation.pictures import ABSENT, number
from rlhf_jax.evaluation.table_page import Cell, Page, Section, Table, plain

LOW = 0.70  # agreement marked below

LEAD = (
  "How often two annotators order the same two answers alike (raw), and how "
  "much of that is more than chance: 1 is full agreement, 0 is chance. Alpha "
  "is Krippendorff's, over three values (first, second, tie); ordinal counts a "
  "tie as half a disagreement; with strength, the distance between 'much "
  "better' and 'slightly better' too. Below: the 95 % bootstrap interval over "
  "prompts."
)
PEOPLE = (
  "Most of the others: agreement with what most of the other annotators said. "
  "Skill is estimated from votes alone ({model}): 1 is always right, 0 is a "
  "coin. The weight is what a label of theirs counts in a loss, 1 on average. "
  "First: how often the answer that stood first was preferred."
)
GROUPS = (
  "Preferences are somebody's. Within: agreement of annotators of one group; "
  "between: of one of them with one of another group; others: of those among "
  "themselves. Where both sides agree more among themselves than across, they "
  "want different things, and one reward model cannot speak for both."
)


def page(facts: Mapping[str, Any], title: str, sources: Sequence[str]) -> Page:
  """Returns the page of a summary.

  Args:
    facts: of labelling/summary.py.
    title: of the page.
    sources: what was read.
  """
  first = next(iter(facts["objectives"].values()))
  raw, alpha = first["raw"], first["alpha"]
  tiles = [
    ("Judgements", f"{facts['judgements']:,}", _people(facts)),
    ("Raw agreement", number(raw.value, 3), _interval(raw)),
    ("Krippendorff's alpha", number(alpha.value, 3), _interval(alpha)),
    ("Ties", _percent(first["ties"].value), f"{first['votes']:,} votes"),
  ]
  return Page(
    title=title,
    subtitle=f"{facts['judgements']:,} judgements by {_people(facts)}.",
    tiles=tiles,
    warnings=facts["warnings"],
    sections=[
      Section("Agreement", LEAD, [_objectives(facts), _ratings(facts)]),
      Section(
        "Annotators",
        PEOPLE.format(model=facts["model"].replace("-", " ")),
        [_annotators(facts)],
      ),
      Section("Cohen's kappa of two", "", [_matrix(facts)]),
      Section("Whose preferences", GROUPS, _groups(facts)),
      Section("Position", "", [_position(facts)]),
    ],
    facts=[
      ("read", ", ".join(sources)),
      *((f"left out: {why}", n) for why, n in facts["left_out"].items()),
      ("pairs of equal answers", facts["equal_answers"]),
      ("none acceptable", _percent(facts["both_bad"])),
    ],
  )


def _people(facts: Mapping[str, Any]) -> str:
  count = facts["annotators"]
  return f"{count} annotator{'s' if count != 1 else ''}"


def _percent(value: float) -> str:
  return ABSENT if math.isnan(value) else f"{100 * value:.1f} %"


def _interval(found: Any) -> str:
  if math.isnan(found.low):
    return f"{found.count:,} pairs of answers"
  return (
    f"{number(found.low, 2)} to {number(found.high, 2)}, "
    f"{found.count:,} pairs of answers"
  )


def _estimate(found: Any, *, is_bad: bool = False) -> Cell:
  cell = table_page.interval(found.value, found.low, found.high, 3)
  return Cell(cell.text, cell.small, is_bad=is_bad)


def _objectives(facts: Mapping[str, Any]) -> Table:
  rows = []
  for name, row in facts["objectives"].items():
    small = f"{row['shared_units']:,} of {row['units']:,} shared"
    rows.append(
      [
        Cell(name, small),
        _estimate(row["raw"], is_bad=row["raw"].value < LOW),
        _estimate(row["alpha"]),
        plain(row["alpha_ordinal"], 3),
        plain(row["alpha_strength"], 3),
        plain(row["fleiss"], 3),
        plain(row["cohen"], 3),
        table_page.share(row["ties"]),
        table_page.share(row["itself"]),
        Cell(_percent(row["intransitive"]), f"of {row['triads']:,}"),
      ]
    )
  heads = ["objective", "raw", "alpha", "ordinal", "with strength"]
  heads += ["Fleiss", "Cohen, mean", "ties", "with oneself", "circular triads"]
  return Table(heads, rows)


def _ratings(facts: Mapping[str, Any]) -> Table:
  rows = [
    [
      Cell(name, f"{row['units']:,} answers with two scores"),
      plain(row["alpha_interval"], 3),
      plain(row["alpha_ordinal"], 3),
    ]
    for name, row in facts["ratings"].items()
  ]
  heads = ["scores of", "alpha, interval", "alpha, ordinal"]
  return Table(heads, rows, "Scores of single answers")


def _annotators(facts: Mapping[str, Any]) -> Table:
  rows = []
  for row in facts["by_annotator"]:
    rows.append(
      [
        row["name"],
        Cell(f"{row['judgements']:,}", f"{row['shared']:,} votes shared"),
        table_page.share(row["majority"]),
        table_page.share(
          row["gold"],
          is_bad=row["gold"].count >= 10 and row["gold"].value < LOW,
        ),
        plain(row["kappa"]),
        plain(row["skill"]),
        plain(row["weight"]),
        Cell(_percent(row["ties"])),
        table_page.share(row["first"]),
        plain(row["seconds"], 1),
      ]
    )
  heads = ["annotator", "judgements", "with most of the others", "with gold"]
  heads += ["kappa, mean", "skill", "weight", "ties", "first", "seconds"]
  return Table(heads, rows)


def _matrix(facts: Mapping[str, Any]) -> Table:
  names = facts["matrix"]["names"]
  if len(names) < 2:
    return Table([], [])
  rows = [
    [name, *(plain(x) for x in values)]
    for name, values in zip(names, facts["matrix"]["kappa"], strict=True)
  ]
  return Table(["", *names], rows)


def _groups(facts: Mapping[str, Any]) -> list[Table]:
  found = []
  for field, rows in facts["groups"].items():
    cells = [
      [
        row["value"],
        f"{row['annotators']:,}",
        f"{row['judgements']:,}",
        Cell(number(row["within"], 3)),
        Cell(number(row["between"], 3), f"{row['pairs']:,} pairs of votes"),
        Cell(number(row["others"], 3)),
      ]
      for row in rows
    ]
    heads = [field, "annotators", "judgements", "within", "between"]
    heads.append("others")
    found.append(Table(heads, cells))
  return found


def _position(facts: Mapping[str, Any]) -> Table:
  rows = [
    [
      f"{count} answers",
      table_page.share(position.share, is_bad=position.p_value < 0.01),
      number(position.expected, 3),
      number(position.p_value, 4),
    ]
    for count, position in facts["position"].items()
  ]
  note = "A two-sided exact binomial test; each judgement counts once."
  heads = ["shown", "the first is called best", "expected", "p-value"]
  return Table(heads, rows, note=note)
