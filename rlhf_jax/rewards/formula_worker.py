"""Compares formulas with sympy, in a process of its own that may be killed.

Run as a file by formula_process.py, so it imports nothing of this package.
Each line of the standard input is a JSON object with two trees (formulas.py);
the reply is one line, "1" (equal) or "0". What takes longer than `seconds` ends
the process by SIGPROF, inside of C code too. They are seconds of CPU time, so
that a right answer is right on a busy machine too.

Equal means proved, or (last, where no proof was found and no point refuted it)
equal to 100 digits at several points. Domains are real unless i occurs.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

import sympy

POINTS = ("37/100", "183/100", "-71/100", "241/100", "-17/10", "1/7", "53/10")
STRIDE = "11/13"  # between the values of two variables
EXACT_DIGITS = 100
RELATIONS = ("relation", "named")
SETS = ("union", "cap", "without", "reals")


def expression(tree):
  """Returns the sympy expression of a tree."""
  kind, *parts = tree
  if kind in ("n", "d"):
    return sympy.Rational(parts[0])
  if kind == "v":
    return sympy.Symbol(parts[0])
  if kind == "c":
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}
    return constants[parts[0]]
  if kind == "f":
    arguments = [expression(part) for part in parts[1:]]
    return function(parts[0])(*arguments)
  if kind not in ("+", "*", "/", "^", "-"):
    raise ValueError(f"{kind} is no expression")
  values = [expression(part) for part in parts]
  if kind == "+":
    return values[0] + values[1]
  if kind == "*":
    return values[0] * values[1]
  if kind == "/":
    return values[0] / values[1]
  return values[0] ** values[1] if kind == "^" else -values[0]


def function(name):
  if name.startswith("arc"):
    return getattr(sympy, "a" + name[3:])
  return getattr(sympy, {"ln": "log"}.get(name, name))


def values_at(formulas, point):
  """Returns formulas at a point, None unless all are finite and real there.

  Args:
    formulas: of the same variables.
    point: number of the point.
  """
  symbols = sorted(set().union(*(f.free_symbols for f in formulas)), key=str)
  start, stride = sympy.Rational(POINTS[point]), sympy.Rational(STRIDE)
  place = {s: start + i * stride for i, s in enumerate(symbols)}
  found = [sympy.N(f.subs(place), 30) for f in formulas]
  is_complex = any(f.has(sympy.I) for f in formulas)
  for value in found:
    if not value.is_number or not value.is_finite:
      return None
    if not is_complex and not value.is_real:
      return None
  return found


def refuted(one, other):
  """Returns whether a point tells two formulas apart, None without any."""
  seen = None
  for point in range(len(POINTS)):
    values = values_at([one, other], point)
    if values is not None:
      seen = False
      size = 1e-15 * (1 + abs(values[1]))
      if abs(values[0] - values[1]) > size:
        return True
  return seen


def is_rational(formula):
  """Returns whether a formula has rational numbers and variables only.

  Then to cancel decides; e^{iπ/3} and √2 need more.
  """
  symbols, irrational = formula.free_symbols, (sympy.Function, sympy.I)
  return (
    formula.is_rational_function(*symbols)
    and not formula.has(*irrational)
    and not formula.atoms(sympy.NumberSymbol)
    and all(power.exp.is_integer for power in formula.atoms(sympy.Pow))
  )


def is_zero(difference):
  """Returns whether a formula that no point refuted is zero."""
  if is_rational(difference):
    return sympy.cancel(difference) == 0
  for attempt in (sympy.expand, sympy.simplify, deep):
    difference = attempt(difference)
    if difference == 0:
      return True
  for point in range(len(POINTS)):
    values = [difference]
    if difference.free_symbols and values_at([difference], point) is None:
      continue
    symbols = sorted(difference.free_symbols, key=str)
    start, stride = sympy.Rational(POINTS[point]), sympy.Rational(STRIDE)
    place = {s: start + i * stride for i, s in enumerate(symbols)}
    value = sympy.N(values[0].subs(place), 15, maxn=4 * EXACT_DIGITS)
    if not abs(value) < sympy.Float(10) ** -EXACT_DIGITS:
      return False
  return True


def deep(formula):
  """Returns a formula with functions of sums and products taken apart."""
  return sympy.simplify(sympy.expand(formula, func=True, trig=True, force=True))


def is_equal(one, other, tolerance=0.0):
  """Returns whether two expressions are equal.

  Args:
    one, other: of sympy.
    tolerance: relative, for constants.
  """
  if one.has(sympy.nan, sympy.zoo) or other.has(sympy.nan, sympy.zoo):
    return False
  if one == other:
    return True
  if one.has(sympy.oo, -sympy.oo) or other.has(sympy.oo, -sympy.oo):
    return False
  if not (one.free_symbols or other.free_symbols):
    first, second = sympy.N(one, 30), sympy.N(other, 30)
    size = max(tolerance, 1e-20) * abs(second)
    if not abs(first - second) <= size:
      return False
    return tolerance > 0.0 or is_zero(one - other)
  return refuted(one, other) is False and is_zero(one - other)


def tolerance_of(answer, reference, tolerance):
  """Returns the tolerance where one side is a decimal, and 0 elsewhere.

  A whole reference is met exactly only.
  """
  written = json.dumps([answer, reference])
  is_whole = reference[0] == "n" and "/" not in reference[1]
  return tolerance if '["d"' in written and not is_whole else 0.0


def same(answer, reference, tolerance):
  """Returns whether two trees of answers are the same answer."""
  if answer == reference:
    return True
  if answer[0] == "chain":
    return all(same(part, reference, tolerance) for part in answer[1:])
  if reference[0] == "chain":
    return all(same(answer, part, tolerance) for part in reference[1:])
  kinds = {answer[0], reference[0]}
  if "choice" in kinds:
    return same_choice(answer, reference, tolerance)
  if kinds & set(RELATIONS):
    return same_relation(answer, reference, tolerance)
  if kinds & set(SETS):
    return same_set(answer, reference)
  if kinds <= {"list", "set"}:
    return same_members(answer[1:], reference[1:], tolerance)
  if "text" in kinds:
    return answer == reference
  if kinds & {"brackets", "ratio", "matrix", "system", "list", "set"}:
    if len(kinds) > 1 or len(answer) != len(reference):
      return False
    return same_in_order(answer, reference, tolerance)
  one, other = expression(answer), expression(reference)
  return is_equal(one, other, tolerance_of(answer, reference, tolerance))


def same_choice(answer, reference, tolerance):
  """Returns whether choices agree in what both have: letter, value."""
  if answer[0] == reference[0]:
    return answer[1] == reference[1] and same(
      answer[2], reference[2], tolerance
    )
  choice, other = answer, reference
  if other[0] == "choice":
    choice, other = other, choice
  if other == ["v", choice[1]]:
    return True
  pair = [t[2] if t[0] == "choice" else t for t in (answer, reference)]
  return same(*pair, tolerance)


def same_in_order(answer, reference, tolerance):
  """Returns whether the parts of two trees of one kind agree in turn."""
  for one, other in zip(answer[1:], reference[1:], strict=True):
    if answer[0] == "matrix":
      is_same = len(one) == len(other) and same_in_order(
        ["row", *one], ["row", *other], tolerance
      )
    elif answer[0] == "system":
      is_same = one[0] == other[0] and same(one[1], other[1], tolerance)
    elif isinstance(one, str) or isinstance(other, str):
      is_same = one == other
    else:
      is_same = same(one, other, tolerance)
    if not is_same:
      return False
  return True


def same_members(answer, reference, tolerance):
  """Returns whether two lists have the same members, in any order."""
  left = list(reference)
  if len(answer) != len(left):
    return False
  for item in answer:
    found = next((r for r in left if same(item, r, tolerance)), None)
    if found is None:
      return False
    left.remove(found)
  return True


def same_relation(answer, reference, tolerance):
  """Returns whether relations, or named values, say the same."""
  if answer[0] == reference[0] == "named" and answer[1] == reference[1]:
    return same(answer[2], reference[2], tolerance)
  if "relation" not in (answer[0], reference[0]):
    if answer[0] == reference[0]:
      return False  # of different variables
    values = [t[2] if t[0] == "named" else t for t in (answer, reference)]
    return same(*values, tolerance)
  answer, reference = as_relation(answer), as_relation(reference)
  if answer is None or reference is None or answer[1] != reference[1]:
    return False
  one, other = (
    expression(t[2]) - expression(t[3]) for t in (answer, reference)
  )
  if one == 0 or other == 0:
    return False
  ratio = sympy.simplify(one / other)
  if ratio.free_symbols or ratio.has(sympy.nan, sympy.oo, sympy.zoo):
    return False
  return bool(ratio > 0) if answer[1] in "<≤" else ratio != 0


def as_relation(tree):
  """Returns a relation as it is, x = a for a named value, None for others."""
  if tree[0] == "relation":
    return tree
  if tree[0] != "named" or tree[2][0] not in (
    "n",
    "d",
    *"v c f + * / ^ -".split(),
  ):
    return None
  return ["relation", "=", ["v", tree[1]], tree[2]]


def as_set(tree):
  """Returns the sympy set of a tree."""
  kind, *parts = tree
  if kind == "reals":
    return sympy.S.Reals
  if kind == "set":
    return sympy.FiniteSet(*map(expression, parts))
  if kind == "brackets" and len(parts) == 4:
    low, high = map(expression, parts[2:])
    return sympy.Interval(low, high, parts[0] == "(", parts[1] == ")")
  if kind == "without":
    return as_set(parts[0]) - as_set(parts[1])
  if kind not in ("union", "cap"):
    raise ValueError(f"{kind} is no set")
  join = sympy.Union if kind == "union" else sympy.Intersection
  return join(*map(as_set, parts))


def same_set(answer, reference):
  one, other = as_set(answer), as_set(reference)
  return one == other or sympy.SymmetricDifference(one, other).is_empty is True


def main():
  memory = int(sys.argv[1])
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  sys.setrecursionlimit(10_000)  # a long sum is a deep tree
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  print("ready", flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
      found = same(
        request["answer"], request["reference"], request["tolerance"]
      )
    except Exception:  # sympy knows no equality of these: not shown equal
      found = False
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    print(int(bool(found)), flush=True)


if __name__ == "__main__":
  main()
