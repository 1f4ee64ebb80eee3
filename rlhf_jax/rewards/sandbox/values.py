"""Plain data as JSON and back; runs in the child processes of code_tests.py.

What an answer returns is reduced to plain data in its own process, and built
anew from that in the process that decides: no object of the policy's code ever
compares itself with an expected value. A subclass crosses as the value that it
extends (an IntEnum as an int). Runs alone, on the standard library.

Left out: classes of the tests, arrays, values that share parts; a time zone
crosses as its distance from UTC.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import functools
import itertools
import types

JSON_INTEGERS = 1 << 63  # larger ones cross in hexadecimal: no limit on digits
MOST_ITEMS = 100_000  # of an iterator that a test passes
FACTORIES = {
  kind.__name__: kind for kind in (int, float, str, list, tuple, set, dict)
}
_BYTES = {kind.__name__: kind for kind in (bytes, bytearray)}
_ITEMS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
_LIKE = {  # classes of the library that hold one of these
  types.MappingProxyType: dict,
  collections.ChainMap: dict,
  collections.UserDict: dict,
  collections.UserList: list,
  collections.UserString: str,
  memoryview: bytes,
}
_DATES = {  # a datetime is a date, so it comes first
  kind.__name__: kind
  for kind in (datetime.datetime, datetime.date, datetime.time)
}
_VIEWS = {
  type({}.keys()): "keys",
  type({}.values()): "values",
  type({}.items()): "items",
  type(collections.OrderedDict().keys()): "keys",
  type(collections.OrderedDict().values()): "values",
  type(collections.OrderedDict().items()): "items",
}


def _mapping(value, again):
  """Returns the form of a dict or of one of its standard subclasses."""
  items = [[again(key), again(item)] for key, item in value.items()]
  if isinstance(value, collections.Counter):
    return {"counter": items}
  if isinstance(value, collections.OrderedDict):
    return {"ordered": items}
  if isinstance(value, collections.defaultdict):
    name = getattr(value.default_factory, "__name__", None)
    is_known = FACTORIES.get(name) is value.default_factory
    return {"default": [name if is_known else None, items]}
  return {"dict": items}


def _sequence(value, again):
  """Returns the form of a container of items, None if it is none."""
  if isinstance(value, tuple) and hasattr(value, "_fields"):
    items = [again(item) for item in value]
    return {"named": [type(value).__name__, list(value._fields), items]}
  for name, kind in _ITEMS.items():
    if isinstance(value, kind):
      return {name: [again(item) for item in value]}
  if isinstance(value, collections.deque):
    return {"deque": [[again(item) for item in value], value.maxlen]}
  if type(value) in _VIEWS:
    return {_VIEWS[type(value)]: [again(item) for item in value]}
  for name, kind in _DATES.items():
    if isinstance(value, kind):
      return {name: kind.isoformat(value)}
  if isinstance(value, datetime.timedelta):
    return {"timedelta": [value.days, value.seconds, value.microseconds]}
  if isinstance(value, range):
    return {"range": [again(value.start), again(value.stop), again(value.step)]}
  return None


def encode(value, keep=None):
  """Returns a JSON form of plain data.

  Args:
    value: the data.
    keep: value -> form, for what is no plain data; None refuses it.

  Raises:
    TypeError: a value that is no plain data, without keep.
  """
  again = functools.partial(encode, keep=keep)
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, int):
    value = int.__int__(value)
    return value if abs(value) < JSON_INTEGERS else {"int": hex(value)}
  if isinstance(value, float):
    return float.__float__(value)
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, complex):
    return {"complex": [value.real, value.imag]}
  if isinstance(value, (bytes, bytearray)):
    kind = "bytes" if isinstance(value, bytes) else "bytearray"
    return {kind: list(value)}
  if isinstance(value, fractions.Fraction):
    return {"fraction": [again(value.numerator), again(value.denominator)]}
  if isinstance(value, decimal.Decimal):
    return {"decimal": decimal.Decimal.__str__(value)}
  if isinstance(value, dict):
    return _mapping(value, again)
  for like, kind in _LIKE.items():
    if isinstance(value, like):
      return again(kind(value))
  form = _sequence(value, again)
  if form is not None:
    return form
  if keep is not None:
    return keep(value)
  raise TypeError(f"{type(value).__name__} is not plain data")


def encode_iterator(value, again):
  """Returns the form of all items of an iterator; `again` encodes each.

  Raises:
    TypeError: there are more than MOST_ITEMS.
  """
  items = list(itertools.islice(value, MOST_ITEMS + 1))
  if len(items) > MOST_ITEMS:
    raise TypeError(f"an iterator has more than {MOST_ITEMS} items")
  return {"iterator": [again(item) for item in items]}


@functools.lru_cache(maxsize=256)
def _named(name, fields):
  return collections.namedtuple(name, fields, rename=True)


def _builders(again):
  """Returns kind -> what builds it of its content; `again` decodes a part."""

  def many(kind):
    return lambda content: kind(again(item) for item in content)

  def pairs(kind):
    return lambda content: kind((again(k), again(v)) for k, v in content)

  return {
    **{name: many(kind) for name, kind in _ITEMS.items()},
    **{name: kind for name, kind in _BYTES.items()},
    **{name: kind.fromisoformat for name, kind in _DATES.items()},
    "timedelta": lambda content: datetime.timedelta(*content),
    "int": lambda content: int(content, 16),
    "complex": lambda content: complex(*content),
    "fraction": lambda content: fractions.Fraction(*map(again, content)),
    "decimal": decimal.Decimal,
    "dict": pairs(dict),
    "ordered": pairs(collections.OrderedDict),
    "counter": lambda content: collections.Counter(pairs(dict)(content)),
    "default": lambda content: collections.defaultdict(
      FACTORIES.get(content[0]), pairs(dict)(content[1])
    ),
    "named": lambda content: _named(content[0], tuple(content[1]))(
      *map(again, content[2])
    ),
    "deque": lambda content: collections.deque(
      map(again, content[0]), content[1]
    ),
    "range": lambda content: range(*map(again, content)),
    "keys": lambda content: dict.fromkeys(map(again, content)).keys(),
    "values": lambda content: dict(enumerate(map(again, content))).values(),
    "items": lambda content: dict(map(again, content)).items(),
    "iterator": lambda content: iter([again(item) for item in content]),
  }


def decode(form, take=None):
  """Returns what `encode` was given, as fresh objects of the library.

  Args:
    form: from encode.
    take: kind -> what builds it, for the forms that `keep` made.

  Raises:
    Exception: of any kind, for what is no form.
  """
  if not isinstance(form, dict):
    return form
  ((kind, content),) = form.items()
  if take is not None and kind in take:
    return take[kind](content)
  return _builders(functools.partial(decode, take=take))[kind](content)
