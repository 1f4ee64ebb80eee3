"""What a run does before its first step is done: seconds, compiled programs.

JAX tells listeners of every program that it compiles, or finds in the folder of
those that an earlier process compiled (main.set_up_jax), and of its tracing and
lowering before that.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_KEPT = "/jax/compilation_cache/cache_hits"  # comes before the one it is about
_PARTS = "/jax/core/compile/"  # tracing, lowering, compiling


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that XLA was asked for.

  name: of the function, such as jit(update).
  seconds: of compiling, or of reading what was compiled before.
  is_kept: whether an earlier process compiled it.
  """

  name: str
  seconds: float
  is_kept: bool


class Compiles:
  """The programs that this process compiles from now on, in their order."""

  def __init__(self) -> None:
    self.programs: list[Compiled] = []
    self._spans: list[tuple[float, float]] = []  # apart from each other
    self._is_kept = False
    jax.monitoring.register_event_listener(self._note)
    jax.monitoring.register_event_time_span_listener(self._add)

  @property
  def seconds(self) -> float:
    """Of tracing, lowering and compiling; what overlaps counts once."""
    return sum(end - begin for begin, end in self._spans)

  @property
  def count(self) -> int:
    """How many programs."""
    return len(self.programs)

  def _note(self, event: str, **_: Any) -> None:
    self._is_kept |= event == _KEPT

  def _add(self, event: str, begin: float, end: float, **facts: Any) -> None:
    if not event.startswith(_PARTS):
      return
    while self._spans and self._spans[-1][0] >= begin:  # inside this one
      self._spans.pop()
    self._spans.append((begin, end))
    if event == _COMPILED:
      name = str(facts.get("fun_name", "?"))
      self.programs.append(Compiled(name, end - begin, self._is_kept))
      self._is_kept = False


COMPILES = Compiles()
_open: Stage | None = None  # whose first step is not done yet


class Stage:
  """A stopwatch from the begin of a stage to the end of its first step."""

  def __init__(self, imports_seconds: float = 0.0) -> None:
    """Begins.

    Args:
      imports_seconds: that the process took before; 0 in later stages.
    """
    self._imports_seconds = imports_seconds
    self._begun = self._now()
    self._loaded: tuple[float, float, int] | None = None

  @staticmethod
  def _now() -> tuple[float, float, int]:
    """Returns seconds, those of them that compiled, and programs."""
    return time.perf_counter(), COMPILES.seconds, COMPILES.count

  @property
  def is_loaded(self) -> bool:
    """Whether its first step has begun."""
    return self._loaded is not None

  def load(self) -> None:
    """Notes that loading is done and the first step begins."""
    if self._loaded is None:
      self._loaded = self._now()

  def describe(self) -> str:
    """Returns what took how long up to the first step, now, for people."""
    begin, end = self._begun, self._now()
    loaded = end if self._loaded is None else self._loaded
    step_compiling = end[1] - loaded[1]
    parts = {
      "imports": self._imports_seconds,
      "loading": loaded[0] - begin[0] - (loaded[1] - begin[1]),
      "compiling": end[1] - begin[1],
      "the step": end[0] - loaded[0] - step_compiling,
    }
    programs = COMPILES.programs[begin[2] : end[2]]
    kept = sum(program.is_kept for program in programs)
    notes = {"compiling": f" ({len(programs)} programs, {kept} of them kept)"}
    told = [
      f"{name} {seconds:.1f}{notes.get(name, '')}"
      for name, seconds in parts.items()
      if name != "imports" or seconds
    ]
    total = sum(parts.values())
    return f"first step after {total:.1f} s: {', '.join(told)}"


def begin(imports_seconds: float = 0.0) -> None:
  """Begins a stage, unless one is under way that is still loading.

  Args:
    imports_seconds: see Stage; of the first stage of a process.
  """
  global _open
  if _open is None or _open.is_loaded or imports_seconds:
    _open = Stage(imports_seconds)


def loaded() -> None:
  """Notes that the first step begins, if it is the stage's first."""
  if _open is not None:
    _open.load()


def first_step() -> str:
  """Returns what took how long up to now; "" after a stage's first step."""
  global _open
  if _open is None:
    return ""
  done, _open = _open, None
  return done.describe()
