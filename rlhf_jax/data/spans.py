"""Where the messages of a dialogue stand in what a chat template writes.

Every message's content is put between marks of two characters that stand
nowhere else. The text without marks must equal the plain rendering; then the
marks say which characters are whose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_jax.data.messages import Message
from rlhf_jax.schema import UserError

GENERATION = "generation"  # name of a span that a template marks itself
_PRIVATE = range(0xE000, 0xF8FF)
# A template may write the beginning of thoughts itself, and trim what is in it.
_THOUGHTS = re.compile(r"\s*(?:<think>\s*)?")


@dataclass(frozen=True)
class Span:
  """Characters [start, end) of a text.

  name: a message's index, or GENERATION.
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
    free = (c for c in map(chr, _PRIVATE) if c not in joined)
    found = (next(free, ""), next(free, ""))
    if not all(found):
      raise UserError(
        "the messages use every private-use character, so none is left to "
        "mark their borders. Remove U+E000..U+F8FE from the text."
      )
    self.first, self.last = found

  def start(self, name: str | int) -> str:
    return f"{self.first}{name}{self.last}"

  def end(self, name: str | int) -> str:
    return f"{self.first}/{name}{self.last}"

  def strip(self, marked: str) -> tuple[str, list[Span] | None]:
    """Returns the text without marks, and the spans; None if a mark is lost."""
    pattern = f"{self.first}(/?)(\\w+){self.last}"
    plain, size, last, opened, spans = [], 0, 0, {}, []
    for match in re.finditer(pattern, marked):
      plain.append(marked[last : match.start()])
      size, last = size + len(plain[-1]), match.end()
      closing, name = match.groups()
      if not closing:
        opened[name] = size
      elif name in opened:
        spans.append(Span(name, opened.pop(name), size))
      else:
        opened["lost"] = size
    return "".join([*plain, marked[last:]]), None if opened else spans


def _is_marked(message: Message) -> bool:
  """Says whether a message's content is put between marks.

  A template may ask whether there is one, so an empty one stays empty.
  """
  is_answer = message["role"] == "assistant" and not message.get("tool_calls")
  return bool(message["content"]) or is_answer


def _before(content: str) -> int:
  """Returns how many characters of a content a template may write itself."""
  return _THOUGHTS.match(content).end()


def marked(
  messages: Sequence[Message], marks: Marks, *, is_inside: bool
) -> list[Message]:
  """Returns the messages with marks in their contents.

  Args:
    messages: of a dialogue.
    marks: the characters.
    is_inside: for a template that trims contents: the marks stand inside of
      white space, and of a <think> at the start.
  """
  found = []
  for n, message in enumerate(messages):
    if _is_marked(message):
      text = message["content"]
      start, end = 0, len(text)
      if is_inside:
        start = _before(text)
        end = max(len(text.rstrip()), start)
      core = marks.start(n) + text[start:end] + marks.end(n)
      message = {**message, "content": text[:start] + core + text[end:]}
    found.append(message)
  return found


def located(
  messages: Sequence[Message],
  plain: str,
  text: str,
  marks: Marks,
  *,
  is_inside: bool,
) -> list[Span] | None:
  """Returns the spans of messages and generation blocks in the plain text.

  Args:
    messages: without marks.
    plain: what the template writes of them.
    text: what it writes of `marked(messages, marks, is_inside=is_inside)`.
    marks, is_inside: see `marked`.

  Returns:
    None where the template writes something else once there are marks, or
    loses the marks of an answer.
  """
  stripped, spans = marks.strip(text)
  if stripped != plain or spans is None:
    return None
  found = [span.name for span in spans]
  answers = [
    str(n)
    for n, m in enumerate(messages)
    if m["role"] == "assistant" and _is_marked(m)
  ]
  is_whole = all(found.count(n) == 1 for n in answers)
  if GENERATION not in found and not is_whole:
    return None
  if not is_inside:
    return spans
  return [_widened(span, messages, plain) for span in spans]


def _widened(span: Span, messages: Sequence[Message], plain: str) -> Span:
  """Returns a span with the <think> of its content before the mark."""
  if span.name == GENERATION:
    return span
  content = messages[int(span.name)]["content"]
  head = content[: _before(content)].lstrip()
  is_there = plain[: span.start].endswith(head)
  return replace(span, start=span.start - len(head)) if is_there else span
