"""The trials of a sweep: read from sweep(), numbered, checked and recorded.

Trial 003 runs in WORKDIR/003. WORKDIR/sweep.json holds all trials; a trial that
was there cannot become another, further ones may follow. With --seeds=N all
settings come with the first seed, then with the second, so that more seeds are
further trials.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import runpy
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import command, experiment_file, pipelines, strict_json
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.schema import UserError

RECORD = "sweep.json"
_BARE = ("name", "source")  # words that say nothing without their section
_OTHER = "Choose another --workdir for another sweep."


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run of a sweep.

  id: "003", its folder.
  settings: field -> value, without the seed.
  seed: of the run; None where the experiment has no seed.
  """

  id: str
  settings: Mapping[str, Any]
  seed: int | None = None

  @property
  def overrides(self) -> dict[str, Any]:
    """All fields that it sets."""
    own = {} if self.seed is None else {"seed": self.seed}
    return {**self.settings, **own}

  @property
  def options(self) -> list[str]:
    """Its part of a command line of rlhf_jax.main."""
    return [as_option(name, value) for name, value in self.overrides.items()]

  @property
  def label(self) -> str:
    """What it sets, for people: "learning_rate=1e-05 seed=0"."""
    names = short_names(self.overrides)
    return " ".join(
      f"{names[name]}={as_text(value)}"
      for name, value in self.overrides.items()
    )


def as_text(value: Any) -> str:
  """Returns a value as the command line takes it."""
  if isinstance(value, (list, tuple)):
    return repr(tuple(value))
  return value if isinstance(value, str) else repr(value)


def as_option(name: str, value: Any) -> str:
  """Returns --config.NAME=VALUE."""
  return f"--config.{name}={as_text(value)}"


def short_names(fields: Iterable[str]) -> dict[str, str]:
  """Returns each field -> its last word, or more where that is another's."""
  names = list(fields)
  found = {}
  for name in names:
    parts = name.split(".")
    first = 2 if parts[-1] in _BARE else 1
    for count in range(min(first, len(parts)), len(parts) + 1):
      short = ".".join(parts[-count:])
      others = [n for n in names if n == short or n.endswith(f".{short}")]
      if len(others) == 1 or count == len(parts):
        found[name] = short
        break
  return found


def read(file: str, name: str = "sweep") -> list[dict[str, Any]]:
  """Returns what sweep() of an experiment file returns.

  Args:
    file: file.py, or file.py:argument, which sweep() may take too.
    name: of the function.

  Raises:
    UserError: there is none, it fails, or it returns no trials.
  """
  path, colon, argument = file.partition(":")
  try:
    function = runpy.run_path(path).get(name)
    if callable(function):
      takes = inspect.signature(function).parameters
      found = function(argument) if colon and takes else function()
  except Exception as error:  # whatever the experiment file does
    raise UserError(experiment_file.complaint(file, error)) from error
  if not callable(function):
    raise UserError(
      f"{path}: it has no {name}(). Write one that returns trials "
      "(docs/sweeps.md), or name another function, --sweep=NAME."
    )
  return [_plain(settings, f"{path}: {name}()") for settings in _listed(found)]


def _listed(found: Any) -> list[Any]:
  return list(found) if isinstance(found, (list, tuple)) else [found]


def _plain(settings: Any, where: str) -> dict[str, Any]:
  """Returns a trial with plain values, or raises UserError."""
  if not isinstance(settings, Mapping) or not all(
    isinstance(name, str) for name in settings
  ):
    raise UserError(
      f"{where}: holds {settings!r:.60}, which is no trial. Return a list of "
      "{field: value}."
    )
  found = {}
  for name, value in settings.items():
    value = value.item() if isinstance(value, np.generic) else value
    is_list = isinstance(value, (list, tuple))
    for one in value if is_list else [value]:
      if one is not None and not isinstance(one, (bool, int, float, str)):
        raise UserError(
          f"{where}: {name}={value!r:.60}: must be a number, True, False, "
          "None, text, or a list of these."
        )
    found[name.removeprefix("config.")] = tuple(value) if is_list else value
  return found


