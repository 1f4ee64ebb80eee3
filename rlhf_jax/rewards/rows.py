"""The rows that rewards judge: answers, and all that is known of each.

Left out: anything that knows what a reference means; each verifier checks its
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlhf_jax.schema import UserError


@dataclasses.dataclass(frozen=True)
class Answers:
  """N answers; the G answers of a prompt are contiguous.

  texts: responses, without their prompts.
  references: what each is judged against; None where its record has none.
  prompts: the prompts as the model read them, decoded.
  records: every field of each prompt's record, as read from its file.
  token_ids: sampled ids, the end token included.
  has_ended: an end token was sampled; False where the length limit cut.

  The last four are None where nobody gave them: a notebook may judge texts.
  """

  texts: list[str]
  references: list[Any]
  prompts: list[str] | None = None
  records: list[dict[str, Any]] | None = None
  token_ids: list[list[int]] | None = None
  has_ended: list[bool] | None = None

  def __post_init__(self):
    check(self.texts, self.references)
    for field in FIELDS[2:]:
      values = getattr(self, field)
      if values is not None and len(values) != len(self.texts):
        raise UserError(
          f"{len(self.texts)} texts, {len(values)} {field}: each answer has "
          "its own. Repeat what belongs to a prompt for each of its samples, "
          "in contiguous rows."
        )

  def __len__(self) -> int:
    return len(self.texts)

  def take(self, indices: Sequence[int]) -> Answers:
    """Returns the answers of these rows, in this order."""
    return Answers(
      *(
        None if values is None else [values[i] for i in indices]
        for values in (getattr(self, field) for field in FIELDS)
      )
    )


FIELDS = tuple(field.name for field in dataclasses.fields(Answers))


def check(texts: Sequence[str], references: Sequence[Any]) -> None:
  """Raises ValueError unless there is one reference for each text.

  Args:
    texts: N responses, without their prompts: an answer that stands in the
      prompt must not count.
    references: N, the G samples of a prompt repeat its reference.
  """
  if isinstance(texts, str) or isinstance(references, str):
    raise UserError(
      "texts or references is one string, and a verifier scores rows. Pass "
      "lists of equal length: [text], [reference]."
    )
  if len(texts) != len(references):
    raise UserError(
      f"{len(texts)} texts, {len(references)} references: each response is "
      "judged against its own reference. Repeat the reference of a prompt for "
      "each of its samples, in contiguous rows."
    )
  for row, text in enumerate(texts):
    if not isinstance(text, str):
      raise UserError(
        f"texts[{row}] is a {type(text).__name__}: a verifier reads decoded "
        "text. Decode the response tokens first."
      )


class BadReference(UserError):
  """A reference that cannot be judged against. row: its number."""

  row = 0


def bad_reference(
  row: int, reference: Any, rule: str, remedy: str
) -> BadReference:
  """Returns the error for a reference that cannot be judged against."""
  error = BadReference(
    f"references[{row}]={str(reference)[:80]!r}: {rule}. {remedy}"
  )
  error.row = row
  return error
