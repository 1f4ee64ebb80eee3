"""Say how annotators agree, who they are, what their labels weigh.

    python -m rlhf_jax.agreement judgements.jsonl --by=country

Reads records of judgements (docs/agreement.md), prints a table, and writes
agreement.json and agreement.html. --gold=FILE holds records that are right;
--people=FILE one object a line with "annotator" and what is known of them.
--weights=OUT.jsonl writes the records again with a field "weight", which the
training of reward models reads: labels of annotators who err more weigh less.

Exit codes: 0 written, 2 a mistake (one line says which value, which rule and
what to do).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import output, strict_json
from rlhf_jax.schema import UserError

EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.agreement",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("sources", nargs="+", metavar="FILE", help="records of judgements")
  add("--output", default="agreement.html", help="the page; .json beside it")
  add("--gold", default="", help="records that are right")
  add("--people", default="", help="what is known of each annotator")
  add("--by", default="", help="fields that group annotators, with commas")
  add(
    "--model",
    default="dawid-skene",
    help="of annotators: dawid-skene, or noisy-bradley-terry",
  )
  add("--weights", default="", help="writes the records with weights here")
  return found


def read_people(source: str) -> dict[str, dict[str, Any]]:
  """Returns annotator -> fields of a file of one object a line.

  Raises:
    UserError: a line without an annotator.
  """
  from rlhf_jax.data import sources

  found = {}
  for where, record in sources.each(source):
    if not record.get("annotator"):
      raise UserError(f"{where}: field 'annotator' is missing. Add it.")
    found[str(record["annotator"])] = record
  return found


def read(options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
  """Returns the judgements that a command line names, and their summary.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.labelling import annotators, judgements, summary

  if options.model not in annotators.MODELS:
    raise UserError(
      f"--model={options.model}: must be one of {', '.join(annotators.MODELS)}."
    )
  found: list[Any] = []
  left_out: Counter = Counter()
  for source in options.sources:
    those, without = judgements.read(source)
    found += those
    left_out += without
  gold = judgements.read_gold(options.gold) if options.gold else []
  facts = summary.summarise(
    found,
    gold=gold,
    by=[x.strip() for x in options.by.split(",") if x.strip()],
    people=read_people(options.people) if options.people else {},
    model=options.model,
    left_out=left_out,
  )
  return found, facts


def write_weights(
  path: Path, found: Sequence[Any], facts: dict[str, Any], model: str
) -> None:
  """Writes records with a field "weight", and notes what they are.

  Args:
    path: of the file.
    found: judgements; those of gold items are written as they are.
    facts: their summary; gets warnings of the weights.
    model: of labelling/annotators.py.

  Raises:
    UserError: labels cannot be weighed.
  """
  from rlhf_jax.labelling import annotators, judgements

  given = [x for x in found if x.annotator != judgements.GOLD]
  votes = judgements.votes(given, judgements.objectives(given)[0])
  skill = annotators.skills(votes, model)
  weights, notes = annotators.weights(votes, skill)
  facts["warnings"] += notes
  by_name = dict(zip(votes.annotators, weights.tolist(), strict=True))
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", encoding="utf-8") as stream:
    for judgement in found:
      weight = by_name.get(judgement.annotator, 1.0)
      record = {**judgement.fields, "weight": round(weight, 6)}
      stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def show(facts: Mapping[str, Any]) -> None:
  """Prints agreement, annotators and warnings."""
  from rlhf_jax import terminal

  def text(value: float, decimals: int = 3) -> str:
    return "" if math.isnan(value) else terminal.decimal(value, decimals)

  print(f"{facts['judgements']} judgements by {facts['annotators']} people")
  rows = [
    [
      name,
      str(row["shared_units"]),
      text(row["raw"].value),
      text(row["alpha"].value),
      text(row["fleiss"]),
      text(row["cohen"]),
      text(row["ties"].value),
    ]
    for name, row in facts["objectives"].items()
  ]
  heads = ["objective", "shared", "raw", "alpha", "Fleiss", "Cohen", "ties"]
  print("\n" + terminal.format_table(heads, rows))
  rows = [
    [
      row["name"],
      str(row["judgements"]),
      text(row["majority"].value),
      text(row["gold"].value),
      text(row["skill"]),
      text(row["weight"]),
      text(row["first"].value),
      text(row["seconds"], 1),
    ]
    for row in facts["by_annotator"]
  ]
  heads = ["annotator", "judgements", "majority", "gold", "skill", "weight"]
  print("\n" + terminal.format_table([*heads, "first", "seconds"], rows))
  for field, groups in facts["groups"].items():
    rows = [
      [x["value"], str(x["judgements"]), text(x["within"]), text(x["between"])]
      for x in groups
    ]
    heads = [field, "judgements", "within", "between"]
    print("\n" + terminal.format_table(heads, rows))
  for level, message in facts["warnings"]:
    print(f"{level}: {message}")


def main(argv: Sequence[str]) -> int:
  """Writes the page and the numbers; returns the exit code."""
  options = parser().parse_intermixed_args(list(argv[1:]))
  try:
    target = Path(options.output).expanduser()
    if target.suffix != ".html":
      raise UserError(
        f"--output={options.output}: a browser reads a file by its ending. End "
        "it with .html."
      )
    found, facts = read(options)
    if options.weights:
      path = Path(options.weights).expanduser()
      write_weights(path, found, facts, options.model)
    from rlhf_jax.evaluation import agreement_page, table_page

    page = agreement_page.page(
      facts, "Agreement among annotators", options.sources
    )
    table_page.write(target, page)
    numbers = json.dumps(strict_json.plain(facts), indent=2, ensure_ascii=False)
    target.with_suffix(".json").write_text(numbers + "\n", encoding="utf-8")
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE
  show(facts)
  print(f"\n{target}")
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
