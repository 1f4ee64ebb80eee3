"""Single answers that people liked or did not: the data of KTO.

  {"prompt": text or messages, "response": text, "label": true or false}

The label may be 1 or 0 too.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.data import records
from rlhf_jax.data.chat import Message
from rlhf_jax.data.sources import DataError


@dataclass(frozen=True)
class Labelled:
  """One answer and what was thought of it.

  where: file:line.
  prompt: text, or the dialogue so far.
  response: the answer.
  label: 1.0 desirable, 0.0 undesirable.
  """

  where: str
  prompt: str | list[Message]
  response: str
  label: float


def parse(record: dict, where: str) -> Labelled:
  """prompt (text or messages), response and label (true or false)."""
  prompt = records.prompt(record, "labelled", where)
  response = records.field(record, "response", (str,), "labelled", where)
  label = record.get("label")
  if not isinstance(label, (bool, int, float)) or label not in (0, 1):
    raise DataError(
      f"{where}: field 'label' is {label!r}; it says whether the answer is "
      "desirable. Give true or false."
    )
  response = records.answer(response, "response", where)
  return Labelled(where, prompt, response, float(label))
