"""Programs compiled for a topology: the compiler's word on memory and traffic.

Nothing runs. That a program compiles proves that it can be partitioned and
that its own memory fits; it proves no number and no speed.
"""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax

from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.planning import hlo
from rlhf_jax.programs import abstract
from rlhf_jax.programs.program import Flow, Phase, Program
from rlhf_jax.types import PyTree

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)")
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)")


@dataclasses.dataclass(frozen=True)
class Found:
  """What is known of one call of one program, on one device.

  arguments: bytes, an array that is handed over twice counted twice.
  temporaries, outputs: bytes; outputs without those that reuse a donated
    argument's.
  counts: collectives and FLOPs, from the HLO; None where not compiled.
  overflow: the compiler's sentence when it refused for want of memory.
  seconds: that compiling took.
  """

  arguments: int
  temporaries: float
  outputs: int
  counts: hlo.Counts | None = None
  overflow: str = ""
  seconds: float = 0.0


def measure(
  phase: Phase, program: Program, flow: Flow, *, compiles: bool
) -> tuple[Found, PyTree]:
  """Returns what is known of a program, and its abstract result.

  Args:
    phase: it belongs to.
    program: the program.
    flow: results of earlier programs.
    compiles: whether to compile; else temporaries are an estimate.
  """
  args, kwargs = program.arguments(flow)
  if not compiles:
    return _estimate(phase, program, args, kwargs)
  begun = time.perf_counter()
  with mesh_lib.current(phase.mesh):
    lowered = program.function.lower(*args, **kwargs)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found, result = _estimate(phase, program, args, kwargs)
    return dataclasses.replace(
      found,
      temporaries=max(found.temporaries, _required(str(error), found)),
      overflow=_sentence(str(error)),
      seconds=time.perf_counter() - begun,
    ), result
  memory = compiled.memory_analysis()
  counts = hlo.count(compiled.as_text(), phase.mesh.size, program.trips)
  result = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    lowered.out_info,
    compiled.output_shardings,
  )
  return Found(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    counts=counts,
    seconds=time.perf_counter() - begun,
  ), result


def _estimate(
  phase: Phase, program: Program, args: tuple, kwargs: dict[str, Any]
) -> tuple[Found, PyTree]:
  result = None if program.known is None else program.known()
  if result is None:
    # Its own method: a function that names compiler options is refused inside
    # another transformation, jax.eval_shape's too.
    shapes = program.function.eval_shape(*args, **kwargs)
    result = abstract.guessed(phase.mesh, shapes, program.rows)
  passed_on = {id(leaf) for leaf in jax.tree.leaves(args)}
  new = [x for x in jax.tree.leaves(result) if id(x) not in passed_on]
  outputs = 0 if program.donates is not None else abstract.bytes_of(new)
  return Found(
    arguments=abstract.bytes_handed(args),
    temporaries=program.work().temporaries,
    outputs=outputs,
  ), result


def _sentence(text: str) -> str:
  """Returns the line of a compiler's complaint that has the numbers."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  for line in lines:
    if _USED.search(line) or "exceeds" in line or "xceeded" in line:
      return line[:300]
  return lines[0][:300]


def _required(text: str, found: Found) -> float:
  """Returns temporary bytes that the compiler asked for, 0 if it is mute."""
  alone = _TEMPORARIES.search(text)
  if alone is not None:
    return float(alone[1]) * _UNITS[alone[2]]
  used = _USED.search(text)
  if used is None:
    return 0.0
  return float(used[1]) * _UNITS[used[2]] - found.arguments
