"""Let people compare answers on a page, to learn from.

    python -m rlhf_jax.label runs/X --annotators=anna,ben --overlap=2
    python -m rlhf_jax.label runs/A runs/B --folder=labelling/A_and_B
    python -m rlhf_jax.label items.jsonl --guidelines=guidelines.md
    python -m rlhf_jax.label runs/X --export=judgements.jsonl

Takes what policies answered in one run or several, or a file with one object a
line: {"prompt", "answers": [...]}, {"prompt", "chosen", "rejected"}, or
{"prompt", "response"} with several lines a prompt. It prints a link for each
person and one for the admin. The same command goes on where it was, also after
a kill; docs/labelling.md.

Exit codes: 0 stopped with Ctrl-C, or exported, 2 a mistake (one line says which
value, which rule and what to do).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import output, strict_json
from rlhf_jax.labelling import items as items_lib
from rlhf_jax.labelling import loop, transfer
from rlhf_jax.labelling.database import FILE
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task
from rlhf_jax.schema import UserError, absence

FOLDER = "labelling"  # of a run
_REMEDY = "Correct the file."
_RESPONSES = ("response", "text", "answer")


def parser() -> argparse.ArgumentParser:
  """Returns what reads the command line."""
  found = argparse.ArgumentParser(
    prog="python -m rlhf_jax.label",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = found.add_argument
  add("sources", nargs="+", metavar="RUN or FILE.jsonl", help="what to compare")
  add("--folder", default="", help="where it is kept; RUN/labelling")
  add("--annotators", default="", help="names with commas, or a FILE.jsonl")
  add("--guidelines", default="", help="a text file shown beside the task")
  add("--gold", default="", help="FILE.jsonl of items with known ranks, hidden")
  add("--qualification", default="", help="the same, asked first")
  add("--answers", type=int, default=0, help="most answers an item; 0: all")
  add("--batch", default="", help="a name for these items in the records")
  add("--port", type=int, default=loop.PORT, help=f"{loop.PORT}; 0: any")
  add("--host", default=loop.HOST, help="to listen on; this machine alone")
  add("--name", action="append", default=[], help="of the host, for others")
  add("--export", default="", help="write all judgements to a file, and end")
  add("--import", dest="imported", default="", help="read such a file first")
  task = found.add_argument_group("the task (kept in the folder)")
  for field in dataclasses.fields(Task):
    option = f"--{field.name.replace('_', '-')}"
    if isinstance(field.default, bool):
      task.add_argument(
        option, action=argparse.BooleanOptionalAction, default=None
      )
    elif isinstance(field.default, tuple):
      task.add_argument(option, default=None, help="names with commas")
    else:
      kind, shown = type(field.default), str(field.default) or "the title"
      task.add_argument(option, type=kind, default=None, help=shown)
  return found


def from_runs(folders: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns items of what the policies of runs answered, and notes.

  Several policies are compared on the prompts that all of them answered; of one
  policy the answers to a prompt are compared with each other.

  Raises:
    UserError: a folder that holds no run, or no two answers to a prompt.
  """
  from rlhf_jax.comparisons import sources

  policies, prompts = sources.together(sources.read(folders))
  if len(policies) > 1:
    rows = [
      {
        "prompt": key[0],
        "answers": [policy.answers[key] for policy in policies],
        "policies": [policy.name for policy in policies],
      }
      for key in prompts
    ]
    left = max(len(x.answers) for x in policies) - len(rows)
    notes = (
      [f"{left} prompts that not all answered are left out"] if left else []
    )
    return rows, notes
  answered: list[dict[str, Any]] = [
    {"prompt": key[0], "response": text, "policy": policy.name}
    for policy in policies
    for key, text in policy.answers.items()
  ]
  if not answered:
    for folder in map(Path, folders):
      own = [folder / "samples.jsonl", *sorted(folder.glob("*/samples.jsonl"))]
      for path in own:
        if path.is_file():
          kinds = {"prompt": str, "response": str}
          answered += strict_json.read_rows(path, kinds, _REMEDY)
  return grouped(answered, ", ".join(folders))


