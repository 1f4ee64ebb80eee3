"""Chat templates, rendered to token ids with a mask on what is learned.

A dialogue becomes text through the tokenizer's Jinja template and then ids in
one pass that knows where every character came from:

  * special tokens that the TEMPLATE writes become their ids; a message that
    spells one stays plain text, so nobody can end a turn from inside a message;
  * assistant_mask is 1 on each assistant turn's content and on the special
    token that ends it, 0 on everything else (METHODS 1, multi-turn).

Spans are found while rendering: every message's content is put between private
sentinels, and the text without them must equal the plain rendering. Text is
tokenised in stretches cut at special tokens and where generation of an answer
starts, so training and sampling see the same ids before it. White space that
the template writes there before the answer is learned with it; streams.py
refuses templates of which that is not all.

A template may mark what is learned itself with {% generation %} ...
{% endgeneration %}; then exactly that text is learned.

A message may say more than role and content (a name, tool calls): the template
must write it, or the message is refused. Tool calls are learned only where the
template marks them.

Left out: contents of images and sound; `strftime_now`, which would make
training data depend on the day.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.data import templates, tokenizers
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.imported import nearest
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

Message = dict[str, Any]  # "role", "content", and what a template reads besides

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_ALIASES = {
  "human": "user",
  "prompter": "user",
  "gpt": "assistant",
  "bot": "assistant",
  "model": "assistant",
  "chatgpt": "assistant",
}
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


def check_messages(messages: Sequence[Message]) -> None:
  """Raises UserError unless all have a known role and a text as content.

  The content may be None beside tool calls.
  """
  if not messages:
    raise UserError("messages=[]: nothing to render. Give at least one.")
  for n, message in enumerate(messages):
    keys = sorted(message) if isinstance(message, dict) else type(message)
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
      raise UserError(
        f"messages[{n}] has {keys}; a message is a dict with exactly 'role' "
        "and 'content', and what a template writes besides. Name them so."
      )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
      raise UserError(
        f"messages[{n}]: role={role!r}; a role is one word such as 'user'."
      )
    if role not in ROLES:
      other = _ALIASES.get(role.lower(), "")
      hint = f" Did you mean {other!r}?" if other else nearest(role, ROLES)
      raise UserError(
        f"messages[{n}]: role={role!r} is none of {', '.join(ROLES)}.{hint} "
        "Rename it."
      )
    if content is None and message.get("tool_calls"):
      continue
    if not isinstance(content, str):
      found = "null" if content is None else f"a {type(content).__name__}"
      raise UserError(
        f"messages[{n}]: content is {found}; only strings are rendered, and "
        "lists of text parts in a file. Give it a text, or remove the message."
      )


def check_plain(messages: Sequence[Message]) -> None:
  """Raises UserError for what only a chat template could write."""
  for n, message in enumerate(messages):
    further = sorted(set(message) - {"role", "content"})
    if further:
      raise UserError(
        f"messages[{n}] has {further}, which plain text cannot say. Set "
        "chat=True with a template that writes them, or remove them."
      )


def _check_written(
  messages: Sequence[Message],
  text: str,
  render_with: Callable[..., str],
  special_tokens: Collection[str],
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
      try:
        is_written = render_with(without) != text
      except UserError:
        is_written = True  # it cannot do without
      why = "" if is_written else "the chat template does not write it"
      if any(token in spelt for token in special_tokens):
        why = f"it spells a special token, {spelt[:60]}"
      if why:
        raise UserError(
          f"messages[{n}] has {key!r}, and {why}. Remove it: then a message is "
          "a dict with exactly 'role' and 'content'."
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


@dataclass(frozen=True)
class _Span:
  name: str  # a message's index, or "generation"
  start: int  # characters of the plain text
  end: int


class _Sentinels:
  """Marks that occur in no message and no template."""

  def __init__(self, texts: Sequence[str]):
    joined = "".join(texts)
    free = [c for c in map(chr, range(0xE000, 0xF8FF)) if c not in joined]
    if len(free) < 2:
      raise UserError(
        "the messages use every private-use character, so none is left to "
        "mark their borders. Remove U+E000..U+F8FE from the text."
      )
    self._open, self._close = free[0], free[1]

  def wrap(self, name: str | int, text: str) -> str:
    return f"{self.start(name)}{text}{self.end(name)}"

  def start(self, name: str | int) -> str:
    return f"{self._open}{name}{self._close}"

  def end(self, name: str | int) -> str:
    return f"{self._open}/{name}{self._close}"

  def strip(self, marked: str) -> tuple[str, list[_Span] | None]:
    """Returns the text without marks, and the spans; None if a mark is lost."""
    pattern = f"{self._open}(/?)(\\w+){self._close}"
    plain, size, last, opened, spans = [], 0, 0, {}, []
    for match in re.finditer(pattern, marked):
      plain.append(marked[last : match.start()])
      size, last = size + len(plain[-1]), match.end()
      closing, name = match.groups()
      if not closing:
        opened[name] = size
      elif name in opened:
        spans.append(_Span(name, opened.pop(name), size))
      else:
        opened["lost"] = size
    return "".join([*plain, marked[last:]]), None if opened else spans


def _is_marked(message: Message) -> bool:
  """Says whether a message's content is put between marks.

  A template may ask whether there is one, so an empty one stays empty.
  """
  is_answer = message["role"] == "assistant" and not message.get("tool_calls")
  return bool(message["content"]) or is_answer


def _locate(render_with, plain: str, messages: Sequence[Message]):
  """Returns the spans of messages and generation blocks in the plain text."""
  sentinels = _Sentinels([plain, *(m["content"] or "" for m in messages)])

  def outside(n: int, text: str) -> str:
    return sentinels.wrap(n, text)

  def inside(n: int, text: str) -> str:  # for a template that trims contents
    core = text.strip()
    start = len(text) - len(text.lstrip())
    after = text[start + len(core) :]
    return text[:start] + sentinels.wrap(n, core) + after

  for wrap in (outside, inside):
    wrapped = [
      {**m, "content": wrap(n, m["content"])} if _is_marked(m) else m
      for n, m in enumerate(messages)
    ]
    text, spans = sentinels.strip(
      render_with(
        wrapped, sentinels.start("generation"), sentinels.end("generation")
      )
    )
    if text != plain or spans is None:
      continue
    found = [span.name for span in spans]
    answers = [
      str(n)
      for n, m in enumerate(messages)
      if m["role"] == "assistant" and _is_marked(m)
    ]
    if "generation" in found or all(found.count(n) == 1 for n in answers):
      return spans
  raise UserError(
    "the chat template changes or drops what assistant messages say, so their "
    "tokens cannot be located. Put {% generation %} around the answer in a "
    "template that writes content as it is."
  )


def _stream_start(
  n: int, start: int, text: str, prompts: Callable[[int], str | None]
) -> int | None:
  """Returns where what is sampled for message n begins, None if nowhere.

  Sampling starts behind the rendered prompt. White space between it and the
  answer belongs to the answer; other text there, or a prompt that is written
  otherwise once it is answered, makes them two streams.

  Args:
    n: number of the assistant's message.
    start: of its content in the text.
    text: the whole dialogue.
    prompts: number of a message -> text that it is sampled behind.
  """
  prompt = prompts(n)
  if prompt is None or not text.startswith(prompt) or len(prompt) > start:
    return None
  return None if text[len(prompt) : start].strip() else len(prompt)


def _learned_spans(
  spans: Sequence[_Span],
  specials: Sequence[tuple[int, int, int]],
  messages: Sequence[Message],
  text: str,
  prompts: Callable[[int], str | None] | None,
) -> list[tuple[int, int]]:
  """Returns the character spans that carry loss, end tokens included."""
  marked = [(s.start, s.end) for s in spans if s.name == "generation"]
  if marked:
    return marked
  learned = []
  for span in spans:
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
    if n and prompts is not None:
      start = _stream_start(n, span.start, text, prompts)
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
  template = template_of(tokenizer)
  names = {i: name for name, i in tokenizer.special_tokens.items()}

  def render_with(
    messages,
    generation_open="",
    generation_close="",
    asks=add_generation_prompt,
  ) -> str:
    variables = {
      "messages": messages,
      "add_generation_prompt": asks,
      "bos_token": names.get(tokenizer.bos_id, ""),
      "eos_token": names.get(tokenizer.eos_id, ""),
      "pad_token": names.get(tokenizer.pad_id, ""),
      "generation_open": generation_open,
      "generation_close": generation_close,
    }
    return templates.render(template, tokenizer.name, variables)

  def prompt_of(n: int) -> str | None:
    try:
      return render_with(list(messages[:n]), asks=True)
    except UserError:
      return None

  text = render_with(list(messages))
  _check_written(messages, text, render_with, tokenizer.special_tokens)
  spans = _locate(render_with, text, messages)
  called = [n for n, m in enumerate(messages) if m.get("tool_calls")]
  is_marked = any(span.name == "generation" for span in spans)
  if called and not is_marked and not add_generation_prompt:
    raise UserError(
      f"messages[{called[0]}]: tool calls are learned only where the chat "
      "template marks what is learned, with {% generation %}. Mark it, or "
      "remove them."
    )
  specials = _template_specials(text, spans, tokenizer.special_tokens)
  is_asked = getattr(tokenizer, "prompt_end", PROMPT_ENDS[0]) == PROMPT_ENDS[0]
  prompts = prompt_of if is_asked else None
  learned = _learned_spans(spans, specials, messages, text, prompts)
  ids, mask = _encode(text, specials, learned, tokenizer)
  answers = [m for m in messages if m["role"] == "assistant"]
  has_marks = any(span.name == "generation" for span in spans)
  skipped = 0 if has_marks else len(answers) - len(learned)
  return Rendered(text, ids, mask, skipped)


def _template_specials(
  text: str, spans: Sequence[_Span], special_tokens: dict[str, int]
) -> list[tuple[int, int, int]]:
  """Returns (start, end, id) of special tokens in the template's own text."""
  if not special_tokens:
    return []
  names = sorted(special_tokens, key=len, reverse=True)
  pattern = re.compile("|".join(map(re.escape, names)))
  contents = sorted((s.start, s.end) for s in spans if s.name != "generation")
  found, position = [], 0
  for start, end in [*contents, (len(text), len(text))]:
    for match in pattern.finditer(text, position, start):
      found.append((match.start(), match.end(), special_tokens[match.group()]))
    position = end
  return found


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
      stretch = [by_start[start][1]]
    elif start == 0 or (start in ends and is_marked):
      stretch = tokenizer.encode(text[start:end])
    else:
      stretch = tokenizers.encode_inside(text[start:end], tokenizer)
    is_learned = any(a <= start and end <= b for a, b in learned)
    ids += stretch
    mask += [int(is_learned)] * len(stretch)
  return ids, mask
