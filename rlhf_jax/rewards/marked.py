r"""Where the final answer of a text stands.

It is what a text marks as such: "#### 42" (GSM8K, Cobbe et al. 2021),
"\boxed{42}" (MATH, Hendrycks et al. 2021) or "the answer is 42". What stands
in <think> is a thought and no answer, also where the prompt's template has
opened it and the text only closes it.

Left out: what an answer means; each verifier reads its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_jax.rewards import latex
from rlhf_jax.schema import UserError

FORMATS = ("gsm8k", "boxed", "phrase", "last_number")
MAX_CHARACTERS = 400  # of what is marked; an answer needs far fewer

_BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"(?:\{(?:[^{}]|\{[^{}]*\})*\}|[^\s${}])+")
# Up to the next phrase in the line: a second answer in it counts as well.
_PHRASE = re.compile(
  r"answer[*_]*\s*(?:is|:)[\s:*_]*(?:(?:\\\[|\$\$)\s*\n\s*)?"
  r"((?:(?!answer[*_]*\s*(?:is|:))[^\n])+)",
  re.IGNORECASE,
)
_LEADING_IN = re.compile(
  r"[\s*_]*(?:(?:so|the|my|our|final|correct)[\s*_]*)*", re.IGNORECASE
)
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_LOOSE_NUMBER = re.compile(
  rf"(?<![\w.^/{{])(?<!\w\()-?(?:{_NUMBER})(?:\s*/\s*[0-9]+)?%?(?![\w^/]|[.,][0-9])"
)


def check_tag(field: str, tag: str | None) -> None:
  """Raises UserError unless a setting is None or the bare name of a tag."""
  if tag is not None and not re.fullmatch(r"\w+", tag):
    raise UserError(
      f"{field}={tag!r}: a name is made of letters, digits and _. Drop the "
      "brackets, or set it to None."
    )


def spoken(text: str, tag: str | None) -> str:
  """Returns a text without what stands inside <tag> and </tag>.

  Args:
    text: a response; a closing tag that nothing opened was opened by the
      prompt, an opening one that nothing closes was cut off by the limit.
    tag: such as "think"; None leaves the text as it is.
  """
  if tag is None:
    return text
  opening, closing = f"<{tag}>", f"</{tag}>"
  head, closed, tail = text.partition(closing)
  if closed and opening not in head:
    text = tail
  said, rest, closed = [], text, closing
  while closed:
    before, opened, rest = rest.partition(opening)
    said.append(before)
    _, closed, rest = rest.partition(closing) if opened else ("", "", "")
  return "".join(said)


def boxed(text: str) -> list[str]:
  r"""Returns the contents of all boxes: \boxed{7}, \fbox{7}, \boxed 7.

  Inner braces are balanced; a box that never closes is none. Without braces a
  box holds what follows up to a space, as MATH's own reader has it.
  """
  contents = []
  for start in _BOX.finditer(text):
    rest = text[start.end() : start.end() + MAX_CHARACTERS]
    if rest.startswith("{"):
      end = latex.balanced(rest, 0)
      if end is not None:
        contents.append(rest[1 : end - 1])
    elif found := _BARE.match(rest):
      contents.append(found[0])
  return contents


def _after_marks(text: str) -> list[str]:
  """Returns the first line with something in it after each ####."""
  return [
    next((line for line in part.split("\n") if line.strip()), "")
    for part in text.split("####")[1:]
  ]


def answers(text: str, formats: Sequence[str]) -> list[str]:
  """Returns the texts of all final answers, by the first marker that occurs.

  Args:
    text: a response.
    formats: keys of FORMATS, in order of preference.

  Returns:
    contents in order of appearance; [] when nothing is marked.
  """
  if not text.isascii():
    text = latex.characters(text)  # a full-width # or : marks as well
  for name in formats:
    if name == "gsm8k":
      found = _after_marks(text)
    elif name == "boxed":
      found = boxed(text)
    elif name == "phrase":
      found = [
        re.split(r"\.(?:\s|$)", match[1])[0]
        for match in _PHRASE.finditer(text)
        if not _LEADING_IN.fullmatch(match[1])  # Answer: The answer is 5.
      ]
    else:
      numbers = _LOOSE_NUMBER.finditer(latex.plain(text[-4 * MAX_CHARACTERS :]))
      found = [match[0] for match in numbers][-1:]
    if found:
      return [content.strip() for content in found]
  return []


def tagged(text: str, tag: str) -> str | None:
  """Returns what stands between <tag> and </tag>, or None unless once each."""
  opening, closing = f"<{tag}>", f"</{tag}>"
  if text.count(opening) != 1 or text.count(closing) != 1:
    return None
  start, end = text.index(opening) + len(opening), text.index(closing)
  return text[start:end] if start <= end else None


def committed(
  text: str,
  formats: Sequence[str],
  inside_tag: str | None,
  thought_tag: str | None,
) -> list[str]:
  """Returns the texts of all answers that a response commits to.

  Args:
    text: a response.
    formats: see `answers`.
    inside_tag: the only section to read; without a marker all of it counts.
    thought_tag: the section that holds thoughts, None for no such.
  """
  if inside_tag != thought_tag:
    text = spoken(text, thought_tag)
  if inside_tag is None:
    return answers(text, formats)
  inside = tagged(text, inside_tag)
  if inside is None:
    return []
  return answers(inside, formats) or [inside]
