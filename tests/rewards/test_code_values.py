"""What crosses between an answer and its tests, and what an answer is."""

import collections
import decimal
import enum
import fractions
import itertools

import pytest

from rlhf_jax.rewards import code_blocks, code_tests
from rlhf_jax.rewards.sandbox import remote, sources, values

CONFIG = code_tests.Config(seconds=8.0, isolation="audit")
Point = collections.namedtuple("Point", "x y")


def passes(code, *tests, **more):
  reference = {"tests": list(tests), **more}
  code_tests.prepare([reference], CONFIG)
  (result,) = code_tests.run_all([code], [reference], CONFIG)
  return result.status == "passed"


@pytest.mark.parametrize(
  "value",
  [
    *(None, True, 3, -(2**80), 10**5000, 0.5, "ä\ud800", b"a", bytearray(b"b")),
    *(1j, [1, (2, {3})], {(1, 2): [None]}, frozenset({1}), range(2, 9, 3)),
    *(fractions.Fraction(1, 3), decimal.Decimal("1.10")),
    *(collections.Counter("aab"), collections.OrderedDict(b=1, a=2)),
    *(collections.deque([1, 2], 3), collections.defaultdict(int, a=1)),
  ],
  ids=lambda value: type(value).__name__,
)
def test_plain_data_crosses_unchanged(value):
  copy = values.decode(values.encode(value))
  assert copy == value and type(copy) is type(value)
  assert getattr(copy, "maxlen", 0) == getattr(value, "maxlen", 0)
  factory = getattr(value, "default_factory", None)
  assert getattr(copy, "default_factory", None) is factory


def test_subclasses_cross_as_what_they_extend():
  class Yes(int):
    def __eq__(self, other):
      return True

    __hash__ = int.__hash__

  class Text(str):
    pass

  for value, plain in (
    (Yes(1), 1),
    ([Yes(1)], [1]),
    (enum.IntEnum("Colour", "RED").RED, 1),
    (Text("a"), "a"),
    (collections.defaultdict(lambda: 3, a=1), {"a": 1}),
  ):
    copy = values.decode(values.encode(value))
    assert copy == plain and copy != 7
  assert type(values.decode(values.encode(Yes(1)))) is int
  assert type(values.decode(values.encode(Text("a")))) is str
  with pytest.raises(TypeError, match="object is not plain data"):
    values.encode([object()])


def test_views_and_tuples_with_names_cross():
  table = {"a": 1, "b": 2}
  keys, some, items = (
    values.decode(values.encode(view()))
    for view in (table.keys, table.values, table.items)
  )
  assert keys == {"a", "b"} and list(some) == [1, 2]
  assert items == table.items()
  point = values.decode(values.encode(Point(1, [2])))
  assert point == (1, [2]) and point.y == [2] and point._fields == ("x", "y")


RETURNED = """
from collections import *
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
Point = namedtuple("Point", "x y")
class Colour(IntEnum):
  RED = 1
class Name(str): pass
def f(kind):
  if kind == "generator":
    return (n * n for n in range(10**9))
  return {"counter": Counter("aab"), "default": defaultdict(list, a=[1]),
    "ordered": OrderedDict(a=1), "point": Point(1, 2), "half": Fraction(1, 2),
    "tenth": Decimal("0.1"), "red": Colour.RED, "name": Name("ab"),
    "keys": {"a": 1}.keys(), "range": range(3), "map": map(abs, [-1, 2]),
    "items": {"a": 1}.items(), "big": 7**9000, "nan": float("nan")}[kind]
"""


def test_what_answers_return_is_compared_by_value():
  assert passes(
    RETURNED,
    "from collections import Counter\nassert f('counter') == Counter('aab')",
    "assert f('counter') == {'a': 2, 'b': 1}",
    "assert f('counter').most_common(1) == [('a', 2)]",
    "assert f('default') == {'a': [1]} and f('default')['b'] == []",
    "assert f('ordered') == {'a': 1} and f('point') == (1, 2)",
    "assert f('point').y == 2 and Point(3, 4).x == 3",
    "from fractions import Fraction\nassert f('half') == Fraction(1, 2) == 0.5",
    "from decimal import Decimal\nassert f('tenth') == Decimal('0.1')",
    "assert f('red') == 1 and f('red') == Colour.RED and f('name') == 'ab'",
    "assert f('keys') == {'a'} and list(f('keys')) == ['a']",
    "assert f('range') == range(3) and list(f('range')) == [0, 1, 2]",
    "assert list(f('map')) == [1, 2] and f('big') == 7**9000",
    "assert dict(f('items')) == {'a': 1} and f('nan') != f('nan')",
    "import itertools\n"
    "assert list(itertools.islice(f('generator'), 5)) == [0, 1, 4, 9, 16]",
    "g = f('generator')\nassert next(g) == 0 and next(g) == 1",
  )


