"""An answer as its tests see it, and the answer's side of that.

Tests get a `Remote` for each name that they read: it sends a call to the
process of the answer and receives plain data, built anew (values.py). What
is no plain data stays where it is, and the tests get a Remote of it too: they
may call its methods and read its fields, and nothing else, so an object whose
__eq__ says yes is never asked. An iterator is fetched as the tests consume it.
Runs alone, on the standard library.

Left out: functions of the tests as arguments, operators on objects of the
answer, arguments that are changed in place.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import itertools
import json

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
      "object": lambda number: Remote(self, number),
      "stream": lambda number: Stream(self, number),
    }

  def ask(self, request):
    """Returns what the answer makes of a request; raises what it raised."""
    self.calls += 1
    try:
      self._requests.write(json.dumps(request).encode() + b"\n")
      line = self._replies.readline(REPLY_BYTES)
      reply = json.loads(line) if line.endswith(b"\n") else {}
      if "value" in reply:
        return values.decode(reply["value"], self._take)
      raised = str(reply["error"])
    except Exception:
      raise AnswerDied("no plain reply") from None
    if raised in RAISED:
      raise getattr(builtins, raised)("raised by the answer")
    raise AnswerRaised(raised)


def _argument(name, value):
  """Returns the form of an argument that a test passes."""
  again = functools.partial(_argument, name)
  if type(value) in (Remote, Stream, Agreeable):
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

  def __init__(self, namespace):
    self._namespace, self._kept = namespace, []
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
    self._kept.append(value)
    is_stream = isinstance(value, collections.abc.Iterator)
    return {"stream" if is_stream else "object": len(self._kept) - 1}

  def reply(self, request):
    """Returns the reply to a request.

    Raises:
      KeyError: the answer has no such name.
    """
    found = self._find(request["target"])
    try:
      if request["do"] == "get":
        value = getattr(found, request["name"])
      elif request["do"] == "next":
        value = list(itertools.islice(found, request["count"]))
      else:
        args, kwargs = (
          values.decode(request[part], self._take)
          for part in ("args", "kwargs")
        )
        value = found(*args, **kwargs)
    except Exception as error:
      return {"error": type(error).__name__}
    return {"value": values.encode(value, self._keep)}


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
