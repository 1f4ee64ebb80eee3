r"""Formulas read into trees: what the verifier "math" compares.

A tree is a list, kind first, of lists, texts and numbers (JSON), so that it
can cross to the process that compares (formula_worker.py):

  expressions  ["n", "1/3"] exact, ["d", "157/50"] written as a decimal,
               ["v", "x_1"] variable, ["c", "pi"] (pi, e, i, oo),
               ["+", a, b], ["*", a, b], ["/", a, b], ["^", a, b], ["-", a],
               ["f", "sin", a]
  answers      ["list", ...] in any order, ["set", ...], ["brackets", "[", ")",
               ...] tuples and intervals, ["union", ...], ["cap", ...],
               ["without", a, b], ["named", "x", a], ["system", ["x", a], ...],
               ["relation", "<", a, b], ["chain", a, b], ["ratio", ...],
               ["matrix", [a, b], ...], ["text", "no solution"],
               ["choice", "D", a]

Reading is strict: what has two readings (1/2x), or words that are no unit, is
no answer. Nothing is computed here, so a tower of powers costs nothing.

Left out: sums, integrals, limits, congruences, vectors with arrows, functions
that are applied to several arguments.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf_jax.rewards import expressions, latex, units
from rlhf_jax.rewards.expressions import Unreadable

Tree = list[Any]

_SIGN = re.compile(r"\\[{}|]|\\[a-zA-Z]+|.", re.DOTALL)
_SEPARATOR = re.compile(
  r"\\text\{,?\s*(?:or|and|,)\s*,?\}|(?<![a-zA-Z])(?:or|and)(?![a-zA-Z])|[,;]"
)
_ANSWERS = ("no", "undefined")  # words of mathematics that answer alone
_RELATIONS = "=≠<>≤≥∈≈"
_MIRRORED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}
_NAME = re.compile(
  r"(?:m?[∠△]\s*)?(?:[^\W\d_]+|\\overline\{[A-Z]+\})'*(?:_\{\w+\})?"
  r"(?:(?:\^\{-1\})?\(\w+(?:,\s*\w+)*\))?|\|[A-Z]{2}\|"
  r"|\(\s*[^\W\d_](?:\s*,\s*[^\W\d_])+\s*\)"
)
_LETTERS = re.compile(r"\\text\{\s*([A-Z](?:\s*(?:,|and)\s*[A-Z])+)\s*\}")
_LETTER = r"\\text\{\s*\(?([A-Z])\)?\s*\}"
_SEVERAL = re.compile(
  rf"{_LETTER}(?:\s*(?:,|and|\\text\{{\s*,?\s*and\s*\}})+\s*{_LETTER})+"
)
_CHOICE = re.compile(
  r"(?:\\text\{\(?([A-J])[).:]*\s*\}[).:]*\s*|\(([A-J])\)\s+"
  r"|([A-J])(?:\)\s*|\.\s+))([^\s+*/^=<>≤≥,·×-].*)"
)
# Option B, choice (B): and \text{B) 12}, whose words go on after the letter.
_OPTION = re.compile(r"(?:option|choice)\s+(\(?[A-J]\b.*)", re.IGNORECASE)
_WORDED_CHOICE = re.compile(r"\\text\{\s*(\(?[A-J])([).:])\s*([^{}]+)\}(.*)")
_BUILDER = re.compile(
  r"\\\{\s*[^\W\d_]\s*(?:∈\s*(?:\\mathbb\{R\}|ℝ)\s*)?[|:]\s*(.*[=≠<>≤≥].*)\\\}"
)
_MATRIX = re.compile(
  r"(?:[(\[]\s*)?\\begin\{(smallmatrix|[pbB]?matrix|array)\}(?:\{[lcr|]*\})?"
  r"(.*)\\end\{\1\}(?:\s*[)\]])?",
  re.DOTALL,
)
_REALS = ("\\mathbb{R}", "\\R", "ℝ")


def read(text: str) -> tuple[Tree, str]:
  """Returns the tree of an answer, and its unit ("" when none).

  Args:
    text: in LaTeX or not.

  Raises:
    Unreadable: it is no formula, or one with two readings; says why.
  """
  text = latex.tidy(text)
  if not text:
    raise Unreadable("it is empty")
  if found := _LETTERS.fullmatch(text):  # \text{A, C}
    text = found[1]
  if _SEVERAL.fullmatch(text):  # \text{A} and \text{(C)}
    text = re.sub(_LETTER, r" \1 ", text)
  text = _as_choice(text)
  words = _words(text)
  if words is not None:
    return words, ""
  if choice := _CHOICE.fullmatch(text):  # (D) 12
    *letters, value = choice.groups()
    tree, unit = read(value)
    return ["choice", next(filter(None, letters)), tree], unit
  text = re.sub(r"^[$€£¥]\s*(?=[\d\\.])", "", text)
  text = re.sub(r"\](.*)\[", r"(\1)", text) if text[0] == "]" else text
  text = text.replace("\\langle", "(").replace("\\rangle", ")")
  if builder := _BUILDER.fullmatch(text):  # {x | x > 2}
    text = builder[1]
  text, unit = _without_unit(text)
  return _answer(text), unit


def _as_choice(text: str) -> str:
  """Returns "Option B", "B)" and "B:" as B, and a worded choice without words.

  \text{B) 12 cm} is \text{B} 12 cm.
  """
  option = _OPTION.fullmatch(re.sub(r"^\\text\{([^{}]*)\}", r"\1", text))
  text = option[1] if option else text
  if found := re.fullmatch(r"\(?([A-J])\)?[).:]*", text):
    return found[1]
  if found := _WORDED_CHOICE.fullmatch(text):
    return f"\\text{{{found[1].lstrip('(')}}} {found[3]}{found[4]}"
  return text


def _words(text: str) -> Tree | None:
  """Returns the tree of words or of the letter of a choice, None for others."""
  inner = re.fullmatch(r"\\text\{([^{}]*)\}", text)
  bare = re.sub(r"[().,:!\"]", " ", inner[1] if inner else text).split()
  has_digits = inner or (bare and units.is_word(bare[0]))  # June 20
  word = r"[\w'-]+" if has_digits else r"[^\W\d_][\w'-]*"
  if not bare or not all(re.fullmatch(word, w) for w in bare):
    return None
  if len(bare) == 1 and len(bare[0]) == 1:
    return ["v", bare[0]] if inner else None
  is_text = any(units.is_word(w) or w.lower() in _ANSWERS for w in bare)
  is_text = is_text or bool(inner and not re.search(r"\d", inner[1]))
  is_text = is_text and not any(w.lower() in ("or", "and") for w in bare)
  is_named = len(bare) == 1 and bare[0] in expressions.NAMES
  if not is_text or (is_named and not inner):
    return None
  return ["text", " ".join(bare).casefold()]


def _without_unit(text: str) -> tuple[str, str]:
  """Returns a text without the unit at its end, and the unit."""
  found = re.search(
    r"(?<=\S)(?:\s*\\text\{(?P<words>[^{}]*)\}|\s(?P<bare>[a-zA-Z/]{2,}|[aApP]\.[mM]))"
    r"(?P<power>\s*\^\{[123]\})?$",
    text,
  )
  if found is None:
    degrees = re.search(r"(?<=[\d)}π])\^\{\\circ\}$", text)
    is_angle = degrees and not re.search(r"\\?(?:sin|cos|tan|cot)", text)
    return (text[: degrees.start()], "degree") if is_angle else (text, "")
  written = found["words"] or found["bare"] or ""
  if found["bare"] and (
    written in expressions.NAMES
    or not re.search(r"[\d})π]", text[found.start() - 1])
  ):
    return text, ""
  words = units.words_of(written, is_attached=False)
  if not words:
    return text, ""
  power = re.sub(r"[\s{}]", "", found["power"] or "")
  return text[: found.start()].strip(), units.singular(words) + power


def _cut(text: str, separator: re.Pattern) -> tuple[list[str], list[str]]:
  """Returns the parts of a text at its outer level, and what parts them."""
  parts, between, depth, start, i = [], [], 0, 0, 0
  while i < len(text):
    found = separator.match(text, i) if depth == 0 else None
    if found is not None:
      parts.append(text[start:i])
      between.append(found[0])
      start = i = found.end()
      continue
    sign = _SIGN.match(text, i)[0]
    if sign in ("(", "[", "{", "\\{"):
      depth += 1
    elif sign in (")", "]", "}", "\\}"):
      depth -= 1
    i += len(sign)
  return [part.strip() for part in (*parts, text[start:])], between


def _answer(text: str) -> Tree:
  """Returns the tree of a whole answer."""
  parts, between = _cut(text, _SEPARATOR)
  if not (parts[0] and parts[-1]):
    raise Unreadable("a list in it breaks off")
  parts = [part for part in parts if part]  # a comma before "or"
  if len(parts) > 20:
    raise Unreadable("it lists more than 20 answers")
  items = []
  for part in parts:
    if "±" in part or "∓" in part:
      for plus, minus in ("+-", "-+"):
        item = part.replace("±", plus).replace("∓", minus)
        items.append(_item(item))
    else:
      items.append(_item(part))
  if len(items) == 1:
    return items[0]
  words = {w for b in between for w in ("or", "and") if w in b}
  return _joined(items, words)


def _joined(items: list[Tree], words: set[str]) -> Tree:
  """Returns the tree of several answers, which may name their variable."""
  names = [item[1] if item[0] == "named" else "" for item in items]
  named = sorted(set(filter(None, names)))
  if len(named) > 1:
    if len(named) < len(items):
      raise Unreadable("it names some values twice and some not at all")
    return ["system", *([item[1], item[2]] for item in sorted(items))]
  values = [item[2] if item[0] == "named" else item for item in items]
  if named and not names[0]:
    raise Unreadable("it names a value, and not the first")
  kind = "list"
  if all(value[0] in ("brackets", "union") for value in values) and named:
    if len(words) != 1:
      raise Unreadable("it joins intervals by neither 'or' nor 'and'")
    kind = "union" if words == {"or"} else "cap"
  return ["named", named[0], [kind, *values]] if named else [kind, *values]


def _item(text: str) -> Tree:
  """Returns the tree of one answer: a value, a relation, a set."""
  parts, between = _cut(text, re.compile(f"[{_RELATIONS}]"))
  if between:
    return _relation(parts, between)
  return _value(text)


def _relation(parts: list[str], between: list[str]) -> Tree:
  between = ["=" if sign == "≈" else sign for sign in between]
  if parts[0] == "" and between[0] in "=∈":  # "= 5", "≈ 3.14"
    parts, between = parts[1:], between[1:]
    if not between:
      return _value(parts[0])
  if len(parts) == 2 and _is_name(parts[1]) and not _is_name(parts[0]):
    sign = _MIRRORED.get(between[0])
    if sign is not None:
      parts, between = parts[::-1], [sign]
  sign = between[0]
  if _is_name(parts[0]) and set(between) <= {"=", "∈"}:
    name = re.sub(r"[\s{}]", "", parts[0])
    values = [_value(part) for part in parts[1:]]
    value = values[0] if len(values) == 1 else ["chain", *values]
    return ["named", name, value]
  if set(between) == {"="} and len(parts) > 2:
    return ["chain", *map(_value, parts)]
  if len(parts) == 2 and _is_name(parts[0]) and sign in "<>≤≥":
    return _half_line(parts[0], sign, _value(parts[1]))
  if len(parts) == 3 and _is_name(parts[1]) and len(set("<≤") & set(between)):
    if set(between) <= {"<", "≤"}:
      return _interval(parts, between)
  if len(parts) == 3 and _is_name(parts[1]) and set(between) <= {">", "≥"}:
    mirrored = [_MIRRORED[sign] for sign in between[::-1]]
    return _interval(parts[::-1], mirrored)
  if len(parts) != 2 or sign == "∈":
    raise Unreadable("it chains relations")
  left, right = map(_value, parts)
  if sign in ">≥":
    left, right, sign = right, left, _MIRRORED[sign]
  return ["relation", sign, left, right]


def _is_name(text: str) -> bool:
  if not _NAME.fullmatch(text) or text in expressions.NAMES:
    return False
  return text not in expressions.CONSTANTS


def _half_line(name: str, sign: str, bound: Tree) -> Tree:
  infinity = ["c", "oo"]
  if sign in "<≤":
    interval = ["brackets", "(", ")" if sign == "<" else "]"]
    return ["named", name, [*interval, ["-", infinity], bound]]
  interval = ["brackets", "(" if sign == ">" else "[", ")"]
  return ["named", name, [*interval, bound, infinity]]


def _interval(parts: list[str], between: list[str]) -> Tree:
  left = "(" if between[0] == "<" else "["
  right = ")" if between[1] == "<" else "]"
  low, high = _value(parts[0]), _value(parts[2])
  return ["named", parts[1], ["brackets", left, right, low, high]]


def _value(text: str) -> Tree:
  """Returns the tree of a value without relations."""
  parts, between = _cut(text, re.compile("[∪∩∖]"))
  if between:
    if len(set(between)) > 1 or ("∖" in between and len(parts) != 2):
      raise Unreadable("it mixes operations on sets without brackets")
    kind = {"∪": "union", "∩": "cap", "∖": "without"}[between[0]]
    return [kind, *map(_value, parts)]
  if text in _REALS:
    return ["reals"]
  if re.fullmatch(r"\\mathbb\{[A-Z]\}", text):
    return ["v", text]
  if text in ("∅", "\\{\\}", "\\{ \\}"):
    return ["set"]
  if matrix := _MATRIX.fullmatch(text):
    rows = [row for row in matrix[2].split("\\\\") if row.strip()]
    return ["matrix", *([_value(c) for c in row.split("&")] for row in rows)]
  if bracketed := _bracketed(text):
    return bracketed
  ratio, between = _cut(text, re.compile(":"))
  if between:
    return ["ratio", *map(expressions.read, ratio)]
  return expressions.read(text)


def _bracketed(text: str) -> Tree | None:
  """Returns the tree of (a, b), [a, b), {a, b}, None for anything else."""
  found = re.fullmatch(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", text, re.DOTALL)
  if found is None:
    return None
  left, inner, right = found.groups()
  parts, between = _cut(inner, re.compile(r"[,;]"))
  is_set = left == "\\{" and right == "\\}"
  if (left == "\\{") != (right == "\\}") or (not between and not is_set):
    return None
  if len(parts) > 20 or not all(parts):
    raise Unreadable("it has an empty place, or more than 20")
  items = [_value(part) for part in parts]
  return ["set", *items] if is_set else ["brackets", left, right, *items]