@pytest.mark.parametrize(
  ("right", "wrong", "test"),
  [
    ("aab", "abb", "f('counter') == {'a': 2, 'b': 1}"),
    ("range(3)", "range(4)", "f('range') == range(3)"),
    ("Point(1, 2)", "Point(2, 1)", "f('point') == (1, 2)"),
    ("Fraction(1, 2)", "Fraction(1, 3)", "f('half') == 0.5"),
    ('Name("ab")', 'Name("ba")', "f('name') == 'ab'"),
    ("n * n", "n + n", "next(f('generator')) + 1 == 1 == len([*f('keys')])"),
  ],
)
def test_wrong_values_of_these_kinds_fail(right, wrong, test):
  assert passes(RETURNED, f"assert {test}")
  is_alike = right == "n * n"  # control: both begin with 0
  assert passes(RETURNED.replace(right, wrong), f"assert {test}") == is_alike


def test_iterators_are_arguments():
  code = "def f(x): return next(x) + sum(x)"
  assert passes(code, "assert f(iter([1, 2])) == 3", "assert f(map(abs, [-1]))")


def test_an_iterator_that_ends_in_an_error_raises_it():
  code = "def f():\n  yield 1\n  raise KeyError"
  test = "g = f()\nassert next(g) == 1\ntry: next(g)\nexcept KeyError: pass"
  assert passes(code, f"{test}\nelse: raise AssertionError")


STACK = """
from __future__ import annotations
from dataclasses import dataclass, field
@dataclass
class Stack:
  items: list[int] = field(default_factory=list)
  def push(self, item: int) -> Stack:
    self.items.append(item)
    return self
  def pop(self):
    return self.items.pop()
class Yes:
  def __eq__(self, other): return True
  def __len__(self): return 4
def total(stack): return sum(stack.items)
def yes(): return Yes()
"""


def test_objects_of_an_answer_are_called_and_read():
  use = "s = Stack()\ns.push(1).push(2)\n"
  assert passes(
    STACK,
    use + "assert s.items == [1, 2] and s.pop() == 2 and s.items == [1]",
    use + "assert total(s) == 3",
    use + "try: s.peek()\nexcept AttributeError: pass\nelse: assert 0",
  )


@pytest.mark.parametrize(
  "test",
  ["yes() == 4", "yes()", "len(yes()) == 4", "4 in [yes()]", "str(yes())"],
)
def test_objects_of_an_answer_decide_nothing(test):
  assert not passes(STACK, f"assert {test}")


def test_annotations_are_evaluated_as_the_answer_says():
  """The postponed ones of the project's own modules do not reach it."""
  code = "def f(x: int): return f.__annotations__['x'].__name__"
  assert passes(code, "assert f(1) == 'int'")


def test_a_method_of_a_class_solution_is_found():
  code = "class Solution:\n  def add(self, a, b): return a + b"
  assert passes(code, "assert add(1, 2) == 3")
  assert passes(code, "assert Solution().add(1, 2) == 3")
  assert not passes(code.replace("add", "sub"), "assert add(1, 2) == 3")


RIGHT = "def f(x):\n  return x"
QUOTES = 3 * "'"


