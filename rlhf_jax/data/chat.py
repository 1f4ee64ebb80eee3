"""Chat templates, rendered to token ids with a mask on what is learned.

A dialogue becomes text through the tokenizer's Jinja template and then ids in
one pass that knows where every character came from:

  * special tokens that the TEMPLATE writes become their ids; a message that
    spells one stays plain text, so nobody can end a turn from inside a message;
  * assistant_mask is 1 on each assistant turn's content and on the special
    token that ends it, 0 on everything else (METHODS 1, multi-turn).

Where messages stand in the text is found in spans.py. Text is tokenised in
stretches cut at special tokens and where generation of an answer starts, so
training and sampling see the same ids before it. White space that the template
writes there before the answer is learned with it; streams.py refuses templates
of which that is not all.

A template may mark what is learned itself with {% generation %} ...
{% endgeneration %}; then exactly that text is learned.

A message may say more than role and content (a name, tool calls): the template
must write it, or the message is refused. Tool calls are learned only where the
template marks them.

Left out: contents of images and sound; `strftime_now`, which would make
training data depend on the day.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.data import spans, templates, tokenizers
from rlhf_jax.data.messages import Message, check_messages
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

# Where prompts of dialogues end: as the template's generation prompt does, or
# where the template writes the answer once it is there.
PROMPT_ENDS = ("template", "answer")

_LINKS = ("tool_call_id",)  # names another message, and need not be written


@dataclass(frozen=True)
class Rendered:
  """A dialogue as text and as tokens.

  text: what the template wrote.
  ids: its tokens.
  assistant_mask: as long as ids, 1 on assistant content and its end token.
  skipped: how many earlier answers are context only, as the template writes
    what comes before them otherwise when they are sampled.
  """

  text: str
  ids: list[int]
  assistant_mask: list[int]
  skipped: int = 0


def _check_written(
  messages: Sequence[Message],
  text: str,
  template: _Template,
  is_asked: bool,
) -> None:
  """Raises UserError for a field that a template does not write.

  What is not in a content counts as the template's own, so it must spell no
  special token.
  """
  for n, message in enumerate(messages):
    for key in sorted(set(message) - {"role", "content", *_LINKS}):
      spelt = json.dumps(message[key], ensure_ascii=False)
      without = [dict(m) for m in messages]
      del without[n][key]
      # Where the template cannot do without, this is no text.
      dialogue = template.dialogue(without, is_asked, None)
      is_written = template.render([dialogue])[0] != text
      why = "" if is_written else "the chat template does not write it"
      if any(token in spelt for token in template.special_tokens):
        why = f"it spells a special token, {spelt[:60]}"
      if why:
        raise UserError(
          f"messages[{n}] has {key!r}, and {why}. Remove it: then a message is "
          "a dict with exactly 'role' and 'content'."
        )


def _check_said(messages: Sequence[Message], found: Sequence[Span]) -> None:
  """Raises UserError for a message that a template passes over."""
  names = {span.name for span in found}
  for n, message in enumerate(messages):
    if message["role"] != "assistant" and message["content"]:
      if str(n) not in names:
        raise UserError(
          f"messages[{n}]: the chat template does not write what the "
          f"{message['role']!r} says. Remove the message, or give a template "
          "that writes it as model.chat_template."
        )


def template_of(tokenizer: Tokenizer) -> str:
  """Returns the tokenizer's chat template, or ChatML where its tokens exist.

  Raises:
    ValueError: there is neither.
  """
  if tokenizer.chat_template is not None:
    return tokenizer.chat_template
  if {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens):
    return CHATML_TEMPLATE
  raise UserError(
    f"{tokenizer.name}: no chat template, and no <|im_start|> and <|im_end|> "
    "for the default one. Set tokenizer.chat_template, or use plain prompts "
    "and responses (chat=False)."
  )


def _stream_start(start: int, text: str, prompt: str | None) -> int | None:
  """Returns where what is sampled for a message begins, None if nowhere.

  Sampling starts behind the rendered prompt. White space between it and the
  answer belongs to the answer; other text there, or a prompt that is written
  otherwise once it is answered, makes them two streams.

  Args:
    start: of its content in the text.
    text: the whole dialogue.
    prompt: text that it is sampled behind, None for one that is refused.
  """
  if prompt is None or not text.startswith(prompt) or len(prompt) > start:
    return None
  return None if text[len(prompt) : start].strip() else len(prompt)


def _learned_spans(
  found: Sequence[Span],
  specials: Sequence[tuple[int, int, int]],
  messages: Sequence[Message],
  text: str,
  prompts: dict[int, str | None],
) -> list[tuple[int, int]]:
  """Returns the character spans that carry loss, end tokens included."""
  marked = [(s.start, s.end) for s in found if s.name == GENERATION]
  if marked:
    return marked
  learned = []
  for span in found:
    n = int(span.name)
    if messages[n]["role"] != "assistant":
      continue
    after = [s for s in specials if s[0] >= span.end]
    if not after or text[span.end : after[0][0]].strip():
      raise UserError(
        f"message {span.name}: the chat template ends the assistant's turn "
        f"with {text[span.end : span.end + 20]!r}, not with a special token, "
        "so the model would never learn to stop. Use a template that closes "
        "the turn with one, or mark the answer with {% generation %}."
      )
    start = span.start
    if n in prompts:
      start = _stream_start(span.start, text, prompts[n])
    if start is None and n + 1 < len(messages):
      continue  # context: it would never be sampled behind this text
    learned.append((span.start if start is None else start, after[0][1]))
  return learned


def render(
  messages: Sequence[Message],
  tokenizer: Tokenizer,
  *,
  add_generation_prompt: bool = False,
) -> Rendered:
  """Renders a dialogue with the tokenizer's template, with its loss mask.

  Args:
    messages: dicts of 'role' and 'content'.
    tokenizer: its chat_template, or ChatML (see template_of).
    add_generation_prompt: end with the header of an assistant turn, so that
      the model answers next.

  Raises:
    ValueError: malformed messages, no template, a template that fails, that
      hides where the answers are, or that ends them with no special token.
  """
  check_messages(messages)
  template = _Template(tokenizer)
  asked = []  # numbers of messages that are sampled behind a prompt
  if getattr(tokenizer, "prompt_end", PROMPT_ENDS[0]) == PROMPT_ENDS[0]:
    roles = [message["role"] for message in messages]
    asked = [n for n, role in enumerate(roles) if n and role == "assistant"]
  text, found, prompts = _texts(
    messages, template, asked, add_generation_prompt
  )
  is_marked = any(span.name == GENERATION for span in found)
  called = [n for n, m in enumerate(messages) if m.get("tool_calls")]
  if called and not is_marked and not add_generation_prompt:
    raise UserError(
      f"messages[{called[0]}]: tool calls are learned only where the chat "
      "template marks what is learned, with {% generation %}. Mark it, or "
      "remove them."
    )
  specials = _template_specials(text, found, tokenizer)
  learned = _learned_spans(found, specials, messages, text, prompts)
  ids, mask = _encode(text, specials, learned, tokenizer)
  answers = [m for m in messages if m["role"] == "assistant"]
  skipped = 0 if is_marked else len(answers) - len(learned)
  return Rendered(text, ids, mask, skipped)


class _Template:
  """A tokenizer's template, and what it is given besides messages."""

  def __init__(self, tokenizer: Tokenizer):
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    self.source = template_of(tokenizer)
    self.special_tokens = tokenizer.special_tokens
    self._name = tokenizer.name
    self._variables = {
      "bos_token": names.get(tokenizer.bos_id, ""),
      "eos_token": names.get(tokenizer.eos_id, ""),
      "pad_token": names.get(tokenizer.pad_id, ""),
      "tools": None,
      "documents": None,
      "generation_open": "",
      "generation_close": "",
    }

  def dialogue(
    self, messages: Sequence[Message], is_asked: bool, marks: Marks | None
  ) -> dict[str, Any]:
    """Returns the variables of one rendering."""
    variables = self._variables | {
      "messages": list(messages),
      "add_generation_prompt": is_asked,
    }
    if marks is not None:
      variables["generation_open"] = marks.start(GENERATION)
      variables["generation_close"] = marks.end(GENERATION)
    return variables

  def render(self, dialogues: list[dict[str, Any]]) -> list[str | UserError]:
    """Returns the text of each, or why there is none."""
    return templates.render(self.source, self._name, dialogues)


