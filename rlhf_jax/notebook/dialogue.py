"""A dialogue that grows turn by turn, and what is kept of it.

With a chat template it is messages; a model without one goes on with a text,
to which each turn adds. A transcript is a JSON line that data/formats.py reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data import retold
from rlhf_jax.data.messages import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

END_OF_THOUGHTS = "</think>"


@dataclasses.dataclass
class Dialogue:
  """What was said so far.

  system: of the first message; "" for none.
  is_plain: a text that is gone on with, without a chat template.
  turns: (what was asked, the answer) of each turn.
  """

  system: str = ""
  is_plain: bool = False
  turns: list[tuple[str, str]] = dataclasses.field(default_factory=list)

  def before(
    self, asked: str, *, has_thoughts: bool = False
  ) -> str | list[Message]:
    """Returns what comes before the answer to a new turn.

    Args:
      asked: the new turn.
      has_thoughts: earlier answers keep what they say in <think>, which models
        that think are not shown again.
    """
    if self.is_plain:
      return "".join(part for turn in self.turns for part in turn) + asked
    found = [{"role": "system", "content": self.system}] if self.system else []
    for question, answer in self.turns:
      if not has_thoughts and END_OF_THOUGHTS in answer:
        answer = answer.rpartition(END_OF_THOUGHTS)[2].lstrip()
      found += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
      ]
    return [*found, {"role": "user", "content": asked}]

  def record(self) -> dict[str, Any]:
    """Returns the transcript: {"messages"}, of a text {"prompt", "response"}.

    Raises:
      UserError: nothing was answered.
    """
    if not self.turns:
      raise UserError("there is no answer yet. Ask something first.")
    asked, answer = self.turns[-1]
    before = self._without_last().before(asked, has_thoughts=True)
    if isinstance(before, str):
      return {"prompt": before, "response": answer}
    return {"messages": [*before, {"role": "assistant", "content": answer}]}

  def _without_last(self) -> Dialogue:
    return dataclasses.replace(self, turns=self.turns[:-1])

  def comparison(self, answers: Sequence[str], better: int) -> dict[str, Any]:
    """Returns two answers to the last turn as {"prompt", "chosen", "rejected"}.

    Args:
      answers: both.
      better: place of the chosen one, 0 or 1.

    Raises:
      UserError: the answers are equal, or one is empty.
    """
    if answers[0] == answers[1] or not all(text.strip() for text in answers):
      raise UserError(
        "the answers are equal, or one is empty: no comparison can be learned "
        "from that. Nothing was written."
      )
    asked, _ = self.turns[-1]
    return {
      "prompt": self._without_last().before(asked),
      "chosen": answers[better],
      "rejected": answers[1 - better],
    }


def fitted(
  before: str | list[Message], tokenizer: Tokenizer, room: int
) -> tuple[list[int], bool]:
  """Returns the ids of a prompt, and whether something had to be left out.

  A dialogue loses its first turns, a text its left.

  Args:
    before: of Dialogue.before.
    tokenizer: of the model.
    room: tokens that there are for it.

  Raises:
    UserError: the last turn alone is too long, or it is empty.
  """
  asked, number = retold.asked(before, tokenizer), 0
  ids = whole = asked.shortened(0)
  while ids is not None and len(ids) > room:
    number += 1
    ids = asked.shortened(number)
  if ids is None and asked.chat:
    raise UserError(
      f"this turn is longer than the {room} tokens that the context leaves "
      "for it. Shorten it, or start with a smaller --max-new-tokens."
    )
  if ids is None:
    ids = whole[-room:]
  if not ids:
    raise UserError("nothing stands before the answer. Write something.")
  return ids, number > 0


def append(file: str | Path, record: dict[str, Any]) -> None:
  """Adds a JSON line to a file, which is made if need be.

  Raises:
    UserError: it cannot be written.
  """
  path = Path(file).expanduser()
  line = json.dumps(record, ensure_ascii=False) + "\n"
  try:
    with path.open("a", encoding="utf-8") as stream:
      stream.write(line)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror}). Name another file."
    ) from error
