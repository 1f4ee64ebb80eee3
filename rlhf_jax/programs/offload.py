"""Arrays on the host while nothing reads them, in a step on own samples.

  rollout   the policy samples
  score     reference, reward models and critic judge
  update    the optimizer steps

Only `score` reads the reference and the reward models, only `update` the
moments of the optimizer. A tree that is named here stays in pinned memory of
the host otherwise, each piece beside the device that owns it. Frozen weights
have one copy on the host for the whole run; that on the devices is made anew
for every score phase and deleted when the judge has been called. Moments are
moved, and the copy behind them is deleted: XLA cannot give a buffer of one
memory to an array in the other.

With `prefetch` a copy to the devices starts one phase early, so that it runs
beside the work of that phase, where its bytes then are too: frozen weights
come while the policy samples, moments while the judge runs. Copies move bits:
a run gives the same numbers with and without.

BOND samples and judges twice in a step. A round of rejection sampling has no
moments while it samples, and its start is what each round trains, so there what
judges can leave while the round trains.

Between steps everything but frozen weights is on the devices, so checkpoints,
stops and resuming know nothing of this. The model that was read is deleted
where nothing of the run reads it; a later stage of the same process reads it
anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base
from rlhf_jax.rewards import judge
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PyTree, TrainState

TREES = ("reference", "reward", "optimizer")
HOST, DEVICE = "pinned_host", "device"


@dataclasses.dataclass(frozen=True)
class Config:
  """Which trees are on the host in the phases that do not read them."""

  trees: tuple = ()  # of "reference", "reward" (the reward model and monitors)
  # and "optimizer" (all moments); () for none
  prefetch: bool = True  # copies to the devices start one phase early: no
  # waiting, and their bytes are there in that phase too

  def __post_init__(self) -> None:
    for name in self.trees:
      if name not in TREES:
        raise FieldError(
          f"trees: {name!r} cannot be on the host; {', '.join(TREES)} can."
        )
    if len(set(self.trees)) < len(self.trees):
      raise FieldError(f"trees={self.trees}: one of them stands there twice.")
    if not self.prefetch and not self.trees:
      raise FieldError(
        "prefetch=False with trees=(): nothing is copied. Set trees, or "
        "prefetch=True."
      )

  @property
  def releases(self) -> bool:
    """Whether frozen weights that nothing reads are deleted."""
    return bool({"reference", "reward"} & set(self.trees))


def _distinct(trees: Any) -> dict[int, Any]:
  return {id(leaf): leaf for leaf in jax.tree.leaves(trees)}


def _kept(actors: Any, also: PyTree) -> set[int]:
  """Returns the ids of frozen arrays that other phases read too."""
  weights = actors.weights
  return set(_distinct((weights.base, weights.own, actors.frozen, also)))


def named(config: Config, weights: judge.Weights) -> dict[str, PyTree]:
  """Returns the frozen trees that are named, by name."""
  trees = {"reference": weights.reference, "reward": weights.scorers}
  return {name: tree for name, tree in trees.items() if name in config.trees}


def leaves_of(
  config: Config, actors: Any, also: PyTree = ()
) -> dict[str, dict[int, Any]]:
  """Returns {tree: {id: array}} of frozen arrays that leave the devices.

  Args:
    config: the section.
    actors: everyone.
    also: what else stays, because something reads it later.

  Raises:
    FieldError: of a named tree nothing can, because others read all of it.
  """
  kept, found = _kept(actors, also), {}
  for name, tree in named(config, actors.weights).items():
    own = {id(x): x for x in _movable(tree) if id(x) not in kept}
    if not own:
      why = "there is none" if not _distinct(tree) else "others read all of it"
      raise FieldError(
        f"offload.trees: {name!r}: nothing of it can leave the devices, "
        f"{why}. Leave it out."
      )
    found[name] = own
  return found


def away(
  config: Config,
  actors: Any,
  arrays: PyTree,
  rollout: list[str],
  score: list[str],
  update: list[str],
  also: PyTree = (),
) -> dict[str, tuple]:
  """Returns {program: arrays that are on the host while it runs}.

  Args:
    config: the section.
    actors: everyone.
    arrays: of a step.
    rollout, score, update: names of the programs of each phase; those of
      `score` that end with "judge" read frozen weights.
    also: see `leaves_of`.
  """
  if not config.trees:
    return {}
  frozen = {}
  for own in leaves_of(config, actors, also).values():
    frozen |= own
  states = [s for s in arrays.values() if isinstance(s, TrainState)]
  moved = []
  if "optimizer" in config.trees:
    moved = _movable([s.opt_state for s in states])
  with_frozen = {name for name in score if name.endswith("judge")}
  with_moments = set(update)
  if config.prefetch:
    with_frozen |= set(rollout)
    with_moments |= set(score)
  return {
    name: (
      *([] if name in with_frozen else frozen.values()),
      *([] if name in with_moments else moved),
    )
    for name in (*rollout, *score, *update)
  }


def _movable(tree: PyTree) -> list[Any]:
  """Returns the leaves that are worth a copy; single numbers stay."""
  return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]


def check_device(mesh: jax.sharding.Mesh) -> None:
  """Raises FieldError where devices have no memory of the host beside them."""
  device = mesh.devices.flat[0]
  kinds = {memory.kind for memory in device.addressable_memories()}
  if HOST not in kinds:
    raise FieldError(
      f"offload.trees: a {device.platform} has the memories {sorted(kinds)} "
      f"and no {HOST!r}. Set ()."
    )


def copied(leaves: Iterable[Array], kind: str) -> list[Array]:
  """Returns copies of arrays in another memory; the copying goes on behind.

  Each process copies the pieces of its own devices.

  Args:
    leaves: on a mesh.
    kind: HOST or DEVICE.
  """
  leaves = list(leaves)
  pieces = [[shard.data for shard in x.addressable_shards] for x in leaves]
  places = jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), pieces)
  put = jax.device_put(pieces, places)
  return [
    jax.make_array_from_single_device_arrays(
      x.shape, x.sharding.with_memory_kind(kind), parts
    )
    for x, parts in zip(leaves, put, strict=True)
  ]


def _move(tree: PyTree, kind: str) -> PyTree:
  """Returns a tree in another memory; the arrays it was in are deleted."""
  leaves, structure = jax.tree.flatten(tree)
  index = [
    i
    for i, x in enumerate(leaves)
    if x.ndim and (x.sharding.memory_kind == HOST) != (kind == HOST)
  ]
  before = [leaves[i] for i in index]
  for i, x in zip(index, copied(before, kind), strict=True):
    leaves[i] = x
  for x in before:
    x.delete()  # its memory is free when the copy has been made
  return jax.tree.unflatten(structure, leaves)


def _moments(config: Config, arrays: PyTree, kind: str) -> PyTree:
  if "optimizer" not in config.trees:
    return arrays
  return {
    name: value.replace(opt_state=_move(value.opt_state, kind))
    if isinstance(value, TrainState)
    else value
    for name, value in arrays.items()
  }


def park(config: Config, arrays: PyTree) -> PyTree:
  """Returns a step's arrays with the moments on the host, there already."""
  arrays = _moments(config, arrays, HOST)
  if "optimizer" in config.trees:
    states = [s for s in arrays.values() if isinstance(s, TrainState)]
    jax.block_until_ready([s.opt_state for s in states])
  return arrays


