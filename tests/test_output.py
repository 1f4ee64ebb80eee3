"""Output that nobody reads never costs anything."""

import os
import subprocess
import sys

import pytest

from rlhf_jax import output


def test_output_that_nobody_reads_is_dropped():
  reader, writer = os.pipe()
  with os.fdopen(writer, "w") as stream:
    heedless = output.Heedless(stream)
    assert heedless.fileno() == writer and not heedless.isatty()
    print("one", file=heedless, flush=True)
    assert os.read(reader, 9) == b"one\n"
    os.close(reader)
    for _ in range(3):
      print("two", file=heedless, flush=True)
    heedless.write("x" * 10**6)
  # its end does not raise either


PRINTS = """
import sys
from rlhf_jax import output
output.prepare()
output.prepare()
for _ in range(9):
  print("x" * 10000)
  print("y", file=sys.stderr, flush=True)
sys.stdout.flush()
sys.exit(3)
"""


@pytest.mark.parametrize(
  "shell", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", "| true"]
)
def test_a_process_ends_with_its_own_code_whoever_reads(shell):
  """Closed before it began, full, or a pipe that ends early."""
  done = subprocess.run(
    ["bash", "-c", f'"$0" -c "$1" {shell}; exit ${{PIPESTATUS[0]}}']
    + [sys.executable, PRINTS],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 3
  assert "Error" not in done.stderr


def test_a_list_of_commands_may_be_cut_short():
  done = subprocess.run(
    ["bash", "-c", f"{sys.executable} -u -m rlhf_jax | head -1"],
    capture_output=True,
    text=True,
  )
  assert done.stdout.startswith("rlhf_jax: ") and not done.stderr


COMMAND = """
import os, signal
from rlhf_jax import output
signal.signal(signal.SIGINT, signal.default_int_handler)  # if born to ignore it
def main(number):
  os.kill(os.getpid(), number)
  return 3
output.run_command(main, signal.SIGINT)
"""


def test_ctrl_c_before_a_command_handles_it_ends_in_one_line():
  done = subprocess.run(
    [sys.executable, "-c", COMMAND], capture_output=True, text=True
  )
  assert done.returncode == output.EXIT_INTERRUPTED == 75
  assert done.stderr == "\nstopped. The same command begins again.\n"


def test_a_silence_is_told_in_time_and_a_log_less_often():
  def told(is_terminal, seconds):
    silence = output.Silence(is_terminal)
    lines = (silence.line(float(t), 5.0, "reading x") for t in range(seconds))
    return [t for t, line in enumerate(lines) if line]

  assert told(True, 42) == [14, 23, 32, 41]
  assert told(False, 310) == [*range(14, 123, 9), 182, 242, 302]
  line = output.Silence(False).line(30.0, 10.0, "\r\x1b[Ksft 0/9  compiling\n")
  assert line == "... still at it, 20 s after: sft 0/9 compiling"
  line = output.Silence(False).line(30.0, 10.0, f"SIGINT: {'saving ' * 20}")
  assert line.startswith("... still at it, 20 s after: SIGINT: saving ")
  assert line.endswith("saving ...") and len(line) < 100


SILENT = """
import sys, time
from rlhf_jax import output
output.prepare()
output.SILENT_SECONDS = 0.2
with output.never_silent():
  print("compiling", flush=True)
  time.sleep(0.7)
  print("done", file=sys.stderr, flush=True)
print("end", flush=True)
time.sleep(0.5)
"""


def test_a_run_is_never_silent_and_a_finished_one_is():
  done = subprocess.run(
    [sys.executable, "-c", SILENT], capture_output=True, text=True, check=True
  )
  first, *told, last = done.stdout.splitlines()
  assert (first, last) == ("compiling", "end")
  assert 2 <= len(told) <= 3 and all("after: compiling" in x for x in told)
  assert done.stderr == "done\n"


def test_a_line_of_a_terminal_is_replaced():
  primary, secondary = os.openpty()
  with os.fdopen(secondary, "w") as stream:
    heedless = output.Heedless(stream)
    heedless.remind("... still at it")
    heedless.write("next")
    heedless.write(" word")
    stream.flush()
    said = ""
    while "word" not in said:  # a terminal gives what it has
      said += os.read(primary, 99).decode()
  os.close(primary)
  assert said == f"{output.CLEAR}... still at it{output.CLEAR}next word"
