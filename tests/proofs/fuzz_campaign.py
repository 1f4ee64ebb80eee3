"""Hundreds of odd inputs: each run ends with one message, and loses nothing.

    python -m tests.proofs.fuzz_campaign
    python -m tests.proofs.fuzz_campaign --every=40 --only=template

Each case (fuzz_cases.py) runs the command in a process of its own, forked from
one that has imported everything. It fails where the process ends with another
code than 2, prints a traceback, takes more than SECONDS, finishes on damaged
input, or changes a file of a finished stage that it starts from.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.proofs import fuzz_cases
from tests.proofs.fuzz_cases import Case

SECONDS = 60  # of a run
EXPERIMENT = """
from rlhf_jax.pipelines import defaults

def get_config():
  config = defaults.{stage}()
  config.mesh.devices = 1
  config.model.source = "model"
  config.data.update(max_length=32, {data})
  config.schedule.update(batch_size=4, steps=1)
  config.optimizer.update(warmup_steps=0)
  {more}
  return config
"""
DATA = {
  "sft": "source='demos.jsonl', format='demonstration'",
  "reward": "source='pairs.jsonl', format='comparison'",
}


def make_inputs(folder: Path) -> None:
  """Writes a model, records and two experiments; a stage is trained later."""
  process = os.fork()  # a forked process must find no devices in use
  if process == 0:
    from tests.pipelines import wrong_files

    wrong_files._model(folder / "model")
    os._exit(0)
  assert os.waitpid(process, 0)[1] == 0
  (folder / "demos.jsonl").write_text(fuzz_cases.GOOD_LINE * 8)
  pair = '{"prompt": "the cat %d", "chosen": "a dog", "rejected": "a log"}\n'
  (folder / "pairs.jsonl").write_text("".join(pair % i for i in range(12)))
  for stage, data in DATA.items():
    more = "config.init_from = 'start'" if stage == "reward" else "pass"
    text = EXPERIMENT.format(stage=stage, data=data, more=more)
    (folder / f"{stage}.py").write_text(text)


def digest(folder: Path) -> str:
  """Returns a digest of all files of a folder."""
  found = hashlib.sha256()
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      found.update(f"{path.relative_to(folder)} ".encode())
      found.update(path.read_bytes())
  return found.hexdigest()


def _child(case: Case, folder: Path, workdir: str) -> None:
  """Runs the command in a forked process; never returns."""
  os.setsid()
  os.chdir(folder)
  os.environ.update(case.environment)
  output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(output, 1)
  os.dup2(output, 2)
  import jax

  from rlhf_jax import main

  if "JAX_PLATFORMS" in case.environment:  # JAX read it when imported
    jax.config.update("jax_platforms", case.environment["JAX_PLATFORMS"])
  argv = [f"--config={case.stage}.py", f"--workdir={workdir}", *case.options]
  sys.argv = ["main", *argv]
  code = 1
  try:
    code = main.main(sys.argv)
  except SystemExit as ended:
    code = ended.code if isinstance(ended.code, int) else 0
  except BaseException:
    import traceback

    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def run(
  case: Case, folder: Path, workdir: str = "run"
) -> tuple[int | None, str]:
  """Returns (exit code, output) of a case; None as code where it hangs."""
  process = os.fork()
  if process == 0:
    _child(case, folder, workdir)
  ends = time.monotonic() + SECONDS
  while time.monotonic() < ends:
    done, status = os.waitpid(process, os.WNOHANG)
    if done:
      said = (folder / "output").read_text(errors="replace")
      return os.waitstatus_to_exitcode(status), said
    time.sleep(0.05)
  os.killpg(process, signal.SIGKILL)
  os.waitpid(process, 0)
  return None, (folder / "output").read_text(errors="replace")


def complaint(case: Case, folder: Path) -> str:
  """Runs a case in a folder of inputs; returns what is wrong, or ""."""
  case.change(folder)
  start = folder / "start"
  before = digest(start)
  code, said = run(case, folder)
  if code is None:
    return f"hangs: {said[-300:]}"
  if "Traceback" in said or code == 1 or code < 0:
    return f"code {code}: {said[-800:]}"
  if code != case.code:
    return f"code {code}, not {case.code}: {said[-300:]}"
  if code == fuzz_cases.REFUSED and "error: " not in said:
    return f"no message: {said[-300:]}"
  if digest(start) != before:
    return "a finished stage was changed"
  return ""


def campaign(root: Path, every: int = 1, only: str = "") -> dict[str, str]:
  """Runs the cases; returns name -> what is wrong.

  Args:
    root: empty folder.
    every: 1 for all cases, 40 for each fortieth.
    only: of those, cases with this word in their name.
  """
  right = root / "right"
  right.mkdir()
  make_inputs(right)
  code, said = run(Case("start"), right, "start")
  assert code == 0, said
  found, count = {}, 0
  for number, case in enumerate(fuzz_cases.cases()):
    if number % every or only not in case.name:
      continue
    folder = root / "case"
    shutil.copytree(right, folder)
    wrong = complaint(case, folder)
    count += 1
    if wrong:
      found[case.name] = wrong
      print(f"{case.name}: {wrong}", flush=True)
    shutil.rmtree(folder)
  print(f"{count} cases, {len(found)} of them wrong")
  return found


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--only", default="")
  given = parser.parse_args()
  # Imported before the forks; no device is asked for before one.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  import rlhf_jax.main
  import rlhf_jax.pipelines  # noqa: F401

  with tempfile.TemporaryDirectory() as folder:
    os.environ["RLHF_JAX_CACHE"] = f"{folder}/cache"
    return int(bool(campaign(Path(folder), given.every, given.only)))


if __name__ == "__main__":
  sys.exit(main())
