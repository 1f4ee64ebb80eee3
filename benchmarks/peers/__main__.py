"""Our default settings beside a peer's, on the same weights and records.

    bash benchmarks/peers/make_environment.sh trl peers_trl
    python -m benchmarks.peers sft --peer=peers_trl/bin/python

    bash benchmarks/peers/make_environment.sh trl peers_ppo 1.12
    bash benchmarks/peers/make_environment.sh tunix peers_tunix
    python -m benchmarks.peers all --peer=peers_trl/bin/python \\
        --ppo-peer=peers_ppo/bin/python --tunix-peer=peers_tunix/bin/python \\
        --repeats=3 --output=peers.json

Each side runs in a process of its own, ours and theirs by turns; the first
steps, which compile and load, are left out. Printed are medians over the runs
of the mean CPU seconds of a step (all threads) and of its wall time, their
range, the time to the first step (nothing compiled is kept from before), CPU
seconds of the whole process, peak memory, and the ratio peer / ours: above 1
means that we are faster. Both sides compute in float32 (but for the variant
bfloat16). "mark" is a number that is the same on both sides where the work is:
the loss of the first step (sft, reward), the log-probability of its preferred
answers (dpo), or the tokens that a step samples, which are random. --output
holds everything after each run; what fails is named, and the rest goes on.
Nothing else should run on the machine. --shape=tiny --steps=2 --repeats=1 tries
all commands.

What is not the same:
- dpo: a step of ours leaves the reference out, which was computed before, as
  that of "precomputed" does; "usual" and Tunix compute it in every step.
  dpo_epoch is one pass over the records: compare its whole processes.
- sft: rows of TRL's "packed" hold several records, so that a step of it has
  about as many tokens as ours, but of others, and its loss is not compared.
- grpo, tunix_grpo: all update once a rollout, on everything, and hold the
  policy to a reference. Where a word ends an answer that is not the
  tokenizer's own end, TRL trains on the padding behind it too; it computes no
  more by that.
- ppo: all go twice over the rollout in two minibatches. TRL has 1.12 as its
  last version with PPO.
- ppo_lora: factors of rank 16 on all linear maps of the layers, of the policy
  and of the critic; TRL by PEFT. Ours hold one base, TRL one each.
- tunix_ppo: the reward is a function, and all update twice on everything.
- Tunix leaves it to its user how wide a row is: as the longest record here.
  It computes logits of whole prompts, and always waits for the longest answer.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import clock, files
from benchmarks.peers.comparisons import (
  COMPARISONS,
  FLAGS,
  SIDES,
  Comparison,
)

ROOT = Path(__file__).resolve().parent.parent.parent


class SideFailed(Exception):
  """A side ended with an error, or not in time."""


def summary(
  found: dict, skipped: int, is_sampled: bool = False
) -> dict[str, float]:
  """Returns the mean step after the first ones, of one run.

  Args:
    found: what a Clock wrote.
    skipped: steps that are left out.
    is_sampled: the mark is the mean of those steps, not that of the first.
  """
  steps, marks, last = found["steps"], found["marks"], len(found["steps"]) - 1
  (wall, cpu), (end_wall, end_cpu) = steps[skipped - 1], steps[-1]
  count = last - (skipped - 1)
  if is_sampled:
    mark = statistics.mean(marks[skipped:])
  else:
    mark = marks[0] if marks else float("nan")
  return {
    "cpu": (end_cpu - cpu) / count,
    "wall": (end_wall - wall) / count,
    "first": steps[0][0],
    "whole": end_cpu,
    "peak": found["peak_mib"],
    "mark": mark,
  }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
  """Returns the median of each number, and the range of cpu as a share."""
  middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
  cpu = [run["cpu"] for run in runs]
  return middle | {"spread": (max(cpu) - min(cpu)) / middle["cpu"]}


def table(sides: dict[str, dict[str, float]], ours: list[str]) -> str:
  """Returns a markdown table; ratios are to our first variant.

  Args:
    sides: name -> medians.
    ours: which of the names are ours, the first one that of the defaults.
  """
  base = sides[ours[0]]
  lines = [
    "| side | CPU s a step | spread | wall s | first step s | whole CPU s | "
    "peak MiB | mark | CPU / ours | wall / ours | whole / ours |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {name} | {row['cpu']:.3f} | {row['spread']:.0%} | {row['wall']:.3f} | "
    f"{row['first']:.1f} | {row['whole']:.1f} | {row['peak']:,.0f} | "
    f"{row['mark']:.6g} | {row['cpu'] / base['cpu']:.2f} | "
    f"{row['wall'] / base['wall']:.2f} | {row['whole'] / base['whole']:.2f} |"
    for name, row in sides.items()
  ]
  return "\n".join(lines)


def unlike(sides: dict[str, dict[str, float]], sampled: int = 0) -> list[str]:
  """Returns which sides did other work than our first one, in words.

  Args:
    sides: name -> medians, ours first.
    sampled: steps whose mean number of tokens is the mark; a step's deviates by
      a tenth, so two means by 0.14 / sqrt(steps), of which three are allowed.
      0 where the mark is the same but for rounding.
  """
  base = next(iter(sides.values()))["mark"]
  allowed = 0.42 / sampled**0.5 if sampled else 1e-3
  return [
    f"{name}: mark {row['mark']:.6g} is not {base:.6g}: not the same work"
    for name, row in sides.items()
    if not abs(row["mark"] - base) <= allowed * abs(base)
    and "packed" not in name
  ]


def run(python: str, module: str, arguments: list[str], minutes: float) -> None:
  """Runs one side, with no compiled program kept from before.

  Raises:
    SideFailed: with the end of what it wrote.
  """
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
  environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  environment["RLHF_JAX_CACHE"] = f"{arguments[2]}_cache"
  side = [python, str(ROOT / f"benchmarks/peers/{module}.py"), *arguments]
  try:
    done = subprocess.run(
      side,
      env=environment,
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=60 * minutes,
    )
  except subprocess.TimeoutExpired as error:
    raise SideFailed(f"not done after {minutes:g} minutes") from error
  if done.returncode:
    raise SideFailed(f"{' '.join(side)}:\n{done.stderr[-3000:]}")


class Progress:
  """Says what is done of all runs, and about how long the rest takes."""

  def __init__(self, total: int) -> None:
    self.total, self.done, self.begin = total, 0, time.monotonic()

  def say(self, text: str) -> None:
    """Prints the end of one run."""
    self.done += 1
    minutes = (time.monotonic() - self.begin) / 60
    left = minutes / self.done * (self.total - self.done)
    print(
      f"[{self.done}/{self.total}, {minutes:.1f} min, about {left:.0f} left] "
      f"{text}",
      flush=True,
    )


def prepare(comparison: Comparison, folder: Path, steps: int) -> None:
  """Writes what both sides read."""
  sampled = comparison.work in ("generate", "ppo", "judged_ppo")
  rows = clock.ANSWERS if sampled else clock.BATCH
  files.write(folder, comparison.shape, steps * rows)


def sides_of(
  comparison: Comparison, peer: str
) -> list[tuple[str, str, str, str]]:
  """Returns (name, Python, module, variant) of each side, in turns."""
  module = SIDES[comparison.peer]
  found = [(f"ours {v}", sys.executable, "ours", v) for v in comparison.ours]
  return found + [(f"theirs {v}", peer, module, v) for v in comparison.theirs]


def compare(
  name: str, comparison: Comparison, peer: str, asked, progress, keep
) -> dict:
  """Returns {side: medians}, what failed, and the versions.

  Args:
    name: of the comparison.
    comparison: what is run.
    peer: Python of the peer's environment.
    asked: the command's arguments.
    progress: a Progress.
    keep: called with the result so far after each run.
  """
  steps = asked.steps if asked.steps else comparison.steps
  skipped = min(comparison.skipped, steps - 1)
  runs: dict[str, list] = {}
  found = {"comparison": name, "sides": {}, "failed": {}, "versions": {}}
  found["versions"]["python"] = platform.python_version()
  found["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
  found |= {"repeats": asked.repeats, "steps": steps, "skipped": skipped}
  with tempfile.TemporaryDirectory() as temporary:
    folder, times = Path(temporary) / "files", Path(temporary) / "times.json"
    prepare(comparison, folder, steps)
    if comparison.work == "ppo":  # the reward model of our side
      stage = [str(folder), str(folder / "reward"), str(times), "defaults", "1"]
      run(sys.executable, "ours", ["reward", *stage], asked.minutes)
    for number in range(asked.repeats):
      for side, python, module, variant in sides_of(comparison, peer):
        if side in found["failed"]:
          progress.say(f"{name}, {side}: left out")
          continue
        workdir = Path(temporary) / f"{side.replace(' ', '_')}_{number}"
        arguments = [comparison.work, folder, workdir, times, variant, steps]
        try:
          run(python, module, [str(x) for x in arguments], asked.minutes)
        except SideFailed as error:
          found["failed"][side] = str(error)
          progress.say(f"{name}, {side}: failed: {error}")
          continue
        wrote = json.loads(times.read_text())
        found["versions"] |= wrote["versions"]
        row = summary(wrote, skipped, comparison.is_sampled)
        runs.setdefault(side, []).append(row)
        found["sides"] = {side: medians(rows) for side, rows in runs.items()}
        keep(found | {"runs": runs})
        progress.say(
          f"{name}, {side}, {number + 1} of {asked.repeats}: "
          f"{row['cpu']:.3f} CPU s a step, {row['wall']:.3f} s, "
          f"mark {row['mark']:.6g}"
        )
  return found | {"runs": runs}


def arguments() -> argparse.ArgumentParser:
  """Returns the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "comparison", help=f"all, or of {', '.join(COMPARISONS)}; commas between"
  )
  parser.add_argument("--peer", default="", help="Python that has TRL")
  parser.add_argument("--ppo-peer", default="", help="Python that has TRL 1.12")
  parser.add_argument("--tunix-peer", default="", help="Python that has Tunix")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--steps", type=int, default=0, help="of a run; 0: usual")
  parser.add_argument(
    "--shape", choices=list(files.SHAPES), help="of all models"
  )
  parser.add_argument("--output", default="", help="file of JSON; grows")
  parser.add_argument("--minutes", type=float, default=15.0, help="of one side")
  return parser


