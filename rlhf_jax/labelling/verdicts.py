"""A judgement: from the places of a page to answers, checked, and compared.

A page shows answers in an order of its own and says which place won; `shown`
lists the answers left to right, so that place p held answer shown[p]. What is
kept is by answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.labelling.task import STRENGTHS, Task
from rlhf_jax.schema import UserError

LONGEST_REASON = 4_000  # characters
Ranks = Sequence[int | None]


def read(
  told: Mapping[str, Any], shown: Sequence[int], task: Task
) -> dict[str, Any]:
  """Returns a judgement by answer, of what a page told by place.

  Args:
    told: {"skip": true, "reason"}, or {"ranks": [by place], "dimensions":
      {name: [by place]}, "strength", "all_bad", "reason", "seconds"}; with
      ask="choice" {"choice": place or null}.
    shown: answers in the order of the places.
    task: what was asked.

  Raises:
    UserError: what was asked and is not told, or the other way round.
  """
  if not isinstance(told, Mapping):
    raise UserError("judgement: must be an object.")
  unknown = set(told) - {
    *("skip", "ranks", "choice", "dimensions", "strength", "all_bad"),
    *("reason", "seconds"),
  }
  if unknown:
    raise UserError(f"judgement: {', '.join(sorted(unknown))}: not known.")
  is_skipped = told.get("skip", False)
  found: dict[str, Any] = {"seconds": _seconds(told.get("seconds"))}
  reason = told.get("reason", "")
  if not isinstance(reason, str) or len(reason) > LONGEST_REASON:
    raise UserError(
      f"reason: must be a text of at most {LONGEST_REASON} characters."
    )
  if reason.strip():
    found["reason"] = reason.strip()
  if is_skipped is True:
    return found | {"skipped": True}
  if task.reasons == "required" and "reason" not in found:
    raise UserError("reason: say in a sentence why.")
  all_bad = told.get("all_bad", False)
  if type(all_bad) is not bool or (all_bad and not task.both_bad):
    raise UserError("all_bad: is not asked here.")
  if task.ask == "choice":
    return found | _choice(told, shown, all_bad)
  ranks = _by_answer(told.get("ranks"), shown, "ranks", task.ties or all_bad)
  found["ranks"] = ranks
  if all_bad:
    found["acceptable"] = [False] * len(shown)
  found |= _dimensions(told.get("dimensions", {}), shown, task)
  return found | _strength(told.get("strength"), ranks, task)


def _seconds(value: Any) -> float | None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if value is not None and not (is_number and math.isfinite(value)):
    raise UserError(f"seconds={value!r}: must be a number.")
  return round(float(value), 2) if is_number and value >= 0 else None


def _choice(
  told: Mapping[str, Any], shown: Sequence[int], all_bad: bool
) -> dict[str, Any]:
  place = told.get("choice")
  if all_bad:
    return {"choice": None, "acceptable": [False] * len(shown)}
  if type(place) is not int or not 0 <= place < len(shown):
    raise UserError("choice: choose the best answer.")
  return {"choice": shown[place]}


def _dimensions(told: Any, shown: Sequence[int], task: Task) -> dict[str, Any]:
  if not isinstance(told, Mapping) or set(told) != set(task.dimensions):
    asked = ", ".join(task.dimensions) if task.dimensions else "none"
    raise UserError(f"dimensions: asked are {asked}, each of them.")
  if not task.dimensions:
    return {}
  return {
    "objectives": {
      name: _by_answer(told[name], shown, name, True)
      for name in task.dimensions
    }
  }


def _strength(told: Any, ranks: Ranks, task: Task) -> dict[str, Any]:
  is_asked = task.strengths and len(ranks) == 2 and ranks[0] != ranks[1]
  if told is None and not is_asked:
    return {}
  if not is_asked:
    raise UserError("strength: is asked where one of two answers is better.")
  if told not in STRENGTHS:
    raise UserError(f"strength: must be one of {', '.join(STRENGTHS)}.")
  return {"strength": told}


def _by_answer(
  told: Any, shown: Sequence[int], name: str, may_tie: bool
) -> list[int | None]:
  """Returns ranks by answer of ranks by place."""
  if not isinstance(told, list) or len(told) != len(shown):
    raise UserError(f"{name}: must be {len(shown)} ranks, one a place.")
  if not all(x is None or type(x) is int for x in told):
    raise UserError(f"{name}: a rank is a whole number, or null for none.")
  known = sorted(x for x in told if x is not None)
  if len(known) < 2:
    raise UserError(f"{name}: rank at least two answers.")
  if sorted(set(known)) != list(range(len(set(known)))):
    raise UserError(f"{name}: ranks are 0 for the best, then 1, and so on.")
  if not may_tie and len(set(known)) < len(known):
    raise UserError(f"{name}: ties are not asked for here. Choose.")
  found: list[int | None] = [None] * len(shown)
  for place, answer in enumerate(shown):
    found[answer] = told[place]
  return found


def by_place(
  judgement: Mapping[str, Any], shown: Sequence[int]
) -> dict[str, Any]:
  """Returns what a page told, of a judgement by answer; undoes `read`."""
  told = {
    key: judgement[key] for key in ("strength", "reason") if key in judgement
  }
  if judgement.get("skipped"):
    return told | {"skip": True}
  if "ranks" in judgement:
    told["ranks"] = [judgement["ranks"][answer] for answer in shown]
  if judgement.get("choice") is not None:
    told["choice"] = list(shown).index(judgement["choice"])
  told["dimensions"] = {
    name: [ranks[answer] for answer in shown]
    for name, ranks in judgement.get("objectives", {}).items()
  }
  told["all_bad"] = is_all_bad(judgement)
  return told


def is_all_bad(judgement: Mapping[str, Any]) -> bool:
  """Says whether no answer was called acceptable."""
  acceptable = judgement.get("acceptable")
  return bool(acceptable) and not any(acceptable)


def ranks_of(judgement: Mapping[str, Any], count: int) -> list[int | None]:
  """Returns ranks by answer: of a choice 0 for it and 1 for the others.

  Args:
    judgement: by answer.
    count: K, of the answers.
  """
  if judgement.get("ranks") is not None:
    return list(judgement["ranks"])
  choice = judgement.get("choice")
  if choice is None:
    return [0 if is_all_bad(judgement) else None] * count
  return [0 if answer == choice else 1 for answer in range(count)]


def signs(ranks: Ranks) -> dict[tuple[int, int], int]:
  """Returns (i, j) -> -1 if i is better, 1 if j is, 0 if they tie; i < j.

  Pairs with an answer that is not ranked are absent.
  """
  found = {}
  for i, j in itertools.combinations(range(len(ranks)), 2):
    one, other = ranks[i], ranks[j]
    if one is not None and other is not None:
      found[i, j] = (one > other) - (one < other)
  return found


def is_right(judgement: Mapping[str, Any], known: Ranks) -> bool:
  """Says whether every strict preference that is known was found.

  Of a choice: whether it is one of the best.
  """
  if judgement.get("ranks") is None:
    best = min(x for x in known if x is not None)
    choice = judgement.get("choice")
    return choice is not None and known[choice] == best
  said = signs(judgement["ranks"])
  return all(
    said.get(pair) == sign for pair, sign in signs(known).items() if sign
  )


def is_disputed(judgements: Sequence[Mapping[str, Any]], count: int) -> bool:
  """Says whether two people order a pair of answers differently.

  Or one calls all K = `count` answers bad, and another does not.
  """
  seen: dict[tuple[int, int], int] = {}
  for judgement in judgements:
    for pair, sign in signs(ranks_of(judgement, count)).items():
      if seen.setdefault(pair, sign) != sign:
        return True
  return len({is_all_bad(x) for x in judgements}) > 1
