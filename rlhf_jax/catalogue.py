"""List what can be chosen: pipelines, methods, verifiers, formats.

    python -m rlhf_jax.catalogue
    python -m rlhf_jax.catalogue verifiers

A word prints only the lists that have it in their title. All is read from the
tables that runs use, so that nothing is missing here.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rlhf_jax import command, describe, output, pipelines
from rlhf_jax.data import assets, formats
from rlhf_jax.environments import ENVIRONMENTS
from rlhf_jax.imported import nearest
from rlhf_jax.models import attention, families
from rlhf_jax.planning import topology
from rlhf_jax.rewards import verifiers
from rlhf_jax.schema import UserError


class Table(NamedTuple):
  """One list.

  title: what is listed.
  field: where an experiment or a command says which.
  rows: name -> what it is.
  """

  title: str
  field: str
  rows: dict[str, str]


def tables() -> list[Table]:
  """Returns all lists, each read from the table that runs use."""
  return [
    Table(
      title="pipelines",
      field="config.pipeline, defaults.NAME(), or an import path",
      rows={
        name: describe.summary(pipeline.Settings)
        for name, pipeline in pipelines.PIPELINES.items()
      },
    ),
    *_methods(),
    Table(
      title="verifiers",
      field="config.verifier.name, or file.py:function",
      rows={
        name: _result(verifier.score)
        for name, verifier in verifiers.VERIFIERS.items()
      },
    ),
    Table(
      title="data formats",
      field="config.data.format, or file.py:function",
      rows={
        name: describe.summary(parse) for name, parse in formats.FORMATS.items()
      },
    ),
    Table(
      title="assets",
      field="config.model.source or config.data.source, asset:NAME",
      rows={
        name: f"{asset.description}; {asset.licence}"
        for name, asset in assets.ASSETS.items()
      },
    ),
    Table(
      title="model families",
      field="model_type of a Hugging Face folder, config.model.source",
      rows={
        name: _result(family.read) for name, family in families.FAMILIES.items()
      },
    ),
    Table(
      title="environments",
      field="config.environment of segments, or file.py:NAME",
      rows={
        name: f"{environment.steps} steps. {environment.task}"
        for name, environment in ENVIRONMENTS.items()
      },
    ),
    Table(
      title="attention programs",
      field='config.model.attention; "auto" goes by platform',
      rows={kind: _listed(attention, kind) for kind in attention.KINDS},
    ),
    Table(
      title="TPU slices",
      field="--topology of rlhf_jax.plan",
      rows={name: _slice(chip) for name, chip in topology.CHIPS.items()},
    ),
  ]


def _methods() -> Iterator[Table]:
  """Yields the methods of each pipeline that has some to choose from.

  What combines several judges is the same in all that have it.
  """
  seen = set()
  for name, pipeline in pipelines.PIPELINES.items():
    for field in dataclasses.fields(pipeline.Settings):
      title = f"methods of {name}"
      if field.name == "combination":
        title = "combinations of judges"
      if "family" in field.metadata and title not in seen:
        seen.add(title)
        yield Table(
          title=title,
          field=f"config.{field.name}.name, or an import path",
          rows={
            method: describe.summary(module)
            for method, module in field.metadata["family"].items()
          },
        )


def _result(function: Callable[..., Any]) -> str:
  """Returns what a function returns, by its docstring."""
  text = describe.summary(function).removeprefix("Returns ")
  return re.sub(r"^\[N\] \w+: ", "", text)


def _listed(module: Any, name: str) -> str:
  """Returns what a module's docstring says in its line "  NAME  text"."""
  found = re.search(rf"^  {name}  +(.+)$", module.__doc__, re.MULTILINE)
  return found[1] if found else ""


def _slice(chip: topology.Chip) -> str:
  """Returns the figures of a chip, and how a slice of it is named."""
  if chip.generation == "cpu":
    return "simulated CPU devices with made-up figures; for example cpu:8"
  sizes = "x".join(["4"] * chip.dimensions)
  return (
    f"{chip.hbm:g} GiB and {chip.flops / 1e12:g} TFLOP/s (bf16) a chip, "
    f"{chip.chips_per_host} chips a host; for example "
    f"{chip.generation}:{sizes}"
  )


def render(found: list[Table], width: int) -> str:
  """Returns lists as text, lines of at most `width` characters."""
  lines = []
  for table in found:
    title = f"[{table.title}] {table.field}"
    lines += ["", *textwrap.wrap(title, width, subsequent_indent="  ")]
    names = max(map(len, table.rows))
    for name, text in table.rows.items():
      lines += textwrap.wrap(
        f"{name:{names}}  {text}",
        width,
        initial_indent="  ",
        subsequent_indent=" " * (names + 4),
        break_on_hyphens=False,
      )
  return "\n".join(lines[1:])


def main(argv: list[str]) -> int:
  """Prints what a command line asks for; returns the exit code."""
  words = [word for word in argv[1:] if not word.startswith("-")]
  if len(words) < len(argv) - 1:
    print(__doc__)
    return 0 if "--help" in argv else command.EXIT_USAGE
  found = tables()
  for word in words:
    titles = [table.title for table in found]
    found = [table for table in found if word in table.title]
    if not found:
      parts = {part for title in titles for part in (title, *title.split())}
      message = f"{word!r}: no list of this name.{nearest(word, parts)} There "
      message += f"are {', '.join(titles)}."
      return command.fail(UserError(message), message)
  print(render(found, max(shutil.get_terminal_size((80, 24)).columns, 40)))
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