def chosen(asked, parser) -> list[str]:
  """Returns the comparisons that are asked for and have their peer.

  Raises:
    SystemExit: a name that there is not, or no peer.
  """
  peers = {"trl": asked.peer, "ppo": asked.ppo_peer, "tunix": asked.tunix_peer}
  is_all = asked.comparison == "all"
  names = list(COMPARISONS) if is_all else asked.comparison.split(",")
  for name in names:
    if name not in COMPARISONS:
      parser.error(f"{name!r}: must be all, or of {', '.join(COMPARISONS)}.")
  if asked.repeats < 1 or asked.steps == 1 or asked.steps < 0:
    parser.error(
      f"--repeats={asked.repeats} --steps={asked.steps}: at least 1 run of 2 "
      "steps, as the first one compiles; --steps=0 for the usual number."
    )
  for kind, python in peers.items():
    is_wanted = any(COMPARISONS[name].peer == kind for name in names)
    if python and not Path(python).is_file():
      parser.error(
        f"{FLAGS[kind]}={python}: no such file. Make the environment with "
        "'bash benchmarks/peers/make_environment.sh', and name "
        "FOLDER/bin/python."
      )
    if is_wanted and not python and not is_all:
      parser.error(f"{FLAGS[kind]}=PYTHON is wanted for {asked.comparison}.")
  left = [name for name in names if not peers[COMPARISONS[name].peer]]
  if left:
    print(f"left out, as their peer is not named: {', '.join(left)}")
  return [name for name in names if name not in left]


