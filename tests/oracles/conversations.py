"""Conversations that are rendered here and by transformers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
  """Messages, and what else a template is given.

  needs: what a style must take, see chat_styles.Style.
  tools, documents: or None.
  """

  messages: list
  needs: frozenset = frozenset()
  tools: list | None = None
  documents: list | None = None

  def modes(self) -> tuple[str, ...]:
    """Returns how it is rendered: "ask", or "whole" and "continue"."""
    last = self.messages[-1]
    if last["role"] != "assistant":
      return ("ask",)
    is_plain = isinstance(last["content"], str) and "</think>" not in str(last)
    is_plain &= "tool_calls" not in last and "reasoning_content" not in last
    return ("whole", "continue") if is_plain else ("whole",)


def user(content, **more):
  return {"role": "user", "content": content, **more}


def said(content, **more):
  return {"role": "assistant", "content": content, **more}


def system(content):
  return {"role": "system", "content": content}


def tool(content, **more):
  return {"role": "tool", "content": content, **more}


def parts(*texts):
  return [{"type": "text", "text": text} for text in texts]


def call(name, **arguments):
  return {
    "type": "function",
    "function": {"name": name, "arguments": arguments},
  }


ADD = {
  "type": "function",
  "function": {
    "name": "add",
    "description": "Adds <two> & \"more\" numbers: 'é' ≤ 3.",
    "parameters": {
      "type": "object",
      "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
      "required": ["a"],
    },
  },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {}}}
CALL = said(None, tool_calls=[call("add", a=1, b=2)])
TWO = said("I add.", tool_calls=[call("add", a=1), call("now", zone="ü<x>")])
BOOKS = [
  {"title": "One", "text": "the cat"},
  {"title": "Two", "text": "is <b>"},
]
QUESTIONS = (
  "What is the name?",
  "the cat and you",
  "12345 + 67 = ?",
  "naïve 日本語 🎬",
  "a\n\nb\n",
  "  spaced  out  ",
  "don't DON'T it's",
  "<b>if a < b && c > d: [x]</b>",
  "tabs\tand\r\nlines",
  "{{ 7 * 7 }} {% if %}",
)
ANSWERS = (
  "Yes.",
  "the cat is helpful",
  "It is 42, not 41.",
  "Oui, «très» bien 🎬",
  "First\n\nSecond",
  "x = {'a': 1}",
  "C'est",
  "1",
  "Yes, Yes, Yes",
  "-- no --",
)


def _needing(messages, needs="", **more):
  return Conversation(messages, frozenset(needs.split()), **more)


def every() -> list[Conversation]:
  """Returns all of them."""
  found = []
  for n, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
    turns = [user(question), said(answer)]
    found.append(_needing(turns))
    found.append(_needing([user(question)]))
    longer = [*turns, user(ANSWERS[-n]), said(QUESTIONS[0])]
    found.append(_needing([system(f"Be {n}."), *longer], "system"))
  turns = [user("What?"), said("Yes."), user("and you")]
  thought = "<think>\nthe cat\n</think>\n\nYes."
  tools = [ADD, NOW]
  found += [
    _needing(turns),
    _needing([system("Be helpful."), *turns], "system"),
    _needing([system("  Be\n\nkind.  "), *turns], "system"),
    _needing([user("a"), user("b"), said("c")], "order"),
    _needing([user("a"), said("b"), said("c")], "order"),
    _needing([user("a", name="Ann"), said("b")], "name"),
    _needing(turns, "documents", documents=BOOKS),
    _needing(turns, "tools", tools=tools),
    _needing([system("Be kind."), *turns], "system tools", tools=tools),
    _needing([user("1+2"), CALL, tool("3")], "calls tools", tools=tools),
    _needing([user("1+2"), CALL, tool('{"x": "é"}')], "calls"),
    _needing([user("1+2"), TWO, tool("1"), tool("2")], "calls", tools=None),
    _needing(
      [user("1"), TWO, tool("1"), tool("2"), said("3"), user("so")], "calls"
    ),
    _needing([user("1"), CALL, tool("3"), said("It is 3.")], "calls marked"),
    _needing([user("1"), TWO], "calls marked tools", tools=tools),
    _needing([user(parts("What", "is"))], "parts"),
    _needing([user(parts(" a ", "b ")), said("Yes")], "parts"),
    _needing([user(parts("one")), said("Yes"), user(parts("b"))], "parts"),
    _needing([user("a"), said(thought)], "thoughts"),
    _needing([user("a"), said(thought), user("b"), said("c")], "thoughts"),
    _needing([user("a"), said(thought), user("b")], "thoughts"),
    _needing([user("a"), said("b", reasoning_content="so")], "thoughts"),
    _needing([user("a"), said("b", thinking="so")], "thoughts"),
  ]
  return found
