"""Put finished runs side by side: settings, curves, texts.

    python -m rlhf_jax.compare runs/A runs/B runs/C --output=comparison.html

Each run is the --workdir of any pipeline. What an evaluation left in
texts.jsonl (configs/evaluate.py, or a whole run) brings policies. They are
ranked on the prompts that all of them answered, by every judge that scored all,
or by --judge=NAME: gold, proxy, verifier, vader, length, the folder of a reward
run, a function FILE.py:NAME, a language model ai:MODEL. The page is one file
that loads nothing; docs/compare.md.

Exit codes: 0 written, 2 a mistake (one line says which value, which rule and
what to do).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import imported, output
from rlhf_jax.schema import UserError

EXIT_USAGE = 2
# Panels with one of these in their name come first, in this order.
FIRST = ("eval/", "validation", "score", "loss", "accuracy", "kl", "entropy")
LAST = ("time/", "sys/")  # and these not at all, unless --curves asks


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.compare",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("runs", nargs="+", metavar="RUN", help="folders of runs")
  add("--output", default="comparison.html", help="the page")
  add(
    "--judge",
    action="append",
    default=[],
    help="who judges, several times for several; all scores on disk",
  )
  add("--first", default="", help="the policy that others are compared with")
  add("--texts", type=int, default=20, help="prompts that are shown; 20")
  add("--curves", default="", help="draw only metrics with this word")
  return found


def curves(runs: Sequence[Any], word: str) -> dict[str, dict[int, Any]]:
  """Returns metric -> number of a run -> (steps, values), the telling first.

  Args:
    runs: comparisons/sources.py.
    word: only metrics with it in their name; "" for all but times.

  Raises:
    UserError: no metric has the word in its name.
  """
  found: dict[str, dict[int, Any]] = {}
  for number, run in enumerate(runs):
    for name, rows in run.columns.items():
      is_time = any(x in name for x in LAST)
      if word in name and (word or not is_time):
        steps, values = zip(*rows, strict=True)
        found.setdefault(name, {})[number] = (steps, values)

  if word and not found:
    known = sorted({name for run in runs for name in run.columns})
    raise UserError(
      f"--curves={word}: no metric of these runs has it in its name."
      f"{imported.nearest(word, known)} Leave it out to draw all "
      f"{len(known)}."
    )

  def place(name: str) -> tuple[int, int]:
    near = [i for i, x in enumerate(FIRST) if x in name]
    return -len(found[name]), min(near, default=len(FIRST))

  return {name: found[name] for name in sorted(found, key=place)}


def colours(runs: Sequence[str], policies: Sequence[str]) -> list[int]:
  """Returns the colour of each policy: its run's, or one that is free."""
  free = itertools.count(len(runs))
  return [runs.index(name) if name in runs else next(free) for name in policies]


def _ordered(policies: list[Any], first: str) -> list[Any]:
  """Returns policies with the one of a name first; "before" if none is named.

  Raises:
    UserError: there is no policy of the name.
  """
  known = [policy.name for policy in policies]
  if first and first not in known:
    raise UserError(
      f"--first={first}: no such policy. There are {', '.join(known)}."
    )
  chosen = first if first else "before"
  return sorted(policies, key=lambda policy: policy.name != chosen)


