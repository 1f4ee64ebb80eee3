"""What runs left on disk, to be put side by side.

A run is a folder with any of config.json, metrics.jsonl, stage.json,
evaluation.json, summary.json and a file of texts; those of a whole run may lie
in its stages. Texts bring policies, in any of these lines:

  {"prompt": ..., "before": ..., "after": ..., "gold_before": 0.1, ...}
  {"prompt": ..., "answers": {NAME: ...}, "scores": {NAME: {"gold": 0.1}}}
  {"prompt": ..., "response": ..., "policy": NAME, "gold": 0.1, "scores": {...}}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.runs import numbers
from rlhf_jax.schema import UserError

TEXTS_FILE = "texts.jsonl"
TEXTS_FILES = (TEXTS_FILE, "scores.jsonl", "answers.jsonl")  # the first there
CONFIG_FILE = "config.json"
RESULT_FILE = "evaluation.json"
SIDES = ("before", "after")
ANSWERS = ("response", "text", "answer")  # fields that may hold an answer
# judge -> what of the origins in evaluation.json says which one it was
JUDGES = {
  "gold": ("gold",),
  "proxy": ("reward",),
  "verifier": ("verifier", "reward_fn"),
}
# numbers of a row that nobody's judgement is
_NO_SCORES = {"step", "time", "index", "sample", "seed", "kl", "length"}
_REMEDY = "Correct the file, or leave the run out."
Key = tuple[str, int]  # a prompt, and how often it stood there before


@dataclasses.dataclass
class Policy:
  """The answers of one policy.

  name: for people.
  answers: prompt -> text.
  scores: judge -> prompt -> score.
  judges: judge -> what tells it from others of its name, where that is known.
  files: that it comes from.
  label: what its file calls it.
  """

  name: str
  answers: dict[Key, str] = dataclasses.field(default_factory=dict)
  scores: dict[str, dict[Key, float]] = dataclasses.field(default_factory=dict)
  judges: dict[str, str] = dataclasses.field(default_factory=dict)
  files: frozenset[Path] = frozenset()
  label: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
  """What is known of a run.

  config: dotted field -> value; {} where there is no config.json.
  columns: metric -> [(step, value)].
  results: number -> value, of stage.json, evaluation.json, summary.json.
  policies: whose answers it holds.
  """

  name: str
  folder: Path
  config: Mapping[str, Any]
  columns: Mapping[str, Sequence[tuple[int, float]]]
  results: Mapping[str, float]
  policies: Sequence[Policy]


def names(folders: Sequence[Path]) -> list[str]:
  """Returns the last part of each path, or more where they are the same."""
  whole = [folder.absolute().parts for folder in folders]
  found = []
  for parts in whole:
    for count in range(1, len(parts) + 1):
      alike = [x for x in whole if x[-count:] == parts[-count:]]
      if len(alike) == 1 or count == len(parts):
        found.append("/".join(parts[-count:]))
        break
  return found


def read(folders: Sequence[str | Path]) -> list[Run]:
  """Returns the runs of some folders.

  Raises:
    UserError: a folder twice, one that is not there, or that holds no run.
  """
  paths = [Path(folder).expanduser() for folder in folders]
  for path in paths:
    if not path.is_dir():
      raise UserError(f"{path}: no such folder. Name the --workdir of a run.")
  if len({path.resolve() for path in paths}) < len(paths):
    raise UserError("a folder stands twice. Name each run once.")
  runs = [
    _read(path, name) for path, name in zip(paths, names(paths), strict=True)
  ]
  bare = {run.name for run in runs if not run.policies}
  for policy in (policy for run in runs for policy in run.policies):
    if policy.label in bare:  # evaluated elsewhere
      policy.name = policy.label
  return runs


def _read(folder: Path, name: str) -> Run:
  config = _config(folder)
  columns, found = numbers.columns(folder), numbers.results(folder)
  policies: list[Policy] = []
  for path in _texts(folder):
    policies += _policies(path, name, _judges(path.parent, config))
  if not (config or columns or found or policies):
    files = (CONFIG_FILE, "metrics.jsonl", *numbers.RESULTS, *TEXTS_FILES)
    raise UserError(
      f"{folder}: holds no run: none of {', '.join(files)}. Name the --workdir "
      "of one."
    )
  return Run(name, folder, dict(flat(config)), columns, found, policies)


def _config(folder: Path) -> dict[str, Any]:
  path = folder / CONFIG_FILE
  if not path.is_file():
    return {}
  found = strict_json.read_object(path, _REMEDY, allows_nan=True)
  config = found.get("config", {})
  kept = {key: found[key] for key in ("code", "packages") if key in found}
  return {**config, **kept} if isinstance(config, dict) else kept


def flat(
  tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yields (dotted field, value) of a tree."""
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _texts(folder: Path) -> list[Path]:
  """Returns the files of texts of a run, or of the stages of a whole run."""
  for name in TEXTS_FILES:
    own = folder / name
    inner = sorted(folder.glob(f"*/{name}"))
    if own.is_file() or inner:
      return [own] if own.is_file() else inner
  return []


