"""What a checkpoint must agree with: files, arrays, settings, fingerprints.

`manifest.json` lists size and sha256 of every file below its directory and
carries a record of the caller's. It is written last and durably, so it is
absent, old or complete at any moment, and a directory without one is an
interrupted write. It protects against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree

MANIFEST = "manifest.json"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of folders of Orbax
# What checkpoints of before do not hold, and are not asked.
_SINCE = re.compile(
  r"(reward_fn|verifier(_part_\d+)*|algorithm|objective_fn|advantage_fn)"
  "_fingerprint"
)
_SHOWN = 5  # differing arrays named in an error
_NO_SPACE = re.compile(
  "No space left on device|Disk quota exceeded|File too large"
)


class CheckpointError(UserError):
  """A checkpoint cannot be written, found, trusted or used here."""


def fingerprint(value: Any) -> str:
  """Returns 16 hex digits that identify a JSON value (config, vocabulary)."""
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_params(params: PyTree) -> str:
  """Returns 16 hex digits of paths, shapes, dtypes and every bit of the values.

  The bits are hashed on the devices, in integers, so the result does not
  depend on the mesh and one flipped bit changes it.
  """
  return fingerprint(
    {
      path: [*describe(leaf), int(_hash_bits(leaf))]
      for path, leaf in named_leaves(params).items()
    }
  )


@jax.jit
def _hash_bits(x: Array) -> Array:
  """Returns [] uint32: the sum of a bijective hash of (index, bits)."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  h = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  stride = 0x9E3779B9
  for axis in reversed(range(x.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    h = h + index * jnp.uint32(stride)
    stride = stride * x.shape[axis] % 2**32
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = (h ^ (h >> shift)) * jnp.uint32(factor)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """Returns {"params/layer_0/...": leaf}, in the tree's own order.

  Raises:
    ValueError: two leaves have one path.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
  if len(named) != len(leaves):
    raise UserError(
      "two leaves of the tree have one path. Do not use '/' in keys."
    )
  return named


def describe(leaf: Any) -> list:
  """Returns [shape, dtype] of an array or abstract array, as JSON."""
  return [list(leaf.shape), str(leaf.dtype)]


def checked_json(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the record, refusing what JSON would change.

  Raises:
    ValueError: NaN, inf, tuples, arrays, keys that are not strings.
  """
  for field, value in record.items():
    try:
      same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
      same = False
    if not same:
      raise UserError(
        f"meta[{field!r}]={value!r} does not survive JSON. Use finite "
        "numbers, strings, None, lists, and dicts with string keys."
      )
  return dict(record)


def check_meta(meta: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
  """Checks that the run that resumes is the one that saved.

  Args:
    meta: from a checkpoint.
    expected: the fields that must agree, such as "tokenizer_fingerprint".

  Raises:
    CheckpointError: naming the first field that differs or is missing.
  """
  for field, value in expected.items():
    if field not in meta and _SINCE.fullmatch(field):
      continue
    if field not in meta and value:
      raise CheckpointError(
        f"{field}: the checkpoint does not say, and this run has {value!r}: a "
        "version of this package wrote it that did not keep this. Finish the "
        "run with that version, or start in an empty --workdir."
      )
    found = meta.get(field, value)  # "": none
    if found != value:
      raise CheckpointError(
        f"{field}: the checkpoint has {found!r}, this run has {value!r}. "
        f"Resume with the {field.removesuffix('_fingerprint')} that wrote the "
        "checkpoint, or start in an empty --workdir."
      )


def compare_arrays(found: Mapping, wanted: Mapping, where: str) -> None:
  """Checks that a checkpoint fits a model.

  Args:
    found, wanted: {path: [shape, dtype]}, see `describe`.
    where: what `found` describes, for the message.

  Raises:
    CheckpointError: naming the first arrays that differ, and both shapes.
  """
  differing = [
    path
    for path in sorted({*found, *wanted})
    if found.get(path) != wanted.get(path)
  ]
  if not differing:
    return

  def show(entry: list | None) -> str:
    return "none" if entry is None else f"{tuple(entry[0])} {entry[1]}"

  lines = [
    f"  {path}: checkpoint {show(found.get(path))}, this run "
    f"{show(wanted.get(path))}"
    for path in differing[:_SHOWN]
  ]
  is_optimizer = all("opt_state" in path.split("/") for path in differing)
  what = "another optimizer" if is_optimizer else "another model"
  raise CheckpointError(
    f"{where} is of {what}: {len(differing)} of {len(wanted)} arrays "
    "differ, first\n" + "\n".join(lines) + "\nUse the model and optimizer "
    "settings that wrote it, or start in an empty --workdir."
  )


def compare_part(found: Mapping, wanted: Mapping, where: str) -> None:
  """Checks that a checkpoint has some arrays; floating dtypes may differ.

  Args:
    found: {path: [shape, dtype]} of all that is there.
    wanted: the same of the part.
    where: what `found` describes, for the message.

  Raises:
    CheckpointError: naming the first arrays that differ, and both shapes.
  """
  expected = {}
  for path, (shape, dtype) in wanted.items():
    stored = found.get(path, [shape, dtype])[1]
    is_cast = "float" in dtype and "float" in stored
    expected[path] = [shape, stored if is_cast else dtype]
  present = {path: found[path] for path in wanted if path in found}
  compare_arrays(present, expected, where)


def is_without_space(error: BaseException | None) -> bool:
  """Says whether an error, or what led to it, is that a disk is full."""
  while error is not None:
    if _NO_SPACE.search(str(error)):
      return True
    cause = error.__cause__
    error = error.__context__ if cause is None else cause
  return False


def write_manifest(directory: epath.Path, record: Mapping[str, Any]) -> None:
  """Hashes all files below the directory and writes the manifest.

  Args:
    directory: complete, but for the manifest.
    record: JSON, kept in the manifest. Hashes in its "files", those of an
      earlier manifest, are kept: they may have caught damage since.
  """
  content = {k: v for k, v in record.items() if k != "digest"}
  if "files" not in content:
    content["files"] = {
      name: _size_and_sha256(directory / name)
      for name in sorted(_files_below(directory))
      if not name.startswith(MANIFEST)
    }
  content["digest"] = fingerprint(content)
  _write_durably(directory / MANIFEST, json.dumps(content, indent=1))


def read_manifest(directory: epath.Path) -> dict[str, Any] | None:
  """Returns the manifest, or None where there is none or it is damaged."""
  path = directory / MANIFEST
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
    digest = content.pop("digest")
  except (ValueError, KeyError, AttributeError):  # no JSON, or another's
    return None
  return content if digest == fingerprint(content) else None


def damage(directory: epath.Path) -> str | None:
  """Returns what is wrong with the files below the directory, or None."""
  if not (directory / MANIFEST).exists():
    return "its save was interrupted"
  content = read_manifest(directory)
  if content is None:
    return f"{MANIFEST} is damaged"
  for name, (size, digest) in content["files"].items():
    if not (directory / name).exists():
      return f"{name} is missing"
    found_size, found_digest = _size_and_sha256(directory / name)
    if found_size != size:
      return f"{name} has {found_size} bytes, but {size} were written"
    if found_digest != digest:
      return f"{name} is damaged (its sha256 differs)"
  return None


def _files_below(root: epath.Path, prefix: str = "") -> Iterator[str]:
  for path in root.iterdir():
    if path.is_dir():
      yield from _files_below(path, f"{prefix}{path.name}/")
    else:
      yield f"{prefix}{path.name}"


def _size_and_sha256(path: epath.Path) -> tuple[int, str]:
  digest, size = hashlib.sha256(), 0
  with path.open("rb") as file:
    while block := file.read(1 << 22):
      digest.update(block)
      size += len(block)
  return size, digest.hexdigest()


def _write_durably(path: epath.Path, text: str) -> None:
  """Writes a file that is absent, old or complete, even after a power cut."""
  temporary = f"{path}.tmp"
  with open(temporary, "w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  directory = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(directory)
  finally:
    os.close(directory)


def remove_leftovers(root: epath.Path, seconds: float = 5.0) -> None:
  """Removes temporary folders of a failed save.

  Its threads may go on for a moment and add files, so it is tried again.

  Args:
    root: of the checkpoints.
    seconds: after which what is left stays.
  """
  end = time.monotonic() + seconds
  while left := [path for path in root.iterdir() if TEMPORARY in path.name]:
    for path in left:
      shutil.rmtree(path, ignore_errors=True)
    if time.monotonic() > end:
      return
    time.sleep(0.1)
