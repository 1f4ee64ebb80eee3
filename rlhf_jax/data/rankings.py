"""What a Ranking says: an order, scores, and what of them a method reads.

A record may say several things of its answers: ranks, scores and ranks by
objective, how strong a preference is, whether an answer is acceptable. `order`
and `scores` take out one objective; `unread` counts what a method leaves aside,
so that it can be named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data import dialogue_rows, encode, parsers, records
from rlhf_jax.data.examples import Comparison, Ranking
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import FieldError

# What a method may read of a record.
ORDER, TARGET, STRENGTH, MARGIN = "order", "target", "strength", "margin"
WEIGHT = "weight"  # what a record counts in the loss, 1 where it says nothing


class Judgement(NamedTuple):
  """What a record says of its answers, by the name of the field.

  carried: all of it.
  order: the field that the order is from, "" for none.
  target: the field that the scores are from, "" for none.
  strength: the field that the strength is from.
  """

  carried: frozenset[str]
  order: str = ""
  target: str = ""
  strength: str = STRENGTH


def carried(example: Comparison | Ranking) -> frozenset[str]:
  """Returns the names of the fields in which a record judges its answers."""
  if isinstance(example, Comparison):
    found = {
      "margin": example.margin,
      "strength": example.fields.get("strength"),
      "scores": pair_scores(example),
      WEIGHT: example.fields.get(WEIGHT),
    }
    return frozenset(name for name, x in found.items() if x is not None)
  names = {f"scores.{n}" if n else "scores" for n in example.scores}
  names |= {f"objectives.{name}" for name in example.objectives}
  names |= {f"strength.{name}" for name in example.strengths}
  for name in ("ranks", "strength", "acceptable"):
    if getattr(example, name) is not None:
      names.add(name)
  if example.fields.get(WEIGHT) is not None:
    names.add(WEIGHT)
  return frozenset(names)


def pair_scores(example: Comparison) -> tuple[float, float] | None:
  """Returns the scores of both answers of a comparison that has them."""
  for names in records.PAIR_SCORES:
    first, second = (example.fields.get(name) for name in names)
    if first is not None and second is not None:
      return float(first), float(second)
  return None


def judgement_of(example: Comparison) -> Judgement:
  """Returns what a comparison says beside who won."""
  found = carried(example)
  return Judgement(found, target="scores" if "scores" in found else "")


def scores(
  example: Ranking, objective: str = ""
) -> tuple[str, tuple[float | None, ...] | None]:
  """Returns the field with the scores of an objective, and them.

  Args:
    example: of K answers.
    objective: "" for the answer as a whole: scores without a name, or the only
      ones that there are.

  Returns:
    ("", None) where it has none.
  """
  found = example.scores
  if not objective and "" not in found:
    objective = _only(example)
  if objective not in found:
    return "", None
  return f"scores.{objective}" if objective else "scores", found[objective]


def _only(example: Ranking) -> str:
  """Returns the only objective that a record is judged by, else ""."""
  names = objectives(example)
  return names.pop() if len(names) == 1 else ""


def order(
  example: Ranking, objective: str = ""
) -> tuple[str, tuple[int | None, ...] | None]:
  """Returns the field with the order by an objective, and its ranks.

  Ranks come first; scores give an order where there are none.

  Args:
    example: of K answers.
    objective: "" for the answer as a whole: ranks, or else the only objective
      that there is.

  Returns:
    ("", None) where it has none.
  """
  if not objective and example.ranks is not None:
    return "ranks", example.ranks
  if not objective and "" not in example.scores:
    objective = _only(example)
  if objective in example.objectives:
    return f"objectives.{objective}", example.objectives[objective]
  name, numbers = scores(example, objective)
  if numbers is None:
    return "", None
  values = sorted({x for x in numbers if x is not None}, reverse=True)
  return name, tuple(None if x is None else values.index(x) for x in numbers)


def objectives(example: Ranking) -> set[str]:
  """Returns the names of the objectives that a record is judged by."""
  return {name for name in (*example.scores, *example.objectives) if name}


def encode_one(
  example: Ranking,
  tokenizer: Tokenizer,
  max_length: int,
  chat: bool = False,
  *,
  end_token: bool = True,
  objective: str = "",
) -> dict:
  """Encodes the judged answers of a ranking behind one and the same prompt.

  Answers that the objective says nothing of are left out.

  Args:
    example: of K answers.
    tokenizer, max_length, chat, end_token: see encode.encode_comparison.
    objective: see `order`.

  Returns:
    answers (tokens, loss_mask each), ranks and targets [K] float32 (NaN for
    none), label, strength, judgement, prompt, key, is_cut.

  Raises:
    DroppedExample: a response does not fit or is empty, or the record says
      nothing by this objective.
  """
  ordered, ranks = order(example, objective)
  scored, targets = scores(example, objective)
  count = len(example.answers)
  ranks = ranks or (None,) * count
  targets = targets or (None,) * count
  kept = [
    n for n in range(count) if ranks[n] is not None or targets[n] is not None
  ]
  if not kept:
    raise encode.DroppedExample(_unjudged(objective), example.where)
  by = objective or _only(example)
  own = by in example.strengths
  strength = example.strengths[by] if own else example.strength
  texts = [example.answers[n] for n in kept]
  encode_them = encode.encode_answers
  if not isinstance(texts[0], str):
    encode_them = dialogue_rows.encode_dialogues
  found = encode_them(
    example, texts, tokenizer, max_length, chat, end_token=end_token
  )
  return found | {
    "ranks": _numbers(ranks[n] for n in kept),
    "targets": _numbers(targets[n] for n in kept),
    "label": example.label if ordered == "ranks" and len(kept) == 2 else None,
    "strength": strength if count == 2 else None,
    "judgement": Judgement(
      carried(example),
      ordered,
      scored,
      f"strength.{by}" if own else STRENGTH,
    ),
  }


def _unjudged(objective: str) -> str:
  which = f"objective {objective!r}" if objective else "one objective"
  return f"without a judgement by {which}"


def _numbers(values: Iterable[float | None]) -> np.ndarray:
  return np.asarray([np.nan if x is None else x for x in values], np.float32)


def check_objective(found: Sequence[Ranking], objective: str) -> None:
  """Raises FieldError where no record is judged by the objective.

  Args:
    found: rankings.
    objective: of the Data section.
  """
  for example in found:
    ordered, scored = (
      order(example, objective)[1],
      scores(example, objective)[1],
    )
    if ordered is not None or scored is not None:
      return
  names = sorted(set().union(*map(objectives, found)))
  if not names and not objective:
    raise FieldError(
      "the records have no order of their answers, and no scores. Give ranks, "
      "choice, scores or objectives."
    )
  names = names or ["none by name: set ''"]
  raise FieldError(
    f"data.objective={objective!r}: no record is judged by it. They have "
    f"{', '.join(names)}: set data.objective to one of them."
  )


def known(judgement: Judgement, reads: Collection[str]) -> set[str]:
  """Returns the fields of a record that a method reads; see `unread`."""
  found = {x for x in (MARGIN, WEIGHT) if x in reads}
  found |= {judgement.strength} if STRENGTH in reads else set()
  found |= {judgement.order} if ORDER in reads else set()
  return found | ({judgement.target} if TARGET in reads else set())


def unread(
  judgements: Iterable[Judgement], reads: Collection[str]
) -> dict[str, int]:
  """Returns field -> number of records whose method does not read it.

  Args:
    judgements: of all records.
    reads: of ORDER, TARGET, STRENGTH, MARGIN and WEIGHT.
  """
  counts: Counter = Counter()
  for judgement in judgements:
    counts.update(judgement.carried - known(judgement, reads))
  return dict(sorted(counts.items()))


def strength_of(example: Any) -> str | float | None:
  """Returns how strong a preference is: the margin of a pair, or its word."""
  if isinstance(example, Ranking):
    return example.strength
  if example.margin is not None:
    return example.margin
  return example.fields.get("strength")


def weight_of(example: Comparison | Ranking) -> float:
  """Returns what a record counts in a loss, 1 where it says nothing.

  Raises:
    DataError: it is no finite number >= 0.
  """
  value = example.fields.get(WEIGHT)
  if value is None:
    return 1.0
  if not parsers.is_number(value) or value < 0:
    raise DataError(
      f"{example.where}: field 'weight' is {value!r}; it is what the record "
      "counts in the loss, a finite number >= 0. Correct the record."
    )
  return float(value)