def _judges(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
  """Returns judge -> what tells it from others, where something does."""
  path = folder / RESULT_FILE
  if not path.is_file():
    return {}
  found = strict_json.read_object(path, _REMEDY, allows_nan=True)
  origins = found.get("origins")
  if not isinstance(origins, dict):  # older ones do not say
    return {}
  inner = config.get(folder.name, config)
  inner = inner if isinstance(inner, dict) else config
  told = {"verifier": inner.get("verifier"), "fn": inner.get("reward_fn")}
  result = {}
  for judge, fields in JUDGES.items():
    parts: list[Any] = [origins.get(field, "") for field in fields]
    is_known = any(parts)
    if judge == "verifier":
      parts.append(told)
      is_known = any(told.values())
    if is_known:
      result[judge] = json.dumps(parts, sort_keys=True, default=str)
  return result


def _policies(path: Path, run: str, judges: Mapping[str, str]) -> list[Policy]:
  """Returns the policies whose answers a file holds.

  Raises:
    UserError: a line that is none of the two forms.
  """
  found: dict[str, Policy] = {}
  seen: dict[tuple[str, str], int] = {}
  for number, line in enumerate(strict_json.read_rows(path, {}, _REMEDY), 1):
    row = _with_prompt(line, f"{path}:{number}")
    for label, text, scores in _answers(row, f"{path}:{number}"):
      name = f"{run} {label}".strip()
      made = Policy(name, judges=dict(judges), files=frozenset({path}))
      made.label = label
      policy = found.setdefault(name, made)
      count = seen.get((name, row["prompt"]), 0)
      seen[name, row["prompt"]] = count + 1
      key = (row["prompt"], count)
      policy.answers[key] = text
      for judge, score in scores.items():
        policy.scores.setdefault(judge, {})[key] = score
  return list(found.values())


def _with_prompt(row: Any, where: str) -> dict[str, Any]:
  """Returns a row with a "prompt"; of messages all but the last are it."""
  said = row.get("messages") if isinstance(row, dict) else None
  if isinstance(said, list) and said and all(isinstance(x, dict) for x in said):
    told = [f"{x.get('role')}: {x.get('content')}" for x in said[:-1]]
    answer = {"response": said[-1].get("content")}
    row = {"prompt": "\n".join(told)} | answer | row
  if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
    raise UserError(f"{where}: no row with a 'prompt': {row!r:.60}. {_REMEDY}")
  return row


def _answers(
  row: Mapping[str, Any], where: str
) -> Iterator[tuple[str, str, dict[str, float]]]:
  """Yields (label, text, judge -> score) of a row of texts.jsonl."""
  if all(isinstance(row.get(side), str) for side in SIDES):
    for side in SIDES:
      scores = {
        name.removesuffix(f"_{side}"): float(value)
        for name, value in row.items()
        if name.endswith(f"_{side}") and _is_number(value)
      }
      yield ("" if side == "after" else side), row[side], scores
    return
  if isinstance(row.get("answers"), dict):
    judged = row.get("scores")
    judged = judged if isinstance(judged, dict) else {}
    for label, text in row["answers"].items():
      if isinstance(text, str):
        yield label, text, _numbers(judged.get(label))
    return
  fields = [name for name in ANSWERS if isinstance(row.get(name), str)]
  if not fields:
    raise UserError(
      f"{where}: has no answer: neither {' and '.join(SIDES)}, nor one of "
      f"{', '.join(ANSWERS)}. {_REMEDY}"
    )
  scores = _numbers(row) | _numbers(row.get("scores"))
  label = row.get("policy", "")
  yield (label if isinstance(label, str) else ""), row[fields[0]], scores


def _numbers(row: Any) -> dict[str, float]:
  """Returns the scores among the values of an object."""
  return {
    name: float(value)
    for name, value in (row.items() if isinstance(row, dict) else ())
    if _is_number(value) and name not in _NO_SCORES
  }


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def together(runs: Iterable[Run]) -> tuple[list[Policy], list[Key]]:
  """Returns the policies of all runs, and the prompts that all answered.

  A "before" that is word for word that of another run is one policy, "before".

  Args:
    runs: read.
  """
  policies = [policy for run in runs for policy in run.policies]
  if not policies:
    return [], []
  shared = [
    key
    for key in policies[0].answers
    if all(key in policy.answers for policy in policies)
  ]
  kept: list[Policy] = []
  for policy in policies:
    twin = next((x for x in kept if _is_same(x, policy, shared)), None)
    if twin is None:
      kept.append(policy)
    else:
      twin.name, twin.files = "before", twin.files | policy.files
  return kept, shared


def _is_same(one: Policy, other: Policy, shared: Sequence[Key]) -> bool:
  are_starts = all(x.name.split()[-1] == "before" for x in (one, other))
  return (
    are_starts
    and bool(shared)
    and all(one.answers[key] == other.answers[key] for key in shared)
  )
