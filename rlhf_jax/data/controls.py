"""Which tokens only a chat template may write, and what keeps others from it.

Control tokens are the special tokens, and of the other added tokens those that
the template spells ("<think>", "<tool_call>"; in SentencePiece models turn
markers that are user-defined pieces) or that end sampling. Text that comes from
outside (contents, names, arguments of tools, documents) never becomes one: a
mark stands inside of whatever could be one, or a part of one, and where a mark
has been the rendered text is no control token. So a token cannot be put
together from several fields either.

Answers are an exception: "<think>" is a token in what the assistant says, as
the model samples it. Special tokens are none there either.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

from rlhf_jax.data import tokenizers
from rlhf_jax.data.spans import BREAK, GENERATION, Marks, Span
from rlhf_jax.data.tokenizers import Tokenizer


@functools.lru_cache(maxsize=8)
def for_template(
  tokenizer: Tokenizer, source: str
) -> tuple[Tokenizer, frozenset[str]]:
  """Returns a tokenizer by which text yields no control token.

  Args:
    tokenizer: of a model.
    source: of its chat template.

  Returns:
    the tokenizer whose special tokens are all control tokens, and those of
    them that are not special by themselves.
  """
  ends = tokenizers.end_ids(tokenizer)
  names = frozenset(
    name
    for name, i in getattr(tokenizer, "added_tokens", {}).items()
    if not name.isspace() and (name in source or i in ends)
  )
  return (tokenizer.with_control(names) if names else tokenizer), names


class Guard:
  """Puts marks inside of what could be a control token in foreign texts.

  Args:
    names: texts of control tokens.
    mark: that is put there; the text without marks is what is rendered.
  """

  def __init__(self, names: Collection[str], mark: str):
    self._mark = mark
    self._whole, self._heads, self._tails, self._all = _parts(frozenset(names))
    self._longest = max(map(len, names), default=0)

  def text(self, text: str, is_key: bool = False) -> str:
    """Returns a text with marks.

    Args:
      text: from outside.
      is_key: a key of an object, which a template may look up by its name: a
        word from inside of a token, such as "name", gets no marks then.
    """
    if not text or not self._longest:
      return text
    found = self._whole.sub(
      lambda match: match.group()[:1] + self._mark + match.group()[1:], text
    )
    sizes = range(1, min(self._longest, len(text)) + 1)
    is_inner = text in self._all and not is_key
    if is_inner or any(text[:k] in self._tails for k in sizes):
      found = self._mark + found
    if is_inner or any(text[-k:] in self._heads for k in sizes):
      found += self._mark
    return found

  def __call__(self, value: Any) -> Any:
    """Returns plain data with marks in all of its texts."""
    if isinstance(value, str):
      return self.text(value)
    if isinstance(value, dict):
      found = {self.text(k, True): self(item) for k, item in value.items()}
      kind = value.get("type")  # templates compare it
      return found | (
        {"type": self.text(kind, True)} if isinstance(kind, str) else {}
      )
    return [self(v) for v in value] if isinstance(value, list) else value


@functools.lru_cache(maxsize=8)
def _parts(
  names: frozenset[str],
) -> tuple[re.Pattern, frozenset[str], frozenset[str], str]:
  """Returns a pattern of names, their beginnings, their ends, all of them."""
  cuts = [(name, k) for name in names for k in range(1, len(name))]
  return (
    pattern(names),
    frozenset(name[:k] for name, k in cuts),
    frozenset(name[k:] for name, k in cuts),
    "\0".join(sorted(names)),
  )


@functools.lru_cache(maxsize=8)
def pattern(names: frozenset[str]) -> re.Pattern:
  """Returns what finds the longest of some names."""
  ordered = sorted(names, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def find(
  text: str,
  spans: Sequence[Span],
  tokenizer: Tokenizer,
  further: frozenset[str],
  answers: Collection[str],
) -> list[tuple[int, int, int]]:
  """Returns (start, end, id) of the control tokens in a rendered text.

  They are in the template's own text. White space beside a token that takes it
  in (rstrip of an added token) is the token's, but for that of an answer.

  Args:
    text: what a template wrote.
    spans: of contents, and where marks have been (BREAK).
    tokenizer: all control tokens are special tokens of it.
    further: control tokens that stand in answers too.
    answers: names of the spans of answers.
  """
  special_tokens = tokenizer.special_tokens
  breaks = {span.start for span in spans if span.name == BREAK}
  contents = sorted(
    (s.start, s.end, s.name) for s in spans if s.name not in (GENERATION, BREAK)
  )
  every, inner = pattern(frozenset(special_tokens)), pattern(further)
  takes = getattr(tokenizer, "takes_spaces", {})
  found, position, last = [], 0, 0
  for start, end, name in [*contents, (len(text), len(text), "")]:
    start, end = max(start, position), max(end, position)
    is_answer = name in answers
    right = start if is_answer else end
    for first, final in _matches(every, text, position, start, breaks):
      token = text[first:final]
      takes_left, takes_right = takes.get(token, (False, False))
      while takes_left and first > last and text[first - 1].isspace():
        first -= 1
      while takes_right and final < right and text[final].isspace():
        final += 1
      found.append((first, final, special_tokens[token]))
      last = final
    if is_answer:
      found += [
        (*borders, special_tokens[text[slice(*borders)]])
        for borders in _matches(inner, text, start, end, breaks)
      ]
      last = end
    position = end
  return found


def _matches(
  names: re.Pattern, text: str, start: int, end: int, breaks: set[int]
) -> list[tuple[int, int]]:
  """Returns where names stand that no mark has been inside of."""
  found = []
  while match := names.search(text, start, end):
    first, final = match.span()
    if breaks.isdisjoint(range(first + 1, final)):
      found.append((first, final))
      start = final
    else:
      start = first + 1
  return found


def guards(
  marks: Marks, tokenizer: Tokenizer, further: frozenset[str]
) -> tuple[Guard, Guard]:
  """Returns the guard of foreign texts, and that of what the assistant says."""
  names = frozenset(tokenizer.special_tokens)
  mark = marks.start(BREAK)
  return Guard(names, mark), Guard(names - further, mark)
