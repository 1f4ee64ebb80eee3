"""The first signal asks, the second Ctrl-C quits, handlers come back."""

import os
import signal
import sys
import threading
import time

import pytest

from rlhf_jax import interrupt, output


def send(number: int) -> None:
  os.kill(os.getpid(), number)


@pytest.mark.parametrize(
  "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
)
def test_first_signal_only_asks(number, capsys, terminal):
  with interrupt.Interrupt() as stop:
    assert not stop.requested and not stop.should_stop(3)
    send(number)
    assert stop.requested and stop.should_stop(4)
    assert stop.signal == number
  name = signal.Signals(number).name
  assert capsys.readouterr().err == (
    f"{name}: saving a checkpoint after this step; "
    "repeat Ctrl-C to quit at once\n"
  )


def test_second_ctrl_c_quits_at_once():
  with pytest.raises(KeyboardInterrupt), interrupt.Interrupt():
    send(signal.SIGINT)
    send(signal.SIGINT)


def test_a_step_that_waits_for_people_ends_at_once():
  with interrupt.Interrupt() as stop:
    for number in (signal.SIGINT, signal.SIGTERM):
      with pytest.raises(KeyboardInterrupt), interrupt.at_once():
        send(number)
    assert not stop.requested
    send(signal.SIGTERM)
    assert stop.requested


def test_ctrl_c_after_sigterm_quits_but_a_second_sigterm_waits(capsys):
  with interrupt.Interrupt() as stop:
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)
  assert capsys.readouterr().err.count("\n") == 1


def test_handlers_are_restored_even_after_an_error():
  def mine(*_):
    pass

  # A job in the background of a shell is born with SIGINT ignored.
  ctrl_c = signal.getsignal(signal.SIGINT)
  before = signal.signal(signal.SIGTERM, mine)
  try:
    with pytest.raises(RuntimeError), interrupt.Interrupt():
      assert signal.getsignal(signal.SIGTERM) is not mine
      raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is ctrl_c
  finally:
    signal.signal(signal.SIGTERM, before)


def test_other_threads_are_left_alone():
  seen = []

  def work():
    with interrupt.Interrupt() as stop:
      seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(False, before)]


def test_stopped_tells_step_and_signal():
  stopped = interrupt.Stopped(step=7, signal=signal.SIGTERM)
  assert (stopped.step, stopped.signal) == (7, 15)
  assert "after step 7" in str(stopped)
  assert output.EXIT_INTERRUPTED == 75


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with interrupt.Interrupt() as stop:
      send(signal.SIGHUP)
      assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_once_the_save_is_whole_nothing_changes_the_end():
  """In a process of our own; a notebook gets its Ctrl-C back."""
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}
  try:
    for handler in (interrupt._terminate, signal.default_int_handler):
      for number in numbers:
        signal.signal(number, handler)
      with interrupt.Interrupt() as stop:
        send(signal.SIGINT)
        stop.saved()
        for number in (*numbers, signal.SIGINT):
          send(number)
      is_own = handler is interrupt._terminate
      kept = signal.SIG_IGN if is_own else handler
      assert {signal.getsignal(number) for number in numbers} == {kept}
    for number in numbers:
      signal.signal(number, interrupt._terminate)
    interrupt.settle()
    for number in numbers:
      send(number)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def test_a_signal_inside_a_finaliser_ends_the_process_all_the_same(
  monkeypatch, capsys
):
  """Python drops what a handler raises there; the process must still end."""
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}

  class Finalised:
    def __del__(self):
      send(signal.SIGTERM)
      for _ in range(3):  # where Python looks for signals
        pass

  hook = interrupt._asked_again(sys.__unraisablehook__)
  monkeypatch.setattr(sys, "unraisablehook", hook)
  try:
    for number in numbers:
      signal.signal(number, interrupt._terminate)
    finalised, began = Finalised(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
      del finalised
      time.sleep(60.0)
    assert time.monotonic() - began < 30.0  # the wait was cut short
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert capsys.readouterr().err == ""
