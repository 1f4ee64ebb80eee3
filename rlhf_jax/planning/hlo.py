"""What a compiled program sends and multiplies, read from its HLO text.

A loop's body stands in the text once; here it counts as often as it runs.
The compiler notes how often (known_trip_count) for loops of fixed length; for
others the caller says it.

Bytes sent by one device, for ring algorithms on a group of n devices:

  all-gather       result (n - 1) / n        collective-permute   result
  reduce-scatter   result (n - 1)            all-to-all    result (n - 1) / n
  all-reduce       2 result (n - 1) / n

A collective is asynchronous where it has a start and a done, between which
the device may compute. On TPU both are fusions, and so is what computes in
between and moves the collective on; each of them names the collective, which
is counted at its start.

Multiply-adds of dots and convolutions count as two FLOPs. Custom kernels are
not seen.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_LISTS = re.compile(r"\b(?:branch_computations|called_computations)=\{(.*?)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_NAMES = re.compile(r"%([\w.\-]+)")
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
_CARRIES_ON = "async_collective_fusion"


@dataclasses.dataclass
class Counts:
  """Of one program on one device.

  calls, sent: kind of collective -> how often, and bytes sent.
  asynchronous, hidden: of them, how often and bytes, those with a start and a
    done.
  flops: of dots and convolutions.
  loops: lengths assumed for loops whose length the text does not give.
  """

  calls: dict[str, float] = dataclasses.field(
    default_factory=lambda: defaultdict(float)
  )
  sent: dict[str, float] = dataclasses.field(
    default_factory=lambda: defaultdict(float)
  )
  asynchronous: float = 0.0
  hidden: float = 0.0
  flops: float = 0.0
  loops: int = 0


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes


def count(text: str, devices: int, trips: int = 1) -> Counts:
  """Returns what a program sends and multiplies.

  Args:
    text: HLO of a compiled program, `compiled.as_text()`.
    devices: how many run it; the group of a collective that names none.
    trips: of each loop whose length the text does not give.
  """
  computations, entry = _read(text)
  totals, found = defaultdict(float), Counts()
  _visit(entry, 1.0, computations, totals, found, trips)
  for name, times in totals.items():
    body = computations[name]
    types = {i.name: i.type for i in body}
    is_start = any(_START in i.rest for i in body)
    goes_on = name.startswith(_CARRIES_ON) or any(_DONE in i.rest for i in body)
    for instruction in body:
      if instruction.opcode.removesuffix("-start") not in KINDS:
        _add_flops(found, instruction, types, times)
      elif is_start or not goes_on:
        _add_sent(found, instruction, times, devices, is_start=is_start)
  return found


def _read(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Returns the instructions of each computation, and the entry's name."""
  computations: dict[str, list[_Instruction]] = {}
  entry = name = ""
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header is not None:
      name = header[2]
      computations[name] = []
      entry = name if header[1] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match is None or not name:
      continue
    opcode = _OPCODE.search(" " + match[2])
    if opcode is not None:
      body = " " + match[2]
      computations[name].append(
        _Instruction(
          match[1], body[: opcode.start()], opcode[1], body[opcode.end() :]
        )
      )
  return computations, entry


def _visit(
  name: str,
  times: float,
  computations: dict[str, list[_Instruction]],
  totals: dict[str, float],
  found: Counts,
  trips: int,
) -> None:
  """Adds how often a computation and those it calls run."""
  totals[name] += times
  for instruction in computations[name]:
    inner = times
    if instruction.opcode == "while":
      length = _loop_length(instruction, computations)
      if length is None:
        length = trips
        found.loops += 1
      inner = times * length
    for called in _called(instruction.rest):
      if called in computations:
        _visit(called, inner, computations, totals, found, trips)


def _loop_length(
  loop: _Instruction, computations: dict[str, list[_Instruction]]
) -> int | None:
  """Returns how often a loop runs, or None if the text does not tell.

  Besides the compiler's note: a condition that does nothing but compare the
  counter with one constant.
  """
  noted = _TRIPS.search(loop.rest)
  if noted is not None:
    return int(noted[1])
  condition = _CONDITION.search(loop.rest)
  if condition is None or condition[1] not in computations:
    return None
  body = computations[condition[1]]
  constants = [
    re.match(r"(\d+)\)", i.rest)
    for i in body
    if i.opcode == "constant" and i.type.strip().startswith("s32[]")
  ]
  compares = [i for i in body if i.opcode in ("compare", "fusion")]
  others = {i.opcode for i in body} - {
    "constant",
    "compare",
    "fusion",
    "parameter",
    "get-tuple-element",
    "copy",
  }
  if len(constants) == 1 == len(compares) and not others and constants[0]:
    return int(constants[0][1])
  return None


def _called(rest: str) -> Iterator[str]:
  yield from _CALLED.findall(rest)
  for names in _LISTS.findall(rest):
    yield from (name.strip().lstrip("%") for name in names.split(","))


