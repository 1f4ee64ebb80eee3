"""What every proof prints: a method, where it should end, how far it is.

A row holds where the distance is below its tolerance, the control (a run, or
another optimum, that must miss) is above its floor, and whatever else the
proof claims is so. NaN holds nowhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  method, optimum: what ran and where it should end.
  measure: unit of the three numbers: "KL" nats, "TV" total variation, "share"
    of the target value.
  distance: the worst over seeds.
  tolerance: distance must be below.
  control: the least over seeds of what must miss.
  floor: control must be above.
  seconds: of wall clock, compilation included.
  also: whether the proof's further claims hold.
  """

  method: str
  optimum: str
  measure: str
  distance: float
  tolerance: float
  control: float
  floor: float
  seconds: float
  also: bool = True

  @property
  def holds(self) -> bool:
    """Whether the method ended where it should, and the control did not."""
    is_near = self.distance < self.tolerance
    return is_near and self.control > self.floor and self.also


def show(rows: Iterable[Row]) -> int:
  """Prints rows as they come; returns the exit code, 1 if one fails."""
  print(
    f"{'method':35}{'optimum':20}{'':6}{'distance':>9}{'tolerance':>10}"
    f"{'control':>9}{'floor':>7}{'seconds':>9}",
    flush=True,
  )
  all_hold = True
  for row in rows:
    all_hold &= row.holds
    print(
      f"{row.method:35}{row.optimum:20}{row.measure:6}{row.distance:9.5f}"
      f"{row.tolerance:10.3f}{row.control:9.3f}{row.floor:7.2f}"
      f"{row.seconds:9.1f}{'' if row.holds else '  FAILS'}",
      flush=True,
    )
  return 0 if all_hold else 1
