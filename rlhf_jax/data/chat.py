"""Chat templates, rendered to token ids with a mask on what is learned.

A dialogue becomes text through the tokenizer's Jinja template and then ids in
one pass that knows where every character came from:

  * special tokens that the TEMPLATE writes become their ids; a message that
    spells one stays plain text, so nobody can end a turn from inside a message;
  * assistant_mask is 1 on each assistant turn's content and on the special
    token that ends it, 0 on everything else (METHODS 1, multi-turn).

What a template writes of them is found in rendering.py, and where they stand
in the text in spans.py. Text is tokenised in
stretches cut at special tokens and where generation of an answer starts, so
training and sampling see the same ids before it. White space that the template
writes there before the answer is learned with it; streams.py refuses templates
of which that is not all.

A template may mark what is learned itself with {% generation %} ...
{% endgeneration %}; then exactly that text is learned.

A message may say more than role and content (a name, tool calls): the template
must write it, or the message is refused. Tool calls are learned only where the
template marks them.

Text and ids are those of transformers' apply_chat_template, but for two things:
what comes from outside is no control token (controls.py), and no token goes
across the border of what is learned, as none does when it is sampled.

Left out: contents of images and sound; the day of the run, on which training
data must not depend (strftime_now writes model.template_day).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.data import controls, rendering, spans, tokenizers
from rlhf_jax.data.messages import TOOLS, Message, check_messages
from rlhf_jax.data.spans import GENERATION, Span
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

# Where prompts of dialogues end: as the template's generation prompt does, or
# where the template writes the answer once it is there.
PROMPT_ENDS = ("template", "answer")


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
  for n, message in enumerate(messages):
    said = [span for span in found if span.name == str(n)]
    if not spans.is_answer(message) or not said:
      continue
    span = Span(str(n), said[0].start, said[-1].end)
    after = [s for s in specials if s[0] >= span.end]
    if not after or text[span.end : after[0][0]].strip():
      raise UserError(
        f"message {n}: the chat template ends the assistant's turn "
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
  continue_final_message: bool = False,
  tools: list[dict] | None = None,
  documents: list[dict] | None = None,
) -> Rendered:
  """Renders a dialogue with the tokenizer's template, with its loss mask.

  Args:
    messages: dicts of 'role' and 'content', a text or a list of text parts.
    tokenizer: its chat_template, or ChatML (see rendering.template_of).
    add_generation_prompt: end with the header of an assistant turn, so that
      the model answers next.
    continue_final_message: end where the content of the last message does, so
      that the model goes on with it.
    tools: JSON schemas that the template writes; None for those that the first
      message carries.
    documents: of retrieval, dicts that the template writes.

  Raises:
    ValueError: malformed messages, no template, a template that fails, that
      hides where the answers are, or that ends them with no special token.
  """
  check_messages(messages)
  if TOOLS in messages[0]:
    tools = messages[0][TOOLS] if tools is None else tools
    first = {k: v for k, v in messages[0].items() if k != TOOLS}
    messages = [first, *messages[1:]]
  if add_generation_prompt and continue_final_message:
    raise UserError(
      "add_generation_prompt and continue_final_message are both set; a text "
      "ends with a new header or within the last message. Set one."
    )
  template = rendering.Template(tokenizer, tools, documents)
  messages = template.taken(messages)
  asked = []  # numbers of messages that are sampled behind a prompt
  if getattr(tokenizer, "prompt_end", PROMPT_ENDS[0]) == PROMPT_ENDS[0]:
    asked = [n for n, m in enumerate(messages) if n and spans.is_answer(m)]
  text, found, prompts = rendering.texts(
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
  answers = [n for n, m in enumerate(messages) if spans.is_answer(m)]
  specials = controls.find(
    text, found, template.tokenizer, template.further, set(map(str, answers))
  )
  learned = _learned_spans(found, specials, messages, text, prompts)
  if continue_final_message:
    end = _final_end(found, len(messages) - 1)
    text, specials, learned = _cut(text, specials, learned, end)
  ids, mask = _encode(text, specials, learned, template.tokenizer)
  skipped = 0 if is_marked else len(answers) - len(learned)
  return Rendered(text, ids, mask, skipped)


def _final_end(found: Sequence[Span], last: int) -> int:
  """Returns where the content of the last message ends."""
  ends = [span.end for span in found if span.name == str(last)]
  if not ends:
    raise UserError(
      f"messages[{last}]: continue_final_message is set, and the chat template "
      "does not write a content of it that could go on. Give it one."
    )
  return ends[-1]


def _cut(
  text: str,
  specials: Sequence[tuple[int, int, int]],
  learned: Sequence[tuple[int, int]],
  end: int,
) -> tuple[str, list[tuple[int, int, int]], list[tuple[int, int]]]:
  """Returns a text up to a character, and what of it is special, or learned."""
  return (
    text[:end],
    [special for special in specials if special[1] <= end],
    [(a, min(b, end)) for a, b in learned if a < end],
  )


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
  names = {i: name for name, i in tokenizer.special_tokens.items()}
  ends = {end: names[i] for _, end, i in specials}
  marks_after = getattr(tokenizer, "marks_after", lambda name: False)
  ids, mask = [], []
  for start, end in zip(borders, borders[1:], strict=False):
    if start in by_start:
      stretch = (by_start[start][1],)
    else:
      is_inside = start > 0 and not (start in ends and marks_after(ends[start]))
      stretch = _stretch(text[start:end], tokenizer, is_inside)
    is_learned = any(a <= start and end <= b for a, b in learned)
    ids += stretch
    mask += [int(is_learned)] * len(stretch)
  return ids, mask
