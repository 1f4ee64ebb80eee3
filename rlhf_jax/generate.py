"""Sampling: prefill, decode with a key-value cache, early exit, compaction.

Knows tokens, not text. Three properties that RLHF needs:
  * log-probabilities of the sampled tokens come from the sampler, under the
    distribution it sampled from (temperature and truncation included);
  * each sample's randomness is folded from (key, prompt index, sample index,
    position), so it depends on no batch split, mesh or restart;
  * why a sample ended is said (finish_reason), never inferred from its ids.

Decoding runs in jitted chunks, which end when enough rows are done. With
`compact`, the default, finished rows are then taken out and the rest goes on in
a smaller batch: the work follows the mean length and not the longest. Where
prompts wait (`batch_size`), `refill` puts the next ones in their place instead.
On a mesh each shard does so with its own rows. The cache grows with the
answers. Samples of one prompt share its pass.

The streams that enter some layers can be had beside the samples: what judges
them reads the frozen lower layers so, and does not run them again.

How one token is drawn from logits is in sampling.py, what happens to the rows
of a batch in slots.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import decoding, distributed, slots
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.sampling import Config
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PromptBatch, PyTree, Samples

FIRST_ROOM = 64  # new tokens that the cache has room for at first
LEAST_ROWS = 8  # of a batch that is worth a program of its own


@functools.partial(jax.jit, static_argnames="num_samples")
def sample_keys(key: Array, index: Array, num_samples: int) -> Array:
  """Returns [N] keys, folded from (key, prompt index, sample index).

  A prompt that is in the batch twice (at the border of two epochs) counts its
  samples on, so that its copies differ.
  """
  earlier = jnp.tril(index[:, None] == index[None, :], k=-1).sum(axis=1)
  sample = earlier[:, None] * num_samples + jnp.arange(num_samples)[None, :]
  index, sample = jnp.repeat(index, num_samples), sample.reshape(-1)
  fold = jax.vmap(
    lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g)
  )
  return fold(index, sample)


def generate(
  params: PyTree, prompts: PromptBatch, key: Array, **how
) -> Samples:
  """Samples `num_samples` responses to every prompt; see `with_streams`."""
  return with_streams(params, prompts, key, **how)[0]


def with_streams(
  params: PyTree,
  prompts: PromptBatch,
  key: Array,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
  pad_id: int,
  stops: Array | None = None,
  taps: tuple[int, ...] = (),
) -> tuple[Samples, dict[int, Array]]:
  """Samples `num_samples` responses to every prompt, and keeps streams.

  Args:
    params: the complete parameter tree of `model`, LoRA factors merged or as
      lora.beside leaves them.
    prompts: [B, P], padded on the left.
    key: random key of this step.
    model: architecture.
    config: how to sample.
    eos_ids: tokens that end a response; sampled ones belong to it.
    pad_id: fills columns after the end; may equal an end token.
    stops: [S, V] int32 of data/stops.py, where strings end a response too; the
      token that completes one belongs to it.
    taps: layers; see below.

  Returns:
    Samples of N = B * num_samples rows, [N, P + max_new_tokens], and {layer:
    [N, P + max_new_tokens, D] the stream that entered it} of `taps`, which off
    the valid tokens means nothing.

  Raises:
    ValueError: when prompt and response do not fit the model's context.
  """
  width = prompts.tokens.shape[1]
  if width + config.max_new_tokens > model.max_length:
    raise UserError(
      f"prompt of {width} tokens + max_new_tokens={config.max_new_tokens} = "
      f"{width + config.max_new_tokens} exceeds the model's context of "
      f"{model.max_length} tokens. Shorten the prompts or the responses."
    )
  keys = sample_keys(key, prompts.index, config.num_samples)
  rows = keys.shape[0]
  size = rows if config.batch_size is None else config.batch_size
  if rows % size:
    raise UserError(
      f"{rows} samples are not a multiple of batch_size={size}. Set "
      "generate.batch_size to a divisor."
    )
  times = rows_of_prompt(size, config.num_samples, slots.ways(size))
  if times < config.num_samples:
    copy = functools.partial(jnp.repeat, repeats=config.num_samples, axis=0)
    prompts = jax.tree.map(copy, prompts)
  is_known = _is_known(params)
  is_refilled = is_known if config.refill is None else config.refill
  work = _Work(
    params=params,
    prompts=prompts,
    keys=keys,
    size=size,
    times=times,
    begin=dict(model=model, config=config, pad_id=pad_id, taps=taps),
    is_compact=is_known if config.compact is None else config.compact,
    how=dict(model=model, config=config, eos_ids=eos_ids, stops=stops),
  )
  sample = _refilled if is_refilled and size < rows else _by_turns
  answers = sample(work)
  samples = slots.samples(answers, most=config.max_new_tokens)
  return samples, answers.streams


def rows_of_prompt(size: int, num_samples: int, ways: int) -> int:
  """Returns how many rows share the pass of their prompt.

  Args:
    size: rows decoded together.
    num_samples: of each prompt.
    ways: shards of the rows; a prompt is in one.
  """
  return 1 if size // ways % num_samples else num_samples


def refill_rows(mine: int, times: int) -> int:
  """Returns how many rows of a shard are replaced at a time.

  An eighth of them or little more: few idle, and each program is worth its
  call. It divides `mine`, so that no shard is left with fewer.

  Args:
    mine: rows of a shard.
    times: rows that share the pass of a prompt, a divisor.
  """
  fits = range(times, mine + 1, times)
  return next(n for n in fits if mine % n == 0 and 8 * n >= mine)


def first_room(config: Config, *, is_compact: bool) -> int:
  """Returns for how many new tokens the cache has room at first."""
  most = config.max_new_tokens
  return min(most, FIRST_ROOM) if is_compact else most


def smaller(rows: int, ways: int) -> list[int]:
  """Returns what a batch of so many rows shrinks to, down to an eighth.

  Args:
    rows: of all shards.
    ways: shards, which keep equally many.
  """
  found = [rows // ways // n * ways for n in (2, 4, 8)]
  return [n for n in found if n >= LEAST_ROWS]


def _is_known(params: PyTree) -> bool:
  """Says whether rows can leave and come without moving between devices.

  They can where a `current` mesh (parallel/mesh.py) says whose rows are whose,
  or all are on one device.
  """
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  is_one = sharding is None or len(sharding.device_set) == 1
  return is_one or mesh_lib.is_split()


@dataclasses.dataclass(frozen=True)
class _Work:
  """All that is to be sampled, and how.

  params: complete.
  prompts: [N / times, P].
  keys: [N].
  size: rows decoded together, a divisor of N.
  times: rows that share the pass of a prompt.
  begin, how: further arguments of the passes over prompts and over tokens.
  is_compact: finished rows are taken out, and the cache grows.
  """

  params: PyTree
  prompts: PromptBatch
  keys: Array
  size: int
  times: int
  begin: dict[str, Any]
  is_compact: bool
  how: dict[str, Any]

  @property
  def rows(self) -> int:
    """All samples, of all shards."""
    return self.keys.shape[0]

  @property
  def ways(self) -> int:
    """Shards."""
    return slots.ways(self.size)

  @property
  def most(self) -> int:
    """New tokens of an answer."""
    return self.how["config"].max_new_tokens

  def start(self, first: int, size: int, room: int) -> slots.State:
    """Returns samples whose prompts are read.

    Args:
      first: of each shard's samples.
      size: rows, of all shards together.
      room: slots of the cache for new tokens.
    """
    prompts, keys, at = self.prompts, self.keys, jnp.int32(first)
    if size < self.rows:
      prompts, keys = slots.portion(
        prompts, keys, at, size=size, times=self.times
      )
    return decoding.prefill(
      self.params, prompts, keys, at, room=room, **self.begin
    )

  def decode(self, state: slots.State, stop_at: int) -> tuple[slots.State, int]:
    """Decodes until at most `stop_at` rows of the fullest shard go on.

    The cache starts with FIRST_ROOM new tokens and doubles, so that each token
    reads little that is empty.

    Returns:
      The state, and how many rows of the fullest shard go on.
    """
    while True:
      state = decoding.decode(
        self.params, state, jnp.int32(stop_at), **self.how
      )
      alive, need = distributed.fetch((state.alive, state.need))
      have = cache_lib.cache_slots(state.cache)
      if alive <= stop_at or need <= have:
        return state, int(alive)
      width = self.prompts.tokens.shape[1]
      room = min(2 * (have - width), self.most)
      state = slots.grow(state, size=width + room)


def _by_turns(work: _Work) -> slots.Answers:
  """Samples one batch after the other."""
  room = first_room(work.how["config"], is_compact=work.is_compact)
  result = None
  for first in range(0, work.rows // work.ways, work.size // work.ways):
    state = work.start(first, work.size, room)
    if result is None and work.size < work.rows:
      result = slots.empty(state.answers, rows=work.rows)
    result = _finish(work, result, state)
  return result


def _refilled(work: _Work) -> slots.Answers:
  """Samples one batch, whose done rows make way for the next prompts."""
  mine, waiting = (n // work.ways for n in (work.size, work.rows - work.size))
  unit = refill_rows(mine, work.times)
  room = first_room(work.how["config"], is_compact=work.is_compact)
  state = work.start(0, work.size, room)
  result = slots.empty(state.answers, rows=work.rows)
  while waiting:
    state, alive = work.decode(state, mine - unit)
    while waiting and alive <= mine - unit:
      first = work.rows // work.ways - waiting
      new = work.start(first, unit * work.ways, room=0)
      result, state = slots.refill(result, state, new, most=work.most)
      alive, waiting = int(distributed.fetch(state.alive)), waiting - unit
  return _finish(work, result, state)


def _finish(
  work: _Work, result: slots.Answers | None, state: slots.State
) -> slots.Answers:
  """Decodes to the end, in fewer rows as they finish.

  Args:
    work: what all is.
    result: answers of all samples, None where the state has all.
    state: the batch.

  Returns:
    The result with what the rows of the state have become.
  """
  sizes = smaller(work.size, work.ways) if work.is_compact else []
  while True:
    # A smaller batch is worth moving to when its rows are all that is left.
    stop_at = sizes[0] // work.ways if sizes else 0
    state, alive = work.decode(state, stop_at)
    if not alive:
      return state.answers if result is None else slots.store(result, state)
    while sizes and alive <= sizes[0] // work.ways:
      size = sizes.pop(0)
    result = state.answers if result is None else result
    result, state = slots.shrink(result, state, size=size, most=work.most)