def fetch(config: Config, arrays: PyTree) -> PyTree:
  """Returns a step's arrays with the moments on their way to the devices."""
  return _moments(config, arrays, DEVICE)


class Frozen:
  """The weights of the judge, of which some rest on the host; open resource.

  Arrays of the device that it is made of are deleted, and so are those of the
  base model and of the start that no phase reads.
  """

  def __init__(
    self,
    config: Config,
    actors: Any,
    base: Base,
    mesh: jax.sharding.Mesh,
    also: PyTree = (),
  ) -> None:
    check_device(mesh)
    found = leaves_of(config, actors, also)
    resting = {k: x for own in found.values() for k, x in own.items()}
    self._prefetches = config.prefetch
    self._leaves, self._structure = jax.tree.flatten(actors.weights)
    self._order = list(resting)
    self._places = [
      self._order.index(id(x)) if id(x) in resting else None
      for x in self._leaves
    ]
    self._host = copied(resting.values(), HOST)
    jax.block_until_ready(self._host)
    read = _kept(actors, also) | set(_distinct(actors.held))
    unread = {
      k: x
      for k, x in _distinct((base.params, actors.params)).items()
      if k not in read
    }
    pretrained.forget()
    for leaf in (resting | unread).values():
      leaf.delete()
    self._leaves = [
      x if place is None else None
      for x, place in zip(self._leaves, self._places, strict=True)
    ]
    self._copies: list[Array] | None = None

  @property
  def bytes(self) -> int:
    """Of the copy on the host, all processes together."""
    return sum(x.nbytes for x in self._host)

  def begin(self) -> None:
    """Is told that a rollout begins: a copy may start."""
    if self._prefetches:
      self._fetch()

  def _fetch(self) -> list[Array]:
    if self._copies is None:
      self._copies = copied(self._host, DEVICE)
    return self._copies

  def weights(self) -> judge.Weights:
    """Returns the judge's weights, all on the devices or on their way."""
    copies = self._fetch()
    leaves = [
      x if place is None else copies[place]
      for x, place in zip(self._leaves, self._places, strict=True)
    ]
    return jax.tree.unflatten(self._structure, leaves)

  def drop(self) -> None:
    """Deletes the copies on the devices; programs under way keep theirs."""
    for leaf in self._copies or ():
      leaf.delete()
    self._copies = None


def opened(
  config: Config,
  actors: Any,
  base: Base,
  mesh: jax.sharding.Mesh,
  name: str,
  also: PyTree = (),
) -> Frozen | None:
  """Returns the judge's weights, some on the host; None where all stay.

  Says what leaves the devices.

  Args:
    config: the section.
    actors: everyone.
    base: the model as it was read.
    mesh: where it is.
    name: of the pipeline, for that line.
    also: see `leaves_of`.

  Raises:
    FieldError: nothing of a tree can, or the devices have no such memory.
  """
  if not config.trees:
    return None
  check_device(mesh)
  if not config.releases:
    print(f"{name}: the moments are on the host but for the updates")
    return None
  found = Frozen(config, actors, base, mesh, also)
  print(
    f"{name}: {', '.join(config.trees)} on the host between the phases that "
    f"read them; {found.bytes / 2**20:.0f} MiB of frozen weights"
  )
  return found
