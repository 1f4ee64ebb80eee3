"""Checkpoints: Orbax arrays, an integrity manifest, resume after a kill.

A step is a directory that Orbax renames into place when its arrays are
complete, plus `manifest.json` (integrity.py), written last: the sha256 of
every file, because Orbax has no checksum; path, shape and dtype of every
array; and `meta`, the JSON part of the state. A step without a manifest does
not count. Older steps are removed only after the manifest of a newer one is
on the disk, so a kill or a full disk at any moment leaves the previous step
whole. Kept are the newest steps, and the best one by a score.

Arrays are stored by path, so any pytree with the same paths restores, on any
mesh. Several processes need a shared directory; process 0 hashes, and decides
for all which step is good.

Left out: saving per-process data positions (all processes read in lockstep,
so one position in `meta` serves).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from rlhf_jax import distributed, integrity
from rlhf_jax.integrity import CheckpointError
from rlhf_jax.models import trees
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree


def restore_params(
  directory: str, template: PyTree, *, prefix: str, step: int | None = None
) -> PyTree:
  """Returns a part of a checkpoint of another run, cast and resharded.

  Args:
    directory: what that run gave to Checkpoints; it is not written to.
    template: arrays or jax.ShapeDtypeStruct with shardings, the wanted part;
      a floating dtype that differs from the stored one is cast to.
    prefix: where that part is in the saved state, such as "params/policy".
    step: None for the newest good one.

  Raises:
    CheckpointError: no such step, damage, or arrays missing or of other shape.
  """
  with Checkpoints(directory, is_read_only=True) as checkpoints:
    return checkpoints.restore_params(template, prefix=prefix, step=step)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
  """Keeps Orbax from logging: what it raises, and that it only reads."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


