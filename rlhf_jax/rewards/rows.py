"""What every verifier asks of its rows: as many references as texts.

Left out: anything that knows what a reference means; each verifier checks its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check(texts: Sequence[str], references: Sequence[Any]) -> None:
  """Raises ValueError unless there is one reference for each text.

  Args:
    texts: N responses, without their prompts: an answer that stands in the
      prompt must not count.
    references: N, the G samples of a prompt repeat its reference.
  """
  if isinstance(texts, str) or isinstance(references, str):
    raise ValueError(
      "texts or references is one string, and a verifier scores rows. Pass "
      "lists of equal length: [text], [reference]."
    )
  if len(texts) != len(references):
    raise ValueError(
      f"{len(texts)} texts, {len(references)} references: each response is "
      "judged against its own reference. Repeat the reference of a prompt for "
      "each of its samples, in contiguous rows."
    )
  for row, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(
        f"texts[{row}] is a {type(text).__name__}: a verifier reads decoded "
        "text. Decode the response tokens first."
      )


def bad_reference(row: int, reference: Any, rule: str, remedy: str):
  """Returns the ValueError for a reference that cannot be judged against."""
  return ValueError(
    f"references[{row}]={str(reference)[:80]!r}: {rule}. {remedy}"
  )