@pytest.mark.parametrize(
  "text",
  [
    f"Here:\n~~~python\n{RIGHT}\n~~~",
    "1. So\n\n   ```python\n   def f(x):\n     return x\n   ```\n",
    "> ```py\n> def f(x):\n>   return x\n> ```",
    f"````python\n{QUOTES}\n```\n{QUOTES}\n{RIGHT}\n````",
    f"``` Python\n{RIGHT}\n```\nTry it:\n```python\nprint(f(3))\n```",
    f"```python\nvalues = [1]\n```\n```python\n{RIGHT}\n```\n```\n1\n```",
    f"```python\ndef f(x): return\n```\nNo:\n```python\n{RIGHT}\n```",
    f"```{{.python}}\n{RIGHT}\n```\n```python\nf(1) ->\n```",
    f"```\n{RIGHT}\n```\n```text\n3\n```",
    f"```python\r\n{RIGHT}\r\n```",
    f"Sure:```python\n{RIGHT}```",
    f"Use ```print``` or ```f```:\n```python\n{RIGHT}\n```",
    "- ```python\n  def f(x):\n    return x\n  ```",
    f"```python\n{RIGHT}\ns = '\u2028'\n```",
    f"```python3.11\n{RIGHT}\n```",
    f"```py:a.py\n{RIGHT}\n```",
    f"````markdown\nSo:\n```python\n{RIGHT}\n```\n````",
    f"\ufeff```python\n\ufeff{RIGHT}\n```",
    f"\ufeff{RIGHT}",
    "    def f(x):\n        return x",
    "```python\n  def f(x):\n    return x\n```",
    ">>> def f(x):\n...   return x\n...\n>>> f(1)\n1",
    "```pycon\n>>> def f(x):\n...   return x\n```",
    f"```python\n{RIGHT}\n```\nso\n```python\nf = f(2)\n```",
    "```python\nimport math\n```\n```python\n"
    "def f(x): return math.floor(x)\n```",
    "```python\ndef h(x): return g(x)\nprint(1)\n```\n"
    "```python\ndef f(x): return h(x)\n```\n```python\ndef g(x): return x\n```",
    "```python\nf: object = lambda x: x\n```\n```python\nprint(f(2))\n```",
    "```python\nif True:\n  def f(x): return x\n```\n"
    "```python\nprint(f(2))\n```",
    "```python\nfrom math import floor as f\n```\n```py\nprint(f(2))\n```",
    "```python\nf, g = abs, 2\n```\n```python\nprint(f(2))\n```",
    f"<think>\n```python\ndef f(x): return\n</think>\n```python\n{RIGHT}\n```",
    f"Well: ```x\n</think>\n{RIGHT}",
  ],
)
def test_the_block_that_is_meant_is_run(text):
  setup = "values = [0, 5]"
  assert passes(text, "assert all(f(v) == v for v in values)", setup=setup)


@pytest.mark.parametrize(
  "text", ["```python\nx = 1", "```js\nx\n```", "~~~\n", "", "```\n```"]
)
def test_what_is_no_closed_block_is_no_code(text):
  assert code_blocks.extract(text) == []


def test_code_in_thoughts_is_no_answer():
  text = f"<think>\n```python\n{RIGHT}\n```\n</think>\nI cannot."
  assert not passes(text, "assert f(1) == 1")


def test_programs_are_the_block_that_reads_or_prints():
  program = "print(int(input()) ** 2)"
  case = {"cases": [{"input": "2\n", "output": "4\n"}]}
  texts = [
    f"```python\n{program}\n```\n```python\n# python a.py\n```",
    f"```python\n{program}\n```\n```python\nsolve(5)\n```",
    "```python\ndef solve(n): return n * n\n```\n"
    "```python\nprint(solve(int(input())))\n```",
    f"{program}\nexit()",
    "import fileinput\nfor line in fileinput.input(): print(int(line) ** 2)",
    "def solve(n): return n * n",  # it prints nothing
  ]
  found = code_tests.run_all(texts, [case] * len(texts), CONFIG)
  assert [r.passed for r in found] == [1, 1, 1, 1, 1, 0]


def test_a_preamble_is_left_out_where_an_answer_repeats_it():
  preamble = "def f(x):\n"
  assert sources.choose([RIGHT], preamble, ("f",)) == RIGHT
  assert sources.choose(["  return x"], preamble, ()).startswith(preamble)


def test_a_nested_answer_does_not_reach_the_parser_of_the_run():
  deep = "(" * 9000 + ")" * 9000
  for text in (deep, "-" * 19000 + "1", f"```python\n{deep}\n```"):
    assert not passes(text, "assert f(1) == 1")


def test_streams_are_fetched_in_growing_parts():
  asked = []
  answer = remote.Answer({"f": itertools.count})

  def ask(request):
    asked.append(request["count"])
    return answer.reply(request)["value"]["list"]

  call = {"do": "call", "target": "f"}
  nothing = {"args": {"tuple": []}, "kwargs": {"dict": []}}
  number = answer.reply({**call, **nothing})["value"]["stream"]
  link = remote.Trial()
  link.ask = ask
  stream = remote.Stream(link, number)
  assert list(itertools.islice(stream, 12)) == list(range(12))
  assert asked == [1, 2, 4, 8]
