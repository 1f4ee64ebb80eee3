"""What is put before people: a prompt and two answers or more.

A line of items has `prompt` and `answers` and may have

  item           its name; else it is made of the texts
  gold           true: hidden among the others, with a known answer in `ranks`
  qualification  true: asked first, with a known answer in `ranks`
  deviation      of the score difference among the members of an ensemble
  probability    that the first answer wins, as the model thinks
  pictures       an SVG for each answer, shown above its text; in no record
  policies, language, and anything else: kept, and in every record of it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.schema import UserError

KINDS = ("item", "gold", "qualification")
MOST_ANSWERS = 9  # each has a key of its own on the page
LARGEST_PICTURE = 256 * 1024  # characters
# Fields of a judgement: an item that is read from a record has none of them.
JUDGED = frozenset(
  (
    *("annotator", "shown", "seconds", "time", "guideline", "reason"),
    *("skipped", "choice", "objectives", "strength", "acceptable", "scores"),
    *("chosen_by", "check", "adjudicated", "judgement", "batch"),
    *("annotator_fields", "gold_ranks"),
  )
)
_OWN = frozenset(
  (
    *("prompt", "answers", "item", "gold", "qualification", "ranks"),
    *("deviation", "probability", "pictures"),
  )
)


@dataclasses.dataclass(frozen=True)
class Item:
  """A prompt and its answers.

  prompt: text, or messages: [{"role", "content"}, ...].
  answers: K texts, or K dialogues as messages.
  name: of the item, unique in a store.
  kind: of KINDS.
  ranks: of the answers, 0 the best; known for gold and qualification only.
  deviation: >= 0, or None.
  probability: in [0, 1], or None.
  pictures: K SVG documents, or none.
  fields: what else its line held.
  """

  prompt: Any
  answers: tuple[Any, ...]
  name: str
  kind: str = "item"
  ranks: tuple[int, ...] | None = None
  deviation: float | None = None
  probability: float | None = None
  pictures: tuple[str, ...] = ()
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def body(self) -> str:
    """Returns the JSON text that the store keeps."""
    told = {
      "prompt": self.prompt,
      "answers": list(self.answers),
      "ranks": None if self.ranks is None else list(self.ranks),
      "fields": dict(self.fields),
    }
    if self.pictures:
      told["pictures"] = list(self.pictures)
    return json.dumps(told, ensure_ascii=False, sort_keys=True)


def name_of(prompt: Any, answers: Sequence[Any]) -> str:
  """Returns the name of an item that has none: a hash of its texts."""
  text = json.dumps([prompt, list(answers)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_dialogue(value: Any) -> bool:
  """Says whether a value is messages: a list of roles with their texts."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(
      isinstance(x, dict)
      and isinstance(x.get("role"), str)
      and isinstance(x.get("content"), str)
      for x in value
    )
  )


def read(row: Mapping[str, Any], where: str) -> Item:
  """Returns the item that a line holds.

  Args:
    row: an object.
    where: file:line, for messages.

  Raises:
    UserError: what is wrong, and where.
  """
  prompt, answers = row.get("prompt"), row.get("answers")
  if not isinstance(prompt, str) and not is_dialogue(prompt):
    raise UserError(f"{where}: 'prompt' must be a text or messages.")
  if not isinstance(answers, Sequence) or isinstance(answers, str):
    raise UserError(f"{where}: 'answers' must be a list of answers.")
  if not 2 <= len(answers) <= MOST_ANSWERS:
    raise UserError(
      f"{where}: {len(answers)} answers; must be 2 to {MOST_ANSWERS}."
    )
  if not all(isinstance(x, str) or is_dialogue(x) for x in answers):
    raise UserError(f"{where}: each of 'answers' must be a text or messages.")
  kinds = [kind for kind in KINDS[1:] if row.get(kind)]
  if len(kinds) > 1:
    raise UserError(f"{where}: is both gold and qualification. Choose one.")
  kind = kinds[0] if kinds else "item"
  name = row.get("item", name_of(prompt, answers))
  if not isinstance(name, str) or not name:
    raise UserError(f"{where}: 'item' must be a name, a text.")
  return Item(
    prompt=prompt,
    answers=tuple(answers),
    name=name,
    kind=kind,
    ranks=_ranks(row, len(answers), where) if kinds else None,
    deviation=_number(row, "deviation", math.inf, where),
    probability=_number(row, "probability", 1.0, where),
    pictures=_pictures(row, len(answers), where),
    fields={k: v for k, v in row.items() if k not in _OWN | JUDGED},
  )


def _ranks(
  row: Mapping[str, Any], count: int, where: str
) -> tuple[int, ...] | None:
  ranks = row.get("ranks")
  is_whole = isinstance(ranks, list) and all(type(x) is int for x in ranks)
  if not is_whole or len(ranks) != count or len(set(ranks)) < 2:
    raise UserError(
      f"{where}: an item with a known answer needs 'ranks', one whole number "
      "an answer, 0 for the best, not all alike."
    )
  return tuple(ranks)


def _pictures(
  row: Mapping[str, Any], count: int, where: str
) -> tuple[str, ...]:
  found = row.get("pictures", [])
  is_drawn = isinstance(found, Sequence) and all(
    isinstance(x, str) and x.startswith("<svg ") and len(x) <= LARGEST_PICTURE
    for x in found
  )
  if not is_drawn or len(found) not in (0, count):
    raise UserError(
      f"{where}: 'pictures' must be a list of {count} SVG documents, one an "
      f"answer, each beginning with '<svg ' and of {LARGEST_PICTURE:,} "
      "characters at most."
    )
  return tuple(found)


def _number(
  row: Mapping[str, Any], field: str, most: float, where: str
) -> float | None:
  value = row.get(field)
  if value is None:
    return None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0 <= value <= most or not math.isfinite(value):
    bound = "" if math.isinf(most) else f" and <= {most:g}"
    raise UserError(f"{where}: {field!r}={value!r} must be >= 0{bound}.")
  return float(value)
