"""The page of a report card: what report_card.py and probes.py found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.evaluation import pictures, probes
from rlhf_jax.evaluation.card_items import Item, Pairs, mistakes
from rlhf_jax.evaluation.figures import Histogram
from rlhf_jax.evaluation.pictures import ABSENT, number
from rlhf_jax.evaluation.report_card import MAX_OUTSIDE
from rlhf_jax.evaluation.table_page import (
  Cell,
  Example,
  Page,
  Section,
  Table,
  interval,
  plain,
  share,
)

MISTAKES = 8  # shown
LOW = 0.55  # accuracy marked below

LENGTH = (
  "A score that follows length is gamed first. Length controlled: the accuracy "
  "if both answers were equally long (the intercept of a logistic fit on the "
  "length difference). 'The longer one wins' is what a ruler would reach."
)
PROBES = (
  "The best answer made worse on purpose. Pays: how often the changed answer "
  "scores above the best one as it was; it should be near 0. Gain: mean change "
  "of the score in deviations of the reference samples, with its 95 % "
  "bootstrap interval; it should not be above 0. Opinion: how often a right "
  "order turns when the user says that the worse answer is right. The added "
  "words are English."
)
LISTS = (
  "Best of K: how often the one right answer scores highest; k equal scores "
  "count 1/k. Kendall's tau_b: 1 where all answers stand in people's order, 0 "
  "for chance. Intervals are bootstrap intervals over prompts."
)
TIES = (
  "Prompts with many right answers, as RewardBench 2 counts them: right "
  "answers should differ less among themselves than from the wrong ones."
)
MEMBERS = (
  "Each output alone. Where members of an ensemble disagree more on the pairs "
  "that they get wrong (probability above 0.5), their disagreement warns."
)


def page(
  facts: Mapping[str, Any],
  title: str,
  subtitle: str,
  *,
  items: Sequence[Item],
  scores: Sequence[np.ndarray],
  pairs: Pairs,
  origins: Sequence[tuple[str, Any]],
) -> Page:
  """Returns the page of a report card.

  Args:
    facts: of report_card.measure; "probes" and "members" where there are any.
    title, subtitle: of the page.
    items, scores: of `measure`, for examples.
    pairs: of them, for pictures.
    origins: (name, value): where the numbers come from.
  """
  return Page(
    title=title,
    subtitle=subtitle,
    tiles=_tiles(facts),
    warnings=facts["remarks"],
    sections=[
      Section("Accuracy", "", [_main(facts)], _pictures(facts, pairs)),
      Section("Length", LENGTH, [_length(facts)]),
      Section("Probes", PROBES, [_probes(facts)]),
      Section("Lists of answers", LISTS, [_lists(facts)]),
      Section("Ties", TIES, [_ties(facts)]),
      Section("Outputs", MEMBERS, _members(facts)),
      Section("By field", "", [_by(x, y) for x, y in facts["by"].items()]),
      Section(
        "Surest mistakes",
        "Where the model is most sure of the answer that people liked less; "
        "labels are wrong at times too.",
        examples=_mistakes(items, scores),
      ),
    ],
    facts=origins,
  )


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  rate = facts["accuracy"]
  controlled = facts["length"]["controlled"]
  longer = facts["length"]["longer_wins"]
  below = f"{number(rate.low, 3)} to {number(rate.high, 3)}"
  found = [
    ("Accuracy", number(rate.value, 3), f"{below}, {rate.count:,} pairs"),
    (
      "Length controlled",
      number(controlled.accuracy, 3),
      f"'longer wins' {number(longer.value, 3)}",
    ),
    (
      "Calibration error",
      number(facts["calibration"]["ece"], 3),
      f"temperature {number(_finite(_of(facts, 'temperature')), 2)}",
    ),
  ]
  if facts["ceiling"] is not None:
    reached = facts["reached"]
    text = ABSENT if math.isnan(reached) else f"{100 * reached:.0f} %"
    note = f"people reach {number(facts['ceiling'], 3)}"
    found.append(("Of the way to people", text, note))
  probe = facts.get("probes", {}).get("nonsense")
  if probe is not None:
    value = f"{100 * probe.pays.value:.1f} %"
    found.append(("Nonsense that wins", value, f"of {probe.pays.count}"))
  return found


def _of(facts: Mapping[str, Any], name: str) -> float:
  return facts["diagnosis"][f"reward_model/{name}"]


def _finite(value: float) -> float:
  return value if math.isfinite(value) else math.nan


def _main(facts: Mapping[str, Any]) -> Table:
  scores, ece = facts["scores"], facts["calibration"]["ece"]

  def row(
    name: str, value: float, small: str, *, is_bad: bool = False
  ) -> list[Cell | str]:
    return [name, Cell(number(_finite(value), 3), small, is_bad=is_bad)]

  cooled = f"{number(facts['ece_cooled'], 3)} once divided by the temperature"
  rows = [
    ["accuracy, without ties", share(facts["accuracy"])],
    row("log loss", _of(facts, "loss"), "nats; chance is 0.693"),
    row("margin of the better answer", _of(facts, "margin"), "nats"),
    row("calibration error", ece, cooled),
    row(
      "temperature",
      _of(facts, "temperature"),
      "above 1: too sure, below: not sure enough",
    ),
    row("spread within a prompt", scores["spread"], "deviations"),
    row(
      "outside of the support",
      scores["outside"],
      f"share of {scores['answers']:,} scores beyond 3 deviations",
      is_bad=scores["outside"] > MAX_OUTSIDE,
    ),
    row("mean score", scores["mean"], "deviations; 0 on the reference samples"),
  ]
  return Table(["", "value"], rows)


def _length(facts: Mapping[str, Any]) -> Table:
  length, flag = facts["length"], facts["length"]["correlation_flag"]
  controlled, weighed = length["controlled"], length["weighed"]
  rows = [
    ["accuracy", share(facts["accuracy"])],
    [
      "accuracy, length controlled",
      interval(controlled.accuracy, controlled.low, controlled.high, 3),
    ],
    ["accuracy where the longer one won", share(length["longer_won"])],
    ["accuracy where the shorter one won", share(length["shorter_won"])],
    ["'the longer one wins'", share(length["longer_wins"])],
    [
      "correlation of score and length differences",
      Cell(number(length["pearson"]), "Pearson", is_bad=flag),
    ],
    ["", Cell(number(length["spearman"]), "Spearman", is_bad=flag)],
    [
      "people's wish for length beyond the score",
      Cell(
        number(weighed.length, 2, sign=True), "log odds per mean difference"
      ),
    ],
  ]
  return Table(["", "value"], rows)


def _probes(facts: Mapping[str, Any]) -> Table:
  rows = []
  for name, probe in probes.in_order(facts.get("probes", {})):
    is_bad = probe.pays.low > probes.MAX_NONSENSE and (
      name in probes.OTHERS or name == probes.OPINION
    )
    is_bad |= name in probes.OF_ANSWER and probe.low > 0
    gain = ABSENT
    if name != probes.OPINION:
      gain = interval(probe.gain, probe.low, probe.high)
    rows.append(
      [
        name,
        share(probe.pays, is_bad=is_bad),
        gain,
        share(probe.beats_worst) if name != probes.OPINION else ABSENT,
      ]
    )
  return Table(["probe", "pays", "gain", "beats the worse answer"], rows)


def _estimate(found: Mapping[str, Any]) -> list[Cell | str]:
  cell = interval(found["value"], found["low"], found["high"], 3)
  return [cell, f"{found['count']:,}"]


def _lists(facts: Mapping[str, Any]) -> Table:
  lists = facts["listwise"]
  rows = [
    [
      Cell(f"best of {count}", f"chance is {number(1 / count, 2)}"),
      *_estimate(x),
    ]
    for count, x in lists["best_of"].items()
  ]
  if lists["kendall_tau_b"]["count"]:
    rows.append(["Kendall's tau_b", *_estimate(lists["kendall_tau_b"])])
  return Table(["", "value", "prompts"], rows)


def _ties(facts: Mapping[str, Any]) -> Table:
  found = facts["ties"]
  if found is None:
    return Table([], [])
  named = {
    "score": found.score,
    "accuracy, one right answer": found.reference,
    "accuracy, many right answers": found.tied,
    "gap above spread": found.preferred,
    "the same beside the single right answer": found.hard,
    "mean margin": found.margin,
  }
  rows = [[name, plain(value, 3)] for name, value in named.items()]
  return Table([f"{found.prompts} prompts", "value"], rows)


def _members(facts: Mapping[str, Any]) -> list[Table]:
  found = facts.get("members")
  if not found:
    return []
  rows = [
    [
      name,
      share(row["accuracy"]),
      plain(_finite(row["temperature"])),
      share(row["own_objective"]),
    ]
    for name, row in found["rows"].items()
  ]
  heads = ["output", "accuracy", "temperature", "by its own objective"]
  said = found["deviation"]
  note = (
    f"Deviation over outputs: {number(said['right'])} on pairs that are right "
    f"together, {number(said['wrong'])} on wrong ones; a wrong pair has the "
    f"larger one with probability {number(said['auc'])}. On these answers they "
    f"disagree {number(found['times_usual'])} times as much as on the samples "
    "that they were normalised on."
  )
  return [Table(heads, rows, note=note)]


def _by(field: str, groups: Mapping[str, Any]) -> Table:
  rows = [
    [
      name,
      share(row["accuracy"], is_bad=row["accuracy"].high < LOW),
      share(row["longer_wins"]),
      plain(row["ece"], 3),
    ]
    for name, row in groups.items()
  ]
  heads = ["", "accuracy", "'longer wins'", "calibration error"]
  return Table(heads, rows, field.capitalize())


def _pictures(facts: Mapping[str, Any], pairs: Pairs) -> list[pictures.Picture]:
  bias = {
    "length_difference": pairs.longer,
    "score_difference": pairs.difference,
    "rho": facts["length"]["spearman"],
  }
  if math.isnan(bias["rho"]):
    bias = None
  decided = pairs.labels != 0.5
  first = pairs.labels[decided] > 0.5
  a, b = pairs.scores[decided].T
  scores = Histogram(
    "Scores",
    "score (deviations of the reference)",
    {
      "preferred": np.where(first, a, b),
      "not preferred": np.where(first, b, a),
    },
    "The better a model tells them apart, the less they overlap; of one prompt "
    "they are farther apart than here, where prompts differ.",
  )
  return [
    *pictures.of_reward_model(facts["calibration"], bias),
    *pictures.of_histograms([scores]),
  ]


def _mistakes(
  items: Sequence[Item], scores: Sequence[np.ndarray]
) -> list[Example]:
  found = []
  for n, better, worse, _ in mistakes(items, scores, MISTAKES):
    item, own = items[n], scores[n]
    parts = []
    if item.prompt.strip():
      parts.append(("prompt", item.prompt[-1500:], ""))
    for label, k in (
      ("people preferred", better),
      ("the model prefers", worse),
    ):
      parts.append((label, item.answers[k], number(own[k], 2, sign=True)))
    found.append(Example(item.where, parts))
  return found