def make(
  found: Sequence[Mapping[str, Any]],
  seed: int | None,
  seeds: int,
  given: Collection[str] = (),
) -> list[Trial]:
  """Returns the trials of a sweep, numbered.

  Args:
    found: from `read`.
    seed: of the experiment; None where it has none.
    seeds: runs of each of them.
    given: fields that the command line sets for all trials.

  Raises:
    UserError: no trials, a trial twice, or a field set in two places.
  """
  if not found:
    raise UserError("sweep() returned no trials. Let it return one or more.")
  if seeds > 1 and seed is None:
    raise UserError(
      f"--seeds={seeds}: this experiment has no seed. Leave --seeds out."
    )
  if seeds > 1 and any("seed" in settings for settings in found):
    raise UserError(
      f"--seeds={seeds}: sweep() sets the seed itself. Leave one of them out."
    )
  twice = sorted(set(given) & {name for one in found for name in one})
  if twice:
    raise UserError(
      f"--config.{twice[0]}: sweep() sets it too. Set it in one place."
    )
  trials: list[Trial] = []
  seen: dict[str, str] = {}
  for turn in range(seeds):
    for settings in found:
      own = settings.get("seed", None if seed is None else seed + turn)
      rest = {name: x for name, x in settings.items() if name != "seed"}
      trial = Trial(f"{len(trials) + 1:03d}", rest, own)
      key = json.dumps(trial.overrides, sort_keys=True)
      if key in seen:
        raise UserError(
          f"trial {trial.id} ({trial.label}) is trial {seen[key]} again. Leave "
          "one out; for several runs of the same settings give --seeds=N."
        )
      seen[key] = trial.id
      trials.append(trial)
  return trials


def check(
  trials: Sequence[Trial], file: str, common: Sequence[str], workdir: Path
) -> list[ConfigDict]:
  """Checks every trial as its run would; returns what they are.

  A field that the experiment does not have ends the process, as it does in
  every command.

  Args:
    trials: of the sweep.
    file: the experiment.
    common: options for all trials, "--config.x=1".
    workdir: of the sweep.

  Raises:
    UserError: which trial, and what is wrong with it.
  """
  configs = []
  for trial in trials:
    argv = ["sweep", *arguments(trial, file, common)]
    config = command.parse(argv, {}, "").config
    try:
      pipelines.read(config, workdir / trial.id)
    except UserError as error:
      raise UserError(f"trial {trial.id} ({trial.label}): {error}") from error
    configs.append(config)
  return configs


def arguments(trial: Trial, file: str, common: Sequence[str]) -> list[str]:
  """Returns the experiment of a trial as options of rlhf_jax.main."""
  others = [x for x in common if trial.seed is None or not _is_seed(x)]
  return [f"--config={file}", *others, *trial.options]


def _is_seed(option: str) -> bool:
  return option.partition("=")[0] == "--config.seed"


def common_options(argv: Sequence[str]) -> list[str]:
  """Returns the --config.FIELD=VALUE of a command line, for all trials."""
  found, rest = [], list(argv[1:])
  while rest:
    option = rest.pop(0)
    plain = option.lstrip("-")
    if not option.startswith("-") or not plain.startswith(
      ("config.", "noconfig.")
    ):
      continue
    if "=" not in option and rest and not rest[0].startswith("-"):
      option = f"{option}={rest.pop(0)}"
    found.append(f"--{option.lstrip('-')}")
  return found


def record(
  workdir: Path, trials: Sequence[Trial], facts: Mapping[str, Any]
) -> None:
  """Writes sweep.json; refuses a folder of another sweep.

  Args:
    workdir: of the sweep, which is there.
    trials: all of them.
    facts: what else must stay as it is: options for all trials, halving.

  Raises:
    UserError: a trial or a fact is another than before.
  """
  path = workdir / RECORD
  now = {
    "facts": json.loads(json.dumps(facts)),
    "trials": {x.id: json.loads(json.dumps(x.overrides)) for x in trials},
  }
  if path.is_file():
    before = strict_json.read_object(path, "Delete it.", allows_nan=True)
    for name, value in before.get("facts", {}).items():
      if now["facts"].get(name) != value:
        raise UserError(
          f"{path}: was begun with {name}={value!r}, and is asked for with "
          f"{now['facts'].get(name)!r}. {_OTHER}"
        )
    for name, value in before.get("trials", {}).items():
      if now["trials"].get(name) != value:
        raise UserError(
          f"{path}: trial {name} was {value!r}, and is "
          f"{now['trials'].get(name, 'gone')!r} now. {_OTHER} Further trials "
          "may follow those that are there."
        )
  workdir_lib.write_durably(path, json.dumps(now, indent=2) + "\n")
