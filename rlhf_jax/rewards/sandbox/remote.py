"""An answer as its tests see it, and the answer's side of that.

Tests get a `Remote` for each name that they read: it sends a call to the
process of the answer and receives plain data, built anew (values.py). What
is no plain data stays where it is, and the tests get a Remote of it too: they
may call its methods and read its fields, and nothing else, so an object whose
__eq__ says yes is never asked. An iterator is fetched as the tests consume it.
Objects of a class that the tests name are more (`Made`): len(s), s[0] and, of
two of them, a + b and a < b are asked of the answer as its methods are; == of
two compares here their class and what is in them, whatever their __eq__ says,
and so it is of members of an Enum. No operator sends a plain value, which may
be the expected one, to the answer: in f(2) - 4 it would say 0.
Runs alone, on the standard library.

Left out: functions of the tests as arguments, operators on other objects of
the answer, arguments that are changed in place.
"""

from __future__ import annotations

import builtins
import collections.abc
import dataclasses
import enum
import functools
import inspect
import itertools
import json
import operator
import re

from rlhf_jax.rewards.sandbox import values

REPLY_BYTES = 1 << 22  # of one result; more is a failure
MOST_AT_ONCE = 1024  # items of an iterator in one reply
# An answer may raise these through to a test. Those that steer Python itself
# are not: StopIteration inside map() would end all(map(...)) early, as true.
RAISED = {
  name
  for name, kind in vars(builtins).items()
  if isinstance(kind, type)
  and issubclass(kind, Exception)
  and not issubclass(
    kind, (StopIteration, StopAsyncIteration, AssertionError, Warning)
  )
}
REFUSED = """
bool eq ne lt gt le ge hash len iter next getitem setitem delitem contains add
radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and
rand or ror xor rxor neg pos abs invert int float complex index round str repr
format bytes enter exit reversed setattr
""".split()
PAIRED = "lt gt le ge add sub mul truediv floordiv mod pow and or xor".split()
# What may be asked of an object of a class that the tests name.
OPERATORS = {
  **{"len": len, "bool": bool, "iter": iter, "abs": abs, "str": str},
  **{"repr": repr, "int": int, "float": float, "index": operator.index},
  **{"neg": operator.neg, "pos": operator.pos, "invert": operator.invert},
  **{"getitem": operator.getitem, "setitem": operator.setitem},
  **{"delitem": operator.delitem},
  **{"add": operator.add, "sub": operator.sub, "mul": operator.mul},
  **{"truediv": operator.truediv, "floordiv": operator.floordiv},
  **{"mod": operator.mod, "pow": operator.pow, "and": operator.and_},
  **{"or": operator.or_, "xor": operator.xor, "setattr": setattr},
  **{"lt": operator.lt, "gt": operator.gt, "le": operator.le},
  **{"ge": operator.ge},
}


class AnswerDied(BaseException):
  """The answer ended, lacks the name, or gave an object in place of a value.

  Not an Exception: a test that expects one must not take this for it.
  """


class AnswerRaised(Exception):
  """The answer raised something that is not one of RAISED."""


class UnsupportedTest(BaseException):
  """A test needs more than calls with plain data; not the answer's fault."""


class Link:
  """The tests' end of the pipes to an answer. calls: how often it was asked."""

  def __init__(self, requests, replies):
    self.calls = 0
    self._requests, self._replies = requests, replies
    self._take = {
      "object": functools.partial(self._one, Remote),
      "made": functools.partial(self._one, Made),
      "match": functools.partial(self._one, Match),
      "stream": lambda number: Stream(self, number),
      "coroutine": lambda number: _awaited(self, number),
    }
    self._ones = {}

  def _one(self, kind, number):
    """Returns what stands for an object, always the same: tests ask `is`."""
    if type(self._ones.get(number)) is not kind:
      self._ones[number] = kind(self, number)
    return self._ones[number]

  def ask(self, request):
    """Returns what the answer makes of a request; raises what it raised."""
    self.calls += 1
    try:
      self._requests.write(json.dumps(request).encode() + b"\n")
      line = self._replies.readline(REPLY_BYTES)
      reply = json.loads(line) if line.endswith(b"\n") else {}
      if "value" in reply:
        return values.decode(reply["value"], self._take)
      raised, text = str(reply["error"]), str(reply.get("text", ""))
    except Exception:
      raise AnswerDied("no plain reply") from None
    if raised not in RAISED:
      raise AnswerRaised(raised)
    try:
      error = getattr(builtins, raised)(text)
    except TypeError:  # it takes more than a text
      error = AnswerRaised(raised)
    raise error


