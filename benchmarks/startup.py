"""What a run waits for before its first step is done, in fresh processes.

    python benchmarks/startup.py                     # sft reward dpo ppo grpo
    python benchmarks/startup.py sft quickstart --names

Each experiment of benchmarks/work.py runs twice in a process of its own, with a
random Llama of 10 million parameters: cold, with an empty folder of compiled
programs, and warm. Printed are seconds up to the end of the first step, what
the run itself says of them, and programs: asked for, and kept from the cold
run. "evaluate" takes the stages of "quickstart". Python's own bytecode is kept
between both, as after an installation. Seconds mean something only where
nothing else runs.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("sft", "reward", "dpo", "ppo", "grpo", "quickstart", "evaluate")
SIZES = dict(width=384, n_layers=6, head_dim=96, mlp_width=1024)


def get_config(name: str) -> Any:
  """Returns an experiment: this file is what a child reads as --config."""
  sys.path.insert(0, str(Path(__file__).parent))
  import work

  folder = Path(os.environ["FOLDER"])
  files = json.loads((folder / "files.json").read_text())
  if name != "evaluate":
    return work.experiments(files)[name]
  stages = folder / "quickstart_cold"
  config = work.quickstart(files).evaluation
  config.init_from = str(stages / "sft")
  for stage in ("policy", "reward", "gold"):
    config[stage] = str(stages / stage)
  return config


def child(name: str, workdir: str) -> int:
  """Runs an experiment as a command line does; writes what it found."""
  from rlhf_jax import main, startup

  found: dict = {"first": None, "told": ""}
  line, begun = startup.first_step, float(os.environ["BEGUN"])

  def first_step() -> str:
    told = line()
    if told and found["first"] is None:
      found.update(first=time.time() - begun, told=told)
    return told

  startup.first_step = first_step
  argv = ["main", f"--config={__file__}:{name}", f"--workdir={workdir}"]
  code = main.main(argv)
  found["programs"] = [
    [program.name, program.seconds, program.is_kept]
    for program in startup.COMPILES.programs
  ]
  Path(os.environ["FOLDER"], "found.json").write_text(json.dumps(found))
  return code


def run(name: str, folder: Path, workdir: Path, cache: Path) -> dict:
  """Runs a child; returns what it found, and seconds seen from outside.

  Args:
    name: of NAMES.
    folder: of the files.
    workdir: of the run, empty.
    cache: of compiled programs.
  """
  begun = time.time()
  environment = {k: v for k, v in os.environ.items() if "BYTECODE" not in k}
  environment |= {
    "BEGUN": str(begun),
    "FOLDER": str(folder),
    "PYTHONPATH": str(ROOT),
    "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    "RLHF_JAX_CACHE": str(cache),
  }
  command = [sys.executable, __file__, name, f"--child={workdir}"]
  process = subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  told, _ = process.communicate()
  if process.returncode:
    sys.exit(f"{name}: exit code {process.returncode}\n{told}")
  whole = time.time() - begun
  found = json.loads((folder / "found.json").read_text())
  return found | {"whole": whole}


def row(name: str, how: str, found: dict) -> str:
  """Returns a run as a row of the table."""
  kept = sum(is_kept for _, _, is_kept in found["programs"])
  first = "-" if found["first"] is None else f"{found['first']:.1f}"
  told = found["told"].partition(": ")[2]
  return (
    f"| {name} | {how} | {first} | {found['whole']:.1f} | "
    f"{len(found['programs'])} | {kept} | {told} |"
  )


def main() -> int:
  """Prints a table; with --names the programs as well."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("experiments", nargs="*", default=list(NAMES[:5]))
  parser.add_argument("--names", action="store_true", help="say which programs")
  parser.add_argument("--child", help=argparse.SUPPRESS)
  asked = parser.parse_args()
  if asked.child:
    return child(asked.experiments[0], asked.child)
  import work

  print(
    "| run | cache | first step s | whole s | programs | kept"
    " | seconds up to the first step |\n|---|---|---|---|---|---|---|"
  )
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    files = work.make_files(folder / "files", **SIZES)
    (folder / "files.json").write_text(json.dumps(files))
    names = list(asked.experiments)
    if "evaluate" in names:
      names = ["quickstart", *(n for n in names if n != "quickstart")]
    for name in names:
      for how in ("cold", "warm"):
        workdir = folder / f"{name}_{how}"
        found = run(name, folder, workdir, folder / f"cache_{name}")
        print(row(name, how, found), flush=True)
        if asked.names and how == "cold":
          counts = collections.Counter(p[0] for p in found["programs"])
          print(", ".join(f"{n} {k}" for k, n in counts.most_common()))
  return 0


if __name__ == "__main__":
  sys.exit(main())