class Checkpoints:
  """The steps saved in one directory."""

  def __init__(
    self,
    directory: str,
    *,
    keep: int = 2,
    best: str = "max",
    every_steps: int | None = None,
    is_asynchronous: bool = False,
    is_read_only: bool = False,
  ) -> None:
    """Opens, or creates, a checkpoint directory.

    Args:
      directory: on storage that all processes share.
      keep: newest steps kept; those saved with is_final=True are kept besides,
        and the best of those saved with a score.
      best: whether the "max" or the "min" of scores is the best.
      every_steps: period of `due`; None means never due.
      is_asynchronous: arrays are written behind the run's back. The step counts
        from the next save, wait or close on.
      is_read_only: another run may be writing here: remove and write nothing.
    """
    if keep < 1:
      raise UserError(f"keep={keep}: at least one step is kept. Set >= 1.")
    if every_steps is not None and every_steps < 1:
      raise UserError(f"every_steps={every_steps}: set >= 1, or None.")
    self._root = epath.Path(directory).resolve()
    if is_read_only and not self._root.exists():
      raise CheckpointError(
        f"{directory} does not exist. Name the checkpoint directory of the "
        "earlier run."
      )
    self._keep = keep
    self._best = {"max": max, "min": min}[best]
    self._every_steps = every_steps
    self._is_asynchronous = is_asynchronous
    self._is_read_only = is_read_only
    self._pending: dict[str, Any] | None = None  # saved, not yet in a manifest
    self._own: set[int] = set()  # saved or restored by this object
    self._damaged: set[int] = set()
    self.restored_step: int | None = None
    self._open()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Finishes a save under way and releases the directory."""
    self.wait()
    self._manager.close()

  def due(self, step: int) -> bool:
    """Says whether `step`, the number of updates done, is one to save."""
    return self._every_steps is not None and step % self._every_steps == 0

  def steps(self) -> list[int]:
    """Returns the finished steps, oldest first; their arrays are unchecked."""
    return [s for s in self._directories() if self._record(s) is not None]

  def latest(self) -> int | None:
    """Returns the newest finished step, or None."""
    return max(self.steps(), default=None)

  def save(
    self,
    step: int,
    state: PyTree,
    meta: Mapping[str, Any],
    *,
    is_final: bool = False,
    score: float | None = None,
  ) -> None:
    """Writes a step; one that this object saved or restored is not rewritten.

    Args:
      step: updates done.
      state: pytree of jax arrays (typed random keys included).
      meta: JSON: data position, KL coefficient, moments, fingerprints.
      is_final: the run is complete; the step is never removed.
      score: how good the step is; None takes no part in being the best.

    Raises:
      CheckpointError: no space, or the step belongs to another run.
      TypeError, ValueError: a state or a meta that would not come back equal.
    """
    if self._is_read_only:
      raise CheckpointError(f"{self._root} was opened with is_read_only=True.")
    self.wait()
    arrays = integrity.named_leaves(state)
    for path, leaf in arrays.items():
      if not isinstance(leaf, jax.Array):
        raise TypeError(
          f"{path} is a {type(leaf).__name__}: the state holds jax arrays "
          "only. Put host numbers into meta."
        )
    record = {
      "step": step,
      "final": is_final,
      "score": score,
      "meta": integrity.checked_json(meta),
      "arrays": {k: integrity.describe(leaf) for k, leaf in arrays.items()},
    }
    earlier = self._record(step) if step in self._own else None
    if earlier is not None:
      if is_final:
        self._finish(earlier | {"final": True})
      return
    if step in self._directories():
      self._make_room(step)
    with self._explained(step):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(trees.unflatten(arrays))
        ),
        force=True,
      )
    self._pending = record
    if not self._is_asynchronous:
      self.wait()

  def wait(self) -> None:
    """Finishes the save under way: arrays, manifest, removal of old steps."""
    if self._pending is not None:
      record, self._pending = self._pending, None
      self._finish(record)

  def restore(
    self, template: PyTree, *, step: int | None = None
  ) -> tuple[PyTree, dict[str, Any]]:
    """Returns (state, meta) of a step whose files are what was written.

    A damaged step is passed over, with a warning that names the file. The
    step is left in `restored_step`.

    Args:
      template: arrays or jax.ShapeDtypeStruct; each leaf is restored to the
        template's sharding, or to the first device where it has none.
      step: None for the newest good one.

    Raises:
      CheckpointError: no step, none undamaged, or one of another model.
    """
    step = self._good_step(step)
    record = self._record(step)
    wanted = integrity.named_leaves(template)
    integrity.compare_arrays(
      record["arrays"],
      {path: integrity.describe(leaf) for path, leaf in wanted.items()},
      f"step {step} of {self._root}",
    )
    state = self._read_arrays(step, template, wanted)
    self._own.add(step)
    self.restored_step = step
    return state, record["meta"]

  def restore_params(
    self, template: PyTree, *, prefix: str, step: int | None = None
  ) -> PyTree:
    """Returns a part of a step; see the function of this name."""
    step = self._good_step(step)
    stored = self._record(step)["arrays"]
    wanted = {
      f"{prefix}/{path}": leaf
      for path, leaf in integrity.named_leaves(template).items()
    }
    integrity.compare_part(
      stored,
      {path: integrity.describe(leaf) for path, leaf in wanted.items()},
      f"{prefix} in step {step} of {self._root}",
    )
    return self._read_arrays(step, template, wanted)

  def _open(self) -> None:
    with _silent():
      self._manager = ocp.CheckpointManager(
        self._root,
        options=ocp.CheckpointManagerOptions(
          enable_async_checkpointing=self._is_asynchronous,
          cleanup_tmp_directories=not self._is_read_only,
          read_only=self._is_read_only,
        ),
      )

  def _directories(self) -> list[int]:
    names = [path.name for path in self._root.iterdir()]
    return sorted(int(name) for name in names if name.isdigit())

  def _record(self, step: int) -> dict[str, Any] | None:
    return integrity.read_manifest(self._root / str(step))

  def _finish(self, record: dict[str, Any]) -> None:
    """Waits for the arrays, writes the manifest, removes older steps."""
    step = record["step"]
    with self._explained(step):
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        integrity.write_manifest(self._root / str(step), record)
    distributed.barrier("checkpoint/manifest")
    self._own.add(step)
    kept = [s for s in self.steps() if s not in self._damaged]
    final = {s for s in kept if self._record(s)["final"]}
    plain = [s for s in kept if s not in final]
    survivors = final | set(plain[-self._keep :]) | {step, *self._best_of(kept)}
    doomed = [s for s in self._directories() if s not in survivors]
    distributed.barrier("checkpoint/removal")
    for old in doomed:
      self._delete(old)

  def best(self) -> int | None:
    """Returns the finished step with the best score, or None."""
    return next(iter(self._best_of(self.steps())), None)

  def score(self, step: int) -> float | None:
    """Returns how good a finished step is, None where nobody said."""
    return self._record(step).get("score")

  def is_best(self, score: float | None) -> bool:
    """Says whether no kept step has a better score; False of None."""
    if score is None:
      return False
    self.wait()
    scores = [self._record(step).get("score") for step in self.steps()]
    kept = [x for x in scores if x is not None]
    return self._best([score, *kept]) == score

  def _best_of(self, steps: list[int]) -> list[int]:
    """Returns [the step with the best score, the newest of equals], or []."""
    scores = {s: self._record(s).get("score") for s in steps}
    scored = {s: score for s, score in scores.items() if score is not None}
    if not scored:
      return []
    best = self._best(scored.values())
    return [max(s for s, score in scored.items() if score == best)]

  def _good_step(self, step: int | None) -> int:
    """Returns the newest undamaged step, or the given one, checked."""
    self.wait()
    good, complaint = -1, "process 0 found no good checkpoint; see its error."
    if jax.process_index() == 0:
      good, complaint = self._search(step)
    if jax.process_count() > 1:
      good = int(multihost_utils.broadcast_one_to_all(np.int32(good)))
    if good < 0:
      raise CheckpointError(complaint)
    if step is None:  # what is newer is broken, or would have been taken
      self._damaged = {s for s in self._directories() if s > good}
      self._own -= self._damaged
    return good

  def _search(self, step: int | None) -> tuple[int, str]:
    """Returns a good step, or -1 and why there is none."""
    existing = self._directories()
    candidates = existing if step is None else [step]
    if not set(candidates) & set(existing):
      wanted = "no checkpoint" if step is None else f"no step {step}"
      return -1, (
        f"{self._root} holds {wanted} (its steps: {existing}). Check the "
        "directory, or start the run anew."
      )
    damage = None
    for candidate in reversed(candidates):
      damage = integrity.damage(self._root / str(candidate))
      if damage is None:
        return candidate, ""
      warnings.warn(
        f"step {candidate} of {self._root} is not used: {damage}.",
        stacklevel=4,
      )
    return -1, (
      f"{self._root}: no good checkpoint among steps {candidates}; of step "
      f"{candidates[0]}, {damage}. Restore the directory from a backup, or "
      "start in an empty --workdir."
    )

  def _read_arrays(
    self, step: int, template: PyTree, wanted: Mapping[str, Any]
  ) -> PyTree:
    """Returns the template's tree, its leaves read from the named paths."""
    first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {}
    for path, leaf in wanted.items():
      sharding = getattr(leaf, "sharding", None)
      abstract[path] = jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        sharding=first_device if sharding is None else sharding,
      )
    item = trees.unflatten(abstract)
    arguments = ocp.args.PyTreeRestore(
      item,
      restore_args=ocp.checkpoint_utils.construct_restore_args(item),
      partial_restore=True,
    )
    restored = self._manager.restore(
      step, args=ocp.args.Composite(state=arguments)
    )
    arrays: dict[str, Array] = trees.flatten(restored["state"])
    return jax.tree.unflatten(
      jax.tree.structure(template), [arrays[path] for path in wanted]
    )

  def _make_room(self, step: int) -> None:
    """Removes a broken step of this number; refuses to remove a good one."""
    if integrity.damage(self._root / str(step)) is None:
      raise CheckpointError(
        f"step {step} of {self._root} belongs to another run. Resume that run "
        "or start in an empty --workdir."
      )
    distributed.barrier("checkpoint/room")
    self._delete(step)

  def _delete(self, step: int) -> None:
    """Removes a step, manifest first: half removed must not look whole."""
    if jax.process_index() == 0:
      (self._root / str(step) / integrity.MANIFEST).unlink(missing_ok=True)
    self._manager.delete(step)
    self._damaged.discard(step)

  @contextlib.contextmanager
  def _explained(self, step: int) -> Iterator[None]:
    """Cleans up after a failed save and explains a full disk."""
    try:
      with _silent():
        yield
    except Exception as error:
      with contextlib.suppress(Exception):
        self._manager.close()
      if jax.process_index() == 0:
        if self._record(step) is None:
          with contextlib.suppress(OSError):
            (self._root / str(step)).rmtree()
        integrity.remove_leftovers(self._root)
      self._open()
      if not integrity.is_without_space(error):
        raise
      last = self.latest()
      kept = "none was saved before" if last is None else f"step {last}"
      raise CheckpointError(
        f"no space left to save step {step} in {self._root}. Free some, or "
        f"keep fewer checkpoints than {self._keep}; the last good checkpoint: "
        f"{kept}."
      ) from error
