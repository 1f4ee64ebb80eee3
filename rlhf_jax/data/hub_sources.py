"""Data sets of the Hugging Face hub: hub:ORG/NAME[@REVISION]:WHICH.

WHICH is a split (train), a split of a configuration (CONFIG/train), or the
path of files in the repository, a pattern too (data/*.jsonl). Files of a split
are those that its README.md names (`configs: data_files`), else those that have
the split's name in their path, as the hub itself finds them. They are read as
files are (files.py); nothing of a data set is executed.

A branch or a tag moves, so a name is pinned to the commit that it means
(pipelines/pinned.py). The list of files of a commit is kept in RLHF_JAX_CACHE,
the files themselves in the cache of huggingface_hub: the next time no network
is needed.

Left out: loading scripts, and the hub's viewer; of a data set in another format
the hub keeps .parquet files at the revision refs/convert/parquet.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rlhf_jax.data import caches, files, hub_client
from rlhf_jax.data.files import DataError
from rlhf_jax.data.hub_client import Name, in_field
from rlhf_jax.schema import UserError

PREFIX = "hub:"
CARD = "README.md"
_WRITTEN = "hub:ORG/NAME[@REVISION]:SPLIT"
_SOURCE = re.compile(
  r"hub:([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w-][\w./-]*))?:([^:]+)", re.A
)
_SPLITS = {  # what files of a split may be called
  "train": ("train", "training"),
  "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}


class Source(NamedTuple):
  """A part of a data set of the hub; which: see the module docstring."""

  name: Name
  which: str

  def __str__(self) -> str:
    return f"{PREFIX}{self.name}:{self.which}"


def parse(source: str) -> Source:
  """Returns what a source that begins with PREFIX names.

  Raises:
    DataError: it is not written so.
  """
  found = _SOURCE.fullmatch(source)
  if found is None:
    raise DataError(
      f"{source}: is not written {_WRITTEN}. Write for example "
      "hub:org/name:train, or hub:org/name:data/train.jsonl for a file."
    )
  revision = "main" if found[2] is None else found[2]
  return Source(Name(found[1], revision), found[3])


def _kept(name: Name) -> Path:
  """Returns where the list of files of a revision is kept."""
  text = f"{name.repository}@{name.revision}".replace("/", "--")
  return caches.directory() / "hub" / f"{text}.json"


def _listed(name: Name) -> dict[str, Any]:
  """Returns commit and files of a revision, from the hub or as kept.

  Raises:
    UserError: there is none, or nobody can be asked.
  """
  kept = _kept(name)
  if name.is_pinned and kept.is_file():
    return json.loads(kept.read_text())
  hub = hub_client.library()
  from huggingface_hub import errors

  try:
    info = hub.HfApi().dataset_info(
      name.repository, revision=name.revision, timeout=30
    )
  except Exception as error:  # of whichever library carries its requests
    is_answer = isinstance(
      error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError
    )
    if is_answer or not kept.is_file():
      raise hub_client.explained(error, name, "dataset") from error
    found = json.loads(kept.read_text())
    print(
      f"{name}: the hub cannot be reached ({type(error).__name__}); its "
      f"{name.revision} was {found['commit'][:12]}, which is read"
    )
    return found
  paths = sorted(file.rfilename for file in info.siblings or ())
  found = {"commit": info.sha, "files": paths}
  kept.parent.mkdir(parents=True, exist_ok=True)
  for revision in {name.revision, info.sha}:
    place = _kept(name._replace(revision=revision))
    partial = place.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(found))
    partial.replace(place)
  return found


@functools.lru_cache(maxsize=64)
def pin(source: str, field: str = "data.source") -> str:
  """Returns hub:ORG/NAME@COMMIT:WHICH of a source.

  Args:
    source: of a Data section, that begins with PREFIX.
    field: where it stands, for messages.

  Raises:
    FieldError: there is no such data set or revision, or nobody can be asked.
  """
  found = parse(source)
  with in_field(source, field):
    commit = _listed(found.name)["commit"]
  return str(found._replace(name=found.name._replace(revision=commit)))


def _download(name: Name, file: str) -> Path:
  """Returns a file of a data set, fetched if need be.

  Raises:
    UserError: it cannot be had.
  """
  hub = hub_client.library()
  where = {"revision": name.revision, "repo_type": "dataset"}
  cached = hub.try_to_load_from_cache(name.repository, file, **where)
  if isinstance(cached, str):
    return Path(cached)
  print(f"fetching {file} of {name} from the hub", flush=True)
  try:
    return Path(hub.hf_hub_download(name.repository, file, **where))
  except Exception as error:
    raise hub_client.explained(error, name, "dataset") from error


def _of_card(text: str) -> dict[tuple[str, str], list[str]]:
  """Returns (configuration, split) -> patterns that a README.md declares.

  A pattern without a split is that of "train", as on the hub.
  """
  match = re.match(r"---\n(.*?)\n---", text.lstrip("\ufeff"), re.DOTALL)
  if match is None:
    return {}
  import yaml  # huggingface_hub needs it

  try:
    declared = yaml.safe_load(match[1])
  except yaml.YAMLError:
    return {}
  configs = declared.get("configs") if isinstance(declared, dict) else None
  found: dict[tuple[str, str], list[str]] = {}
  for config in configs if isinstance(configs, list) else ():
    name, given = (
      str(config.get("config_name", "default")),
      config["data_files"],
    )
    if isinstance(given, dict):
      given = [{"split": key, "path": value} for key, value in given.items()]
    for part in given if isinstance(given, list) else [given]:
      is_plain = isinstance(part, str)
      split = "train" if is_plain else str(part["split"])
      path = part if is_plain else part["path"]
      paths = [path] if isinstance(path, str) else list(path)
      found.setdefault((name, split), []).extend(paths)
  return found


def _matching(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
  return [
    path
    for path in paths
    if any(
      fnmatch.fnmatchcase(path, pattern.removeprefix("./"))
      for pattern in patterns
    )
  ]


def _has_name(path: str, split: str) -> bool:
  """Says whether a path has the name of a split in it, as a word."""
  words = "|".join(map(re.escape, _SPLITS.get(split, (split,))))
  pattern = rf"(?:^|[/._ 0-9-])(?:{words})(?=[/._ 0-9-]|$)"
  return re.search(pattern, path) is not None


def _chosen(source: Source, paths: Sequence[str], card: str) -> list[str]:
  """Returns the files that a source names, of those of its data set.

  Args:
    source: see `parse`.
    paths: of all files.
    card: its README.md, "" for none.

  Raises:
    DataError: none, or of several configurations.
  """
  readable = [path for path in paths if files.kind(PurePosixPath(path))]
  found = _matching(readable, [source.which])
  if found:
    return found
  config, _, split = source.which.rpartition("/")
  declared = _of_card(card)
  fitting = {
    key: patterns
    for key, patterns in declared.items()
    if key[1] == split and config in ("", key[0])
  }
  if len(fitting) > 1 and ("default", split) in fitting:
    fitting = {("default", split): fitting[("default", split)]}
  if len(fitting) > 1:
    names = ", ".join(f"{key[0]}/{split}" for key in sorted(fitting))
    raise DataError(
      f"{source}: several configurations have a split of this name. Write one "
      f"of {names} in place of {source.which}."
    )
  if fitting:
    found = _matching(readable, next(iter(fitting.values())))
  elif not declared:
    inside = f"{config}/" if config else ""
    found = [
      path
      for path in readable
      if path.startswith(inside) and _has_name(path[len(inside) :], split)
    ]
  if found:
    return found
  names = [f"{key[0]}/{key[1]}" for key in sorted(declared)] or readable
  kinds = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
  raise DataError(
    f"{source}: no file that is read here is of {source.which!r}. There are "
    f"{kinds if names else 'none of .jsonl, .json, .csv or .parquet'}. Name a "
    "split or a file, or try @refs/convert/parquet, where the hub keeps "
    ".parquet files of most data sets."
  )


def fetch(source: str) -> list[Path]:
  """Returns the files of a source, fetched if need be, in order.

  Args:
    source: of a Data section, that begins with PREFIX.

  Raises:
    DataError, FieldError: it cannot be had, or names no file.
  """
  pinned = parse(pin(source))
  try:
    paths = _listed(pinned.name)["files"]
    card = ""
    if CARD in paths:
      card = _download(pinned.name, CARD).read_text(errors="replace")
    return [
      _download(pinned.name, path) for path in _chosen(pinned, paths, card)
    ]
  except DataError:
    raise
  except UserError as error:
    raise DataError(f"{source}: {error}") from error
