"""A plan as text for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from rlhf_jax.planning.report import Line, Report

_GIB = 2**30
_MIB = 2**20
LEGEND = (
  "params: all roles, trained and frozen; activ.: activations, gradients and\n"
  "gathered weights; KV: keys and values, part of inputs or outputs"
)


def render(report: Report) -> str:
  """Returns the tables of a plan, at most 80 columns wide."""
  parts = [_heading(report)]
  for phase, mesh in report.meshes.items():
    lines = [line for line in report.lines if line.phase == phase]
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.items())
    parts.append(f"\n{phase}, mesh {shape}")
    parts += [
      textwrap.fill(note, 78, initial_indent="  ", subsequent_indent="  ")
      for note in report.notes[phase]
    ]
    parts += [_memory(lines, report), _work(lines)]
  parts.append(_host(report))
  parts.append(
    f"\nplanning took {report.seconds:.0f} s and "
    f"{report.peak_bytes / _GIB:.1f} GiB of host memory"
  )
  return "\n".join(parts)


def _heading(report: Report) -> str:
  topology, chip = report.topology, report.topology.chip
  how = (
    "COMPILED for this slice; nothing ran"
    if report.is_compiled
    else "ANALYTIC estimate: nothing was compiled (params and optimizer are "
    "exact,\nthe rest is by formula)"
  )
  rates = (
    f"a chip: {chip.hbm:.0f} GiB HBM, {chip.flops / 1e12:.0f} "
    f"TFLOP/s bf16, HBM {chip.bandwidth / 1e9:.0f} GB/s, ICI sends "
    f"{chip.ici / 1e9:.0f} GB/s\n(peaks, cloud.google.com/tpu/docs; "
    "times below assume them)"
  )
  if chip.generation == "cpu":
    rates = "simulated CPU devices: capacity and rates are made up"
  return (
    f"{topology.name} ({topology.chips} chips, Cloud's {topology.cloud_name}), "
    f"model of {report.parameters / 1e9:.3g} billion parameters\n"
    f"{how}\n{rates}\n{LEGEND}"
  )


def _memory(lines: list[Line], report: Report) -> str:
  rows = [
    f"  GiB a device  {'params':>8}{'optimizer':>10}{'inputs':>8}"
    f"{'activ.':>8}{'outputs':>8}{'peak':>8}  of {report.limit / _GIB:.2f}"
  ]
  for line in lines:
    fits = not line.overflow and line.peak <= report.limit
    verdict = f"{line.peak / report.limit:>4.0%}" if fits else "DOES NOT FIT"
    cells = (
      (line.weights, 8),
      (line.optimizer, 10),
      (line.inputs, 8),
      (line.temporaries, 8),
      (line.outputs, 8),
      (line.peak, 8),
    )
    numbers = "".join(f"{size / _GIB:>{width}.2f}" for size, width in cells)
    cache = f"  KV {line.cache / _GIB:.2f}" if line.cache else ""
    rows.append(f"  {line.program:<14}{numbers}  {verdict}{cache}")
    if line.overflow:
      rows.append(f"    compiler: {line.overflow}")
  return "\n".join(rows)


def _work(lines: list[Line]) -> str:
  rows = [
    f"  {'a call':<14}{'TFLOP':>9}{'compute':>10}{'HBM':>10}{'ICI':>10}"
    f"{'best':>10}{'serial':>10}"
  ]
  for line in lines:
    seconds = "".join(
      f"{_seconds(value):>10}"
      for value in (
        line.compute,
        line.traffic,
        line.network,
        line.overlapped,
        line.serial,
      )
    )
    rows.append(f"  {line.program:<14}{line.flops / 1e12:>9.2f}{seconds}")
    rows += [_sent(line), _repeated(line)]
  step = [line for line in lines if line.is_in_step]
  best = sum(line.overlapped for line in step)
  serial = sum(line.serial for line in step)
  rows.append(
    f"  one step ({', '.join(line.program for line in step)}):\n"
    f"    {_seconds(best)} if all overlaps, {_seconds(serial)} if nothing does"
  )
  return "\n".join(filter(None, rows))


def _sent(line: Line) -> str:
  """Returns what a device sends in one call, by kind; "" for nothing."""
  kinds = [
    f"{kind} {size / _MIB:.0f} MiB"
    + (f" in {line.calls[kind]:.0f}" if kind in line.calls else "")
    for kind, size in sorted(line.sent.items(), key=lambda item: -item[1])
    if size >= 0.5 * _MIB
  ]
  if not kinds:
    return ""
  count = sum(line.calls.values())
  if count:
    kinds.append(
      f"{line.asynchronous:.0f} of {count:.0f} calls asynchronous "
      f"({line.hidden / _MIB:.0f} MiB)"
    )
  return textwrap.fill(
    f"sends {', '.join(kinds)}",
    width=80,
    initial_indent="    ",
    subsequent_indent="      ",
  )


def _repeated(line: Line) -> str:
  """Returns a warning where devices do one another's work again."""
  if not line.hlo_flops or not line.flops or line.hlo_flops < 1.3 * line.flops:
    return ""
  return (
    f"    the compiled program multiplies {line.hlo_flops / line.flops:.1f} "
    "times what the model needs"
  )


def _seconds(value: float) -> str:
  if value >= 1.0:
    return f"{value:.2f} s"
  return f"{value * 1e3:.1f} ms" if value >= 1e-4 else "0"


def _host(report: Report) -> str:
  chip = report.topology.chip
  verdict = "DOES NOT FIT" if report.is_host_too_small else "fits"
  parked = report.offload
  text = f"{report.host / _GIB:.1f} GiB while it reads the weights"
  if parked.host:
    text += (
      f", {parked.host / _GIB:.1f} GiB of offloaded trees\n  (each device is "
      f"sent {parked.to_device / _GIB:.2f} GiB a step and sends "
      f"{parked.to_host / _GIB:.2f} GiB)"
    )
  return f"\nhost: {text}, of {chip.host:.0f}: {verdict}"


def as_json(report: Report) -> dict[str, Any]:
  """Returns the plan as plain data; bytes, FLOPs and seconds a device."""
  plain = dataclasses.asdict(report)
  plain["topology"] = report.topology.name
  plain["lines"] = [
    dataclasses.asdict(line)
    | {
      "peak": line.peak,
      "fits": not line.overflow and line.peak <= report.limit,
    }
    for line in report.lines
  ]
  plain["fits"] = not report.too_large and not report.is_host_too_small
  return plain
