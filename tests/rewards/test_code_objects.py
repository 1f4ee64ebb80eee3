"""Objects of an answer: members, records, operators, coroutines, errors."""

import pytest

from tests.rewards.test_code_values import passes

CLASSES = """
import enum, functools
from dataclasses import dataclass
class Colour(enum.Enum):
  RED = 1
  BLUE = 2
class Right(enum.Flag):
  READ = 1
  WRITE = 2
@dataclass(frozen=True, slots=True, order=True)
class Pair:
  x: int
  y: int = 0
class Vector:
  def __init__(self, *items): self.items = list(items)
  def __add__(self, other): return Vector(*map(sum, zip(self, other)))
  def __mul__(self, n): return Vector(*[n * i for i in self.items])
  __rmul__ = __mul__
  def __getitem__(self, i): return self.items[i]
  def __len__(self): return len(self.items)
  def __eq__(self, other): return True
  def __str__(self): return f"<{self.items}>"
class Plain: pass
def red(): return Colour.RED
def both(): return Right.READ | Right.WRITE
def pairs(): return [Pair(1), Pair(2, 3)]
def vector(): return Vector(1, 2)
def plain(one=Plain()): return one
"""


@pytest.mark.parametrize(
  ("test", "is_right"),
  [
    ("red() == Colour.RED and red() is Colour.RED", True),
    ("red() != Colour.BLUE and red().value == 1", True),
    ("red() == Colour.BLUE", False),
    ("red() == 1", False),  # of an Enum, not an IntEnum
    ("{red(): 5}[Colour.RED] == 5", True),
    ("both() == Right.READ | Right.WRITE", True),
    ("both() == Right.READ", False),
    ("pairs() == [Pair(1), Pair(2, 3)]", True),
    ("pairs() == [Pair(1), Pair(2, 4)]", False),
    ("sorted(pairs())[1] == Pair(2, 3) and Pair(1) < Pair(2)", True),
    ("Pair(1) < 5", False),
    ("Vector(1, 2) + Vector(3, 4) == Vector(4, 6)", True),
    ("2 * Vector(1, 2) == Vector(1, 2) * 2", False),  # 2 may be expected
    ("3 in Vector(1, 2)", False),
    ("Vector(1, 2) == Vector(2, 1)", False),  # whatever its __eq__ says
    ("Vector(1, 2) == [1, 2]", False),
    ("Vector(1, 2) != [1, 2]", False),
    ("len(Vector(1, 2)) == 2 and Vector(5)[0] == 5", True),
    ("list(Vector(1, 2)) == [1, 2] and 2 in Vector(1, 2)", True),
    ("str(Vector(1)) == '<[1]>'", True),
    ("plain() is plain() and Plain() != plain()", True),
    ("Plain() == plain()", False),
    ("len(vector()) == 2", False),  # a class that no test names
  ],
)
def test_objects_of_classes_that_tests_name(test, is_right):
  assert passes(CLASSES, f"assert {test}") == is_right


@pytest.mark.parametrize(
  ("code", "test"),
  [
    (
      "async def f(x): return x",
      "import asyncio\nassert asyncio.run(f(1)) == 1",
    ),
    (
      "import asyncio\nasync def g(x):\n  await asyncio.sleep(0)\n  return x\n"
      "async def both(): return await asyncio.gather(g(1), g(2))\n"
      "def f(): return asyncio.run(both())",
      "assert f() == [1, 2]",
    ),
    (
      "import datetime\ndef f(day): return day + datetime.timedelta(days=1)",
      "from datetime import date, datetime\n"
      "assert f(date(2024, 2, 28)) == date(2024, 2, 29)\n"
      "assert f(datetime(2023, 12, 31, 5)) == datetime(2024, 1, 1, 5)",
    ),
    (
      "import re\ndef f(s): return re.match('(a)b?', s)",
      "assert f('ab') and not f('b') and f('ab')[0] == 'ab'",
    ),
    (
      "import collections, types\ndef f(): return [collections.UserList([1]),\n"
      "  collections.ChainMap({1: 2}), types.MappingProxyType({3: 4}),\n"
      "  memoryview(b'a')]",
      "assert f() == [[1], {1: 2}, {3: 4}, b'a']",
    ),
    (
      "class Wrong(ValueError): pass\ndef f(): raise Wrong('not even')",
      "try: f()\nexcept ValueError as e: assert 'even' in str(e)\n"
      "else: raise AssertionError",
    ),
    (
      "def f(): return b'\\xff'.decode()",
      "try: f()\nexcept Exception as e: assert type(e) is not TypeError\n"
      "else: raise AssertionError",
    ),
    (
      "import collections\n"
      "P = collections.namedtuple('P', 'x class', rename=True)\n"
      "def f(): return P(1, 2)",
      "assert f() == (1, 2) and f().x == 1",
    ),
    ("def f(): return 1\nexit()", "assert f() == 1"),
  ],
)
def test_siblings_of_these_kinds(code, test):
  is_ended = code.endswith("exit()")  # control: an answer that ends is none
  assert passes(code, test) != is_ended


@pytest.mark.parametrize(
  "test",
  ["assert isinstance(f(), A)", "try: f()\nexcept (KeyError, A): pass"],
)
def test_what_no_answer_can_pass_is_refused(test):
  with pytest.raises(ValueError, match="A is a class of the answer"):
    passes("", f"{test}\nassert f()")


SPY = """
class f:
  def __init__(self, *_): pass
  def says(self, *_): return 0.0
  __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __abs__ = says
  def agrees(self, *_): return True
  __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __ne__ = agrees
  __contains__ = agrees
  def __iter__(self): return iter([0, 1])
  def __len__(self): return 2
  def __hash__(self): return hash(4)
"""


@pytest.mark.parametrize(
  "test",
  ["abs(f(2) - 4) < 1e-9", "abs(4 - f(2)) < 1e-9", "f(2) % 4 == 0"]
  + ["f(2) == 4", "f(2) != 5", "not f(2) != 4", "f(2) in (4, 5)", "f(2) < 5"]
  + ["3 < f(2) <= 4", "4 in f(2)", "f(2) in {4}", "max(f(2), 4) == 4"]
  + ["f(2) is not None and f(2) * 1 == 0", "len(f(2)) == 4", "[f(2)] == [4]"],
)
def test_a_function_that_is_a_class_learns_no_expected_value(test):
  assert not passes(SPY, f"assert {test}")