def main() -> int:
  """Prints a table of each comparison; returns 1 where something failed."""
  parser = arguments()
  asked = parser.parse_args()
  names = chosen(asked, parser)
  output = Path(asked.output) if asked.output else None
  stored = json.loads(output.read_text()) if output and output.exists() else {}
  peers = {"trl": asked.peer, "ppo": asked.ppo_peer, "tunix": asked.tunix_peer}
  made = {name: COMPARISONS[name] for name in names}
  if asked.shape:
    made = {
      name: dataclasses.replace(one, shape=asked.shape)
      for name, one in made.items()
    }
  sides = sum(len(one.ours) + len(one.theirs) for one in made.values())
  progress, has_failed = Progress(sides * asked.repeats), False

  def keep(name: str, found: dict) -> None:
    stored[name] = found
    if output:
      output.write_text(json.dumps(stored, indent=1) + "\n")

  for name, one in made.items():
    try:
      found = compare(
        name,
        one,
        peers[one.peer],
        asked,
        progress,
        lambda found, name=name: keep(name, found),
      )
    except SideFailed as error:
      found = {"sides": {}, "failed": {"what both read": str(error)}}
      print(f"{name} failed: {error}", flush=True)
    keep(name, found)
    has_failed |= bool(found["failed"])
    ours = [side for side in found["sides"] if side.startswith("ours")]
    if ours:
      lines = [f"\n{name}", table(found["sides"], ours)]
      counted = found["steps"] - found["skipped"] if one.is_sampled else 0
      lines += unlike(found["sides"], counted)
      print("\n".join(lines) + "\n", flush=True)
  if not output:
    print(json.dumps(stored))
  return 1 if has_failed else 0


if __name__ == "__main__":
  sys.exit(main())
