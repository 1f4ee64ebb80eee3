"""Which of the blocks of an answer is meant, and the source that it is.

Runs alone, on the standard library, in the process of an answer: a nested
source may end the parser's process, and that is not the run's.
"""

from __future__ import annotations

import ast
import builtins
import textwrap

_INNER = ("body", "orelse", "finalbody", "handlers")
# What a program that is judged by its output does, by name.
_SPEAKING = frozenset("print input stdin stdout open write".split())


def _unprompted(block):
  """Returns the code of an interactive session: what follows >>> and ... ."""
  lines = [line.strip("\r") for line in textwrap.dedent(block).split("\n")]
  marks = (">>> ", "... ")
  code = [line[4:] for line in lines if (line + " ").startswith(marks)]
  return "\n".join(code)


def _parsed(block, preamble):
  """Returns (source, tree) of a block, None unless it parses.

  `preamble` comes first, unless the block parses only without. A block that is
  indented, or an interactive session, is read as what it shows.
  """
  sources = [f"{preamble}\n{block}", block] if preamble else [block]
  sources.append(textwrap.dedent(block))
  if ">>>" in block:
    sources.append(_unprompted(block))
  for source in sources:
    try:
      return source, ast.parse(source)
    except (SyntaxError, ValueError):
      pass
  return None


def _statements(body):
  """Yields the statements of a module, also those under if, try, with..."""
  for node in body:
    yield node
    if not isinstance(
      node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ):
      for name in _INNER:
        yield from _statements(getattr(node, name, []))


def _loaded(node):
  """Returns the names that a part of a module reads."""
  return {
    one.id
    for one in ast.walk(node)
    if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)
  }


def _bound(node):
  """Returns the names that a statement binds in its module."""
  if isinstance(node, (ast.Import, ast.ImportFrom)):
    names = [alias.asname or alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names}
  if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
    return {node.name}
  targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
  return {
    one.id
    for target in targets
    if target is not None
    for one in ast.walk(target)
    if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
  }


def _defines(tree, names):
  """Says whether a module defines one of these names, or class Solution.

  A use, such as f = f(2), is no definition.
  """
  for node in _statements(tree.body):
    if isinstance(node, ast.ClassDef) and node.name == "Solution":
      return True
    bound = _bound(node).intersection(names)
    is_use = isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value
    if bound - (_loaded(node.value) if is_use else set()):
      return True
  return False


def _speaks(tree):
  """Says whether a module reads or prints."""
  named = {
    getattr(n, "id", None) or getattr(n, "attr", None) for n in ast.walk(tree)
  }
  return bool(named & _SPEAKING)


def _with_others(chosen, others):
  """Returns a source with what it reads and only other blocks define.

  Args:
    chosen: (source, tree).
    others: trees of the other blocks, the nearest last.
  """
  source, tree = chosen
  inner = {name for node in ast.walk(tree) for name in _names_within(node)}
  missing = _loaded(tree) - inner - set(vars(builtins))
  found, taken = [], set()
  while missing:
    name = missing.pop()
    node = next(
      (
        n
        for t in reversed(others)
        for n in reversed(t.body)
        if name in _bound(n)
      ),
      None,
    )
    if node is None or id(node) in taken:
      continue
    taken.add(id(node))
    found.append(node)
    within = {n for part in ast.walk(node) for n in _names_within(part)}
    missing |= _loaded(node) - within - inner - set(vars(builtins))
  if not found:
    return source
  order = {id(n): i for i, n in enumerate(n for t in others for n in t.body)}
  found.sort(key=lambda node: order[id(node)])
  first = [node for node in tree.body if _is_future(node)]
  rest = [node for node in tree.body if not _is_future(node)]
  try:
    return ast.unparse(ast.Module([*first, *found, *rest], []))
  except RecursionError:  # deeper than it is written back
    return source


def _is_future(node):
  return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _names_within(node):
  """Returns the names that a part of a module binds, arguments too."""
  if isinstance(node, ast.arg):
    return {node.arg}
  if isinstance(node, ast.ExceptHandler):
    return {node.name} if node.name else set()
  if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
    return {node.id}
  return _bound(node) if isinstance(node, ast.stmt) else set()


def choose(blocks, preamble, names):
  """Returns the source of an answer: of its blocks, the one that is meant.

  That is the last that parses and defines what is tested, or of a program the
  last that reads or prints; failing that, the last that parses with a statement
  in it; failing that, the last. What it needs of other blocks (an import, a
  helper) comes with it.

  Args:
    blocks: from code_blocks.extract.
    preamble: code before the answer.
    names: what is tested, () of a program.
  """
  parsed = [_parsed(block, preamble) for block in blocks]
  parsed = [pair for pair in parsed if pair is not None]
  is_meant = (lambda t: _defines(t, names)) if names else _speaks
  wanted = [pair for pair in parsed if is_meant(pair[1])]
  wanted = wanted or [pair for pair in parsed if pair[1].body]
  if not wanted:
    return f"{preamble}\n{blocks[-1]}"
  others = [tree for _, tree in parsed if tree is not wanted[-1][1]]
  return _with_others(wanted[-1], others)
