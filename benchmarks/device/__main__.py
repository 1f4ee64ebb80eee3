"""What only an accelerator can tell: limits, platform tests, rates, flags.

    bash benchmarks/device.sh --out=device_results
    bash benchmarks/device.sh --tiny     # on CPU, to see that all of it runs

One GPU or one TPU host, random weights, no downloads but the quickstart's.
Parts, each in a process of its own with a time limit; one that fails or runs
out of time is reported, keeps what it had measured, and stops no other:

  limits      FLOP/s of matrix products and bytes/s of memory: all shares below
              are of these, measured in the same run
  checks      attention's fast program against the plain one, values and
              gradients; donated buffers; a step that is refused
  decode      tokens/s by batch size, and the share of the bandwidth roofline:
              (weights + the cache's slots) / bandwidth over the time of a token
  train       tokens/s of an SFT step, and MFU: 3 forward passes' FLOPs, each
              query meeting each key (recomputation does not count), over the
              time at the measured rate of matrix products
  flags       the step of the largest model again under compiler options
  quickstart  configs/quickstart.py --smoke, all stages

FOLDER/device.json and device.md are written after every part. Times mean
nothing without the device's name, which stands on top.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# part -> most seconds where --seconds is TOTAL; what is left of that is a bound
# as well
PARTS = {
  "limits": 60,
  "checks": 60,
  "decode": 120,
  "train": 110,
  "flags": 90,
  "quickstart": 120,
}
SHARES = ("decode", "train", "flags")  # of what "limits" measures
TOTAL = 450
QUICKSTART = "--config=configs/quickstart.py"


def read_lines(path: Path) -> list[dict]:
  """Returns what a part has noted so far; half a line is left out."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith("\n")]


def run_part(name: str, folder: Path, seconds: float, tiny: bool) -> dict:
  """Runs a part; returns its rows, how it ended, and how long it took.

  Args:
    name: of PARTS.
    folder: where parts leave their lines.
    seconds: after which it is ended.
    tiny: small shapes.
  """
  if seconds < 5:
    return {"status": "no time left", "seconds": 0.0, "rows": []}
  path, log = folder / f"{name}.jsonl", folder / f"{name}.log"
  path.unlink(missing_ok=True)
  command = [sys.executable, "-m", "benchmarks.device.parts", name, str(folder)]
  begun = time.monotonic()
  with log.open("w") as out:
    try:
      code = subprocess.run(
        command + ["--tiny"] * tiny,
        cwd=ROOT,
        stdout=out,
        stderr=subprocess.STDOUT,
        timeout=seconds,
      ).returncode
      status = "done" if code == 0 else f"failed, exit code {code}"
    except subprocess.TimeoutExpired:
      status = f"ended after {seconds:.0f} s"
  found = {
    "status": status,
    "seconds": round(time.monotonic() - begun, 1),
    "rows": read_lines(path),
  }
  if status != "done":
    found["log"] = log.read_text(errors="replace")[-1500:]
  return found


def run_quickstart(seconds: float, tiny: bool) -> dict:
  """Returns how the quickstart went in its shortest form.

  With `tiny`, SFT of a tiny model stands for it: nothing is fetched.
  """
  if seconds < 5:
    return {"status": "no time left", "seconds": 0.0, "rows": []}
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "rlhf_jax.main", "--smoke"]
    command += [f"--workdir={folder}/run"]
    if tiny:
      from benchmarks import work

      files = work.make_files(Path(folder) / "files")
      command += [
        "--config=configs/sft.py",
        "--config.data.format=demonstration",
      ]
      command += [f"--config.model.source={files['model']}"]
      command += ["--config.data.chat=False"]
      command += [f"--config.data.source={files['demonstrations']}"]
    else:
      command += [QUICKSTART]
    try:
      done = subprocess.run(
        command,
        cwd=ROOT,
        timeout=seconds,
        capture_output=True,
        text=True,
        errors="replace",
      )
      output, code = done.stdout + done.stderr, done.returncode
      status = "done" if code == 0 else f"failed, exit code {code}"
      if code == 2 and "asset" in output:
        status = "skipped: its model or data cannot be fetched here"
    except subprocess.TimeoutExpired as error:
      output, status = str(error), f"ended after {seconds:.0f} s"
  taken = round(time.monotonic() - begun, 1)
  found = {"status": status, "seconds": taken, "rows": []}
  if status == "done":
    found["rows"] = [{"what": "seconds, all stages", "value": taken}]
  else:
    found["log"] = output[-1500:]
  return found


def markdown(results: dict) -> str:
  """Returns the results as tables, one a part."""
  facts = results.get("environment", {})
  lines = [f"# {facts.get('device', 'no device was seen')}", ""]
  lines += [f"- {name}: {value}" for name, value in facts.items()]
  for name, part in results["parts"].items():
    lines += ["", f"## {name}: {part['status']}, {part['seconds']} s", ""]
    rows = part["rows"]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    if rows:
      lines.append("| " + " | ".join(heads) + " |")
      lines.append("|" + "---|" * len(heads))
    lines += [
      "| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |"
      for row in rows
    ]
  return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
  text = f"{value:,.3g}" if isinstance(value, float) else str(value)
  if isinstance(value, float) and abs(value) >= 1000:
    text = f"{value:,.0f}"
  return text.replace("|", "/").replace("\n", " ")


def main() -> int:
  """Returns 1 where a part failed, 0 else; runs all parts in any case."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", default="device_results", help="a folder")
  parser.add_argument("--tiny", action="store_true", help="small shapes")
  parser.add_argument("--only", default="", help="parts, commas between")
  parser.add_argument("--seconds", type=float, default=TOTAL, help="at most")
  asked = parser.parse_args()
  names = asked.only.split(",") if asked.only else list(PARTS)
  unknown = set(names) - set(PARTS)
  if unknown:
    parser.error(f"--only={asked.only}: parts are {', '.join(PARTS)}.")
  if set(names) & set(SHARES) and "limits" not in names:
    names.insert(0, "limits")
  folder = Path(asked.out).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  results: dict = {"environment": {}, "is_tiny": asked.tiny, "parts": {}}
  end = time.monotonic() + asked.seconds
  for name in names:
    most = PARTS[name] * asked.seconds / TOTAL
    seconds = min(most, end - time.monotonic())
    if name == "quickstart":
      part = run_quickstart(seconds, asked.tiny)
    else:
      part = run_part(name, folder, seconds, asked.tiny)
    results["parts"][name] = part
    seen = folder / "environment.json"
    if seen.exists():
      results["environment"] = json.loads(seen.read_text())
    (folder / "device.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "device.md").write_text(markdown(results))
    print(f"{name}: {part['status']}, {part['seconds']} s", flush=True)
  print(f"\n{markdown(results)}\n{json.dumps(results)}")
  statuses = [part["status"] for part in results["parts"].values()]
  return int(any(s != "done" and "skipped" not in s for s in statuses))


if __name__ == "__main__":
  os.chdir(ROOT)
  sys.exit(main())
