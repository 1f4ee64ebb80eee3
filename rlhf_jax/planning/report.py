"""A configuration on a slice: memory, work and time of every program.

Peak memory of a program = what the phase keeps resident + the program's other
inputs + temporaries + results. Two times bound a step from the peak rates in
topology.py: all of compute, HBM and interconnect overlapped, or none.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import resource
import time
from typing import Any

import jax

from rlhf_jax import pipelines, schema
from rlhf_jax.models import quantised
from rlhf_jax.planning import compiled
from rlhf_jax.planning import topology as topology_lib
from rlhf_jax.programs import abstract
from rlhf_jax.programs.program import Phase, Program
from rlhf_jax.programs.world import Planned
from rlhf_jax.schema import UserError

Devices = int | list[Any]  # how many there are, or those to compile for


@dataclasses.dataclass(frozen=True)
class Line:
  """One program; bytes and FLOPs are those of one device.

  weights: trained and frozen, resident; optimizer: its state, resident.
  inputs: other arguments. cache: keys and values, part of inputs or outputs.
  read: of all arguments, by shape, one that is handed over twice counted
    twice; arguments: the same by the compiler, with the padding of its layouts
    and without what it drops.
  idle: resident, but not read by this program.
  sent: kind of collective -> bytes; "estimate" where nothing was compiled.
  calls: kind -> how many; asynchronous, hidden: of them all, and of the bytes,
    what has a start and a done, between which the device may compute.
  flops: counted from the model, spread evenly over the devices.
  hlo_flops: of the compiled program's matrix products, or None.
  compute, traffic, network: seconds at the peak rates.
  overflow: the compiler's refusal, or "".
  """

  phase: str
  program: str
  is_in_step: bool
  weights: int
  optimizer: int
  inputs: int
  temporaries: float
  cache: float
  outputs: int
  read: int
  arguments: int
  idle: int
  flops: float
  hlo_flops: float | None
  sent: dict[str, float]
  calls: dict[str, float]
  asynchronous: float
  hidden: float
  compute: float
  traffic: float
  network: float
  is_compiled: bool
  overflow: str
  compile_seconds: float
  unknown_loops: int

  @property
  def peak(self) -> float:
    """Returns the bytes that the device must hold."""
    return (
      self.weights
      + self.optimizer
      + self.inputs
      + max(self.arguments - self.read, 0)
      + self.temporaries
      + self.outputs
    )

  @property
  def overlapped(self) -> float:
    """Returns seconds when everything overlaps."""
    return max(self.compute, self.traffic, self.network)

  @property
  def serial(self) -> float:
    """Returns seconds when nothing overlaps."""
    return self.compute + self.traffic + self.network


@dataclasses.dataclass(frozen=True)
class Offload:
  """Bytes that rest on hosts (programs/offload.py).

  host: on one host. to_device, to_host: that a device is sent, and sends, in a
    step.
  """

  host: int
  to_device: int
  to_host: int


@dataclasses.dataclass(frozen=True)
class Report:
  """The whole plan.

  limit: bytes that a device may use. meshes, notes: phase -> text.
  host: bytes a host needs while it reads the weights.
  offload: what rests on hosts between the phases that read it.
  parameters: of the model.
  seconds, peak_bytes: that planning took, on this machine.
  """

  topology: topology_lib.Topology
  is_compiled: bool
  limit: int
  lines: tuple[Line, ...]
  meshes: dict[str, dict[str, int]]
  notes: dict[str, tuple[str, ...]]
  parameters: int
  host: int
  seconds: float
  peak_bytes: int
  offload: Offload = Offload(0, 0, 0)

  @property
  def too_large(self) -> list[Line]:
    """Returns the programs that do not fit."""
    return [
      line for line in self.lines if line.overflow or line.peak > self.limit
    ]

  @property
  def is_host_too_small(self) -> bool:
    """Says whether one host cannot hold what it reads."""
    most = max(self.host, self.offload.host)
    return most > self.topology.chip.host * 2**30


def phases(config: Any, devices: Devices) -> list[Phase]:
  """Returns the phases of an experiment.

  Args:
    config: an experiment.
    devices: a list to compile for, or how many there are.

  Raises:
    UserError: a value that cannot be right.
  """
  job = pipelines.read(config)
  with schema.located(job.first.prefix):
    world = Planned.on(job.first.settings.mesh, devices)
  return job.phases(world)


def make(
  config: Any,
  topology: topology_lib.Topology,
  *,
  compiles: bool,
  only: str = "",
  progress: Any = None,
) -> Report:
  """Returns the plan of a configuration on a slice.

  Args:
    config: an experiment.
    topology: the slice.
    compiles: whether to compile every program for it.
    only: name of the one phase wanted, or "" for all.
    progress: called with a sentence before each program, or None.

  Raises:
    UserError: a value that cannot be right.
  """
  begun = time.perf_counter()
  devices = (
    topology_lib.compile_devices(topology) if compiles else topology.devices
  )
  found = phases(config, devices)
  chosen = [phase for phase in found if only in ("", phase.name)]
  if not chosen:
    known = ", ".join(phase.name for phase in found)
    raise UserError(f"--phase={only}: no such phase. Known: {known}.")
  lines: list[Line] = []
  for phase in chosen:
    lines += _lines(phase, topology, compiles, progress)
  parameters, host = _host(chosen, topology)
  parked = _offloaded(chosen, topology)
  return Report(
    topology=topology,
    is_compiled=compiles,
    limit=topology.device_bytes,
    lines=tuple(lines),
    meshes={phase.name: dict(phase.mesh.shape) for phase in chosen},
    notes={p.name: tuple(p.world.notes) for p in chosen},
    parameters=parameters,
    host=host,
    offload=parked,
    seconds=time.perf_counter() - begun,
    peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  )


def _host(
  found: list[Phase], topology: topology_lib.Topology
) -> tuple[int, int]:
  """Returns the parameters of the model, and bytes to read it on a host.

  Each weight in turn is read as float32, only the pieces of the host's own
  devices (models/stored.py); a GGUF file is read whole.
  """
  phase = max(found, key=lambda phase: phase.model.n_layers)
  parameters = sum(
    math.prod(weight.shape)
    for weight in jax.tree.leaves(phase.base.params, is_leaf=_is_weight)
  )
  leaves = jax.tree.leaves(phase.base.params)
  sizes = [math.prod(leaf.shape) for leaf in leaves]
  if phase.is_read_whole:
    return parameters, 4 * sum(sizes) * (2 if phase.model.scan_layers else 1)
  chip = topology.chip
  devices = min(chip.chips_per_host, topology.chips) * chip.devices_per_chip
  pieces = [
    min(size, devices * math.prod(leaf.sharding.shard_shape(leaf.shape)))
    for size, leaf in zip(sizes, leaves, strict=True)
  ]
  return parameters, 4 * max(pieces)


def _is_weight(node: Any) -> bool:
  """Says whether a node is one matrix, of few bits or not (its scales none)."""
  return isinstance(node, quantised.Quantised)


def _lines(
  phase: Phase,
  topology: topology_lib.Topology,
  compiles: bool,
  progress: Any,
) -> list[Line]:
  resident = {
    id(leaf)
    for leaf in jax.tree.leaves((phase.trained, phase.frozen, phase.optimizer))
  }
  flow: dict[str, Any] = {}
  lines = []
  for program in phase.programs:
    if progress is not None:
      progress(f"{phase.name}: {program.name}")
    args, _ = program.arguments(flow)
    leaves = jax.tree.leaves(args)
    others = [x for x in leaves if id(x) not in resident]
    used = [x for x in leaves if id(x) in resident]
    here = functools.partial(_without, away=phase.away.get(program.name, ()))
    weights = abstract.bytes_of(here((phase.trained, phase.frozen)))
    state = abstract.bytes_of(here(phase.optimizer))
    found, result = compiled.measure(phase, program, flow, compiles=compiles)
    if program.result:
      flow[program.result] = result
    lines.append(
      _line(
        phase,
        program,
        found,
        topology,
        dict(
          weights=weights,
          optimizer=state,
          inputs=abstract.bytes_of(others),
          read=abstract.bytes_handed(args),
          idle=weights + state - abstract.bytes_of(used),
        ),
      )
    )
  return lines


def _without(trees: Any, away: tuple) -> list[Any]:
  """Returns the leaves that are not away."""
  gone = {id(leaf) for leaf in away}
  return [x for x in jax.tree.leaves(trees) if id(x) not in gone]


def _offloaded(found: list[Phase], topology: topology_lib.Topology) -> Offload:
  """Returns what leaves the devices, of the phase that puts most on a host."""
  chip = topology.chip
  devices = min(chip.chips_per_host, topology.chips) * chip.devices_per_chip
  most = Offload(0, 0, 0)
  for phase in found:
    parked = abstract.bytes_of(list(phase.away.values()))
    frozen = {id(x) for x in jax.tree.leaves(phase.frozen)}
    moved = [
      x
      for x in jax.tree.leaves(list(phase.away.values()))
      if id(x) not in frozen
    ]
    one = Offload(parked * devices, parked, abstract.bytes_of(moved))
    most = max(most, one, key=lambda x: x.host)
  return most


def _line(
  phase: Phase,
  program: Program,
  found: compiled.Found,
  topology: topology_lib.Topology,
  resident: dict[str, int],
) -> Line:
  work, counts, chip = program.work(), found.counts, topology.chip
  flops = work.flops / phase.mesh.size
  if counts is None:
    sent, calls = {"estimate": work.sent}, {}
  else:
    sent, calls = dict(counts.sent), dict(counts.calls)
  share = chip.devices_per_chip
  return Line(
    phase=phase.name,
    program=program.name,
    is_in_step=not phase.step or program.name in phase.step,
    **resident,
    temporaries=found.temporaries,
    cache=work.cache,
    outputs=found.outputs,
    arguments=found.arguments,
    flops=flops,
    hlo_flops=None if counts is None else counts.flops,
    sent=sent,
    calls=calls,
    asynchronous=0.0 if counts is None else counts.asynchronous,
    hidden=0.0 if counts is None else counts.hidden,
    compute=flops * share / chip.flops,
    traffic=work.traffic * share / chip.bandwidth,
    network=sum(sent.values()) * share / chip.ici,
    is_compiled=counts is not None,
    overflow=found.overflow,
    compile_seconds=found.seconds,
    unknown_loops=0 if counts is None else counts.loops,
  )
