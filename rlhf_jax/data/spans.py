"""Where the messages of a dialogue stand in what a chat template writes.

Every message's content is put between marks of two characters that stand
nowhere else. The text without marks must equal the plain rendering; then the
marks say which characters are whose. What else comes from outside has marks of
its own inside (controls.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_jax.data.messages import Message
from rlhf_jax.schema import UserError

GENERATION = "generation"  # name of a span that a template marks itself
BREAK = "break"  # name of an empty span: no control token goes across it
# Whose contents are marked: of all, or of answers only the last, or none. A
# template may drop the thoughts of earlier answers, and their marks with them.
WHICH = ("all", "last", "none")
# Characters for marks: letters of Yi, which Python also prints as they are,
# and for whoever writes Yi private ones.
_RARE = (*range(0xA000, 0xA48D), *range(0xE000, 0xF8FF))
# A template may write the beginning of thoughts itself, and trim what is in it.
_THOUGHTS = re.compile(r"\s*(?:<think>\s*)?")


@dataclass(frozen=True)
class Span:
  """Characters [start, end) of a text.

  name: a message's index, GENERATION or BREAK.
  """

  name: str
  start: int
  end: int


class Marks:
  """Two characters that occur in no text that is given.

  Raises:
    UserError: none is left.
  """

  def __init__(self, *texts: str):
    joined = "".join(texts)
    free = (c for c in map(chr, _RARE) if c not in joined)
    found = (next(free, ""), next(free, ""))
    if not all(found):
      raise UserError(
        "the messages use every character of Yi and of private use, so none is "
        "left to mark their borders. Remove U+E000..U+F8FE from the text."
      )
    self.first, self.last = found

  def start(self, name: str | int) -> str:
    return f"{self.first}{name}{self.last}"

  def end(self, name: str | int) -> str:
    return f"{self.first}/{name}{self.last}"

  def strip(self, marked: str) -> tuple[str, list[Span] | None]:
    """Returns the text without marks, and the spans; None if a mark is lost."""
    pattern = f"{self.first}(/?)([0-9a-z]+){self.last}"
    plain, size, last, opened, spans = [], 0, 0, {}, []
    for match in re.finditer(pattern, marked):
      plain.append(marked[last : match.start()])
      size, last = size + len(plain[-1]), match.end()
      closing, name = match.groups()
      if name == BREAK:
        spans.append(Span(BREAK, size, size))
      elif not closing:
        opened[name] = size
      elif name in opened:
        spans.append(Span(name, opened.pop(name), size))
      else:
        opened["lost"] = size
    return "".join([*plain, marked[last:]]), None if opened else spans


def is_answer(message: Message) -> bool:
  """Says whether a message is what the assistant says."""
  return message["role"] == "assistant"


def _is_marked(message: Message) -> bool:
  """Says whether a message's content is put between marks.

  A template may ask whether there is one, so an empty one stays empty.
  """
  is_said = is_answer(message) and not message.get("tool_calls")
  return bool(message.get("content")) or is_said


def chosen(messages: Sequence[Message], which: str) -> list[int]:
  """Returns the numbers of the messages whose contents are marked.

  Args:
    messages: of a dialogue.
    which: of WHICH.
  """
  found = [n for n, message in enumerate(messages) if _is_marked(message)]
  answers = [n for n in found if is_answer(messages[n])]
  kept = {"all": answers, "last": answers[-1:], "none": []}[which]
  return [n for n in found if n in kept or not is_answer(messages[n])]


def _before(content: str) -> int:
  """Returns how many characters of a content a template may write itself."""
  return _THOUGHTS.match(content).end()


def marked(
  messages: Sequence[Message],
  marks: Marks,
  guards: Sequence[Any],
  *,
  is_inside: bool,
  which: str,
) -> list[Message]:
  """Returns the messages with marks in their contents.

  Args:
    messages: of a dialogue; a content is a text, or parts with a text each.
    marks: the characters.
    guards: of foreign texts, and of what the assistant says (controls.py).
    is_inside: for a template that trims contents: the marks stand inside of
      white space, and of a <think> at the start.
    which: of WHICH.
  """
  guard, of_answers = guards
  numbers = chosen(messages, which)

  def between(text: str, n: int) -> str:
    start, end = 0, len(text)
    if is_inside:
      start = _before(text)
      end = max(len(text.rstrip()), start)
    core = marks.start(n) + text[start:end] + marks.end(n)
    return text[:start] + core + text[end:]

  found = []
  for n, message in enumerate(messages):
    changed = {
      guard.text(key, True): guard(value) for key, value in message.items()
    }
    changed["role"] = message["role"]
    content = message.get("content")
    if n not in numbers:
      changed |= {} if content is None else {"content": of_answers(content)}
    elif isinstance(content, list):
      parts = [{**p, "text": between(p["text"], n)} for p in content]
      changed["content"] = parts
    else:
      changed["content"] = between(content or "", n)
    found.append(changed)
  return found


def located(
  messages: Sequence[Message],
  plain: str,
  text: str,
  marks: Marks,
  *,
  is_inside: bool,
  which: str,
) -> list[Span] | None:
  """Returns the spans of messages and generation blocks in the plain text.

  Args:
    messages: without marks.
    plain: what the template writes of them.
    text: what it writes of the messages with marks.
    marks, is_inside, which: see `marked`.

  Returns:
    None where the template writes something else once there are marks, or
    loses the marks of an answer.
  """
  stripped, spans = marks.strip(text)
  if stripped != plain or spans is None:
    return None
  found = [span.name for span in spans]
  for n in chosen(messages, which):
    content = messages[n].get("content")
    size = len(content) if isinstance(content, list) else 1
    if is_answer(messages[n]) and found.count(str(n)) != size:
      return None
  if not is_inside:
    return spans
  return [_widened(span, messages, plain) for span in spans]


def _widened(span: Span, messages: Sequence[Message], plain: str) -> Span:
  """Returns a span with the <think> of its content before the mark."""
  if span.name in (GENERATION, BREAK):
    return span
  content = messages[int(span.name)].get("content")
  if not isinstance(content, str):
    return span
  head = content[: _before(content)].lstrip()
  is_there = plain[: span.start].endswith(head)
  return replace(span, start=span.start - len(head)) if is_there else span
