"""Damages every file of a checkpoint in every way; nothing may pass unseen.

    python -m tests.proofs.corruption_campaign

Each file of the newest step, and then the same file of both steps, has a bit
flipped, its end cut off, its contents emptied, or is deleted. With one step
left whole, a restore must warn, naming the damaged step, and return the arrays
of the other bit for bit; with none it must be refused, naming the damage.
"""

from __future__ import annotations

import collections
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.integrity import MANIFEST
from rlhf_jax.runs.checkpoint import CheckpointError, Checkpoints
from rlhf_jax.types import PyTree

STEPS = (3, 7)
MANIFEST_FLIPS = 60


class UnseenError(AssertionError):
  """Damage that a restore did not notice, or did not survive."""


def state(step: int) -> PyTree:
  """Returns a state of several dtypes and sizes."""
  key = jax.random.key(step)
  return {
    "params": {
      "large": jax.random.normal(key, (128, 96)),
      "small": jax.random.normal(key, (5,)).astype(jnp.bfloat16),
    },
    "count": jnp.int32(step),
  }


def flip(path: Path, rng: random.Random) -> None:
  """Flips one bit; an empty file gets a byte instead."""
  data = bytearray(path.read_bytes())
  if data:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  else:
    data = bytearray(b"x")
  path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
  """Cuts a random part off the end; an empty file gets a byte instead."""
  data = path.read_bytes()
  path.write_bytes(data[: rng.randrange(len(data))] if data else b"x")


def empty(path: Path, rng: random.Random) -> None:
  """Removes the contents; an empty file gets a byte instead."""
  del rng
  path.write_bytes(b"" if path.stat().st_size else b"x")


def delete(path: Path, rng: random.Random) -> None:
  """Removes the file."""
  del rng
  path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
  flip,
  truncate,
  empty,
  delete,
)


def restored(folder: Path) -> tuple[PyTree, list[str]]:
  """Returns what a restore gives, and its warnings."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with Checkpoints(str(folder), is_read_only=True) as saved:
      found, _ = saved.restore(state(0))
  return found, [str(warning.message) for warning in caught]


def is_same(found: PyTree, expected: PyTree) -> bool:
  """Says whether two trees are equal bit for bit."""
  same = jax.tree.map(
    lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
    found,
    expected,
  )
  return all(jax.tree.leaves(same))


def check_recovery(folder: Path, what: str) -> None:
  """Raises UnseenError unless the older step comes back, with a warning."""
  found, complaints = restored(folder)
  if not is_same(found, state(STEPS[0])):
    raise UnseenError(f"{what}: the older step did not come back")
  if not any(f"step {STEPS[1]}" in text for text in complaints):
    raise UnseenError(f"{what}: no warning names step {STEPS[1]}: {complaints}")


def check_refusal(folder: Path, what: str) -> None:
  """Raises UnseenError unless a restore is refused with a remedy."""
  try:
    restored(folder)
  except CheckpointError as error:
    if str(folder) in str(error):
      return
    raise UnseenError(f"{what}: unclear error: {error}") from error
  raise UnseenError(f"{what}: restored from two damaged steps")


def campaign(seed: int, folder: Path) -> collections.Counter:
  """Returns how often each damage was seen; raises UnseenError."""
  rng = random.Random(seed)
  whole = folder / "whole"
  with Checkpoints(str(whole), keep=2) as saved:
    for step in STEPS:
      saved.save(step, state(step), {"step": step})
  found, complaints = restored(whole)
  if not is_same(found, state(STEPS[1])) or complaints:
    raise UnseenError(f"undamaged: {complaints}")
  files = sorted(
    path.relative_to(whole / str(STEPS[1]))
    for path in (whole / str(STEPS[1])).rglob("*")
    if path.is_file()
  )
  seen: collections.Counter = collections.Counter()
  # A manifest is text: many of its bits could turn into other valid text.
  cases = [(name, damage) for name in files for damage in DAMAGES]
  cases += [(Path(MANIFEST), flip)] * MANIFEST_FLIPS
  for name, damage in cases:
    what = f"{damage.__name__} {name}"
    copy = folder / "copy"
    shutil.copytree(whole, copy)
    damage(copy / str(STEPS[1]) / name, rng)
    check_recovery(copy, what)
    other = copy / str(STEPS[0]) / name
    if not other.exists():  # names of data files differ between steps
      other = copy / str(STEPS[0]) / MANIFEST
    damage(other, rng)
    check_refusal(copy, what + " in both steps")
    shutil.rmtree(copy)
    seen[damage.__name__] += 2
  print(f"{len(files)} files of a step, {len(DAMAGES)} kinds of damage")
  return seen


def main() -> None:
  """Runs the command line."""
  with tempfile.TemporaryDirectory() as folder:
    seen = campaign(0, Path(folder))
  for name, count in seen.items():
    print(f"{name:10s} {count:4d} times, always noticed")


if __name__ == "__main__":
  main()
