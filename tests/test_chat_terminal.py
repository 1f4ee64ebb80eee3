"""A chat in a real terminal: typed lines, Ctrl-C, Ctrl-D; and in a pipe."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from tests.pipelines import tiny_runs

pytestmark = pytest.mark.slow
SECONDS = 240  # on a machine that is busy


class Terminal:
  """A child whose terminal is ours."""

  def __init__(self, *arguments):
    self.seen = ""
    self.pid, self.file = pty.fork()
    if self.pid == 0:
      os.environ |= {"TERM": "xterm", "JAX_PLATFORMS": "cpu"}
      command = [sys.executable, "-m", "rlhf_jax.chat", *arguments]
      os.execv(sys.executable, command)

  def write(self, text):
    os.write(self.file, text.encode())

  def until(self, text):
    """Reads until a text comes; returns what came up to it."""
    end = time.monotonic() + SECONDS
    while text not in self.seen:
      assert time.monotonic() < end, self.seen
      if select.select([self.file], [], [], 1.0)[0]:
        self.seen += os.read(self.file, 4096).decode(errors="replace")
    found, _, self.seen = self.seen.partition(text)
    return found

  def code(self):
    """Returns the exit code, after the end."""
    while True:
      try:
        if not os.read(self.file, 4096):
          break
      except OSError:  # the other side is closed
        break
    _, status = os.waitpid(self.pid, 0)
    os.close(self.file)
    return os.waitstatus_to_exitcode(status)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("terminal") / "model"
  return tiny_runs.make_model(folder, max_length=4096)


def test_a_talk_in_a_terminal(model, tmp_path):
  file = tmp_path / "talks.jsonl"
  terminal = Terminal(model, f"--save={file}", "--max-new-tokens=3000")
  assert "\x1b[2m" in terminal.until("Ctrl-D ends, Ctrl-C stops an answer")
  terminal.until("> ")
  terminal.write("\x03")  # Ctrl-C with nothing to stop
  terminal.until("Ctrl-D ends")
  terminal.until("> ")
  terminal.write("/seed 1\nthe cat\n")
  terminal.until("the cat\r\n")
  time.sleep(3.0)  # it may end by itself, or be stopped
  terminal.write("\x03")
  terminal.until("> ")
  terminal.write("/help\n")
  terminal.until("/better")
  terminal.write("\x04")
  assert terminal.code() == 0
  records = [json.loads(line) for line in file.open()]
  assert len(records) <= 1  # an answer that was stopped at once is none
  for record in records:
    assert record["messages"][0] == {"role": "user", "content": "the cat"}


def test_a_talk_in_a_pipe(model):
  command = [sys.executable, "-m", "rlhf_jax.chat", model, model]
  done = subprocess.run(
    [*command[:-1], "--max-new-tokens=6", "--temperature=0"],
    input="the cat\na\nthe cat\n",
    capture_output=True,
    text=True,
    timeout=SECONDS,
    check=True,
  )
  assert "\x1b" not in done.stdout + done.stderr
  assert "reading the model" in done.stderr
  assert "reading the model" not in done.stdout
  lines = done.stdout.splitlines()
  assert len(lines) == 3 and lines[0] == lines[2]
