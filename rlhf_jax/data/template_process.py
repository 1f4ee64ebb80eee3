"""The process that renders chat templates, apart from the trainer.

A template is a program that came with a model: it may loop for ever, or fill
the memory. Here a limit of memory holds, and one of processor time for each
request, which the kernel enforces. templates.py starts this file with an
interpreter of its own and talks to it in lines of JSON:

  {"template", "dialogues", "cpu_seconds"} -> one {"text"} or {"error", "kind"}
                                              for each of the dialogues

A dialogue is the variables of one rendering.
kind: "syntax", "refused" (the template itself says no), or "broken". Imports
jinja2 and nothing of this package, so that it starts at once.
"""

from __future__ import annotations

import contextlib
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


class Refusal(jinja2.TemplateError):
  """What raise_exception of a template raises."""


class _GenerationTag(jinja2.ext.Extension):
  """{% generation %} body {% endgeneration %}: body between two variables."""

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    marks = [
      jinja2.nodes.Output([jinja2.nodes.Name(name, "load")]).set_lineno(line)
      for name in ("generation_open", "generation_close")
    ]
    return [marks[0], *body, marks[1]]


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
  return environment.from_string(template)


def answer(template: str, variables: dict) -> dict:
  """Returns {"text"}, or {"error", "kind"} of whatever a template raises."""
  try:
    return {"text": _compile(template).render(**variables)}
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