def _argument(name, value):
  """Returns the form of an argument that a test passes."""
  again = functools.partial(_argument, name)
  if type(value) in (Remote, Made, Match, Stream, Agreeable):
    return {"kept": object.__getattribute__(value, "_target")}
  if isinstance(value, collections.abc.Iterator):
    return values.encode_iterator(
      value, lambda item: values.encode(item, again)
    )
  raise TypeError(f"{type(value).__name__} is not plain data")


class Remote:
  """A name of the answer (target: text), or an object of its (a number)."""

  def __init__(self, link, target):
    self.__dict__.update(_link=link, _target=target)

  def __call__(self, *args, **kwargs):
    keep = functools.partial(_argument, self._target)
    try:
      request = {
        "do": "call",
        "target": self._target,
        "args": values.encode(args, keep),
        "kwargs": values.encode(kwargs, keep),
      }
    except (TypeError, RecursionError) as error:
      raise UnsupportedTest(f"an argument of {self._target}: {error}") from None
    return self._link.ask(request)

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return self._link.ask({"do": "get", "target": self._target, "name": name})

  def _refuse(self, *_):
    if isinstance(self._target, str):
      raise UnsupportedTest(
        f"{self._target} is used as a value; tests can only call it"
      )
    raise AnswerDied("an object in place of plain data")


for _name in REFUSED:
  setattr(Remote, f"__{_name}__", Remote._refuse)


class Match(Remote):
  """A match of a regular expression: it is true, and m[1] is m.group(1)."""

  def __bool__(self):
    return True

  def __getitem__(self, group):
    return self.group(group)


class Made(Remote):
  """An object of a class that the tests name."""

  def _operate(self, name, *args):
    keep = functools.partial(_argument, name)
    request = {"do": name, "target": self._target}
    return self._link.ask({**request, "args": values.encode(args, keep)})

  def _state(self):
    return self._link.ask({"do": "state", "target": self._target})

  def __eq__(self, other):
    if self is other:
      return True
    if type(other) is not Made:
      self._refuse()
    return self._state() == other._state()

  def __hash__(self):
    return 0  # of equal ones the same

  def __contains__(self, item):
    return any(one is item or one == item for one in self)


def _operating(name):
  def operate(self, *args):
    if name in PAIRED and type(args[0]) is not Made:
      self._refuse()
    return self._operate(name, *args)

  return operate


for _name in OPERATORS:
  setattr(Made, f"__{_name}__", _operating(_name))
Made.__ne__ = lambda self, other: not self == other


async def _awaited(link, target):
  """Stands for a coroutine of the answer, which runs when it is awaited."""
  return link.ask({"do": "await", "target": target})


class Stream:
  """An iterator of the answer; fetches ever more items at once."""

  def __init__(self, link, target):
    self._link, self._target = link, target
    self._items, self._size = iter(()), 1

  def __iter__(self):
    return self

  def __next__(self):
    for item in self._items:
      return item
    if self._size == 0:
      raise StopIteration
    request = {"do": "next", "target": self._target, "count": self._size}
    items = self._link.ask(request)
    if type(items) is not list:
      raise AnswerDied("no items")
    is_over = len(items) < self._size
    self._size = 0 if is_over else min(2 * self._size, MOST_AT_ONCE)
    self._items = iter(items)
    return next(self._items)


