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
