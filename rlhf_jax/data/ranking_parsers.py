"""Parsers of K judged answers to one prompt: (record, where) -> Ranking.

The layout of the project itself is "ranking": what the labelling page, AI
judges and simulated annotators write.
"""

from __future__ import annotations

from collections.abc import (
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

from rlhf_jax.data import parsers, records
from rlhf_jax.data.examples import Ranking
from rlhf_jax.data.messages import Message
from rlhf_jax.data.sources import DataError

JUDGED = ("ranks", "choice", "scores", "objectives")  # one of them is needed
# What an export of the labelling page holds beside judgements to learn from.
ABOUT_PEOPLE = {
  "qualification": "of the qualification of annotators",
  "check": "asked again, as a check of annotators",
  "gold": "of gold items, which check annotators",
}
DECIDED = "decided otherwise, by an adjudicator"


def parse_ranking(record: dict, where: str) -> Ranking:
  """prompt, answers (K >= 2), and ranks, choice, scores or objectives.

  ranks: K whole numbers, 0 the best, equal ones tie, null is not ranked.
  choice: index of the best, null where none is good.
  scores: K numbers or nulls, or {objective: them}; more is better.
  objectives: {objective: ranks}.
  label: of two answers, the probability that the first is better.
  strength (or {objective: it}), acceptable, shown, policies: see
  docs/comparisons.md; all other
  fields are kept as they are. Answers are texts, messages, or whole dialogues:
  what these begin with alike is the prompt.
  """
  prompt, answers = _answered(record, where)
  count = len(answers)
  if record.get("skipped"):
    raise records.RefusedExample(
      "skipped", f"{where}: the annotator skipped it. Remove the record."
    )
  for name in ("shown", "policies"):
    _check_listed(record, name, count, where)
  ranks = _ranks(record.get("ranks"), "ranks", count, where)
  acceptable = _acceptable(record.get("acceptable"), count, where)
  if "choice" in record:
    ranks = _chosen(record["choice"], ranks, count, where)
    if record["choice"] is None and acceptable is None:
      acceptable = (False,) * count
  label = _label(record.get("label"), ranks, count, where)
  if label is not None and ranks is None:
    ranks = (int(label < 0.5), int(label > 0.5))
  scores = _scores(record.get("scores"), count, where)
  objectives = _objectives(record.get("objectives"), count, where)
  strength, strengths = _strengths(record.get("strength"), where)
  is_judged = scores or objectives or ranks is not None
  if not is_judged and acceptable is None:
    raise records.RefusedExample(
      "no judgement",
      f"{where}: none of {', '.join(JUDGED)} says anything. Remove the record.",
    )
  return Ranking(
    where,
    prompt,
    tuple(answers),
    ranks=ranks,
    scores=scores,
    objectives=objectives,
    strength=strength,
    strengths=strengths,
    acceptable=acceptable,
    label=label,
    fields=dict(record),
  )


def settled(
  found: Iterable[Ranking | records.RefusedExample],
) -> Iterator[Ranking | records.RefusedExample]:
  """Yields rankings; refuses those that are about annotators, or overruled.

  Of an export of the labelling page what Store.records has: no answers to the
  qualification, to items that were asked again, or to gold items (what is right
  of these stands in a record without an annotator); and where a dispute was
  decided the decision alone.

  Args:
    found: rankings, and records that were refused.
  """
  every = list(found)
  decided = {
    x.fields["item"]
    for x in every
    if isinstance(x, Ranking)
    and x.fields.get("adjudicated") is True
    and isinstance(x.fields.get("item"), str)
  }
  for example in every:
    why = ""
    if isinstance(example, Ranking):
      why = _unlearned(example.fields, decided)
    if not why:
      yield example
      continue
    yield records.RefusedExample(
      why, f"{example.where}: {why}. Remove the record.", example
    )


def _unlearned(fields: Mapping[str, Any], decided: Collection[str]) -> str:
  """Returns why nothing is learned from a record, "" where it is."""
  for name, why in ABOUT_PEOPLE.items():
    is_answer = name != "gold" or fields.get("annotator") not in (None, "")
    if fields.get(name) is True and is_answer:
      return why
  is_decision = fields.get("adjudicated") is True
  is_item = isinstance(fields.get("item"), str) and fields["item"] in decided
  return DECIDED if is_item and not is_decision else ""


def _answered(record: dict, where: str) -> tuple[str | list[Message], list]:
  """Returns the prompt and the answers, texts or rests of dialogues."""
  listed = records.field(record, "answers", (list,), "ranking", where)
  if len(listed) < 2:
    raise DataError(
      f"{where}: field 'answers' has {len(listed)} of them; a ranking is of "
      "two or more. Correct the record."
    )
  if all(isinstance(answer, list) for answer in listed):
    found = _dialogues(record, listed, where)
    if found is not None:
      return found
  names = [f"answers[{n}]" for n in range(len(listed))]
  named = dict(record) | dict(zip(names, listed, strict=True))
  prompt, answers = records.answered(named, names, "ranking", where)
  return records.with_tools(prompt, record, where), answers


def _dialogues(
  record: dict, listed: Sequence[list], where: str
) -> tuple[list[Message], list[list[Message]]] | None:
  """Returns what dialogues begin with alike, and the rest of each.

  None where only their last messages differ: these are answers.
  """
  before: list = []
  if "prompt" in record:
    prompt = records.prompt(record, "ranking", where)
    is_text = isinstance(prompt, str)
    before = [{"role": "user", "content": prompt}] if is_text else prompt
  whole = []
  for answer in listed:
    turns = records.dialogue(answer, where) if answer else []
    if not turns or turns[-1]["role"] != "assistant":
      raise DataError(
        f"{where}: field 'answers' has a dialogue that ends with "
        f"{str(turns[-1:])[:60]}; the assistant's message is the last. Correct "
        "the record."
      )
    is_given = turns[: len(before)] == before
    whole.append(turns if is_given else [*before, *turns])
  shortest, shared = min(map(len, whole)) - 1, 0
  while shared < shortest and all(
    turns[shared] == whole[0][shared] for turns in whole
  ):
    shared += 1
  if all(len(turns) == shared + 1 for turns in whole):
    return None
  return whole[0][:shared], [turns[shared:] for turns in whole]


def _listed(value: Any, name: str, count: int, where: str) -> Sequence:
  """Returns a list with an entry for each answer.

  Raises:
    DataError: it is none.
  """
  if not isinstance(value, list) or len(value) != count:
    found = f"{len(value)} entries" if isinstance(value, list) else value
    raise DataError(
      f"{where}: field {name!r} has {str(found)[:60]}; it is a list with one "
      f"entry for each of the {count} answers. Correct the record."
    )
  return value


def _check_listed(record: dict, name: str, count: int, where: str) -> None:
  """Raises DataError for "shown" or "policies" that does not fit."""
  value = record.get(name)
  if value is None:
    return
  listed = _listed(value, name, count, where)
  if name == "shown" and sorted(map(str, listed)) != sorted(
    map(str, range(count))
  ):
    raise DataError(
      f"{where}: field 'shown' is {listed}; it is the order in which the "
      f"answers stood, each of 0 to {count - 1} once. Correct the record."
    )


def _ranks(
  value: Any, name: str, count: int, where: str
) -> tuple[int | None, ...] | None:
  """Returns ranks, None where there are none or all of them are null."""
  if value is None:
    return None
  listed = _listed(value, name, count, where)
  for rank in listed:
    is_rank = parsers.is_number(rank) and rank >= 0 and rank == int(rank)
    if rank is not None and not is_rank:
      raise DataError(
        f"{where}: field {name!r} holds {str(rank)[:60]!r}; a rank is a whole "
        "number, 0 for the best, or null. Correct the record."
      )
  if all(rank is None for rank in listed):
    return None
  return tuple(None if rank is None else int(rank) for rank in listed)


def _chosen(
  choice: Any, ranks: tuple | None, count: int, where: str
) -> tuple[int | None, ...] | None:
  """Returns the ranks of a choice: given ones, which must agree with it."""
  if choice is None:
    return ranks
  is_index = isinstance(choice, int) and not isinstance(choice, bool)
  if not is_index or not 0 <= choice < count:
    raise DataError(
      f"{where}: field 'choice' is {str(choice)[:60]!r}; it is the number of "
      f"the best answer, 0 to {count - 1}, or null. Correct the record."
    )
  if ranks is None:
    return tuple(int(n != choice) for n in range(count))
  if ranks[choice] != min(rank for rank in ranks if rank is not None):
    raise DataError(
      f"{where}: field 'choice' is {choice}, and 'ranks' {list(ranks)} put "
      "another answer first. Correct the record."
    )
  return ranks


def _label(
  value: Any, ranks: tuple | None, count: int, where: str
) -> float | None:
  """Returns the probability that the first of two answers is better, or None.

  Raises:
    DataError: it is none, or ranks say otherwise.
  """
  if value is None:
    return None
  if count != 2 or not parsers.is_number(value) or not 0 <= value <= 1:
    raise DataError(
      f"{where}: field 'label' is {str(value)[:60]!r}; it is the probability "
      f"that the first of two answers is better, and there are {count}. "
      "Correct the record."
    )
  if ranks is not None and None not in ranks:
    first, second = ranks
    if (value > 0.5, value < 0.5) != (first < second, first > second):
      raise DataError(
        f"{where}: field 'label' is {value}, and the order of the answers is "
        f"{list(ranks)}: they do not agree. Correct the record."
      )
  return float(value)


def _scores(
  value: Any, count: int, where: str
) -> dict[str, tuple[float | None, ...]]:
  """Returns objective -> scores; a plain list is of the whole answer, ""."""
  if value is None:
    return {}
  named = value if isinstance(value, dict) else {"": value}
  found = {}
  for objective, numbers in named.items():
    name = f"scores.{objective}" if objective else "scores"
    for number in _listed(numbers, name, count, where):
      if number is not None and not parsers.is_number(number):
        raise DataError(
          f"{where}: field {name!r} holds {str(number)[:60]!r}; a score is a "
          "finite number, or null. Correct the record."
        )
    if any(number is not None for number in numbers):
      found[str(objective)] = tuple(
        None if number is None else float(number) for number in numbers
      )
  return found


def _objectives(
  value: Any, count: int, where: str
) -> dict[str, tuple[int | None, ...]]:
  """Returns objective -> ranks."""
  if value is None:
    return {}
  if not isinstance(value, dict):
    raise DataError(
      f"{where}: field 'objectives' is {str(value)[:60]!r}; it is an object, "
      "objective: ranks. Correct the record."
    )
  found = {}
  for objective, listed in value.items():
    ranks = _ranks(listed, f"objectives.{objective}", count, where)
    if ranks is not None:
      found[str(objective)] = ranks
  return found


def _strengths(
  value: Any, where: str
) -> tuple[str | float | None, dict[str, str | float]]:
  """Returns the strength of the preference, and objective -> that by it."""
  if not isinstance(value, dict):
    parsers.check_strength(value, where)
    return value, {}
  for strength in value.values():
    parsers.check_strength(strength, where)
  return None, {str(k): x for k, x in value.items() if x is not None}


def _acceptable(
  value: Any, count: int, where: str
) -> tuple[bool | None, ...] | None:
  """Returns whether each answer is good by itself."""
  if value is None:
    return None
  listed = _listed(value, "acceptable", count, where)
  for entry in listed:
    if entry is not None and not isinstance(entry, bool):
      raise DataError(
        f"{where}: field 'acceptable' holds {str(entry)[:60]!r}; it says true, "
        "false or null of each answer. Correct the record."
      )
  return tuple(listed)
