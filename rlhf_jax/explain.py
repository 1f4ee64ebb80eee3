"""Print every field of an experiment: value, range, what it means.

    python -m rlhf_jax.explain --config=configs/ppo.py
    python -m rlhf_jax.explain --config=configs/method.py:dapo --only=clip

--only=WORD prints the fields whose name has that word in it, optimizer or clip;
--changed those that are not at their default.
Options of the experiment, --config.x=1, are taken as a run would take them.
Nothing is run and no file of data or weights is read.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rlhf_jax import command, describe, output, pipelines
from rlhf_jax.imported import nearest
from rlhf_jax.schema import UserError

OPTIONS = {
  "only": ("", "Only fields with this word in their name."),
  "changed": (False, "Only fields that are not at their default."),
}
EXAMPLE = "--config=configs/sft.py"
FILE, LINE = "*", ">"  # who changed a value: experiment file, command line
LEGEND = (
  f"{FILE} set by the experiment file, {LINE} by the command line; all else is "
  "the default. Any field can be set by --config.NAME=VALUE. --only=WORD and "
  "--changed print fewer."
)
VALUES = 12  # characters of the column of values; longer ones stand out
INSIDE = " " * 6  # before what is said about a field


class Row(NamedTuple):
  """One field, as it is printed.

  name: dotted, without "config.".
  kind: type and range.
  default: None where the value is the default.
  """

  name: str
  value: str
  kind: str
  meaning: str
  default: str | None = None


class Part(NamedTuple):
  """A section, or the plain fields between two sections.

  name: dotted; "" for plain fields.
  about: what the section is, with its source; "" for plain fields.
  """

  name: str
  about: str
  rows: list[Row]


class Place(NamedTuple):
  """A field of Settings in an experiment.

  field: what is said about it.
  declared: where it is declared, with its metadata.
  value: in the experiment.
  name: dotted.
  """

  field: describe.Field
  declared: dataclasses.Field
  value: Any
  name: str


def parts(
  config: ConfigDict,
  settings: Any = None,
  prefix: str = "",
  usual: Any = None,
) -> Iterator[Part]:
  """Yields the parts of an experiment, in the order of its Settings.

  Args:
    config: an experiment, or a stage of one.
    settings: what a run reads out of it; None where that is refused.
    prefix: where it stands, "" or "policy.".
    usual: the Job that stands there by default, of a stage.

  Raises:
    UserError: no such pipeline or method.
  """
  name = config.pipeline
  pipeline = pipelines.find(name, f"config.{prefix}pipeline")
  is_usual = usual is not None and usual.pipeline.name == name
  which = describe.Field(
    name="pipeline",
    kind=f"one of {', '.join(pipelines.PIPELINES)}, or an import path",
    default=name if usual is None else usual.pipeline.name,
    meaning=describe.summary(pipeline.Settings).rstrip("."),
  )
  plain = [_row(which, name, f"{prefix}pipeline")]
  for field in describe.fields(
    usual.settings if is_usual else pipeline.Settings
  ):
    if field.name not in config:
      continue  # a run is refused, and says why
    place = Place(
      field=field,
      declared=pipeline.Settings.__dataclass_fields__[field.name],
      value=config[field.name],
      name=f"{prefix}{field.name}",
    )
    found = list(_section(place, settings))
    if not found:
      plain.append(_row(field, place.value, place.name))
      continue
    if plain:
      yield Part("", "", plain)
    plain = []
    yield from found
  if plain:
    yield Part("", "", plain)


def _section(place: Place, settings: Any) -> Iterator[Part]:
  """Yields the parts of a field that is a section; none of a plain one."""
  field, value, name = place.field, place.value, place.name
  if "family" in place.declared.metadata:
    yield _method(place, settings)
  elif hasattr(field.default, "as_tree"):
    yield Part(name, f"{field.meaning} (a run of its own)", [])
    job = None if settings is None else getattr(settings, field.name)
    inner = None if job is None else job.settings
    yield from parts(value, inner, f"{name}.", field.default)
  elif dataclasses.is_dataclass(field.default):
    cls = type(field.default)
    rows = [
      row
      for inner in describe.fields(field.default)
      if inner.name in value
      for row in _rows(cls, inner, value, f"{name}.{inner.name}")
    ]
    yield Part(name, f"{field.meaning} ({_file(cls)})", rows)


def _rows(
  cls: type, field: describe.Field, values: Any, name: str
) -> Iterator[Row]:
  """Yields the row of a field, and of a dict those of what it can hold.

  Args:
    cls: that has the field.
    field: its description.
    values: of the section.
    name: dotted.
  """
  yield _row(field, values[field.name], name)
  declared = cls.__dataclass_fields__[field.name]
  if "class_of" in declared.metadata:
    inside = declared.metadata["class_of"](values.name)
    for inner in describe.fields(inside) if inside is not None else ():
      value = values[field.name].get(inner.name, inner.default)
      yield _row(inner, value, f"{name}.{inner.name}")


def _method(place: Place, settings: Any) -> Part:
  """Returns the part of a method: its name, and the fields that are its own."""
  field, value, name = place.field, place.value, place.name
  family = place.declared.metadata["family"]
  which = describe.Field(
    name="name",
    kind=f"one of {', '.join(family)}, or an import path",
    default=field.default.name,
    meaning=field.meaning,
  )
  rows = [_row(which, value.name, f"{name}.name")]
  filled = None  # what a pipeline fills in where nobody set anything
  if settings is not None:
    method = getattr(settings, field.name)
    module, filled = method.module, method.config
    if place.declared.name == "algorithm":
      filled = getattr(settings, "method", filled)
  elif value.name in family:
    module = family[value.name]
  else:  # unknown, or a file of which a run says what is wrong
    return Part(name, field.meaning, rows)
  for inner in describe.fields(module.Config):
    given = value.get(inner.name)
    if given is None and filled is not None:
      inner = inner._replace(default=getattr(filled, inner.name))
    given = inner.default if given is None else given
    rows.append(_row(inner, given, f"{name}.{inner.name}"))
  about = f"{describe.summary(module)} {describe.citation(module)}"
  return Part(name, f"{about.strip()} ({_file(module)})", rows)


def _row(field: describe.Field, value: Any, name: str) -> Row:
  """Returns the row of a field; a section's value is shown as a dict."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if value is dataclasses.MISSING:
    return Row(name, "(not set)", field.kind, field.meaning)
  is_changed = (
    field.default is not dataclasses.MISSING and value != field.default
  )
  default = repr(field.default) if is_changed else None
  return Row(name, repr(value), field.kind, field.meaning, default)


