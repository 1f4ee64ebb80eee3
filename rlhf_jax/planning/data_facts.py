"""What files of records hold, as far as it decides what to do with them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from rlhf_jax.data import formats, sources
from rlhf_jax.data.columns import Columns
from rlhf_jax.data.examples import (
  Comparison,
  Demonstration,
  Labelled,
  Prompt,
  Ranking,
  RatedText,
  Steps,
)


@dataclasses.dataclass(frozen=True)
class Facts:
  """Counts of records, and what is known of them.

  demonstrations: answers that were written to be learned from.
  comparisons: records that compare answers; pairs: of two answers with an
    order, that are in them.
  labelled: single answers called good or bad. steps: answers judged by steps.
  rated: texts with ratings; rated_dialogues: of them, whole dialogues.
  prompts: records to be answered; references: with something that a verifier
    can compare an answer with, of them or of demonstrations like GSM8K's.
  prompt_keys: different prompts of comparisons.
  longer: of pairs whose answers differ in length, the share that prefers the
    longer one; None without any.
  ties: share of pairs without an order.
  annotators: who judged -> records. languages: language -> records.
  objectives: names of what was judged beside the whole.
  refused: records that teach nothing.
  """

  demonstrations: int = 0
  comparisons: int = 0
  pairs: int = 0
  labelled: int = 0
  steps: int = 0
  rated: int = 0
  rated_dialogues: int = 0
  prompts: int = 0
  references: int = 0
  prompt_keys: int = 0
  longer: float | None = None
  ties: float = 0.0
  annotators: dict[str, int] = dataclasses.field(default_factory=dict)
  languages: dict[str, int] = dataclasses.field(default_factory=dict)
  objectives: tuple[str, ...] = ()
  refused: int = 0


CHECKED = ("gsm8k",)  # demonstrations whose answers a verifier compares with
_KINDS = {
  Demonstration: "demonstrations",
  Labelled: "labelled",
  Steps: "steps",
  RatedText: "rated",
  Prompt: "prompts",
  Comparison: "comparisons",
  Ranking: "comparisons",
}


def read(names: Iterable[str], columns: str = "") -> Facts:
  """Returns what sources hold; the format of each is that of its first record.

  Args:
    names: files, patterns, tfds: or hub: names, as of data.source.
    columns: of records that are called otherwise, as data.columns.

  Raises:
    UserError: missing or malformed, with file and line.
  """
  found: list[Any] = []
  refused = checked = 0
  renamed, names = Columns(columns), list(names)
  for name in names:
    where, record = sources.first(name)
    layout = formats.guess(renamed.rename(record, where), where)
    examples, left_out = formats.load_and_refuse(name, layout, renamed)
    found += examples
    refused += len(left_out)
    checked += len(examples) if layout in CHECKED else 0
  renamed.check(", ".join(names))
  facts = of(found, refused)
  return dataclasses.replace(facts, references=facts.references + checked)


def _ordered(example: Comparison | Ranking) -> list[tuple[int, int] | None]:
  """Returns (characters of the better, of the worse) of pairs; None: a tie."""
  if isinstance(example, Comparison):
    if example.label == 0.5:
      return [None]
    sides = (len(example.chosen), len(example.rejected))
    return [sides if example.label > 0.5 else sides[::-1]]
  if example.label is not None and example.ranks is None:
    ranks: Any = (0, 1) if example.label > 0.5 else (1, 0)
    ranks = (0, 0) if example.label == 0.5 else ranks
  else:
    ranks = example.ranks or _by_scores(example)
  found: list[tuple[int, int] | None] = []
  for (one, x), (other, y) in itertools.combinations(
    zip(ranks, example.answers, strict=True), 2
  ):
    if one is None or other is None:
      continue
    sizes = (len(str(x)), len(str(y)))
    found.append(
      None if one == other else sizes if one < other else sizes[::-1]
    )
  return found


def _by_scores(example: Ranking) -> tuple[float | None, ...]:
  """Returns ranks by the first scores, or objective; None where none are."""
  for scores in example.scores.values():
    return tuple(None if x is None else -x for x in scores)
  for ranks in example.objectives.values():
    return ranks
  return (None,) * len(example.answers)


def of(examples: Iterable[Any], refused: int = 0) -> Facts:
  """Returns what examples hold.

  Args:
    examples: of data/examples.py.
    refused: records that taught nothing, for the count.
  """
  counts: collections.Counter = collections.Counter()
  annotators: collections.Counter = collections.Counter()
  languages: collections.Counter = collections.Counter()
  objectives: dict[str, None] = {}
  keys: set[str] = set()
  longer = different = ties = pairs = 0
  for example in examples:
    if isinstance(example, Comparison) and example.chosen == example.rejected:
      refused += 1  # as encode.py leaves it out
      continue
    counts[_KINDS[type(example)]] += 1
    fields = getattr(example, "fields", {})
    if fields.get("annotator"):
      annotators[str(fields["annotator"])] += 1
    if fields.get("language"):
      languages[str(fields["language"])] += 1
    if isinstance(example, Prompt) and example.reference is not None:
      counts["references"] += 1
    if isinstance(example, RatedText) and example.messages is not None:
      counts["rated_dialogues"] += 1
    if not isinstance(example, (Comparison, Ranking)):
      continue
    keys.add(formats.prompt_key(example))
    if isinstance(example, Ranking):
      objectives |= dict.fromkeys((*example.objectives, *example.scores))
    for pair in _ordered(example):
      if pair is None:
        ties += 1
        continue
      pairs += 1
      different += pair[0] != pair[1]
      longer += pair[0] > pair[1]
  return Facts(
    **counts,
    pairs=pairs,
    prompt_keys=len(keys),
    longer=longer / different if different else None,
    ties=ties / (pairs + ties) if ties else 0.0,
    annotators=dict(annotators),
    languages=dict(languages),
    objectives=tuple(filter(None, objectives)),
    refused=refused,
  )
