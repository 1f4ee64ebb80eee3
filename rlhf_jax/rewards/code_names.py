"""What tests of an answer name, read from their source; nothing of it runs."""

from __future__ import annotations

import ast
import builtins
import functools


@functools.lru_cache(maxsize=4096)
def unknown(
  sources: tuple[str, ...],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns names that tests read and Python does not know: the answer's.

  And those of them that the tests do not bind somewhere themselves.

  Raises:
    SyntaxError: they do not parse, assert nothing, or use a class of the answer
      as no test can.
  """
  trees = [ast.parse(source) for source in sources]
  nodes = [node for tree in trees for node in ast.walk(tree)]
  is_judged = any(
    isinstance(node, (ast.Assert, ast.Raise))
    or (isinstance(node, ast.Attribute) and node.attr.startswith("assert"))
    for node in nodes
  )
  if not is_judged:
    raise SyntaxError("no test asserts anything")
  names = {
    node.id
    for node in nodes
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
  }
  names -= set(vars(builtins))
  bound = {
    getattr(node, "id", None) or getattr(node, "arg", None)
    for node in nodes
    if not isinstance(getattr(node, "ctx", None), ast.Load)
  } | {getattr(node, "name", None) for node in nodes}
  _check_uses(nodes, names - bound)
  return tuple(sorted(names)), tuple(sorted(names - bound))


def _check_uses(nodes: list[ast.AST], wanted: set[str]) -> None:
  """Raises SyntaxError where a class of the answer is caught or asked for."""
  for node in nodes:
    asked: ast.AST | None = None
    if isinstance(node, ast.ExceptHandler):
      asked = node.type
    elif isinstance(node, ast.Call) and len(node.args) == 2:
      name = getattr(node.func, "id", "")
      is_asked = name in ("isinstance", "issubclass")
      asked = node.args[1] if is_asked else None
    for part in ast.walk(asked) if asked is not None else ():
      if getattr(part, "id", None) in wanted:
        raise SyntaxError(
          f"{part.id} is a class of the answer, which tests see from outside: "
          "they can call it, neither catch it nor use it in isinstance"
        )
