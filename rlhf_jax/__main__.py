"""List the commands of the package, or run one of them.

    python -m rlhf_jax
    python -m rlhf_jax main --config=configs/sft.py --workdir=runs/sft

A command is a module of the package that can be run, or a folder with a
__main__.py, and the first line of its docstring says what it does: a new one
needs no line here.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from rlhf_jax import output
from rlhf_jax.imported import nearest

_RUN = 'if __name__ == "__main__":'
HELP = (
  "Write `python -m rlhf_jax COMMAND`, or `python -m rlhf_jax.COMMAND`; with "
  "--help\nit says what it takes."
)


def commands() -> dict[str, str]:
  """Returns name -> first line of each command; imports none of them."""
  found = {}
  folder = Path(__file__).parent
  paths = {path.stem: path for path in folder.glob("*.py")}
  paths |= {p.parent.name: p for p in folder.glob("*/__main__.py")}
  for name, path in sorted(paths.items()):
    source = path.read_text()
    if _RUN in source and name != "__main__":
      text = ast.get_docstring(ast.parse(source)) or ""
      found[name] = text.partition("\n")[0]
  return found


def main(argv: list[str]) -> int:
  """Runs the command that a command line names, or lists all of them."""
  known = commands()
  name = argv[1] if len(argv) > 1 else ""
  if name in known:
    sys.argv = [f"rlhf_jax.{name}", *argv[2:]]
    runpy.run_module(f"rlhf_jax.{name}", run_name="__main__", alter_sys=True)
    return 0
  if name in ("", "-h", "--help"):
    print("rlhf_jax: RLHF for JAX and TPU. Commands:\n")
    for command, text in known.items():
      print(f"  {command:{max(map(len, known))}}  {text}")
    print(f"\n{HELP}")
    return 0
  print(
    f"error: {name!r}: no such command.{nearest(name, known)} There are "
    f"{', '.join(known)}.",
    file=sys.stderr,
  )
  return 2


if __name__ == "__main__":
  output.run_command(main, sys.argv)
