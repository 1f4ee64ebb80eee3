"""The code in a response: its fenced blocks in Markdown.

CommonMark 0.31, section 4.5; also with any indentation, within quotes and
lists, and with a fence at the end of a line of text. Left out: blocks that are
indented without a fence.
"""

from __future__ import annotations

import re

_MARKS = r"((?:[ \t>]|[-*+][ \t]|\d+[.)][ \t])*)"  # of quotes and lists
_OPENING = re.compile(_MARKS + r"(`{3,}(?=[^`]*$)|~{3,})[ \t]*([^\s`]*)")
_LATE_OPENING = re.compile(r"()(```)[ \t]*([\w{}.]+)[ \t]*$")
_TEXT = ("markdown", "md")  # whose own blocks count
# python3.11, py:file.py, pycon and ipython are Python too.
_PYTHON = re.compile(r"i?py(?:thon|con)?\d*(?:\.\d+)*(?:[:,;].*)?")


def _fenced(text: str) -> list[tuple[str, str]]:
  """Returns (language, code) of each closed fence of a text in Markdown.

  A fence is of ``` or ~~~, or longer, and ends with a line of no fewer; the
  indentation of its first line is taken off all others.
  """
  found, fence, indent, language = [], "", "", ""
  lines: list[str] = []
  for line in re.split(r"\r\n|\r|\n", text):
    if not fence:
      opening = _OPENING.match(line) or _LATE_OPENING.search(line)
      if opening:
        indent, fence, language = opening.groups()
        lines = []
      continue
    inner = _without(indent, line)
    bare = inner.strip()
    if bare.endswith(fence):
      rest = bare.rstrip(fence[0])
      lines += [inner[: inner.index(rest) + len(rest)]] if rest else []
      name, code = language.lower().strip("{}."), "\n".join(lines)
      found += _fenced(code) if name in _TEXT else [(name, code)]
      fence = ""
    else:
      lines.append(inner)
  return found


def _without(indent: str, line: str) -> str:
  """Returns a line without what its block is indented by, or so many blanks."""
  if line.startswith(indent):
    return line[len(indent) :]
  start = len(line) - len(line.lstrip())
  return line[min(start, len(indent)) :]


def extract(text: str) -> list[str]:
  """Returns the blocks of a text that may be its answer, empty ones left out.

  Its Python blocks; failing those, its blocks of no language; or the text, if
  it has no fence at all. None are left when a fence is open or belongs to
  another language, only. Which of them is meant: sandbox.sources.choose.
  """
  text = text.replace("\ufeff", "")  # a byte order mark is no code
  if "```" not in text and "~~~" not in text:
    return [text] if text.strip() else []
  blocks = [pair for pair in _fenced(text) if pair[1].strip()]
  named = [code for language, code in blocks if _PYTHON.fullmatch(language)]
  return named or [code for language, code in blocks if not language]
