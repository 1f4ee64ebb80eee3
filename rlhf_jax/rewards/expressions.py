r"""Expressions read into trees: sums, products, powers, roots, functions.

The usual precedence; a product needs no sign (2x, 2(x+1), x\sqrt{2}). \sin 2x
is \sin(2x), \log is to the base 10, 1\frac{1}{2} is a mixed number, i and e
are the constants. Refused as having two readings: 1/2x, x2, 2 3, 2\frac{5}{3}.
What a tree is: formulas.py.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rlhf_jax.rewards import units

Tree = list[Any]

MAX_DEPTH = 25  # of brackets, fractions and powers in each other
CONSTANTS = {"π": "pi", "e": "e", "i": "i", "∞": "oo"}
FUNCTIONS = frozenset(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp "
  "asin acos atan".split()
)
NAMES = FUNCTIONS | {"sqrt", "pi", "infinity", "inf", "oo", "infty"}
_WRITTEN = {"pi": "π", "infinity": "∞", "inf": "∞", "oo": "∞", "infty": "∞"}
_FENCES = {"\\lfloor": ("\\rfloor", "floor"), "\\lceil": ("\\rceil", "ceiling")}
_BEGINNINGS = frozenset("( [ { \\frac \\sqrt \\binom sqrt".split())
_ACCENTS = frozenset(r"\overline \vec \hat \bar \overrightarrow".split())
_TOKEN = re.compile(
  r"\s*(?:(?P<number>\d+(?:\.\d*)?|\.\d+)(?:\\overline\{(?P<cycle>\d+)\})?"
  r"|(?P<command>\\[a-zA-Z]+|\\.)|(?P<run>[a-zA-Z]+)|(?P<sign>\S))"
)


class Unreadable(ValueError):
  """A text is no formula, or has two readings; the message says why."""


def read(text: str) -> Tree:
  """Returns the tree of an expression in the spelling of latex.tidy.

  Raises:
    Unreadable: see the module's docstring.
  """
  reader = _Reader(_tokens(text))
  tree = reader.sum()
  if reader.next is not None:
    raise Unreadable(f"{reader.next[1]!r} has no place in it")
  return tree


def _tokens(text: str) -> list[tuple[str, Any]]:
  """Returns (kind, what): "n" trees of numbers, else "s" signs and names."""
  tokens, at, text = [], 0, text.strip()
  while at < len(text):
    found = _TOKEN.match(text, at)
    if found is None:
      break
    at = found.end()
    if found["number"] is not None:
      tokens.append(("n", _number(found["number"], found["cycle"])))
    elif found["run"] is not None:
      tokens += [("s", name) for name in _names(found["run"])]
    else:
      written = found["command"] or found["sign"]
      is_function = written[1:] in FUNCTIONS
      tokens.append(("s", written[1:] if is_function else written))
  return tokens


def _names(run: str) -> list[str]:
  """Returns the names that a run of letters is: one function, or letters."""
  if run in NAMES:
    return [_WRITTEN.get(run, run)]
  if units.is_word(run) or len(run) > 6 or run.lower() == "nan":
    raise Unreadable(f"{run!r} is a word")
  return list(run)


def _number(digits: str, cycle: str | None) -> Tree:
  value = Fraction(digits.rstrip(".") or "0")
  if cycle is not None:
    places = len(digits.partition(".")[2])
    if "." not in digits:
      raise Unreadable("a line stands over whole digits")
    value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)
  is_decimal = "." in digits and cycle is None and value.denominator > 1
  return ["d" if is_decimal else "n", str(value)]


class _Reader:
  """A position in tokens; each method reads one rule of the grammar."""

  def __init__(self, tokens: list[tuple[str, Any]]):
    self.tokens = tokens
    self.at = 0
    self.depth = 0
    self.bars = 0  # of |x|, open

  @property
  def next(self) -> tuple[str, Any] | None:
    return self.tokens[self.at] if self.at < len(self.tokens) else None

  @property
  def sign(self) -> str | None:
    """Returns the next token if it is no number."""
    return self.next[1] if self.next and self.next[0] == "s" else None

  def take(self, wanted: str) -> None:
    if self.sign != wanted:
      raise Unreadable(f"{wanted!r} is missing")
    self.at += 1

  def sum(self) -> Tree:
    self.depth += 1
    if self.depth > MAX_DEPTH:
      raise Unreadable("it is nested too deeply")
    total = self.signed()
    while self.sign in ("+", "-"):
      is_minus = self.sign == "-"
      self.at += 1
      term = self.product()
      total = ["+", total, ["-", term] if is_minus else term]
    self.depth -= 1
    return total

  def signed(self) -> Tree:
    if self.sign not in ("+", "-"):
      return self.product()
    is_minus = self.sign == "-"
    self.at += 1
    term = self.product()
    return ["-", term] if is_minus else term

  def product(self) -> Tree:
    total = self.factor()
    is_divided = False
    while True:
      if self.sign in ("×", "·", "*"):
        self.at += 1
        total, is_divided = ["*", total, self.signed_factor()], False
      elif self.sign == "/":
        self.at += 1
        total, is_divided = ["/", total, self.signed_factor()], True
      elif self.starts_factor():
        if is_divided:
          raise Unreadable("what stands under its / has two readings")
        total = ["*", total, self.factor()]
      else:
        return total

  def signed_factor(self) -> Tree:
    if self.sign != "-":
      return self.factor()
    self.at += 1
    return ["-", self.factor()]

  def starts_factor(self) -> bool:
    """Returns whether a product goes on without a sign."""
    if self.next is None:
      return False
    if self.next[0] == "n" and self.tokens[self.at - 1] == ("s", "!"):
      return True  # 5!5!
    if self.next[0] == "n":
      raise Unreadable("a number follows without a sign")
    sign = self.next[1]
    if (
      sign in _BEGINNINGS | _ACCENTS
      or sign in _FENCES
      or (sign == "|" and not self.bars)
    ):
      return True
    return sign in FUNCTIONS or sign in CONSTANTS or _is_letter(sign)

  def factor(self) -> Tree:
    """Reads an atom with its powers, factorials and degrees."""
    base = self.atom()
    while True:
      if self.sign == "^":
        self.at += 1
        group = [t for _, t in self.tokens[self.at : self.at + 3]]
        if group == ["{", "\\circ", "}"]:
          self.at += 3
          base = ["*", base, ["/", ["c", "pi"], ["n", "180"]]]
        else:
          base = ["^", base, self.exponent()]
          if self.sign == "^":
            raise Unreadable("it has a power of a power without brackets")
      elif self.sign == "!":
        self.at += 1
        base = ["f", "factorial", base]
      elif self.sign == "%":
        self.at += 1
        base = ["/", base, ["n", "100"]]
      else:
        return base

  def exponent(self) -> Tree:
    if self.sign == "{":
      return self.group("{", "}")
    if self.sign in ("+", "-"):
      return self.signed_factor()
    return self.atom()

  def group(self, left: str, right: str) -> Tree:
    self.take(left)
    inner = self.sum()
    self.take(right)
    return inner

  def atom(self) -> Tree:
    if self.next is None:
      raise Unreadable("it breaks off")
    kind, token = self.next
    if kind == "n":
      return self.number()
    for left, right in (("(", ")"), ("[", "]"), ("{", "}")):
      if token == left:
        return self.group(left, right)
    self.at += 1
    if token == "\\frac":
      return ["/", self.group("{", "}"), self.group("{", "}")]
    if token == "\\binom":
      top, under = self.group("{", "}"), self.group("{", "}")
      return ["f", "binomial", top, under]
    if token in ("\\sqrt", "sqrt"):
      return self.root()
    if token == "|":
      self.bars += 1
      inner = self.sum()
      self.take("|")
      self.bars -= 1
      return ["f", "Abs", inner]
    if token in _FENCES:
      right, name = _FENCES[token]
      inner = self.sum()
      self.take(right)
      return ["f", name, inner]
    if token in FUNCTIONS:
      return self.function(token)
    if token in CONSTANTS:
      return ["c", CONSTANTS[token]]
    if _is_letter(token):
      return ["v", token + self.subscript()]
    if token in _ACCENTS:
      return ["v", f"{token}{{{self.written()}}}" + self.subscript()]
    raise Unreadable(f"{token!r} has no place in it")

  def number(self) -> Tree:
    """Reads a number: mixed where a proper fraction of numbers follows."""
    value = self.next[1]
    self.at += 1
    if self.sign == "_":
      return ["v", value[1] + self.subscript()]  # digits in another base
    if self.sign != "\\frac":
      return value
    start = self.at
    self.at += 1
    parts = [self.group("{", "}"), self.group("{", "}")]
    if not all(part[0] == "n" and "/" not in part[1] for part in parts):
      self.at = start
      return value
    if value[0] != "n" or not int(parts[0][1]) < int(parts[1][1]):
      raise Unreadable("it is no mixed number, and reads like one")
    return ["+", value, ["/", *parts]]

  def subscript(self) -> str:
    if self.sign != "_":
      return ""
    self.at += 1
    return "_" + self.written()

  def written(self) -> str:
    """Reads a group as the name that it is."""
    self.take("{")
    parts = []
    while self.next is not None and self.sign != "}":
      token = self.next[1]
      parts.append(token[1] if self.next[0] == "n" else token)
      self.at += 1
    self.take("}")
    return "".join(parts)

  def root(self) -> Tree:
    degree = ["n", "2"]
    if self.sign == "[":
      degree = self.group("[", "]")
    left, right = ("(", ")") if self.sign == "(" else ("{", "}")
    return ["f", "root", self.group(left, right), degree]

  def function(self, name: str) -> Tree:
    base = power = None
    while self.sign in ("_", "^"):
      is_base = self.sign == "_"
      self.at += 1
      if is_base:
        base = self.exponent()
      else:
        power = self.exponent()
    if base is not None and name != "log":
      raise Unreadable(f"{name} has no base")
    arguments = [self.argument()]
    if name in ("log", "lg"):
      arguments.append(["n", "10"] if base is None else base)
      name = "log"
    if power == ["-", ["n", "1"]] and name in ("sin", "cos", "tan"):
      name, power = f"arc{name}", None
    tree = ["f", name, *arguments]
    return tree if power is None else ["^", tree, power]

  def argument(self) -> Tree:
    """Reads what a function is applied to: (...), or a product such as 2x."""
    for left, right in (("(", ")"), ("{", "}")):
      if self.sign == left:
        return self.group(left, right)
    total = self.factor()
    while self.starts_factor() and self.sign not in FUNCTIONS | {"("}:
      total = ["*", total, self.factor()]
    return total


def _is_letter(sign: str) -> bool:
  return len(sign) == 1 and sign.isalpha()
