"""A dialogue as the text that a tokenizer's chat template writes.

The same text as transformers: messages without fields that are null, thoughts
under each of the names that templates know, tools and documents as plain data,
and the named tokens of the tokenizer as variables. A content of several text
parts reaches the template as it is where the template takes parts, and joined
where it takes texts.

What is given is written, or it is refused: a field, the tools, the documents,
what somebody other than the assistant says.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import controls, spans, templates
from rlhf_jax.data.messages import Message
from rlhf_jax.data.spans import GENERATION, Marks, Span
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

# ChatML, used when a tokenizer has <|im_start|> and <|im_end|> but no template.
CHATML_TEMPLATE = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}\
{{ '<|im_end|>\n' }}\
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}\
{% endif %}
"""

_LINKS = ("tool_call_id",)  # names another message, and need not be written
# Names of the thoughts of an answer; templates read the first, some the second.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")


def template_of(tokenizer: Tokenizer, has_tools: bool = False) -> str:
  """Returns the tokenizer's chat template, or ChatML where its tokens exist.

  Args:
    tokenizer: that of a model.
    has_tools: prefer the template for dialogues with tools.

  Raises:
    ValueError: there is neither.
  """
  if has_tools and getattr(tokenizer, "tool_template", None) is not None:
    return tokenizer.tool_template
  if tokenizer.chat_template is not None:
    return tokenizer.chat_template
  if {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens):
    return CHATML_TEMPLATE
  raise UserError(
    f"{tokenizer.name}: no chat template, and no <|im_start|> and <|im_end|> "
    "for the default one. Set tokenizer.chat_template, or use plain prompts "
    "and responses (chat=False)."
  )


