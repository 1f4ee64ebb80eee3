"""The process that renders chat templates, apart from the trainer.

A template is a program that came with a model: it may loop for ever, or fill
the memory. Here a limit of memory holds, and one of processor time for each
request, which the kernel enforces. templates.py starts this file with an
interpreter of its own and talks to it in lines of JSON:

  {"template", "dialogues", "cpu_seconds"} -> one {"text"} or {"error", "kind"}
                                              for each of the dialogues

A dialogue is the variables of one rendering; with DAY, an ISO date or time,
among them, strftime_now writes that day and not the one of the run.
kind: "syntax", "refused" (the template itself says no), or "broken". Imports
jinja2 and nothing of this package, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import math
import os
import resource
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

DAY = "template_day"


class Refusal(jinja2.TemplateError):
  """What raise_exception of a template raises."""


class _GenerationTag(jinja2.ext.Extension):
  """{% generation %} body {% endgeneration %}: body between two variables.

  The body has a scope of its own, as it has in transformers.
  """

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    marks = [
      jinja2.nodes.Name(name, "load")
      for name in ("generation_open", "generation_close")
    ]
    call = self.call_method("_between", marks)
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _between(self, opened, closed, caller):
    return f"{opened}{caller()}{closed}"


class _Dict:
  """What `dict` is in a template."""

  def __call__(self, *args, **kwargs):
    return dict(*args, **kwargs)

  def fromkeys(self, *args):
    return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
  """A namespace without names that begin with an underscore."""

  def __init__(*args, **kwargs):
    self, args = args[0], args[1:]  # so that namespace(self=...) works
    named = dict(*args, **kwargs)
    for name in named:
      _Namespace._check(name)
    jinja2.utils.Namespace.__init__(self, named)

  def __setitem__(self, name, value):
    _Namespace._check(name)
    jinja2.utils.Namespace.__setitem__(self, name, value)

  @staticmethod
  def _check(name):
    if isinstance(name, str) and name.startswith("_"):
      raise jinja2.exceptions.SecurityError(
        f"the namespace may not hold {name!r}, which begins with an underscore"
      )


def _raise_exception(message: str):
  raise Refusal(message)


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """The filter tojson, with the arguments that transformers gives it."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_GenerationTag, jinja2.ext.loopcontrols],
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _raise_exception
  environment.globals["dict"] = _Dict()
  environment.globals["namespace"] = _Namespace
  return environment.from_string(template)


def _with_day(variables: dict) -> dict:
  """Returns the variables with strftime_now, if they name a day for it."""
  if variables.get(DAY) is None:
    return {name: value for name, value in variables.items() if name != DAY}
  day = datetime.datetime.fromisoformat(variables[DAY])
  return {**variables, "strftime_now": day.strftime}


def answer(template: str, variables: dict) -> dict:
  """Returns {"text"}, or {"error", "kind"} of whatever a template raises."""
  try:
    return {"text": _compile(template).render(**_with_day(variables))}
  except jinja2.TemplateSyntaxError as error:
    return {"error": f"line {error.lineno}: {error}", "kind": "syntax"}
  except Refusal as error:
    return {"error": str(error), "kind": "refused"}
  except RecursionError:
    return {"error": "it calls itself without an end", "kind": "broken"}
  except MemoryError:
    return {"error": "it needs more memory than allowed", "kind": "broken"}
  except Exception as error:  # of a program that came with a model
    text = f"{type(error).__name__}: {error}"[:500]
    return {"error": text, "kind": "broken"}


def _limit(name: str, soft: int) -> None:
  """Lowers a limit where the system knows it."""
  kind = getattr(resource, name, None)
  if kind is None:
    return
  _, hard = resource.getrlimit(kind)
  if hard != resource.RLIM_INFINITY:
    soft = min(soft, hard)
  with contextlib.suppress(ValueError, OSError):  # macOS has none on memory
    resource.setrlimit(kind, (soft, hard))


def serve(memory_bytes: int) -> None:
  """Answers requests until the trainer closes the pipe."""
  _limit("RLIMIT_AS", memory_bytes)
  _limit("RLIMIT_CORE", 0)
  output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
  for line in sys.stdin:
    request = json.loads(line)
    used = math.ceil(sum(os.times()[:2]))
    _limit("RLIMIT_CPU", used + request["cpu_seconds"])
    replies = [
      answer(request["template"], variables)
      for variables in request["dialogues"]
    ]
    try:
      written = json.dumps(replies)
    except MemoryError:
      reply = {"error": "its text is too long", "kind": "broken"}
      written = json.dumps([reply] * len(replies))
    output.write(written + "\n")
    output.flush()


if __name__ == "__main__":
  serve(int(sys.argv[1]))