class Answer:
  """The answer's end: does what the tests ask with its names and objects."""

  def __init__(self, namespace, names=()):
    """Args: namespace: of the answer; names: of it that the tests name."""
    self._namespace, self._kept, self._numbers = namespace, [], {}
    self._names = frozenset(names)
    self._take = {"kept": self._find}

  def _find(self, target):
    """Returns an object by number, or by name; of class Solution too."""
    if isinstance(target, int):
      return self._kept[target]
    if target in self._namespace:
      return self._namespace[target]
    solution = self._namespace["Solution"]
    if not hasattr(solution, target):
      raise KeyError(target)
    return getattr(solution(), target)

  def _keep(self, value):
    if isinstance(value, collections.abc.Iterator):
      kind = "stream"
    elif inspect.iscoroutine(value):
      kind = "coroutine"
    elif isinstance(value, re.Match):
      kind = "match"
    else:
      kind = "made" if self._is_named(type(value)) else "object"
    if id(value) not in self._numbers:  # kept, so nothing else has its id
      self._numbers[id(value)] = len(self._kept)
      self._kept.append(value)
    return {kind: self._numbers[id(value)]}

  def _is_named(self, kind):
    """Says whether the tests name a class."""
    name = kind.__name__
    return name in self._names and self._namespace.get(name) is kind

  def _do(self, found, request):
    """Returns what a request makes of an object."""
    if request["do"] == "get":
      return getattr(found, request["name"])
    if request["do"] == "next":
      return list(itertools.islice(found, request["count"]))
    if request["do"] == "await":
      import asyncio

      return asyncio.run(found)
    if request["do"] == "state":
      return _state(found)
    args = values.decode(request["args"], self._take)
    if request["do"] == "call":
      return found(*args, **values.decode(request["kwargs"], self._take))
    return OPERATORS[request["do"]](found, *args)

  def reply(self, request):
    """Returns the reply to a request.

    Raises:
      KeyError: the answer has no such name.
    """
    found = self._find(request["target"])
    try:
      value = self._do(found, request)
    except Exception as error:
      return {"error": _raised(error), "text": _text(error)}
    return {"value": values.encode(value, self._keep)}


def _raised(error):
  """Returns the name of the nearest of RAISED that an error is one of."""
  for kind in type(error).__mro__:
    if kind.__name__ in RAISED and getattr(builtins, kind.__name__) is kind:
      if kind is not Exception:
        return kind.__name__
  return type(error).__name__


def _text(error):
  """Returns what an error says; a part of what may be very long."""
  try:
    said = error.args[0] if len(error.args) == 1 else error
    return str(said)[:1000]
  except Exception:
    return ""


def _state(value):
  """Returns what makes an object equal to another of its class."""
  kind = type(value)
  if isinstance(value, enum.Enum):
    return [kind.__qualname__, value.value]
  if kind.__eq__ is object.__eq__:
    return [kind.__qualname__, id(value)]
  if dataclasses.is_dataclass(value):
    names = [f.name for f in dataclasses.fields(value) if f.compare]
  else:
    slots = [s for k in kind.__mro__ for s in getattr(k, "__slots__", ())]
    names = sorted({*getattr(value, "__dict__", ()), *slots})
  fields = [(n, getattr(value, n)) for n in names if hasattr(value, n)]
  return [kind.__qualname__, fields]


class Agreeable:
  """Stands for whatever an answer returns where tests are only tried."""

  _target = 0

  def _itself(self, *_, **__):
    return self

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return self


def _constant(value):
  return lambda *_: value


for _name in REFUSED:
  setattr(Agreeable, f"__{_name}__", Agreeable._itself)
for _name, _value in {
  **dict.fromkeys(("bool", "eq", "ne", "lt", "gt", "le", "ge"), True),
  **dict.fromkeys(("len", "int", "index", "hash"), 0),
  **{"float": 0.0, "complex": 0j, "bytes": b"", "contains": True},
  **{"str": "", "repr": "", "format": "", "exit": None, "setattr": None},
}.items():
  setattr(Agreeable, f"__{_name}__", _constant(_value))
Agreeable.__iter__ = lambda self: iter(())
Agreeable.__reversed__ = Agreeable.__iter__
Agreeable.__call__ = Agreeable._itself
del Agreeable.__next__  # it is no iterator


class Trial(Link):
  """A Link to no answer: all that is asked has an Agreeable reply."""

  def __init__(self):
    super().__init__(None, None)

  def ask(self, request):
    self.calls += 1
    return Agreeable()
