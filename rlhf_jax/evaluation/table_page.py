"""One self-contained HTML page of tiles, warnings, tables and pictures.

What the report card and the page of agreement are made of. As the report: no
script, nothing loaded, every text escaped; pictures also as PNG and CSV.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from rlhf_jax.evaluation import canvas, pictures
from rlhf_jax.evaluation.pictures import ABSENT, Picture, number
from rlhf_jax.evaluation.win_rate import Proportion


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  text, small: what it says, and what stands below.
  span: (value, low, high) in [0, 1], drawn as a dot on its interval, or None.
  is_bad: marked.
  """

  text: str
  small: str = ""
  span: tuple[float, float, float] | None = None
  is_bad: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  heads: of its columns; the first is text, the others numbers.
  is_text: the others are sentences too, which begin at the left and wrap.
  """

  heads: Sequence[str]
  rows: Sequence[Sequence[Cell | str]]
  title: str = ""
  note: str = ""
  is_text: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
  """Texts to look at. parts: (label, text, note)."""

  title: str
  parts: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page; what is empty is left out."""

  title: str
  lead: str = ""
  tables: Sequence[Table] = ()
  pictures: Sequence[Picture] = ()
  examples: Sequence[Example] = ()


@dataclasses.dataclass(frozen=True)
class Page:
  """What the page shows.

  tiles: (name, value, note), the most telling numbers.
  warnings: (level, message) with level "refuse", "warn" or "note".
  facts: (name, value) at the end: where the numbers come from.
  """

  title: str
  subtitle: str = ""
  tiles: Sequence[tuple[str, str, str]] = ()
  warnings: Sequence[tuple[str, str]] = ()
  sections: Sequence[Section] = ()
  facts: Sequence[tuple[str, Any]] = ()


def share(found: Proportion, *, is_bad: bool = False) -> Cell:
  """Returns a cell of a rate with its interval, a dash where it is unknown."""
  if not found.count:
    return Cell(ABSENT)
  return Cell(
    number(found.value, 3),
    f"{number(found.low, 2)} to {number(found.high, 2)}, n={found.count:,}",
    (found.value, found.low, found.high),
    is_bad,
  )


def plain(
  value: float | None, decimals: int = 2, *, sign: bool = False
) -> Cell:
  """Returns a cell of a number, a dash where it is unknown."""
  return Cell(number(value, decimals, sign=sign))


def interval(value: float, low: float, high: float, decimals: int = 2) -> Cell:
  """Returns a cell of a number above its interval."""
  if math.isnan(low):
    return plain(value, decimals)
  below = f"{number(low, decimals)} to {number(high, decimals)}"
  return Cell(number(value, decimals), below)


def _cell(cell: Cell | str) -> Cell:
  return cell if isinstance(cell, Cell) else Cell(cell)


def _section(section: Section, *, with_png: bool) -> dict[str, Any]:
  return {
    "title": section.title,
    "lead": section.lead,
    "tables": [
      {
        "title": table.title,
        "note": table.note,
        "is_text": table.is_text,
        "heads": table.heads,
        "rows": [[_cell(cell) for cell in row] for row in table.rows],
      }
      for table in section.tables
      if table.rows
    ],
    "cards": pictures.draw(section.pictures, with_png=with_png),
    "examples": section.examples,
  }


def _render(page: Page, sections: Sequence[dict[str, Any]]) -> str:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  shown = [x for x in sections if x["tables"] or x["cards"] or x["examples"]]
  return environment.get_template("table_page.html").render(
    page=page, sections=shown, palette=canvas.PALETTE, files=pictures.FOLDER
  )


def render(page: Page) -> str:
  """Returns the page as one HTML document that loads nothing."""
  return _render(page, [_section(x, with_png=False) for x in page.sections])


def write(path: Path, page: Page) -> None:
  """Writes the page, and its pictures into figures/ beside it.

  Args:
    path: an .html file; its folder is made.
    page: what to show.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  sections = [_section(x, with_png=True) for x in page.sections]
  path.write_text(_render(page, sections), encoding="utf-8")
  cards = [card for section in sections for card in section["cards"]]
  pictures.write(path.parent / pictures.FOLDER, cards)
