"""Say which method to start with, at what cost, and why.

    python -m rlhf_jax.advise --data=demos.jsonl,pairs.jsonl
    python -m rlhf_jax.advise --data=pairs.jsonl --model=shape:llama3_8b \\
        --chips=v5e:8x8 --price=1.2 --annotation=0.5

Reads the files as training would (docs/data.md), and says what to run in
which order. With --chips each stage is planned for that slice: memory, hours at
stated peak rates, and with --price (of a chip-hour) money. --annotation is what
a comparison costs. Every line says what it rests on. --json=FILE writes all of
it.

Exit codes: 0 said, 2 a mistake (one line says which value, which rule and what
to do).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax import command, output, plan
from rlhf_jax.schema import UserError

if TYPE_CHECKING:  # JAX is imported once the devices are known
  from rlhf_jax.planning.advice import Stage
  from rlhf_jax.planning.costs import Cost
  from rlhf_jax.planning.data_facts import Facts

MODEL = "asset:smollm2-135m-instruct"  # as in configs/
WIDTH = 79
_SHOWN = (
  ("demonstrations", "demonstrations"),
  ("comparisons", "records that compare answers"),
  ("pairs", "pairs in them"),
  ("labelled", "single answers, good or bad"),
  ("steps", "answers judged by steps"),
  ("rated", "rated texts"),
  ("prompts", "prompts without an answer"),
  ("references", "records a verifier can check answers by"),
)


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.advise",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("--data", required=True, help="files, with commas between; docs/data.md")
  add("--columns", default="", help="called otherwise; prompt=question,...")
  add("--model", default=MODEL, help=f"folder, hub name or shape:NAME; {MODEL}")
  add("--chips", default="", help="a slice such as v5e:8x8; plans the stages")
  add("--price", type=float, default=None, help="of one chip-hour")
  add("--annotation", type=float, default=None, help="price of a comparison")
  add("--json", default="", help="file for all of it")
  return found


def _check(options: argparse.Namespace) -> None:
  for name in ("price", "annotation"):
    value = getattr(options, name)
    if value is not None and not 0.0 <= value < math.inf:
      raise UserError(f"--{name}={value}: a price is >= 0 and finite. Set one.")
  if options.price is not None and not options.chips:
    raise UserError(
      f"--price={options.price}: nothing is planned without a slice. Add "
      "--chips=v5e:8x8, or leave it out."
    )
  if options.model != MODEL and not options.chips:
    raise UserError(
      f"--model={options.model}: nothing is planned without a slice, and "
      "nothing else reads the model. Add --chips=v5e:8x8, or leave it out."
    )


def _fill(text: str, indent: str, first: str = "") -> str:
  return textwrap.fill(
    text,
    WIDTH,
    initial_indent=first or indent,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def data_lines(facts: Facts) -> Iterator[str]:
  """Yields what the data holds, a line each."""
  for name, meaning in _SHOWN:
    if count := getattr(facts, name):
      yield f"  {count:>9,}  {meaning}"
  if facts.prompt_keys:
    yield f"  {facts.prompt_keys:>9,}  different prompts of comparisons"
  if facts.longer is not None:
    yield f"  {facts.longer:>9.0%}  of the pairs prefer the longer answer"
  for counts, meaning in (
    (facts.annotators, "annotators"),
    (facts.languages, "languages"),
  ):
    if counts:
      yield f"  {len(counts):>9,}  {meaning}"


def stage_lines(
  number: int, stage: Stage, cost: Cost | None, price: float | None
) -> Iterator[str]:
  """Yields one stage, why, and what it costs.

  Args:
    number: its place, from 1.
    stage: of advice.
    cost: of costs.of, or None.
    price: of a chip-hour, or None.
  """
  further = "".join(f" --config.{field}" for field in stage.fields)
  yield f"\n{number}. {stage.title}: {stage.config}{further}"
  yield _fill(stage.why + ".", "     ", "   ")
  yield _fill(stage.source, "     ", "   source: ")
  if cost is None:
    return
  if cost.why_not:
    yield _fill(f"not planned: {cost.why_not}", "     ", "   ")
    return
  gib = 2**30
  verdict = "fits" if cost.fits else "DOES NOT FIT"
  yield _fill(
    f"memory: {cost.peak / gib:.2f} of {cost.limit / gib:.2f} GiB a device, "
    f"{verdict}",
    "     ",
    "   ",
  )
  hours = (
    f"time: {cost.low:.3g} to {cost.high:.3g} hours for {cost.steps:,} steps "
    "at peak rates, which nothing reaches"
  )
  if price is not None:
    low, high = cost.money(price)
    hours += f"; {low:,.2f} to {high:,.2f} for {cost.chips} chips"
  yield _fill(hours, "     ", "   ")
  fields = " ".join(f"--config.{k}={v}" for k, v in cost.changes.items())
  yield _fill(fields, "     ", "   with ")
  for line in cost.remedies.splitlines():
    yield _fill(line.strip(), "     ", "   ")


def guard_lines() -> Iterator[str]:
  """Yields the guard rails of a policy run, with the values of its defaults."""
  from rlhf_jax.evaluation import reward_model
  from rlhf_jax.pipelines import defaults

  shaping = defaults.policy().shaping
  rows = (
    f"KL to the reference: an alarm at {shaping.warn_nats:g} nats an answer, a "
    f"stop at {shaping.halt_nats:g} (shaping.warn_nats, halt_nats)",
    f"scores are clipped to +-{shaping.clip:g} deviations (shaping.clip)",
    f"a reward model under {reward_model.COLLAPSED_ACCURACY:.2f} held-out "
    "accuracy is refused unless force=True, one under "
    f"{reward_model.GOOD_ACCURACY:.2f} is warned of",
    "alarms on entropy, repeated answers, answers that do not end, length, and "
    "a critic that explains nothing (docs/METHODS.md, section 19)",
  )
  for row in rows:
    yield _fill(row, "    ", "  - ")


def annotation_lines(facts: Facts, price: float) -> Iterator[str]:
  """Yields what comparisons cost, and those that are lacking.

  Args:
    facts: of the data.
    price: of one comparison.
  """
  from rlhf_jax.evaluation import reward_model

  yield f"  the {facts.comparisons:,} at hand: {facts.comparisons * price:,.2f}"
  per_pair = price * facts.comparisons / facts.pairs if facts.pairs else price
  for bound, what in (
    (reward_model.FEW_COMPARISONS, "a reward model"),
    (reward_model.MANY_COMPARISONS, "one without a warning"),
  ):
    lacking = bound - facts.pairs
    if lacking > 0:
      yield (
        f"  {lacking:,} pairs more, to {bound:,} for {what}: "
        f"{lacking * per_pair:,.2f}"
      )


def advise(options: argparse.Namespace) -> dict[str, Any]:
  """Prints the advice; returns all of it for JSON.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.data import sources
  from rlhf_jax.planning import advice, costs, data_facts, topology

  try:
    slice_ = topology.parse(options.chips) if options.chips else None
  except topology.TopologyError as error:
    raise UserError(str(error).replace("--topology", "--chips")) from error
  if slice_ is not None and slice_.chip.generation == "cpu":
    plan.simulate(slice_.devices)
  facts = data_facts.read(sources.parts(options.data), options.columns)
  print(f"{options.data} holds")
  for line in data_lines(facts):
    print(line)
  found = []
  print("\nRun, in this order:")
  for number, stage in enumerate(advice.stages(facts), 1):
    cost = None
    if slice_ is not None:
      cost = costs.of(stage, facts, options.model, slice_)
    for line in stage_lines(number, stage, cost, options.price):
      print(line)
    found.append(
      dataclasses.asdict(stage)
      | {"cost": None if cost is None else dataclasses.asdict(cost)}
    )
  print("\nWhat will guard a policy run:")
  for line in guard_lines():
    print(line)
  if options.annotation is not None:
    print("\nComparisons:")
    for line in annotation_lines(facts, options.annotation):
      print(line)
  notes = advice.risks(facts)
  print("\nRisks:")
  for note in notes:
    print(_fill(note.text, "    ", "  - "))
    print(_fill(note.source, "      ", "    source: "))
  return {
    "data": dataclasses.asdict(facts),
    "stages": found,
    "risks": [dataclasses.asdict(note) for note in notes],
  }


@output.never_silent()
def main(argv: Sequence[str]) -> int:
  """Advises as a command line says; returns the exit code."""
  options = parser().parse_args(list(argv[1:]))
  try:
    _check(options)
    found = advise(options)
    if options.json:
      text = json.dumps(_finite(found), indent=2, allow_nan=False)
      Path(options.json).expanduser().write_text(text + "\n")
  except (UserError, OSError) as error:
    return command.fail(error, str(error))
  return 0


def _finite(value: Any) -> Any:
  """Returns JSON's null for NaN."""
  if isinstance(value, dict):
    return {name: _finite(x) for name, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


if __name__ == "__main__":
  os.environ.update(plan.ENVIRONMENT)
  output.run_command(main, sys.argv)
