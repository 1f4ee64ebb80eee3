"""A batch in flight, and its rows that leave, come and go on.

State is a batch of which some rows are done. Rows are at different places in
their answers; the cache is a ring, and all rows write the same slot of it:

  slot          0   1   2   3   4   5   6   7
  row, 5 tokens         a   b   c   d   e         the next is written at 7
  row, 7 tokens f   g   h   i   j   k   l
  after a wrap  h'  i'          d'  e'  f'  g'    the next is written at 2

A row reads the last length + step slots, so nothing is kept of what is valid,
and what another row left in a slot is never read.

On a mesh every shard does this with its own rows, all at once and all the same
number: rows stay on their device, and what decides is the fullest shard.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhf_jax.models import cache as cache_lib
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.types import (
  FINISH_EOS,
  FINISH_LENGTH,
  Array,
  PromptBatch,
  PyTree,
  Samples,
)


@flax.struct.dataclass
class Answers:
  """What is sampled so far of n rows.

  tokens: [n, L] prompt, padded left, and response.
  logprobs: [n, L] of the response.
  length: [n] tokens of the prompt, the position of the first new token.
  step: [n] tokens sampled.
  done: [n] bool, sampled its end.
  streams: layer -> [n, L, D] that entered it; means nothing off valid tokens.
  """

  tokens: Array
  logprobs: Array
  length: Array
  step: Array
  done: Array
  streams: dict[int, Array]


@flax.struct.dataclass
class State:
  """A batch in flight of n rows, some of them done.

  cache: of S slots.
  answers: of its rows.
  last: [n, D] stream that left the last layer at the newest token.
  keys: [n] random keys.
  row: [n] int32, which sample of its shard this is.
  stop: [n] int32, state of the automaton of stop strings.
  slot: [] int32, slots written since the start.
  alive: [] int32, rows of the fullest shard that are not done.
  need: [] int32, slots that the next step wants the cache to have.
  """

  cache: PyTree
  answers: Answers
  last: Array
  keys: Array
  row: Array
  stop: Array
  slot: Array
  alive: Array
  need: Array


def ways(rows: int) -> int:
  """Returns in how many shards so many rows are, 1 where all are everywhere."""
  count = mesh_lib.row_ways()
  return 1 if rows % count else count


def alive_rows(answers: Answers, most: int) -> Array:
  """Returns [n] bool, rows that go on, of at most `most` new tokens."""
  return jnp.logical_not(answers.done) & (answers.step < most)


def fullest(alive: Array) -> Array:
  """Returns the number of rows [n] bool that go on in the fullest shard."""
  return jnp.max(jnp.sum(alive.reshape(ways(alive.shape[0]), -1), axis=1))


def count(state: State, most: int) -> State:
  """Returns the state with `alive` and `need` of its rows now."""
  alive = alive_rows(state.answers, most)
  used = state.answers.length + state.answers.step + 1  # after the next one
  return state.replace(
    alive=fullest(alive).astype(jnp.int32),
    need=jnp.max(jnp.where(alive, used, 0)).astype(jnp.int32),
  )


def by_shard(
  function: Callable[..., tuple], *trees: PyTree, rows: int, results: int
) -> tuple:
  """Returns function(*trees), inside jit, of the rows of each shard alone.

  Args:
    function: returns as many trees, of the structure of the first ones.
    *trees: of arrays [n, ...], caches, and numbers that all shards have.
    rows: of a batch; where they do not divide, all rows are one shard.
    results: trees that the function returns.
  """
  if ways(rows) == 1:
    return function(*trees)
  split = tuple(_split(tree) for tree in trees)
  return jax.shard_map(
    function, in_specs=split, out_specs=split[:results], check_vma=False
  )(*trees)


def _without_cache(tree: PyTree) -> PyTree:
  return tree.replace(cache=None) if isinstance(tree, State) else tree


def _split(tree: PyTree) -> PyTree:
  """Returns how the leaves of a tree of rows are split."""

  def rows(leaf: Array) -> PartitionSpec:
    return PartitionSpec(mesh_lib.BATCH_AXES) if leaf.ndim else PartitionSpec()

  found = jax.tree.map(rows, _without_cache(tree))
  if not isinstance(tree, State):
    return found
  mesh = jax.sharding.get_abstract_mesh()
  is_list = isinstance(tree.cache, list)  # all layers alike, or stacked
  layer = tree.cache[0] if is_list else tree.cache
  spec = jax.tree.map(lambda x: x.spec, rules.sharding_tree(mesh, layer))
  return found.replace(cache=[spec] * len(tree.cache) if is_list else spec)


def settle(state: State) -> State:
  """Returns the state, inside jit, each row on the devices of its shard."""
  return _settled(state, state.row.shape[0])


def _settled(tree: PyTree, rows: int) -> PyTree:
  if ways(rows) == 1:
    return tree
  return jax.tree.map(mesh_lib.constrain, tree, _split(tree))


@functools.partial(jax.jit, static_argnames=("size", "times"))
def portion(
  prompts: PromptBatch, keys: Array, first: Array, *, size: int, times: int
) -> tuple[PromptBatch, Array]:
  """Returns the next `size` rows, those of each shard from `first` on.

  Args:
    prompts: [N / times, P].
    keys: [N].
    first: [] int32, a multiple of `times`.
    size: rows of all shards together.
    times: rows of each prompt.
  """
  mine = size // ways(size)

  def local(prompts: PromptBatch, keys: Array, first: Array) -> tuple:
    def cut(x: Array, start: Array, length: int) -> Array:
      return jax.lax.dynamic_slice_in_dim(x, start, length)

    some = functools.partial(cut, start=first // times, length=mine // times)
    return jax.tree.map(some, prompts), cut(keys, first, mine)

  return by_shard(local, prompts, keys, first, rows=size, results=2)


@functools.partial(jax.jit, static_argnames="rows")
def empty(answers: Answers, *, rows: int) -> Answers:
  """Returns empty answers of so many rows, of the shape of others."""
  zeros = jax.tree.map(
    lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), answers
  )
  return _settled(zeros, rows)


@jax.jit
def store(result: Answers, state: State) -> Answers:
  """Returns the result with what the rows of a state are now."""

  def local(result: Answers, state: State) -> tuple[Answers]:
    return (_stored(result, state),)

  rows = state.row.shape[0]
  return by_shard(local, result, state, rows=rows, results=1)[0]


def _stored(result: Answers, state: State) -> Answers:
  return jax.tree.map(
    lambda x, new: x.at[state.row].set(new), result, state.answers
  )


@functools.partial(jax.jit, static_argnames=("size", "most"))
def shrink(
  result: Answers, state: State, *, size: int, most: int
) -> tuple[Answers, State]:
  """Returns the result with all rows, and the state without done ones.

  Args:
    result: answers of all samples, written to where they belong.
    state: whose shards have at most their part of `size` rows that go on.
    size: rows that stay, of all shards together; done ones fill up.
    most: new tokens of an answer.
  """
  mine = size // ways(size)

  def local(result: Answers, state: State) -> tuple[Answers, State]:
    alive = alive_rows(state.answers, most)
    rows = jnp.argsort(jnp.logical_not(alive), stable=True)[:mine]
    kept = jax.tree.map(
      lambda x: x[rows],  # jnp.take fills beyond the end, which keys cannot
      state.replace(cache=None, slot=None, alive=None, need=None),
    )
    return _stored(result, state), kept.replace(
      cache=cache_lib.take_rows(state.cache, rows),
      slot=state.slot,
      alive=state.alive,
      need=state.need,
    )

  return by_shard(local, result, state, rows=size, results=2)


def turned(slots: int, width: int, slot: Array) -> Array:
  """Returns [slots] int32, where a ring takes each slot from in a prompt.

  Args:
    slots: of the ring.
    width: of the prompt, whose last token is to stand before `slot`.
    slot: [] int32, slots written since the start.

  Returns:
    Places in the prompt; `width` and more where nothing of it is.
  """
  return (jnp.arange(slots) - slot + width) % slots


@functools.partial(jax.jit, static_argnames="most", donate_argnames="state")
def refill(
  result: Answers, state: State, new: State, *, most: int
) -> tuple[Answers, State]:
  """Returns the result with all rows, and new rows in place of done ones.

  The prompts of new rows are turned to end at the slot that is written next.

  Args:
    result: answers of all samples, written to where they belong.
    state: of whose shards each has as many done rows as are new in it.
    new: fresh from the prompts, its cache of no more slots.
    most: new tokens of an answer.
  """
  slots, width = (cache_lib.cache_slots(s.cache) for s in (state, new))

  def local(result: Answers, state: State, new: State) -> tuple[Answers, State]:
    alive = alive_rows(state.answers, most)
    at = jnp.argsort(alive, stable=True)[: new.row.shape[0]]
    source = turned(slots, width, state.slot)
    fresh = cache_lib.take_slots(new.cache, source)
    merged = jax.tree.map(
      lambda x, y: x.at[at].set(y),
      *(
        s.replace(cache=None, slot=None, alive=None, need=None)
        for s in (state, new)
      ),
    )
    return _stored(result, state), merged.replace(
      cache=cache_lib.put_rows(state.cache, fresh, at),
      slot=state.slot,
      alive=state.alive,
      need=state.need,
    )

  rows = new.row.shape[0]
  result, state = by_shard(local, result, state, new, rows=rows, results=2)
  return result, count(state, most)


@functools.partial(jax.jit, static_argnames="size")
def grow(state: State, *, size: int) -> State:
  """Returns the state with a cache of so many slots, the oldest first."""
  before = cache_lib.cache_slots(state.cache)
  source = (state.slot + jnp.arange(size)) % before
  return settle(
    state.replace(
      cache=cache_lib.take_slots(state.cache, source),
      slot=jnp.int32(before),
    )
  )


@functools.partial(jax.jit, static_argnames="most")
def samples(answers: Answers, *, most: int) -> Samples:
  """Returns answers of at most `most` new tokens as samples."""
  columns = jnp.arange(answers.tokens.shape[1])[None, :]
  width = answers.tokens.shape[1] - most
  end = width + answers.step[:, None]
  is_valid = (columns >= width - answers.length[:, None]) & (columns < end)
  is_response = (columns >= width) & (columns < end)
  return Samples(
    tokens=answers.tokens,
    valid_mask=is_valid.astype(jnp.float32),
    response_mask=is_response.astype(jnp.float32),
    behaviour_logprobs=answers.logprobs,
    finish_reason=jnp.where(answers.done, FINISH_EOS, FINISH_LENGTH).astype(
      jnp.int32
    ),
  )
