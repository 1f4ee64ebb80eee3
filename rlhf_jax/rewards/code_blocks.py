"""The code in a response: its fenced blocks in Markdown.

CommonMark 0.31, section 4.5, with any indentation and within quotes. Left out:
blocks that are indented without a fence.
"""

from __future__ import annotations

import re

_OPENING = re.compile(r"([ \t>]*)(`{3,}|~{3,})[ \t]*([^\s`]*)")
_PYTHON = ("python", "python3", "py", "py3")


def _fenced(text: str) -> list[tuple[str, str]]:
  """Returns (language, code) of each closed fence of a text in Markdown.

  A fence is of ``` or ~~~, or longer, and ends with a line of no fewer; the
  indentation of its first line is taken off all others.
  """
  found, fence, indent, language = [], "", "", ""
  lines: list[str] = []
  for line in text.splitlines():
    if not fence:
      opening = _OPENING.match(line)
      if opening:
        indent, fence, language = opening.groups()
        lines = []
      continue
    inner = line.removeprefix(indent)
    bare = inner.strip()
    if bare and set(bare) == {fence[0]} and len(bare) >= len(fence):
      found.append((language.lower().strip("{}."), "\n".join(lines)))
      fence = ""
    else:
      lines.append(inner)
  return found


def extract(text: str) -> list[str]:
  """Returns the blocks of a text that may be its answer, empty ones left out.

  Its Python blocks; failing those, its blocks of no language; or the text, if
  it has no fence at all. None are left when a fence is open or belongs to
  another language, only. Which of them is meant: sandbox.parts.choose.
  """
  if "```" not in text and "~~~" not in text:
    return [text] if text.strip() else []
  blocks = [pair for pair in _fenced(text) if pair[1].strip()]
  named = [code for language, code in blocks if language in _PYTHON]
  return named or [code for language, code in blocks if not language]
