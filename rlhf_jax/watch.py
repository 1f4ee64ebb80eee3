"""Watch all runs of a folder in a browser, while they write.

    python -m rlhf_jax.watch runs/
    python -m rlhf_jax.watch runs/ --port=0

The page shows of each run its stages, progress and time left, curves, alarms,
the newest samples and where the time went. It is served to this machine alone
and changes nothing; docs/watching.md says how to see it from another one.

Exit codes: 0 stopped with Ctrl-C, 2 a mistake (one line says which value, which
rule and what to do).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax import output
from rlhf_jax.schema import UserError

PORT = 8765


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.watch",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  found.add_argument("folder", help="with runs in it, or one run")
  found.add_argument(
    "--port", type=int, default=PORT, help=f"on this machine; {PORT}, 0: any"
  )
  return found


def main(argv: Sequence[str]) -> int:
  """Serves the page until Ctrl-C; returns the exit code."""
  from rlhf_jax.dashboard import server

  options = parser().parse_args(argv[1:])
  root = Path(options.folder).expanduser()
  try:
    if not root.is_dir():
      raise UserError(
        f"{options.folder}: is no folder. Name one with runs in it, such as "
        "runs/; it may still be empty."
      )
    found = server.make(root.resolve(), options.port)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  host, port = found.server_address[:2]
  print(
    f"runs in {root}: http://{host}:{port}/ (Ctrl-C ends it)\n"
    f"from another machine: ssh -L {port}:{host}:{port} THIS_MACHINE, then "
    "the same address there",
    flush=True,
  )
  try:
    found.serve_forever()
  except KeyboardInterrupt:
    return 0
  finally:
    found.server_close()
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