def _file(thing: Any) -> str:
  """Returns the source file of a class or module, from the package on."""
  try:
    path = Path(inspect.getsourcefile(thing) or "").resolve()
  except TypeError:
    return getattr(thing, "__module__", "")
  root = Path(__file__).resolve().parent.parent
  return os.path.relpath(path, root if root in path.parents else Path.cwd())


def _kept(found: list[Part], test: Callable[[Row], bool]) -> list[Part]:
  """Returns the parts with the rows that pass a test, none without rows."""
  kept = [part._replace(rows=[*filter(test, part.rows)]) for part in found]
  return [part for part in kept if part.rows]


def narrowed(found: list[Part], only: str) -> list[Part]:
  """Returns the parts and fields whose name has a word in it.

  Args:
    found: all of an experiment.
    only: the word.

  Raises:
    UserError: nothing is called so.
  """
  kept = _kept(found, lambda row: only in row.name)
  if not kept:
    names = [row.name for part in found for row in part.rows]
    words = {word for name in names for word in (name, *name.split("."))}
    raise UserError(
      f"--only={only}: no field of this experiment has it in its name."
      f"{nearest(only, words)} Sections: "
      f"{', '.join(part.name for part in found if part.name)}."
    )
  return kept


def render(
  found: list[Part], width: int, from_line: Collection[str] = ()
) -> str:
  """Returns parts as text.

  Args:
    found: what to print.
    width: characters of a line.
    from_line: names that the command line set.
  """
  lines = []
  for part in found:
    title = f"[{part.name}] {part.about}" if part.name else ""
    lines += ["", *_wrapped(title, width, "", "  ")]
    names = max((len(row.name) for row in part.rows), default=0)
    values = max((len(row.value) for row in part.rows), default=0)
    for row in part.rows:
      mark = " "
      if row.default is not None:
        mark = LINE if row.name in from_line else FILE
      start = f"{mark} {row.name:{names}}  "
      lines += _lines(row, start, min(values, VALUES), width)
  return "\n".join(lines[1:])


def _lines(row: Row, start: str, values: int, width: int) -> list[str]:
  """Returns a field: name, value and range in a line, the meaning below.

  Args:
    row: the field.
    start: of the first line, with the name.
    values: column of the values.
    width: of a line.
  """
  kind = row.kind
  if row.default is not None:
    kind = f"{kind}; default {row.default}"
  first = f"{start}{row.value:{values}}"
  below = []
  if len(first) > width:  # the value has lines of its own
    first, below = start, _wrapped(row.value, width, INSIDE)
  if len(first) + 2 + len(kind) <= width:
    first = f"{first}  {kind}"
  else:
    below += _wrapped(kind, width, INSIDE)
  return [first.rstrip(), *below, *_wrapped(row.meaning, width, INSIDE)]


def _wrapped(
  text: str, width: int, first: str, rest: str | None = None
) -> list[str]:
  return textwrap.wrap(
    text,
    width,
    initial_indent=first,
    subsequent_indent=first if rest is None else rest,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _read(config: ConfigDict) -> tuple[Any, str]:
  """Returns the settings of an experiment, or None and why it is refused."""
  try:
    return pipelines.read(config).settings, ""
  except UserError as error:
    return None, str(error)


def main(argv: list[str], also: Mapping[str, tuple[Any, str]] = {}) -> int:
  """Prints what a command line asks for; returns the exit code.

  Args:
    argv: the whole command line.
    also: options of another command that may stand there; see command.parse.
  """
  values = command.parse(argv, {**OPTIONS, **also}, __doc__, example=EXAMPLE)
  config = values.config
  width = max(shutil.get_terminal_size((80, 24)).columns, 40)
  try:
    settings, refusal = _read(config)
    found = list(parts(config, settings))
    if values.only:
      found = narrowed(found, values.only.removeprefix("config."))
  except UserError as error:
    return command.fail(error, str(error))
  if values.changed:
    found = _kept(found, lambda row: row.default is not None)
  from_line = {
    word.partition("=")[0].partition(".")[2]
    for word in argv
    if re.match(r"--?(no)?config\.", word)
  }
  print("\n".join(_wrapped(LEGEND, width, "")))
  print(f"\n{render(found, width, from_line)}")
  if refusal:
    text = f"A run of this experiment would be refused: {refusal}"
    print("\n".join(["", *_wrapped(text, width, "")]))
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
