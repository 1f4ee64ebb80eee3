"""Processes of a sweep: what is repeated, what not, signals, kills, halving.

The trials here are a few lines of Python, told by their settings what to do.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_jax.runs import numbers
from rlhf_jax.schema import UserError
from rlhf_jax.sweeps import halving, processes, running, status, trials

ROOT = Path(__file__).parent.parent.parent
# Takes --config.x=.. and --workdir=..; counts its starts; ends as it is told.
PROGRAM = """
import json, os, pathlib, signal, sys, time
options = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:])
folder = pathlib.Path(options["workdir"])
folder.mkdir(exist_ok=True)
starts = folder / "starts"
count = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(count))
kind = options.get("config.kind", "good")
if kind == "slow" and count == 1:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
  (folder / "ready").touch()
  time.sleep(60)
if kind == "bad" and not pathlib.Path(options["config"]).exists():
  print("error: loss is not finite", file=sys.stderr)
  sys.exit(3)
if kind == "mistake":
  sys.exit(2)
if kind == "killed" and count < 3:
  os.kill(os.getpid(), signal.SIGKILL)
if kind == "always killed":
  os.kill(os.getpid(), signal.SIGKILL)
steps = int(options.get("config.schedule.steps", 8))
loss = float(options.get("config.rate", 1.0)) + 8.0 / steps
row = {"step": steps, "phase": "", "sft/loss": loss}
with (folder / "metrics.jsonl").open("a") as file:
  file.write(json.dumps(row) + chr(10))
