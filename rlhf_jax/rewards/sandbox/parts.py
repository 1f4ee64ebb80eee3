"""What the processes of an answer do; each in one of its own (server.py).

  answer   runs the policy's code and then does what it is asked (remote.py).
  judge    runs the tests; one line of JSON for each. No object, frame, module
           or output of the policy's code is ever in that process.
  program  runs the policy's code as a script on a given standard input.
  trial    runs the tests of many references against no answer.
  probe    tries what must not succeed, and says what did.

Runs alone, on the standard library.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import traceback
import types

from rlhf_jax.rewards.sandbox import remote, sources

LONGEST_TRIAL_SECONDS = 1.0  # of one test


def _as_script():
  """Gives an answer what Python gives a script: exit(), and no arguments."""
  sys.argv = ["answer.py"]
  for name in ("exit", "quit"):  # of the module site, which is not loaded
    vars(builtins).setdefault(name, sys.exit)


def _module(name):
  """Returns the namespace of a fresh module that Python knows by its name."""
  module = types.ModuleType(name)
  sys.modules[name] = module
  return module.__dict__


def _compiled(source, name):
  return compile(source, name, "exec", dont_inherit=True)


class TooSlow(BaseException):
  """A test takes too long to be tried to its end."""


def _try(source, namespace, seconds):
  """Runs one test; returns "passed", "failed", "slow" or "unsupported"."""
  try:
    if seconds is not None:
      signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    exec(_compiled(source, "<tests>"), namespace)
  except TooSlow:
    return "slow", ""
  except BaseException as error:
    if isinstance(error, remote.UnsupportedTest):
      return "unsupported", str(error)
    return "failed", traceback.format_exception_only(error)[-1].strip()[:200]
  finally:
    if seconds is not None:
      signal.setitimer(signal.ITIMER_REAL, 0)
  return "passed", ""


def run_tests(job, link, report, seconds=None):
  """Runs the setup and each test, and reports (status, detail) of each test.

  A test that decides without the answer is unsupported: one that passes, a
  setup that fails and, in a trial, a test that fails.

  Args:
    job: "setup", "tests", and "names" that the answer has.
    link: remote.Link to it.
    report: what takes a status and a detail.
    seconds: of one test, in a trial.
  """
  namespace = _module("__tests__")
  for name in job["names"]:
    namespace[name] = remote.Remote(link, name)
  for number, source in enumerate([job["setup"], *job["tests"]]):
    status, detail = _try(source, namespace, seconds)
    is_vacuous = status == "passed" if number else status == "failed"
    is_vacuous |= status == "failed" and seconds is not None
    if is_vacuous and link.calls == 0:
      status = "unsupported"
      detail = f"it {detail or 'passed'} without calling the answer"
    if number or status == "unsupported":
      report(status, detail)
    if status == "unsupported":
      return


def judge(job, requests, replies, output):
  """Runs the tests of one answer."""
  link = remote.Link(
    os.fdopen(requests, "wb", buffering=0), os.fdopen(replies, "rb")
  )

  def report(status, detail):
    os.write(output, json.dumps([status, detail]).encode() + b"\n")

  run_tests(job, link, report)
  os._exit(0)  # at once; there is nothing to tidy


def trial(jobs, output):
  """Tries the tests of many references; a line for each, of what is wrong."""

  def stop(*_):
    raise TooSlow

  signal.signal(signal.SIGALRM, stop)
  for job in jobs:
    found = []
    run_tests(
      job,
      remote.Trial(),
      lambda *line, found=found: found.append(line),
      LONGEST_TRIAL_SECONDS,
    )
    wrong = [detail for status, detail in found if status == "unsupported"]
    os.write(output, json.dumps(wrong[:1]).encode() + b"\n")


def serve_answer(job, requests, replies):
  """Runs the answer's code, then does what it is asked until nobody asks."""
  replies = os.fdopen(replies, "wb", buffering=0)
  requests = os.fdopen(requests, "rb")
  _as_script()
  namespace = _module("__answer__")
  source = sources.choose(job["blocks"], job["preamble"], job["names"])
  exec(_compiled(source, "<answer>"), namespace)
  answer = remote.Answer(namespace, job["names"])
  while line := requests.readline():
    reply = answer.reply(json.loads(line))
    replies.write(json.dumps(reply).encode() + b"\n")


def run_program(job):
  """Runs the answer's code as a script, to the end of the process."""
  _as_script()
  source = sources.choose(job["blocks"], job["preamble"], ())
  exec(_compiled(source, "<answer>"), _module("__main__"))


def probe(witness, output):
  """Writes the names of what succeeded though it must not.

  witness: {"path": of a file that must not be read, "pid": of a process}.
  """
  import socket

  def can(act, *arguments):
    try:
      act(*arguments)
    except OSError:
      return False
    return True

  tried = {
    "read a file outside": can(os.open, witness["path"], os.O_RDONLY),
    "write a file outside": can(os.open, witness["path"], os.O_WRONLY),
    "signal another process": can(os.kill, witness["pid"], 0),
    "open a socket": can(socket.socket),
    "start a process": can(_fork_once),
  }
  found = [name for name, succeeded in tried.items() if succeeded]
  os.write(output, json.dumps(found).encode())


def _fork_once():
  pid = os.fork()
  if pid == 0:
    os._exit(0)
  os.waitpid(pid, 0)
