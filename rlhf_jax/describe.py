"""What a field of a settings dataclass means, read from its source.

Nothing is written twice: the meaning of a field is the comment that stands
beside it in the dataclass, and its range is what the checks of the dataclass
say to a value that cannot be right.

  rate: float = 0.1  # a comment at the end of the field's lines
  # goes on in the lines below,
  steps: int = 10  # unless
  # those stand above a field that has none at its end: then they are its own
  size: int = 8

A field that a subclass gives another default keeps the meaning of the first
class that has it; a comment there is added to it. A docstring may say it
instead, "field: meaning" on a line.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from rlhf_jax.schema import hints, options

_WORDS = {
  int: "whole number",
  float: "number",
  bool: "True or False",
  str: "text",
  tuple: "tuple",
  dict: "names and values",
  type(None): "None",
  Any: "anything",
}
_REQUIRED = {int: 1, float: 1.0, bool: True, str: "", tuple: (), dict: {}}
# Values that most checks refuse, to hear what they ask for.
_WRONG = {int: (-(10**9), 10**9), float: (-1e9, 1e9), str: ("?",)}
# How checks state a rule: "must be in (0, 1).", "Set it >= 0."
_RULE = re.compile(
  r"(?:must be |[Ss]et (?:it )?(?=[<>])|Choose (?=one of))"
  r"(.+?)(?:[.;](?: |$)|$)"
)
# "0 < NAME <= 1", "NAME >= 2", "NAME and other >= 2".
_BOUNDS = (
  r"(?:(-?[\d.]+) (<=?) )?\b{}(?:(?:, | and )[\w.]+)* ([<>]=?) (-?[\d.]*\d)"
)
_ENTRY = re.compile(r"( *)(\w+(?:, \w+)*): (.+)")


class Field(NamedTuple):
  """One field of a dataclass.

  kind: type and range in words, "number in (0, 1), or None".
  default: dataclasses.MISSING where there is none.
  meaning: "" where nothing is written about it.
  """

  name: str
  kind: str
  default: Any
  meaning: str


def fields(values: Any) -> list[Field]:
  """Returns the fields of a dataclass, in their order.

  Args:
    values: the class, or an instance whose values count as the defaults.
  """
  cls = values if isinstance(values, type) else type(values)
  example = _example(cls) if values is cls else values
  found = []
  for field in dataclasses.fields(cls):
    if not field.init:
      continue
    default = _default(field, example, values is not cls)
    hint = hints(cls)[field.name]
    said = meaning(cls, field.name)
    if not said and dataclasses.is_dataclass(hint):
      said = summary(hint)  # a section, which says it itself
    kind = _kind(hint, _rules(example, field.name, hint))
    found.append(Field(field.name, kind, default, said))
  return found


def _default(field: dataclasses.Field, example: Any, is_own: bool) -> Any:
  """Returns the default of a field, MISSING where it has none.

  Args:
    field: of a dataclass.
    example: an instance of it, or None.
    is_own: whether the values of the instance are the defaults.
  """
  factory = field.default_factory
  nothing = (field.default, factory) == (dataclasses.MISSING,) * 2
  if is_own or (example is not None and not nothing):
    return getattr(example, field.name)
  return field.default if factory is dataclasses.MISSING else factory()


def summary(thing: Any) -> str:
  """Returns the first paragraph of a docstring, "" where there is none.

  Args:
    thing: a module, class or function; of a dataclass without a docstring of
      its own nothing is said.
  """
  text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
  if isinstance(thing, type) and text.startswith(f"{thing.__name__}("):
    return ""  # what dataclasses write
  return " ".join(text.partition("\n\n")[0].split())


def citation(module: Any) -> str:
  """Returns the sentence of a module's docstring that names its source.

  That is the first with "arXiv:" in it, else with a year; "" without one.
  """
  text = inspect.cleandoc(getattr(module, "__doc__", None) or "")
  found = [
    " ".join(sentence.split())
    for paragraph in text.split("\n\n")[1:]
    for sentence in re.split(r"(?<=\)\.)\s+|(?<=\.)\s+(?=[A-Z])", paragraph)
  ]
  for wanted in (r"arXiv:", r"\b(19|20)\d\d\b"):
    for sentence in found:
      if re.search(wanted, sentence):
        return f"{sentence.rstrip('.')}."
  return ""


@functools.lru_cache(maxsize=1024)
def meaning(cls: type, name: str) -> str:
  """Returns what is written about a field; "" where nothing is.

  Args:
    cls: a dataclass.
    name: of the field.
  """
  parts: list[str] = []
  for base in reversed(cls.__mro__):  # from the first class that has it
    text = _comments(base).get(name) or _entries(base).get(name)
    if text and text not in parts:
      parts.append(text)
  ends = parts if len(parts) < 2 else [parts[0], parts[-1]]
  return ". Here: ".join(part.rstrip(".") for part in ends)


@functools.lru_cache(maxsize=256)
def _comments(cls: type) -> dict[str, str]:
  """Returns field -> comment of the fields that a class itself declares."""
  try:
    source = textwrap.dedent(inspect.getsource(cls))
  except (OSError, TypeError):  # typed into a shell, or of C
    return {}
  body = ast.parse(source).body[0].body
  spoken = _by_line(source)
  alone = {line for line, (_, is_alone) in spoken.items() if is_alone}
  found: dict[str, list[str]] = {}
  upper, line = None, 0
  for node in body:
    lines = [spoken[n][0] for n in _block(alone, node.lineno - 1, line)]
    line = node.end_lineno
    own = [spoken[n][0] for n in range(node.lineno, line + 1) if n in spoken]
    if upper is not None and (own or not _is_field(node)):
      found[upper] += lines
    else:
      own = lines + own
    upper = node.target.id if _is_field(node) else None
    if upper is not None:
      found[upper] = own
  if upper is not None:
    below = _block(alone, source.count("\n") + 1, line)
    found[upper] += [spoken[n][0] for n in below]
  return {name: _sentence(lines) for name, lines in found.items()}


def _is_field(node: ast.stmt) -> bool:
  return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _by_line(source: str) -> dict[int, tuple[str, bool]]:
  """Returns line -> (comment, whether it stands alone) of a source text."""
  lines = source.splitlines()
  return {
    token.start[0]: (
      token.string.lstrip("#").strip(),
      lines[token.start[0] - 1].lstrip().startswith("#"),
    )
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }


def _block(alone: set[int], last: int, above: int) -> list[int]:
  """Returns the lines of comment in (above, last], one under the other."""
  return [line for line in range(above + 1, last + 1) if line in alone]


def _sentence(lines: list[str]) -> str:
  return " ".join(" ".join(lines).split())


@functools.lru_cache(maxsize=256)
def _entries(cls: type) -> dict[str, str]:
  """Returns field -> text of a docstring's lines "field: text"."""
  text = inspect.cleandoc(vars(cls).get("__doc__") or "")
  found: dict[str, list[str]] = {}
  names: list[str] = []
  depth = 0
  for line in text.splitlines()[1:]:
    entry = _ENTRY.fullmatch(line)
    if names and line.strip() and len(line) - len(line.lstrip()) > depth:
      for name in names:
        found[name].append(line)
    elif entry is not None:
      depth, names = len(entry[1]), entry[2].split(", ")
      found |= {name: [entry[3]] for name in names}
    else:
      names = []
  declared = vars(cls).get("__annotations__", {})
  return {n: _sentence(lines) for n, lines in found.items() if n in declared}