def _shapes(text: str) -> list[tuple[int, list[int]]]:
  """Returns (bytes, dimensions) of each array of a type."""
  found = []
  for dtype, sizes in _SHAPE.findall(text):
    dimensions = [int(size) for size in sizes.split(",") if size]
    found.append((_size(dtype) * math.prod(dimensions), dimensions))
  return found


def _size(dtype: str) -> int:
  if dtype == "pred":
    return 1
  bits = int(re.search(r"\d+", dtype)[0])
  return max(1, bits // 8)


def _add_sent(
  found: Counts,
  instruction: _Instruction,
  times: float,
  devices: int,
  *,
  is_start: bool,
) -> None:
  """Adds one collective that runs so many times."""
  kind = instruction.opcode.removesuffix("-start")
  size = _group_size(instruction.rest, devices, kind)
  if size == 1:
    return
  sent = times * _sent(instruction, kind, size)
  found.calls[kind] += times
  found.sent[kind] += sent
  if is_start or instruction.opcode.endswith("-start"):
    found.asynchronous += times
    found.hidden += sent


def _add_flops(
  found: Counts,
  instruction: _Instruction,
  types: dict[str, str],
  times: float,
) -> None:
  """Adds one instruction that runs so many times."""
  if instruction.opcode in ("dot", "convolution"):
    found.flops += times * _flops(instruction, types)


def _group_size(rest: str, devices: int, kind: str) -> int:
  if kind == "collective-permute":
    return 2
  listed = _GROUPS.search(rest)
  if listed is not None:
    return len(listed[1].split(","))
  counted = _IOTA_GROUPS.search(rest)
  return devices if counted is None else int(counted[2])


def _sent(instruction: _Instruction, kind: str, size: int) -> float:
  """Returns the bytes that one device sends for one collective."""
  sizes = [bytes_ for bytes_, _ in _shapes(instruction.type)]
  is_start = instruction.opcode.endswith("-start")
  if is_start and kind in ("all-gather", "collective-permute"):
    result = max(sizes)  # the type lists operands beside results
  else:
    result = sum(sizes)
  factor = {
    "all-gather": (size - 1) / size,
    "all-reduce": 2 * (size - 1) / size,
    "reduce-scatter": size - 1,
    "all-to-all": (size - 1) / size,
    "collective-permute": 1.0,
  }[kind]
  return result * factor


def _flops(instruction: _Instruction, types: dict[str, str]) -> float:
  """Returns the FLOPs of a dot or a convolution."""
  output = _shapes(instruction.type)[0][1]
  operands, _, _ = instruction.rest.partition(")")
  found = [dimensions for _, dimensions in _shapes(operands)]
  if not found:
    names = _NAMES.findall(operands)
    found = [_shapes(types[name])[0][1] for name in names[:2]]
  if instruction.opcode == "dot":
    contracted = _CONTRACTING.search(instruction.rest)
    axes = [int(a) for a in contracted[1].split(",") if a] if contracted else []
    return 2.0 * math.prod(output) * math.prod(found[0][a] for a in axes)
  return _convolution_flops(instruction.rest, *found[:2], output)


def _convolution_flops(
  rest: str, image: list[int], kernel: list[int], output: list[int]
) -> float:
  """Returns FLOPs that meet neither padding nor the holes of a dilation.

  The TPU compiler writes a batched matrix product as a convolution whose
  window slides over the batch and meets one element at each place.
  """
  labels = _LABELS.search(rest)
  sides = [
    dict(zip(names, sizes, strict=True))
    for names, sizes in zip(
      labels.groups(), (image, kernel, output), strict=True
    )
  ]
  image_of, kernel_of, output_of = sides
  total = 2.0 * output_of["b"] * output_of["f"] * kernel_of["i"]
  spatial = [name for name in labels[3] if name.isdigit()]
  for axis, name in enumerate(sorted(spatial, key=int)):
    window = [
      _window(rest, field, axis, default)
      for field, default in (
        ("stride", "1"),
        ("pad", "0_0"),
        ("lhs_dilate", "1"),
        ("rhs_dilate", "1"),
      )
    ]
    total *= _meetings(
      image_of[name],
      kernel_of[name],
      output_of[name],
      stride=int(window[0]),
      before=int(window[1].partition("_")[0]),
      image_step=int(window[2]),
      kernel_step=int(window[3]),
    )
  return total


def _window(rest: str, field: str, axis: int, default: str) -> str:
  """Returns one axis of a field of window={size=3x5 stride=2x4 ...}."""
  window = re.search(r"window=\{([^}]*)\}", rest)
  found = re.search(rf"\b{field}=(\S+)", window[1]) if window else None
  return found[1].split("x")[axis] if found else default


@functools.lru_cache(maxsize=4096)
def _meetings(
  image: int,
  kernel: int,
  output: int,
  *,
  stride: int,
  before: int,
  image_step: int,
  kernel_step: int,
) -> int:
  """Returns how many (output, kernel) places meet an element of the image."""
  place = np.arange(output)[:, None] * stride - before
  place = place + np.arange(kernel)[None, :] * kernel_step
  inside = (place >= 0) & (place < (image - 1) * image_step + 1)
  return int(np.sum(inside & (place % image_step == 0)))
