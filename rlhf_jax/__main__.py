"""List the commands of the package, or run one of them, or an experiment.

    python -m rlhf_jax
    python -m rlhf_jax main --config=configs/sft.py --workdir=runs/sft
    rlhf-jax quickstart --smoke

A command is a module of the package that can be run, or a folder with a
__main__.py, and the first line of its docstring says what it does: a new one
needs no line here. Any other name is that of an experiment in configs/:
`rlhf-jax NAME[:ARG]` is `main --config=configs/NAME.py[:ARG]
--workdir=runs/NAME`, and --workdir may say more.
"""

from __future__ import annotations

import ast
import runpy
import sys
import textwrap
from pathlib import Path

from rlhf_jax import experiment_file, output
from rlhf_jax.imported import nearest

_RUN = 'if __name__ == "__main__":'
HELP = (
  "Write `rlhf-jax COMMAND`, or `python -m rlhf_jax.COMMAND`; with --help\nit "
  "says what it takes."
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


def _run(name: str, rest: list[str]) -> int:
  """Runs a command with its arguments."""
  sys.argv = [f"rlhf_jax.{name}", *rest]
  runpy.run_module(f"rlhf_jax.{name}", run_name="__main__", alter_sys=True)
  return 0


def _experiment(name: str, rest: list[str]) -> int:
  """Runs an experiment of the package by its name, in runs/NAME."""
  stem, colon, argument = name.partition(":")
  line = [f"--config=configs/{stem}.py{colon}{argument}", *rest]
  if not any(x.lstrip("-").partition("=")[0] == "workdir" for x in rest):
    line.append(f"--workdir=runs/{stem}")
  print(f"rlhf_jax.main {' '.join(line)}", flush=True)
  return _run("main", line)


def main(argv: list[str]) -> int:
  """Runs the command that a command line names, or lists all of them."""
  known, experiments = commands(), experiment_file.shipped()
  name = argv[1] if len(argv) > 1 else ""
  if name in known:
    return _run(name, argv[2:])
  if name.partition(":")[0] in experiments:
    return _experiment(name, argv[2:])
  if name in ("", "-h", "--help"):
    print("rlhf_jax: RLHF for JAX and TPU. Commands:\n")
    for command, text in known.items():
      print(f"  {command:{max(map(len, known))}}  {text}")
    names = f"Experiments, `rlhf-jax NAME`: {', '.join(experiments)}."
    print(f"\n{HELP}\n\n{textwrap.fill(names, 80)}")
    return 0
  print(
    f"error: {name!r}: no such command."
    f"{nearest(name, [*known, *experiments])} There are {', '.join(known)}; "
    f"experiments {', '.join(experiments)}.",
    file=sys.stderr,
  )
  return 2


def script() -> None:
  """Is the command `rlhf-jax`."""
  output.run_command(main, sys.argv)


if __name__ == "__main__":
  script()
