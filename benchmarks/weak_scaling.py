"""Bytes a chip sends in one step as a slice grows, the batch a chip fixed.

    python benchmarks/weak_scaling.py --model=llama3_8b \\
        --topologies=v5p:2x2x1,v5p:2x2x4,v5p:4x4x4

Programs are compiled for each slice (libtpu is needed, a TPU is not) and the
collectives are read from their HLO. Where bytes a chip stay flat the step
time does too, as far as the interconnect decides it. With --analytic the
numbers are estimates by formula.

MFU is what the model needs (3 forward passes; recomputation is not counted)
over the time at peak rates: if the interconnect hides behind compute, if it
does not, and if besides each collective has the links of one dimension of the
torus only, which is so for a line of chips. Nothing ran: an upper bound.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rlhf_jax import plan  # noqa: E402  (after the path is set)

MIB = 2**20
HEAD = (
  "| slice | data x fsdp x tensor | peak GiB | TFLOP | sent MiB | of it "
  "| asynchronous | compute ms | ICI ms | MFU |\n"
  "|---|---|---|---|---|---|---|---|---|---|"
)


def make_config(arguments: argparse.Namespace, devices: int) -> Any:
  """Returns SFT of a shape with a batch that grows with the devices."""
  from rlhf_jax.pipelines import defaults

  config = defaults.sft()
  config.model.update(
    source=f"shape:{arguments.model}",
    dtype="bfloat16",
    scan_layers=True,
    remat=True,
  )
  config.data.max_length = arguments.length
  config.schedule.update(batch_size=arguments.rows * devices, steps=1)
  config.optimizer.schedule = "constant"
  if arguments.axis == "fsdp":
    config.mesh.update(data=1, fsdp=-1, tensor=arguments.tensor)
  else:
    config.mesh.update(data=-1, fsdp=arguments.fsdp, tensor=arguments.tensor)
  return config


def row(arguments: argparse.Namespace, name: str) -> str:
  """Returns one line of the table."""
  from rlhf_jax.planning import report, topology

  slice_ = topology.parse(name)
  found = report.make(
    make_config(arguments, slice_.devices),
    slice_,
    compiles=not arguments.analytic,
  )
  line = found.lines[0]
  mesh = "x".join(map(str, found.meshes["sft"].values()))
  if line.overflow:
    return f"| {name} | {mesh} | does not fit: {line.overflow} |"
  kinds = ", ".join(f"{k} {v / MIB:.0f}" for k, v in sorted(line.sent.items()))
  return (
    f"| {name} | {mesh} | {line.peak / 2**30:.2f} | "
    f"{line.flops / 1e12:.2f} | {sum(line.sent.values()) / MIB:.0f} | {kinds} "
    f"| {line.asynchronous:.0f} of {sum(line.calls.values()):.0f} calls, "
    f"{line.hidden / MIB:.0f} MiB "
    f"| {line.compute * 1e3:.0f} | {line.network * 1e3:.0f} "
    f"| {utilisation(line, slice_)} |"
  )


def utilisation(line: Any, slice_: Any) -> str:
  """Returns MFU in percent: all hidden, nothing, nothing and fewer links."""
  needed = line.compute * 3 / 4  # one pass of four is recomputation (remat)
  alone = line.network * slice_.chip.dimensions
  times = (
    max(line.compute, line.network),
    line.compute + line.network,
    line.compute + alone,
  )
  return " / ".join(f"{100 * needed / time:.0f}" for time in times)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="llama3_8b")
  parser.add_argument("--topologies", default="v5p:2x2x1,v5p:2x2x4,v5p:4x4x4")
  parser.add_argument("--rows", type=int, default=1, help="rows a chip")
  parser.add_argument("--length", type=int, default=1024)
  parser.add_argument("--tensor", type=int, default=1)
  parser.add_argument("--axis", choices=("fsdp", "data"), default="fsdp")
  parser.add_argument("--fsdp", type=int, default=4, help="with --axis=data")
  parser.add_argument("--analytic", action="store_true")
  arguments = parser.parse_args()
  how = "estimated" if arguments.analytic else "compiled"
  print(
    f"SFT of {arguments.model}, {arguments.rows} rows of {arguments.length} "
    f"tokens a chip, {how}; each a chip and step\n\n{HEAD}"
  )
  for name in arguments.topologies.split(","):
    print(row(arguments, name), flush=True)


if __name__ == "__main__":
  os.environ.update(plan.ENVIRONMENT)
  plan.simulate(64)  # devices for topologies such as cpu:64
  main()
