"""Whether functions and modules that a user hands over can be used.

Checked once, in Python and before tracing: a wrong parameter is named with the
signature that is wanted, not by a TypeError from inside jit.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any


def name_of(thing: Any) -> str:
  """Returns what to call a function or a module in a message."""
  inner = getattr(thing, "func", thing)  # of functools.partial
  return getattr(inner, "__name__", type(inner).__name__)


def check_call(
  function: Callable[..., Any],
  label: str,
  arguments: Sequence[str],
  by_name: Sequence[str] = (),
) -> frozenset[str]:
  """Returns which of `by_name` a function has parameters for.

  It is called with `arguments` by position. Its parameters may have names of
  their own, but one that is named like an argument stands in that one's place.
  What it takes beside is in `by_name`, or has a default.

  Args:
    function: a callable, such as a function or a functools.partial of one.
    label: what it is to the caller, for messages ("objective").
    arguments: names of what is given by position.
    by_name: names of what is given where a parameter asks for it.

  Raises:
    ValueError: it is not callable, or it cannot be called so.
  """
  wanted = f"def {label}({', '.join(arguments)})"
  beside = f", and may ask for {', '.join(by_name)} by name" if by_name else ""
  rule = f"it is called as `{wanted}`{beside}"
  if not callable(function):
    raise ValueError(
      f"{label}={function!r}: must be a function; {rule}. Give the function "
      "itself."
    )
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{label}={name_of(function)}: has no signature that Python can read; "
      f"{rule}. Wrap it in a function of your own."
    ) from error
  complaint = _complaint(signature, arguments, by_name)
  if complaint:
    raise ValueError(
      f"{label}={name_of(function)}{signature}: {complaint}; {rule}. Change "
      "its parameters, or bind the others with functools.partial."
    )
  return frozenset(
    name
    for name in by_name
    if name in signature.parameters
    and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
  )


def _complaint(
  signature: inspect.Signature, arguments: Sequence[str], by_name: Sequence[str]
) -> str:
  """Returns what is wrong with a signature, "" for nothing."""
  kinds = inspect.Parameter
  parameters = list(signature.parameters.values())
  positional = [
    p
    for p in parameters
    if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
  ]
  takes_any = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
  first, rest = positional[: len(arguments)], positional[len(arguments) :]
  for place, parameter in enumerate(first):
    is_elsewhere = parameter.name in (*arguments, *by_name)
    if is_elsewhere and parameter.name != arguments[place]:
      return f"{parameter.name!r} stands in the place of {arguments[place]!r}"
  if len(first) < len(arguments) and not takes_any:
    missing = ", ".join(arguments[len(first) :])
    return f"it takes no {missing}"
  for parameter in (
    *rest,
    *(p for p in parameters if p.kind is kinds.KEYWORD_ONLY),
  ):
    if parameter.default is kinds.empty and parameter.name not in by_name:
      return f"nobody gives it {parameter.name!r}, which has no default"
  return ""


def check_module(
  module: Any, functions: dict[str, Sequence[str]], remedy: str
) -> None:
  """Raises ValueError unless a module has a frozen Config and functions.

  Args:
    module: of a method.
    functions: name -> arguments that it is called with.
    remedy: what to do where one is missing, a sentence.
  """
  label = name_of(module)
  missing = [n for n in ("Config", *functions) if not hasattr(module, n)]
  if missing:
    raise ValueError(
      f"method {label}: has no {', '.join(missing)}; a method is a module with "
      f"Config, {', '.join(functions)}. {remedy}"
    )
  check_config(module.Config, label)
  for name, arguments in functions.items():
    check_call(getattr(module, name), name, arguments)


def check_config(config: Any, label: str) -> None:
  """Raises ValueError unless a Config is a frozen dataclass with defaults.

  Args:
    config: the class.
    label: of its module, for messages.
  """
  is_frozen = (
    inspect.isclass(config)
    and dataclasses.is_dataclass(config)
    and config.__dataclass_params__.frozen
  )
  if not is_frozen:
    raise ValueError(
      f"method {label}: Config={config!r} is not a frozen dataclass; jit reads "
      "settings as constants, so they must not change. Write "
      "@dataclasses.dataclass(frozen=True) above it."
    )
  empty = [
    field.name
    for field in dataclasses.fields(config)
    if field.init
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  ]
  if empty:
    raise ValueError(
      f"method {label}: Config has no default for {', '.join(empty)}; a config "
      "file states only what it changes. Give each field one."
    )


def check_claims(module: Any, names: Sequence[str]) -> None:
  """Raises ValueError unless attributes of a module are bools, where set.

  Args:
    module: of a method.
    names: such as HAS_CRITIC.
  """
  for name in names:
    value = getattr(module, name, False)
    if not isinstance(value, bool):
      raise ValueError(
        f"method {name_of(module)}: {name}={value!r} says what the method "
        "needs. Set True or False, or leave it out for False."
      )
