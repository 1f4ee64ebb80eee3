"""The progress line tells the truth; numbers and tables are as people read."""

import io
import math

import pytest

from rlhf_jax import output, terminal


class Clock:
  """Seconds that move when told."""

  def __init__(self) -> None:
    self.now = 100.0

  def __call__(self) -> float:
    return self.now


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def test_progress_line_on_a_terminal():
  clock, stream = Clock(), Terminal()
  progress = terminal.Progress("ppo", 24, stream=stream, clock=clock)
  clock.now += 60.0  # the first update compiles
  progress.update(1)
  assert stream.getvalue() == "\rppo 1/24  4%\x1b[K"
  clock.now += 11 * 7.1
  progress.update(12, score=0.81, kl=5.2)
  assert stream.getvalue().endswith(
    "\rppo 12/24  50%  7.1 s/step  ETA 1:25  score +0.81  kl 5.2\x1b[K"
  )
  clock.now += 0.01  # too soon to be drawn, but shown at the end
  progress.update(13, score=-1.0, lr="1e-6")
  assert stream.getvalue().count("\r") == 2
  progress.close()
  assert stream.getvalue().endswith("score -1  lr 1e-6\x1b[K\n")


def test_progress_in_a_log_prints_every_few_seconds():
  clock, stream = Clock(), io.StringIO()
  with terminal.Progress("sft", 100, stream=stream, clock=clock) as progress:
    for n in range(1, 101):
      clock.now += 1.0
      progress.update(n)
  lines = stream.getvalue().splitlines()
  assert lines[:2] == ["sft 0/100  compiling the first step", "sft 1/100  1%"]
  assert lines[2].startswith("sft 9/100  9%  1 s/step  ETA 1:31")
  assert len(lines) == 15  # the start, seconds 1, 9, ... 97 and the end
  assert lines[-1] == "sft 100/100  100%  1 s/step  ETA 0:00"
  assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_slow_step_is_said_before_a_run_says_that_it_is_still_at_it():
  clock, stream = Clock(), io.StringIO()
  with terminal.Progress("ppo", 9, stream=stream, clock=clock) as progress:
    for n in range(1, 10):
      clock.now += 5.0
      progress.update(n)
  assert len(stream.getvalue().splitlines()) == 10
  assert terminal.LOG_SECONDS < output.SILENT_SECONDS


def test_the_pace_leaves_compilation_out():
  clock, stream = Clock(), io.StringIO()
  progress = terminal.Progress("ppo", 1000, 900, stream, clock=clock, window=4)
  clock.now += 50.0  # the first step compiles
  progress.update(901)
  assert stream.getvalue() == "ppo 901/1000  90%\n"
  for n in range(902, 907):
    clock.now += 2.0 + 30.0 * (n == 904)  # rows of another length compile
    progress.update(n)
  progress.close()
  last = stream.getvalue().splitlines()[-1]
  assert last.startswith("ppo 906/1000  90%  2 s/step  ETA 3:08")


def test_a_progress_line_of_what_is_done_says_nothing():
  stream = io.StringIO()
  with terminal.Progress("ppo", 3, 3, stream):
    pass
  assert stream.getvalue() == ""
  stream, clock = io.StringIO(), Clock()
  progress = terminal.Progress("rows", 9, 0, stream, unit="row", clock=clock)
  for n in (3, 9):
    clock.now += 1.5
    progress.update(n)
  progress.close()
  assert stream.getvalue().endswith("rows 9/9  100%  0.25 s/row  ETA 0:00\n")
  with pytest.raises(ValueError, match="initial=3, total=2"):
    terminal.Progress("ppo", 2, 3)


def test_what_rounds_to_zero_has_no_sign():
  assert [terminal.decimal(x) for x in (-0.0, -0.004, -0.006, 2.345)] == [
    "0.00",
    "0.00",
    "-0.01",
    "2.35",
  ]
  assert terminal.decimal(-1e-9, 1, sign=True) == "+0.0"
  assert terminal.decimal(math.nan) == "nan"
  assert terminal.short(-0.0) == "0" and terminal.short(-0.0, sign=True) == "+0"


def test_the_speed_of_sampling_is_written_out():
  assert terminal.short(12345.6) == "12,346"
  assert terminal.short(math.nan) == "nan"
  assert terminal.short(-1000.2, sign=True) == "-1,000"
  assert [terminal.short(x) for x in (999.4, 27.25, 3e6)] == [
    "999",
    "27.2",
    "3e+06",
  ]


def test_format_table_aligns():
  table = terminal.format_table(
    ["method", "score", "n"], [["ppo", 0.123456, 10], ["best-of-n", -2.0, 5]]
  )
  assert table.splitlines() == [
    "method      score   n",
    "---------  ------  --",
    "ppo        0.1235  10",
    "best-of-n      -2   5",
  ]
  assert terminal.format_table(["a"], []) == "a\n-"
  with pytest.raises(ValueError, match="1 cells for 2 headers"):
    terminal.format_table(["a", "b"], [[1]])


def test_format_seconds():
  values = [terminal.format_seconds(s) for s in (0.4, 59.6, 85.2, 3600, 36061)]
  assert values == ["0:00", "1:00", "1:25", "1:00:00", "10:01:01"]