def _kind(hint: Any, rules: list[str]) -> str:
  """Returns a type and its range in words.

  Args:
    hint: of the field.
    rules: what its checks ask for.
  """
  kinds = [option for option in options(hint) if option is not type(None)]
  words = [_word(kind) for kind in kinds]
  if str in kinds and rules:
    words.remove("text")  # the choices say it
  said = ", and ".join(rules)
  text = " ".join(filter(None, (" or ".join(words), said)))
  if len(kinds) < len(options(hint)) and "None" not in said:
    text = f"{text}, or None"
  return text


def _word(kind: Any) -> str:
  if typing.get_origin(kind) is typing.Literal:
    names = [str(name) or '""' for name in typing.get_args(kind)]
    return f"one of {', '.join(names)}"
  plain = typing.get_origin(kind) or kind
  return _WORDS.get(plain, getattr(plain, "__name__", str(plain)))


def _example(cls: type) -> Any:
  """Returns an instance with its defaults, or None where that is refused."""
  given = {}
  for field in dataclasses.fields(cls):
    has_default = (field.default, field.default_factory) != (
      dataclasses.MISSING,
    ) * 2
    kind = typing.get_origin(hints(cls)[field.name]) or hints(cls)[field.name]
    if field.init and not has_default:
      given[field.name] = _REQUIRED.get(kind)
  try:
    return cls(**given)
  except (ValueError, TypeError):
    return None


def _rules(example: Any, name: str, hint: Any) -> list[str]:
  """Returns what the checks of a dataclass ask of a field.

  Args:
    example: an instance without mistakes, or None.
    name: of the field.
    hint: its type.
  """
  found: list[str] = []
  if example is None:
    return found
  for wrong in _wrong(hint):
    try:
      dataclasses.replace(example, **{name: wrong})
    except ValueError as error:
      rule = _rule(str(error), name, repr(wrong))
      if rule and rule not in found:
        found.append(rule)
    except Exception:  # a check that takes no such value says nothing
      continue
  return found


def _rule(told: str, name: str, wrong: str) -> str:
  """Returns "in (0, 1]" out of what a check says, or "".

  Args:
    told: "NAME=2: must be in (0, 1].", maybe with other fields before it.
    name: of the field.
    wrong: value that it was given.
  """
  told = " ".join(told.split())
  values = told.find(f"={wrong}")
  if values < 0:
    return ""  # about another field, which only goes with this one
  said = told[values + len(wrong) + 1 :]
  bounds = re.search(_BOUNDS.format(name), said)
  if bounds is not None:
    low, opening, sign, high = bounds.groups()
    if low is None:
      return f"{sign} {high}"
    left = "(" if opening == "<" else "["
    return f"in {left}{low}, {high}{')' if sign == '<' else ']'}"
  rule = _RULE.search(said)
  if rule is None:
    return ""
  if rule[1].startswith("one of"):
    names = re.sub(r"[()']", "", rule[1])
    return names.replace("one of ,", 'one of "",', 1)
  return rule[1]


def _wrong(hint: Any) -> Iterator[Any]:
  for option in options(hint):
    yield from _WRONG.get(option, ())