(folder / "stage.json").write_text("{}")
"""


@pytest.fixture
def sweep(tmp_path):
  """Returns a function that runs trials with the program above."""
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)

  def run(settings, *, seeds=1, halved=None, signals=None, **plan):
    found = trials.make(settings, 0, seeds)
    how = running.Plan(
      workdir=tmp_path,
      file=str(tmp_path / "mended"),
      program=[sys.executable, "-S", "-E", str(program)],
      **({"jobs": 2} | plan),
    )
    made = running.Sweep(how, found, signals or processes.Signals())
    made.run() if halved is None else made.run_halving(halved)
    return made.states

  run.folder = tmp_path
  return run


def starts(folder):
  """Returns how often each trial was started."""
  paths = sorted(folder.glob("*/starts"))
  return {path.parent.name: int(path.read_text()) for path in paths}


def test_what_is_done_is_not_repeated_and_a_failure_only_when_asked(sweep):
  settings = [{"kind": "good"}, {"kind": "bad"}, {"rate": 2.0}]
  states = sweep(settings)
  assert [s.status for s in states.values()] == ["done", "failed", "done"]
  assert states["002"].code == 3
  sweep(settings)
  assert starts(sweep.folder) == {"001": 1, "002": 1, "003": 1}
  (sweep.folder / "mended").touch()
  assert sweep(settings, retries_failed=True)["002"].status == "done"
  assert starts(sweep.folder) == {"001": 1, "002": 2, "003": 1}


def test_a_mistake_of_the_first_trial_ends_the_sweep_and_a_later_one_not(sweep):
  settings = [{"kind": "mistake"}, {"rate": 2.0}, {"rate": 3.0}]
  states = sweep(settings, jobs=1)
  assert [s.status for s in states.values()] == ["failed", "waiting", "waiting"]
  states = sweep(settings, jobs=1)  # nothing but the mistake is over
  assert [s.status for s in states.values()] == ["failed", "done", "done"]


def test_a_trial_that_somebody_kills_starts_again_but_not_for_ever(sweep):
  states = sweep([{"kind": "killed"}, {"kind": "always killed"}])
  assert states["001"].status == "done" and states["001"].starts == 3
  assert states["002"].status == "stopped" and states["002"].code == -9
  assert states["002"].starts == 1 + running.AGAIN


def test_a_signal_is_passed_on_and_nothing_more_starts(sweep):
  settings = [{"kind": "slow"}, {"kind": "slow", "rate": 2.0}, {"rate": 3.0}]
  ready = [sweep.folder / name / "ready" for name in ("001", "002")]
  before = time.monotonic()
  pid = os.getpid()
  waiter = subprocess.Popen(  # sends it when both trials are at work
    [
      sys.executable,
      "-S",
      "-c",
      "import os, sys, time, pathlib\n"
      "while not all(pathlib.Path(x).exists() for x in sys.argv[2:]):\n"
      "  time.sleep(0.05)\n"
      "os.kill(int(sys.argv[1]), 15)",
      str(pid),
      *map(str, ready),
    ]
  )
  with processes.Signals() as signals:
    states = sweep(settings, signals=signals)
    assert signals.number == signal.SIGTERM
  waiter.wait()
  assert time.monotonic() - before < 30
  found = [(s.status, s.code) for s in states.values()]
  assert found == [("stopped", 75), ("stopped", 75), ("waiting", None)]
  states = sweep(settings)
  assert [s.status for s in states.values()] == ["done"] * 3
  assert starts(sweep.folder) == {"001": 2, "002": 2, "003": 1}


def test_a_process_of_a_killed_sweep_is_waited_for(sweep, capsys):
  sweep([{"rate": 1.0}])
  path = sweep.folder / "001.json"
  left = subprocess.Popen(
    [sys.executable, "-S", "-c", "import time\ntime.sleep(1.5)"]
  )
  state = json.loads(path.read_text())
  state |= {"status": "running", "pid": left.pid}
  path.write_text(json.dumps(state | {"born": processes.born(left.pid)}))
  before = time.monotonic()
  states = sweep([{"rate": 1.0}])
  assert time.monotonic() - before > 1.0
  assert f"waiting for process {left.pid} of before" in capsys.readouterr().out
  assert states["001"].status == "done" and states["001"].starts == 2
  left.wait()
  path.write_text(json.dumps(state | {"born": "1"}))  # another has its number
  assert not processes.is_alive(os.getpid(), "1")
  assert sweep([{"rate": 1.0}])["001"].status == "done"


def test_a_trial_whose_sweep_is_gone_gets_sigterm(tmp_path):
  script = (
    "import sys, time, signal, threading\n"
    "from rlhf_jax.sweeps import trial_process\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    "watch = trial_process.watch\n"
    "threading.Thread(target=watch, args=(1 << 30,), daemon=True).start()\n"
    "time.sleep(60)\n"
  )
  child = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    timeout=30,
  )
  assert child.returncode == 75


def test_halving_keeps_the_best_and_goes_on_after_a_stop(sweep):
  rates = [{"rate": float(x)} for x in (4, 1, 3, 2)]
  how = running.Halving("schedule.steps", (2, 4, 8), 2, "sft/loss", "min")
  states = sweep(rates, halved=how)
  assert {k: (s.status, s.steps) for k, s in states.items()} == {
    "001": ("halved", 2),
    "002": ("done", 8),
    "003": ("halved", 2),
    "004": ("halved", 4),
  }
  assert states["002"].rungs == {"2": 5.0, "4": 3.0, "8": 2.0}
  assert starts(sweep.folder) == {"001": 1, "002": 3, "003": 1, "004": 2}
  path = sweep.folder / "002.json"  # as if it was stopped in the last rung
  state = json.loads(path.read_text())
  del state["rungs"]["8"]
  path.write_text(json.dumps(state | {"status": "stopped"}))
  states = sweep(rates, halved=how)
  assert states["002"].rungs["8"] == 2.0
  assert starts(sweep.folder) == {"001": 1, "002": 4, "003": 1, "004": 2}


def test_halving_by_the_mean_of_seeds_and_never_a_failure(sweep):
  how = running.Halving("schedule.steps", (4, 8), 2, "sft/loss", "min")
  settings = [{"rate": 2.0}, {"rate": 0.0, "kind": "bad"}, {"rate": 1.0}]
  states = sweep(settings, seeds=2, halved=how)
  steps = {key: state.steps for key, state in states.items()}
  assert steps == dict(zip(states, (8, 4, 8, 8, 4, 8), strict=True))


def test_halving_by_a_number_that_no_trial_has_is_refused(sweep):
  how = running.Halving("schedule.steps", (4, 8), 2, "sft/los", "min")
  with pytest.raises(UserError, match="Did you mean 'sft/loss'"):
    sweep([{"rate": 2.0}, {"rate": 1.0}], halved=how)


def test_rungs_and_who_is_kept():
  assert halving.rungs(5, 40, 2) == [5, 10, 20, 40]
  assert halving.rungs(4, 100, 3) == [4, 12, 36, 100]
  scores = {"a": 1.0, "b": None, "c": 3.0, "d": float("nan"), "e": 2.0}
  assert halving.kept(scores, 2, "min") == ["a", "e", "c"]
  assert halving.kept(scores, 3, "max") == ["c", "e"]
  for least, most, eta in ((0, 8, 2), (8, 8, 2), (2, 8, 1)):
    with pytest.raises(UserError):
      halving.rungs(least, most, eta)


def test_numbers_of_a_run_and_what_is_meant_by_them(tmp_path):
  rows = [{"step": i, "phase": "", "sft/loss": 10.0 - i} for i in range(10)]
  rows[3]["sft/loss"] = 0.5
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(lines)
  stage = {"steps": 9, "diagnosis": {"accuracy": 0.75}, "flag": True}
  (tmp_path / "stage.json").write_text(json.dumps(stage))
  found = numbers.numbers(tmp_path)
  assert found == {"sft/loss": 1.0, "steps": 9.0, "diagnosis/accuracy": 0.75}
  for metric, wanted in (
    ("sft/loss", 1.0),
    ("sft/loss:best", 0.5),
    ("sft/loss:mean", 4.85),
    ("sft/loss:tail", 1.0),
    ("diagnosis/accuracy", 0.75),
    ("other", None),
  ):
    assert numbers.value(tmp_path, metric, "min") == pytest.approx(wanted)
  assert numbers.direction("sft/loss:tail") == "min"
  assert numbers.direction("gold_win_rate") == "max"
  assert numbers.direction("policy/rollout/score_mean") == "max"
  assert numbers.direction("heldout/score") == "max"
  assert numbers.direction("heldout/component/helpful") == "max"
  with pytest.raises(UserError, match="Give --best=max or --best=min"):
    numbers.direction("steps")


def test_a_whole_run_has_the_names_of_its_stages(tmp_path):
  (tmp_path / "policy").mkdir()
  row = {"step": 1, "phase": "", "rollout/score_mean": 2.0}
  (tmp_path / "policy" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  (tmp_path / "summary.json").write_text('{"gold_win_rate": 0.5}')
  assert numbers.numbers(tmp_path) == {
    "policy/rollout/score_mean": 2.0,
    "gold_win_rate": 0.5,
  }
  assert numbers.usual(numbers.numbers(tmp_path)) == "gold_win_rate"
  (tmp_path / "evaluation").mkdir()
  (tmp_path / "evaluation" / "evaluation.json").write_text('{"kl_nats": 2}')
  assert "evaluation/kl_nats" not in numbers.numbers(tmp_path)
  (tmp_path / "summary.json").unlink()
  assert numbers.numbers(tmp_path)["evaluation/kl_nats"] == 2.0


def test_the_line_counts_and_tells_how_long(tmp_path):
  class Stream(list):
    write, isatty, flush = list.append, lambda self: False, lambda self: None

  now = [0.0]
  stream = Stream()
  line = status.Status(8, 2, stream, clock=lambda: now[0])
  log = tmp_path / "003.log"
  log.write_text("sft 3/12  25%\nsft 4/12  33%\n")
  line.show({"003": log})
  assert not stream
  line.over()
  now[0] = 10.0
  line.show({"003": log})
  assert stream == ["sweep 3/8  37%  003 4/12  ETA 0:50\n"]
  log.write_text("loading\nerror: it is wrong\nmore\n")
  assert status.reason(log) == "error: it is wrong"
