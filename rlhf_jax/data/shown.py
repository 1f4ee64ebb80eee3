"""Rows of tokens as text that shows what is learned, for people to look at.

In colour, what is learned stands on green (of a rejected answer on magenta),
bold; without colours between ⟦ and ⟧. All else is context. Special tokens are
spelt out, a learned line break is ⏎, and what a terminal would obey is shown
as its code.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer

LEARNED = {"": "\x1b[1;30;42m", "rejected": "\x1b[1;30;45m"}
CONTEXT, END = "\x1b[2m", "\x1b[0m"
OPEN, CLOSE = "⟦", "⟧"
LONG = (
  600  # characters of a stretch of text that are shown; the rest is counted
)


def stretches(
  tokens: Sequence[int], mask: Sequence[float], tokenizer: Tokenizer
) -> Iterator[tuple[str, bool]]:
  """Yields (text, whether it is learned) of a row, in order.

  Args:
    tokens: [n] ids.
    mask: [n], above 0 on what is learned.
    tokenizer: of the ids.
  """
  ids = [int(i) for i in tokens]
  end, before = 0, ""
  for is_learned, group in itertools.groupby(np.asarray(mask) > 0):
    start, end = end, end + len(list(group))
    whole = tokenizer.decode(ids[:end], skip_special=False)
    if whole.startswith(before):
      yield whole[len(before) :], bool(is_learned)
    else:  # a decoder that changes what it had written
      yield (
        tokenizer.decode(ids[start:end], skip_special=False),
        bool(is_learned),
      )
    before = whole


def _safe(text: str, line_break: str) -> str:
  """Returns a text that a terminal shows and does not obey."""
  found = []
  for character in text:
    if character == "\n":
      found.append(line_break)
    elif character.isprintable() or character == "\t":
      found.append(character)
    else:
      found.append(character.encode("unicode_escape").decode())
  return "".join(found)


def _shortened(text: str, is_whole: bool) -> str:
  """Returns the begin and the end of a long text."""
  if is_whole or len(text) <= LONG:
    return text
  half = LONG // 2
  left_out = len(text) - 2 * half
  return f"{text[:half]} [... {left_out} characters ...] {text[-half:]}"


def render(
  tokens: Sequence[int],
  mask: Sequence[float],
  tokenizer: Tokenizer,
  *,
  name: str = "",
  has_colours: bool = False,
  is_whole: bool = False,
) -> str:
  """Returns a row as text.

  Args:
    tokens: [n] ids.
    mask: [n], above 0 on what is learned.
    tokenizer: of the ids.
    name: "rejected" has a colour of its own.
    has_colours: for a terminal that has some.
    is_whole: long texts are not shortened.
  """
  found = []
  for text, is_learned in stretches(tokens, mask, tokenizer):
    text = _shortened(text, is_whole)
    if not is_learned:
      text = _safe(text, "\n")
      found.append(f"{CONTEXT}{text}{END}" if has_colours else text)
      continue
    text = _safe(text, "⏎\n")
    if not has_colours:
      found.append(f"{OPEN}{text}{CLOSE}")
      continue
    colour = LEARNED.get(name, LEARNED[""])
    # A colour ends with its line, or it would fill the rest of the terminal.
    lines = [
      f"{colour}{line}{END}" if line else "" for line in text.split("\n")
    ]
    found.append("\n".join(lines))
  return "".join(found)


def legend(has_colours: bool) -> str:
  """Returns what the marks of `render` mean."""
  if has_colours:
    return (
      f"{LEARNED['']}learned{END}, {LEARNED['rejected']}learned of a rejected "
      f"answer{END}, {CONTEXT}context{END}"
    )
  return f"{OPEN}learned{CLOSE}, context"