def _judged(
  policies: list[Any], prompts: list[Any], judges: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
  """Returns judge -> scores, and notes on what was left out."""
  from rlhf_jax.comparisons import judges as judges_lib

  known, left = judges_lib.on_disk(policies, prompts)
  if not judges:
    notes = [f"Left out, {x}." for x in left]
    if not known:
      notes.append(
        "Nobody judged the answers of all policies. Name a judge: "
        "--judge=runs/reward, --judge=vader, --judge=my_file.py:score."
      )
    return known, notes
  found = {}
  for judge in judges:
    found[judge] = judges_lib.named(judge, policies, prompts, known)
  return found, []


def make(options: argparse.Namespace) -> Any:
  """Returns the page that a command line asks for.

  Raises:
    UserError: value, rule and remedy.
  """
  from rlhf_jax.comparisons import sources, tables
  from rlhf_jax.evaluation import compare_page

  if options.texts < 0:
    raise UserError(f"--texts={options.texts}: must be >= 0.")
  runs = sources.read(options.runs)
  policies, prompts = sources.together(runs)
  policies = _ordered(policies, options.first)
  scores: dict[str, Any] = {}
  notes: list[str] = []
  total = max((len(x.answers) for x in policies), default=0)
  can_rank = len(policies) > 1 and len({prompt for prompt, _ in prompts}) > 1
  if can_rank:
    scores, notes = _judged(policies, prompts, options.judge)
    if len(prompts) < total:
      notes.append(
        f"{len(prompts)} of up to {total} prompts were answered by all "
        "policies; the others are left out."
      )
  elif options.judge or policies:
    what = f"{len(policies)} policies with {len(prompts)} prompts in common"
    notes.append(
      f"{what}: nobody can be ranked. Evaluate all policies on the same "
      "prompts (configs/evaluate.py)."
    )
  own = [run.name for run in runs]
  ranked = {policy.name for policy in policies}
  notes += [
    f"{run.name}: holds no {sources.TEXTS_FILE}, so its policy is not ranked. "
    "Evaluate it (configs/evaluate.py) and name that folder."
    for run in runs
    if policies and not run.policies and run.name not in ranked
  ]
  return compare_page.Page(
    title=f"{', '.join(own)} side by side",
    runs=[(run.name, str(run.folder)) for run in runs],
    policies=[policy.name for policy in policies],
    colours=colours(own, [policy.name for policy in policies]),
    notes=notes,
    judgements=[
      tables.judgement(judge, policies, prompts, found)
      for judge, found in scores.items()
    ],
    texts=tables.texts(policies, prompts) if prompts else (),
    results=tables.results(runs),
    last_values=tables.last_values(runs),
    settings=tables.settings(runs) if len(runs) > 1 else (),
    curves=curves(runs, options.curves),
    prompts=[
      (
        key[0],
        [
          compare_page.Answer(
            number,
            policy.answers[key],
            [(name, float(x[number, i])) for name, x in scores.items()],
          )
          for number, policy in enumerate(policies)
        ],
      )
      for i, key in enumerate(prompts[: options.texts])
    ],
    count=len(prompts),
  )


def show(page: Any) -> None:
  """Prints the ranking of each judge."""
  from rlhf_jax import terminal

  for found in page.judgements:
    cells = []
    for row in sorted(found.rows, key=lambda x: -x.ranked.elo):
      ranked = row.ranked
      wins = ""
      if row.wins is not None:
        wins = f"{row.wins:.3f} ({row.wins_low:.3f} to {row.wins_high:.3f})"
      elo, low, high = (
        terminal.decimal(x, 0, sign=True)
        for x in (ranked.elo, ranked.low, ranked.high)
      )
      elo = f"{elo} ({low} to {high})"
      cells.append([row.name, elo, terminal.short(row.score, 4), wins])
    against = f"wins against {found.rows[0].name}"
    print(f"\n{found.judge}, {found.prompts} prompts (95 % over prompts)")
    print(terminal.format_table(["policy", "Elo", "score", against], cells))
  for note in page.notes:
    print(f"note: {note}")


@output.never_silent()
def main(argv: Sequence[str]) -> int:
  """Writes the page; returns the exit code."""
  options = parser().parse_intermixed_args(list(argv[1:]))
  try:
    from rlhf_jax.evaluation import compare_page

    target = Path(options.output).expanduser()
    if target.suffix != ".html":
      raise UserError(
        f"--output={options.output}: a browser reads a file by its ending. End "
        "it with .html."
      )
    page = make(options)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(compare_page.render(page), encoding="utf-8")
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_USAGE
  show(page)
  print(f"\n{target}")
  return 0


if __name__ == "__main__":
  output.run_command(main, sys.argv)
