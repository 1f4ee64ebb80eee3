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
SECONDS = 120  # on a machine that is busy


# Makes standard input the terminal that Ctrl-C comes from, then talks. A shell
# that started the tests behind it may have made Ctrl-C ignored.
CONTROLLED = (
  "import fcntl, os, signal, sys, termios;"
  "signal.signal(signal.SIGINT, signal.SIG_DFL);"
  "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
  "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
  """A child whose terminal is ours."""

  def __init__(self, *arguments):
    self.seen = ""
    self.file, theirs = pty.openpty()
    module = ["-m", "rlhf_jax.chat", *arguments]
    self.child = subprocess.Popen(
      [sys.executable, "-c", CONTROLLED, *module],
      stdin=theirs,
      stdout=theirs,
      stderr=theirs,
      start_new_session=True,
      env=os.environ | {"TERM": "xterm", "JAX_PLATFORMS": "cpu"},
    )
    os.close(theirs)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.child.kill()
    self.child.wait()
    os.close(self.file)

  def write(self, text):
    os.write(self.file, text.encode())

  def _read(self):
    if select.select([self.file], [], [], 1.0)[0]:
      try:
        self.seen += os.read(self.file, 4096).decode(errors="replace")
      except OSError:  # the other side is closed
        time.sleep(0.1)

  def until(self, text):
    """Reads until a text comes; returns what came up to it."""
    end = time.monotonic() + SECONDS
    while text not in self.seen:
      assert time.monotonic() < end, self.seen
      self._read()
    found, _, self.seen = self.seen.partition(text)
    return found

  def press_until(self, key, text):
    """Presses a key until a text comes: one before input waits may be lost."""
    while text not in self.seen:
      self.write(key)
      for _ in range(5):
        if text not in self.seen:
          self._read()
    self.until(text)

  def code(self):
    """Returns the exit code, after the end."""
    end = time.monotonic() + SECONDS
    while self.child.poll() is None:
      assert time.monotonic() < end, self.seen
      self._read()
    return self.child.returncode


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("terminal") / "model"
  return tiny_runs.make_model(folder, max_length=4096)


def test_a_talk_in_a_terminal(model, tmp_path):
  file = tmp_path / "talks.jsonl"
  # The likeliest tokens are a loop without an end, so there is time to stop it.
  options = f"--save={file}", "--max-new-tokens=3000", "--temperature=0"
  with Terminal(model, *options) as terminal:
    assert "\x1b[2m" in terminal.until("Ctrl-D ends, Ctrl-C stops an answer")
    terminal.until("> ")
    terminal.press_until("\x03", "Ctrl-D ends")  # with nothing to stop
    terminal.until("> ")
    terminal.write("/seed 1\n")
    terminal.until("/seed 1\r\n")
    terminal.until("> ")
    terminal.write("the cat\n")
    terminal.until("the cat\r\n")
    while len(terminal.seen) < 50:  # tokens appear as they are drawn
      terminal._read()
    terminal.write("\x03")
    terminal.until("stopped")
    terminal.until("> ")
    terminal.write("/help\n")
    terminal.until("/quit")
    terminal.until("> ")
    terminal.write("\x04")
    assert terminal.code() == 0
  records = [json.loads(line) for line in file.open()]
  (record,) = records
  asked, answered = record["messages"]
  assert asked == {"role": "user", "content": "the cat"}
  assert 10 <= len(answered["content"]) < 3000  # and not all of it


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
