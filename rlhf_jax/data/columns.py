"""Columns of a file that are called otherwise than a format calls them.

    columns="prompt=question,chosen=better,rejected=worse"

Each is OURS=THEIRS. A record with THEIRS is read as if it were called OURS,
whatever else was called so; one without it stays as it is, so that files of
both kinds can stand beside each other. A name that no record has is refused.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.data import files
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import FieldError


def parse(text: str) -> dict[str, str]:
  """Returns OURS -> THEIRS of "OURS=THEIRS,...".

  Raises:
    FieldError: it is not written so, or names one of ours twice.
  """
  found: dict[str, str] = {}
  for part in filter(None, text.split(",")):
    ours, equals, theirs = (x.strip() for x in part.partition("="))
    if not (ours and equals and theirs):
      raise FieldError(
        f"columns={text!r}: {part!r} is not OURS=THEIRS. Write for example "
        "prompt=question,response=answer."
      )
    if ours in found:
      raise FieldError(
        f"columns={text!r}: {ours!r} stands twice. Name one column for it."
      )
    found[ours] = theirs
  return found


class Columns:
  """Renames the fields of records, and remembers which there were."""

  def __init__(self, text: str = "") -> None:
    """Makes it of `columns` of a Data section, "" for none.

    Raises:
      FieldError: see `parse`.
    """
    self.names = parse(text)
    self.missing = set(self.names)  # of ours, that no record had yet

  def __bool__(self) -> bool:
    """Says whether anything is renamed."""
    return bool(self.names)

  def rename(self, record: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns a record with our names for its fields.

    Args:
      record: of a file.
      where: its place.

    Raises:
      DataError: a cell of CSV that cannot be what it is named.
    """
    has = {ours: x for ours, x in self.names.items() if x in record}
    self.missing -= {x for x in self.missing if x in has or x in record}
    gone = {*has.values(), *has}
    found = {name: x for name, x in record.items() if name not in gone}
    for ours, theirs in has.items():
      value = record[theirs]
      if isinstance(record, files.Row) and isinstance(value, str):
        value = files.value_of_cell(value, ours, where, theirs)
      found[ours] = value
    return found

  def hint(self) -> str:
    """Returns a sentence on names of theirs that no record had yet, or ""."""
    said = self._absent()
    return f" There is no field {said}, which columns names." if said else ""

  def check(self, source: str) -> None:
    """Checks that each name was that of a field of some record.

    Args:
      source: whose records were renamed, for the message.

    Raises:
      DataError: which was not.
    """
    if self.missing:
      raise DataError(
        f"columns: no record of {source} has a field {self._absent()}. Correct "
        "the name, or leave it out."
      )

  def _absent(self) -> str:
    """Returns the names of theirs that no record had yet."""
    absent = [x for ours, x in self.names.items() if ours in self.missing]
    return " or ".join(map(repr, absent))