class Template:
  """A tokenizer's template, and what it is given besides messages.

  Args:
    tokenizer: of the model.
    tools, documents: lists of JSON objects, or None.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    tools: list[dict] | None = None,
    documents: list[dict] | None = None,
  ):
    self.source = template_of(tokenizer, tools is not None)
    self.tokenizer, self.further = controls.for_template(tokenizer, self.source)
    self._name = tokenizer.name
    further = getattr(tokenizer, "template_variables", {})
    unread = [name for name in further if name not in self.source]
    if unread:
      raise UserError(
        f"model.template_variables has {unread}, which the chat template of "
        f"{self._name} does not read. Remove them."
      )
    self.tools, self.documents = tools, documents
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    self._variables = {
      **getattr(tokenizer, "named_tokens", {}),
      **{role: names[i] for role, i in ids.items() if i in names},
      "generation_open": "",
      "generation_close": "",
      templates.DAY: getattr(tokenizer, "template_day", None),
      **further,
    }

  def dialogue(
    self,
    messages: Sequence[Message],
    is_asked: bool,
    marks: Marks | None = None,
    without: str = "",
  ) -> dict[str, Any]:
    """Returns the variables of one rendering.

    Args:
      messages: of it.
      is_asked: it ends with the header of an answer.
      marks: of what comes from outside, None for none.
      without: "tools" or "documents", to be left out.
    """
    given = {"tools": self.tools, "documents": self.documents}
    if without:
      given[without] = None
    variables = self._variables | {
      "messages": [_aliased(message) for message in messages],
      "add_generation_prompt": is_asked,
    }
    if marks is not None:
      guard, _ = self.guards(marks)
      given = {name: guard(value) for name, value in given.items()}
      variables["generation_open"] = marks.start(GENERATION)
      variables["generation_close"] = marks.end(GENERATION)
    return variables | given

  def guards(self, marks: Marks) -> Sequence[controls.Guard]:
    """Returns what puts marks into foreign texts, and into answers."""
    return controls.guards(marks, self.tokenizer, self.further)

  def render(self, dialogues: list[dict[str, Any]]) -> list[str | UserError]:
    """Returns the text of each, or why there is none."""
    return templates.render(self.source, self._name, dialogues)

  def taken(self, messages: Sequence[Message]) -> list[Message]:
    """Returns messages in the shape that the template takes."""
    found = [
      {key: value for key, value in message.items() if value is not None}
      for message in messages
    ]
    is_parted = any(isinstance(m.get("content"), list) for m in found)
    if is_parted and not _takes_parts(
      self.source, self._name, json.dumps(self._variables)
    ):
      found = [{**m, **_joined(m.get("content"))} for m in found]
    return found


def _joined(content: Any) -> dict[str, str]:
  """Returns a content of parts as one text."""
  if not isinstance(content, list):
    return {}
  return {"content": "".join(part["text"] for part in content)}


def _aliased(message: Message) -> Message:
  """Returns a message with its thoughts under the names templates know."""
  thought = next((message[k] for k in THOUGHTS if k in message), None)
  if thought is None:
    return message
  return {"thinking": thought, **message, "reasoning_content": thought}


@functools.lru_cache(maxsize=8)
def _takes_parts(source: str, name: str, spelt: str) -> bool:
  """Says whether a template writes the texts of a content's parts.

  Args:
    source: of the template.
    name: of its tokenizer, for messages.
    spelt: its other variables, as JSON.
  """
  parts = [{"type": "text", "text": text} for text in ("aaaa", "bbbb")]
  variables = {
    **json.loads(spelt),
    "messages": [{"role": "user", "content": parts}],
    "add_generation_prompt": False,
    "tools": None,
    "documents": None,
  }
  (text,) = templates.render(source, name, [variables])
  if isinstance(text, UserError):
    return False
  return "aaaa" in text and "bbbb" in text and "'text'" not in text


def texts(
  messages: Sequence[Message],
  template: Template,
  asked: Sequence[int],
  is_asked: bool,
) -> tuple[str, list[Span], dict[int, str | None]]:
  """Returns a dialogue's text, where its messages are, and its prompts.

  Args:
    messages: checked.
    template: of the tokenizer.
    asked: numbers of messages whose prompt is rendered too.
    is_asked: whether the text ends with the header of an answer.

  Returns:
    text, spans, and number -> prompt, None where the template refuses it.

  Raises:
    UserError: the template refuses the dialogue, passes over what is given, or
      writes it otherwise once marks are in it.
  """
  marked = _Marked(messages, template, is_asked)
  text, first, *rest = template.render(
    [
      template.dialogue(messages, is_asked),
      marked.dialogue(False, "all"),
      *(template.dialogue(messages[:n], True) for n in asked),
    ]
  )
  if isinstance(text, UserError):
    raise text
  _check_written(messages, text, template, is_asked)
  found = marked.located(text, first)
  if found is None:
    raise UserError(
      "the chat template changes or drops what assistant messages say, or what "
      "else it is given, so their tokens cannot be located. Put "
      "{% generation %} around the answer in a template that writes content "
      "as it is."
    )
  _check_said(messages, found)
  prompts = [None if isinstance(item, UserError) else item for item in rest]
  return text, found, dict(zip(asked, prompts, strict=True))


class _Marked:
  """A dialogue with marks in what comes from outside.

  Args:
    messages, template, is_asked: see `texts`.
  """

  def __init__(
    self, messages: Sequence[Message], template: Template, is_asked: bool
  ):
    given = [template.tools, template.documents, *messages]
    self.marks = Marks(template.source, json.dumps(given, ensure_ascii=False))
    self._guards = template.guards(self.marks)
    self._messages, self._template = messages, template
    self._is_asked = is_asked

  def dialogue(self, is_inside: bool, which: str) -> dict[str, Any]:
    """Returns the variables of a rendering; see spans.marked."""
    changed = spans.marked(
      self._messages,
      self.marks,
      self._guards,
      is_inside=is_inside,
      which=which,
    )
    return self._template.dialogue(changed, self._is_asked, self.marks)

  def located(self, text: str, first: str | UserError) -> list[Span] | None:
    """Returns where everything stands in the text, None if that is unknown.

    Args:
      text: of the dialogue without marks.
      first: of the first way to mark it.
    """
    ways = itertools.product(_attempts(self._messages), (False, True))
    for n, (which, is_inside) in enumerate(ways):
      marked = first
      if n:
        (marked,) = self._template.render([self.dialogue(is_inside, which)])
      if isinstance(marked, UserError):
        continue
      found = spans.located(
        self._messages,
        text,
        marked,
        self.marks,
        is_inside=is_inside,
        which=which,
      )
      is_learnable = which != "none" or self._is_asked
      if found is not None and (
        is_learnable or any(span.name == GENERATION for span in found)
      ):
        return found
    return None


def _attempts(messages: Sequence[Message]) -> tuple[str, ...]:
  """Returns whose contents to mark, one after the other until it works."""
  sizes = {which: len(spans.chosen(messages, which)) for which in spans.WHICH}
  return tuple(
    which
    for n, which in enumerate(spans.WHICH)
    if not n or sizes[which] < sizes[spans.WHICH[n - 1]]
  )


def _check_written(
  messages: Sequence[Message],
  text: str,
  template: Template,
  is_asked: bool,
) -> None:
  """Raises UserError for what a template is given and does not write."""
  for n, message in enumerate(messages):
    for key in sorted(set(message) - {"role", "content", *_LINKS}):
      if key in THOUGHTS and n + 1 < len(messages):
        continue  # templates drop the thoughts of earlier answers
      without = [dict(m) for m in messages]
      del without[n][key]
      # Where the template cannot do without, this is no text.
      if template.render([template.dialogue(without, is_asked)])[0] == text:
        raise UserError(
          f"messages[{n}] has {key!r}, and the chat template does not write "
          "it. Remove it: then a message is a dict with exactly 'role' and "
          "'content'."
        )
  for name in ("tools", "documents"):
    if not getattr(template, name):
      continue
    without = template.dialogue(messages, is_asked, without=name)
    if template.render([without])[0] == text:
      raise UserError(
        f"the chat template does not write the {name}. Remove them, or give a "
        "template that does as model.chat_template."
      )


def _check_said(messages: Sequence[Message], found: Sequence[Span]) -> None:
  """Raises UserError for a message that a template passes over."""
  names = {span.name for span in found}
  for n, message in enumerate(messages):
    if not spans.is_answer(message) and message.get("content"):
      if str(n) not in names:
        raise UserError(
          f"messages[{n}]: the chat template does not write what the "
          f"{message['role']!r} says. Remove the message, or give a template "
          "that writes it as model.chat_template."
        )
