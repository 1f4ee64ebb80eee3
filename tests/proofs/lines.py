"""How long the package is, now and at another revision.

    python -m tests.proofs.lines REVISION

prints files, lines, and lines of code (no docstring, comment or blank line) of
each part of rlhf_jax/, at a revision of git and in the working tree.
"""

from __future__ import annotations

import ast
import collections
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.terminal import format_table

ROOT = Path(__file__).parent.parent.parent
_NO_CODE = (
  tokenize.COMMENT,
  tokenize.NL,
  tokenize.NEWLINE,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENDMARKER,
)
_HAS_DOCSTRING = (
  ast.Module,
  ast.ClassDef,
  ast.FunctionDef,
  ast.AsyncFunctionDef,
)


def code_lines(source: str) -> int:
  """Returns how many lines of a file hold code."""
  lines: set[int] = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type not in _NO_CODE:
      lines |= set(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, _HAS_DOCSTRING) and ast.get_docstring(node) is not None:
      lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  return len(lines)


def _git(*arguments: str) -> str:
  return subprocess.run(
    ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
  ).stdout


def sources(revision: str) -> Iterator[tuple[str, str]]:
  """Yields (path, text) of the package's files; "" is the working tree."""
  if not revision:
    for path in sorted((ROOT / "rlhf_jax").rglob("*.py")):
      yield str(path.relative_to(ROOT)), path.read_text()
    return
  listed = _git("ls-tree", "-r", "--name-only", revision, "rlhf_jax")
  for path in listed.splitlines():
    if path.endswith(".py"):
      yield path, _git("show", f"{revision}:{path}")


def count(revision: str) -> dict[str, tuple[int, int, int]]:
  """Returns {part: (files, lines, lines of code)}, and "total"."""
  found = collections.defaultdict(lambda: (0, 0, 0))
  for path, text in sources(revision):
    parts = path.split("/")
    one = (1, text.count("\n"), code_lines(text))
    for part in (parts[1] if len(parts) > 2 else "(top)", "total"):
      found[part] = tuple(map(sum, zip(found[part], one, strict=True)))
  return found


def main(revision: str) -> None:
  """Prints the table."""
  before, now = count(revision), count("")
  parts = sorted((before.keys() | now.keys()) - {"total"}) + ["total"]
  rows = [[part, *before[part], *now[part]] for part in parts]
  head = ["files", "lines", "code"]
  print(
    format_table(
      ["part", *(f"{name} at {revision}" for name in head), *head], rows
    )
  )


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