def grouped(
  rows: Iterable[Mapping[str, Any]], where: str
) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns items of rows with one answer each, by prompt, and notes.

  Raises:
    UserError: no prompt has two different answers.
  """
  by_prompt: dict[str, dict[str, Any]] = {}
  for row in rows:
    prompt, answer = _said(row, where)
    key = json.dumps(prompt, sort_keys=True)
    item = by_prompt.setdefault(key, {"prompt": prompt, "answers": []})
    if answer not in item["answers"]:
      item["answers"].append(answer)
      item.setdefault("policies", []).append(row.get("policy", ""))
  found = [x for x in by_prompt.values() if len(x["answers"]) > 1]
  if not found:
    raise UserError(
      f"{where}: no prompt has two different answers. Name two runs that "
      "answered the same prompts (configs/evaluate.py), or draw several "
      "answers (configs/generate.py, --config.generate.num_samples=4)."
    )
  for item in found:
    if not any(item["policies"]):
      del item["policies"]
  left = len(by_prompt) - len(found)
  notes = [f"{left} prompts with one answer are left out"] if left else []
  return found, notes


def _said(row: Mapping[str, Any], where: str) -> tuple[Any, str]:
  """Returns the prompt and the answer of a row with one answer."""
  messages = row.get("messages")
  if items_lib.is_dialogue(messages) and len(messages) > 1:
    return messages[:-1], messages[-1]["content"]
  for field in _RESPONSES:
    if isinstance(row.get(field), str) and "prompt" in row:
      return row["prompt"], row[field]
  raise UserError(
    f"{where}: a row has neither 'answers', 'chosen' and 'rejected', a "
    f"'prompt' with 'response', nor 'messages': {dict(row)!r:.80}. {_REMEDY}"
  )


def from_file(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
  """Returns the items of a file, and notes.

  Raises:
    UserError: names what is wrong.
  """
  if not path.is_file():
    raise UserError(f"{path}: {absence(path)}. Name a run, or a .jsonl.")
  rows, single = [], []
  for row in strict_json.read_rows(path, {}, _REMEDY):
    if not isinstance(row, dict):
      raise UserError(f"{path}: holds a row that is no object. {_REMEDY}")
    if "answers" in row:
      rows.append(row)
    elif "chosen" in row and "rejected" in row:
      texts = {"answers": [row["chosen"], row["rejected"]]}
      rest = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
      rows.append({"prompt": ""} | rest | texts)
    else:
      single.append(row)
  found, notes = grouped(single, str(path)) if single else ([], [])
  return rows + found, notes


def read(
  sources: Sequence[str], most: int
) -> tuple[list[items_lib.Item], list[str]]:
  """Returns the items of runs and files, and notes on what was left out.

  Args:
    sources: folders of runs, or files.
    most: answers of an item, the first of them; 0 for all.

  Raises:
    UserError: value, rule and remedy.
  """
  if most and most < 2:
    raise UserError(f"--answers={most}: must be 0 or >= 2.")
  files = [Path(x).expanduser() for x in sources if x.endswith(".jsonl")]
  runs = [x for x in sources if not x.endswith(".jsonl")]
  parts = [from_file(path) for path in files]
  parts += [from_runs(runs)] if runs else []
  rows = [row for part, _ in parts for row in part]
  notes = [note for _, part in parts for note in part]
  found, same, cut = [], 0, 0
  for number, row in enumerate(rows):
    answers = row["answers"]
    if isinstance(answers, list) and most and len(answers) > most:
      cut += 1
      row = row | {
        key: row[key][:most]
        for key in ("answers", "policies", "ranks", "pictures")
        if isinstance(row.get(key), list)
      }
    if isinstance(answers, list) and all(x == answers[0] for x in answers):
      same += 1
      continue
    found.append(items_lib.read(row, f"item {number + 1}"))
  if same:
    notes.append(f"{same} items whose answers are all alike are left out")
  if cut:
    notes.append(f"{cut} items show their first {most} answers (--answers)")
  if not found:
    raise UserError(f"{', '.join(sources)}: holds nothing to compare.")
  return found, notes


def task_of(options: argparse.Namespace, kept: Task) -> Task:
  """Returns the task: what the store says, with what the options change."""
  changes = {
    field.name: getattr(options, field.name)
    for field in dataclasses.fields(Task)
    if getattr(options, field.name) is not None
  }
  if "dimensions" in changes:
    names = changes["dimensions"].split(",")
    changes["dimensions"] = tuple(x.strip() for x in names if x.strip())
  try:
    return dataclasses.replace(kept, **changes)
  except UserError as error:
    field, equals, rest = str(error).partition("=")
    raise UserError(f"--{field.replace('_', '-')}{equals}{rest}") from error


def folder_of(options: argparse.Namespace) -> Path:
  """Returns where the task is kept.

  Raises:
    UserError: of several sources, where none is named.
  """
  if options.folder:
    return Path(options.folder).expanduser()
  first = Path(options.sources[0]).expanduser()
  if len(options.sources) > 1:
    raise UserError("--folder: say where the labels of several runs are kept.")
  if first.suffix == ".jsonl":
    return first.with_suffix("").with_name(f"{first.stem}-{FOLDER}")
  return first if (first / FILE).is_file() else first / FOLDER


def add_people(store: Store, given: str) -> None:
  """Adds people by their names, or from a file with their fields."""
  if given.endswith(".jsonl"):
    path = Path(given).expanduser()
    if not path.is_file():
      raise UserError(f"--annotators={given}: {absence(path)}.")
    for row in strict_json.read_rows(path, {"annotator": str}, _REMEDY):
      fields = {k: v for k, v in row.items() if k != "annotator"}
      store.add_annotator(row["annotator"], fields)
  else:
    for name in filter(None, (x.strip() for x in given.split(","))):
      store.add_annotator(name)
  if not store.annotators():
    store.add_annotator(loop.ALONE)


def prepare(options: argparse.Namespace, store: Store) -> None:
  """Puts into a store what a command line names; says what.

  Raises:
    UserError: value, rule and remedy.
  """
  is_store = Path(options.sources[0]).expanduser() == store.folder
  found, notes = (
    ([], []) if is_store else read(options.sources, options.answers)
  )
  for kind in ("gold", "qualification"):
    path = getattr(options, kind)
    if path:
      rows, _ = from_file(Path(path).expanduser())
      found += [
        items_lib.read(row | {kind: True}, f"{path}: item {n}")
        for n, row in enumerate(rows, 1)
      ]
  new = store.add_items(found, options.batch)
  if options.guidelines:
    path = Path(options.guidelines).expanduser()
    if not path.is_file():
      raise UserError(f"--guidelines={path}: {absence(path)}.")
    store.set_guidelines(strict_json.decode(path.read_bytes()))
  if options.imported:
    count = transfer.import_records(store, Path(options.imported).expanduser())
    notes.append(f"{count} records of {options.imported} are new")
  add_people(store, options.annotators)
  count, wanted = len(store.annotators()), store.task.overlap
  if count < wanted:
    notes.append(f"overlap={wanted} needs {wanted} people; there are {count}")
  progress = store.progress()
  print(
    f"{progress['items']} items ({new} new), {progress['judgements']} of "
    f"{progress['wanted']} judgements; kept in {store.folder}"
  )
  for note in notes:
    print(f"note: {note}.")


def main(argv: Sequence[str]) -> int:
  """Serves the page until Ctrl-C, or exports; returns the exit code."""
  options = parser().parse_intermixed_args(list(argv[1:]))
  try:
    folder = folder_of(options)
    is_there = (folder / FILE).is_file()
    if options.export and not is_there and not options.imported:
      raise UserError(f"{folder}: holds no labels yet. Nothing was exported.")
    if not is_there and not options.export:
      task_of(options, Task())  # refused before a folder is made
      read(options.sources, options.answers)
    with Store(folder) as store:
      store.set_task(task_of(options, store.task))
      if options.export:
        if options.imported:
          transfer.import_records(store, Path(options.imported).expanduser())
        count = store.export(Path(options.export).expanduser())
        print(f"{count} records: {options.export}")
        return 0
      prepare(options, store)
      with loop.serve(store, options.port, options.host, options.name) as page:
        print(f"\n{page.links()}\n\nEach link is for one person. Ctrl-C ends.")
        if options.host != loop.HOST:
          print("note: without TLS others on the network can read the tokens.")
        sys.stdout.flush()
        wait(page)
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def wait(page: loop.Page) -> None:
  """Waits until Ctrl-C, or until the server ends."""
  try:
    while page.thread.is_alive():
      page.thread.join(1.0)
  except KeyboardInterrupt:
    print("\nstopped; the same command goes on.")


if __name__ == "__main__":
  output.run_command(main, sys.argv)