def _texts(
  messages: Sequence[Message],
  template: _Template,
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
  """
  marks = Marks(template.source, json.dumps(messages, ensure_ascii=False))

  def with_marks(is_inside: bool) -> dict[str, Any]:
    changed = spans.marked(messages, marks, is_inside=is_inside)
    return template.dialogue(changed, is_asked, marks)

  plain = template.dialogue(messages, is_asked, None)
  text, outside, *rest = template.render(
    [
      plain,
      with_marks(False),
      *(template.dialogue(messages[:n], True, None) for n in asked),
    ]
  )
  if isinstance(text, UserError):
    raise text
  _check_written(messages, text, template, is_asked)
  found = None
  for is_inside in (False, True):
    marked = template.render([with_marks(True)])[0] if is_inside else outside
    if isinstance(marked, UserError):
      raise marked
    found = spans.located(messages, text, marked, marks, is_inside=is_inside)
    if found is not None:
      break
  if found is None:
    raise UserError(
      "the chat template changes or drops what assistant messages say, so "
      "their tokens cannot be located. Put {% generation %} around the answer "
      "in a template that writes content as it is."
    )
  _check_said(messages, found)
  prompts = [None if isinstance(item, UserError) else item for item in rest]
  return text, found, dict(zip(asked, prompts, strict=True))


@functools.lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern:
  """Returns what finds the longest of some names."""
  ordered = sorted(names, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, ordered)))


def _template_specials(
  text: str, spans: Sequence[Span], tokenizer: Tokenizer
) -> list[tuple[int, int, int]]:
  """Returns (start, end, id) of special tokens in the template's own text.

  White space of the template's beside a token that takes it in (rstrip of an
  added token) is the token's.
  """
  special_tokens = tokenizer.special_tokens
  if not special_tokens:
    return []
  pattern = _pattern(tuple(special_tokens))
  takes = getattr(tokenizer, "takes_spaces", {})
  contents = sorted((s.start, s.end) for s in spans if s.name != GENERATION)
  found, position = [], 0
  for start, end in [*contents, (len(text), len(text))]:
    last = position
    for match in pattern.finditer(text, position, start):
      first, final, name = match.start(), match.end(), match.group()
      takes_left, takes_right = takes.get(name, (False, False))
      while takes_left and first > last and text[first - 1].isspace():
        first -= 1
      while takes_right and final < start and text[final].isspace():
        final += 1
      found.append((first, final, special_tokens[name]))
      last = final
    position = end
  return found


@functools.lru_cache(maxsize=64)  # all answers to a prompt begin with it
def _stretch(text: str, tokenizer: Tokenizer, is_inside: bool) -> tuple:
  """Returns the ids of text between special tokens and borders of spans."""
  if is_inside:
    return tuple(tokenizers.encode_inside(text, tokenizer))
  return tuple(tokenizer.encode(text))


def _encode(
  text: str,
  specials: Sequence[tuple[int, int, int]],
  learned: Sequence[tuple[int, int]],
  tokenizer: Tokenizer,
) -> tuple[list[int], list[int]]:
  """Tokenises stretches between special tokens and borders of learned spans."""
  by_start = {start: (end, i) for start, end, i in specials}
  borders = {0, len(text)}
  borders.update(b for start, end, _ in specials for b in (start, end))
  borders.update(b for span in learned for b in span)
  borders = sorted(borders)
  ends = {end for _, end, _ in specials}
  is_marked = getattr(tokenizer, "is_marked_after_special", False)
  ids, mask = [], []
  for start, end in zip(borders, borders[1:], strict=False):
    if start in by_start:
      stretch = (by_start[start][1],)
    else:
      is_inside = start > 0 and not (start in ends and is_marked)
      stretch = _stretch(text[start:end], tokenizer, is_inside)
    is_learned = any(a <= start and end <= b for a, b in learned)
    ids += stretch
    mask += [int(is_learned)] * len(stretch)
  return ids, mask
