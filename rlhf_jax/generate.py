"""Sampling: prefill, decode with a key-value cache, early exit, compaction.

Knows tokens, not text. Three properties that RLHF needs:
  * log-probabilities of the sampled tokens come from the sampler, under the
    distribution it sampled from (temperature and truncation included);
  * each sample's randomness is folded from (key, prompt index, sample index,
    position), so it depends on no batch split, mesh or restart;
  * why a sample ended is said (finish_reason), never inferred from its ids.

Decoding runs in jitted chunks. With `compact`, the default on one device, a
chunk ends when enough rows are done, the finished rows are taken out and the
rest goes on in a smaller batch: the work follows the mean length and not the
longest. The cache grows with the answers. Samples of one prompt share its pass.

The streams that enter some layers can be had beside the samples: what judges
them reads the frozen lower layers so, and does not run them again.

How one token is drawn from logits is in sampling.py.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import decoding
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import transformer
from rlhf_jax.sampling import Config
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PromptBatch, PyTree, Samples

FIRST_ROOM = 64  # new tokens that the cache has room for at first
LEAST_ROWS = 8  # of a batch that is worth a program of its own


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
    params: the complete parameter tree of `model` (LoRA factors merged).
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
  shared = config.num_samples  # rows that share the pass of their prompt
  if size % shared:
    prompts = jax.tree.map(lambda x: jnp.repeat(x, shared, axis=0), prompts)
    shared = 1
  parts = []
  for start in range(0, rows, size):
    piece = jax.tree.map(
      operator.itemgetter(slice(start // shared, (start + size) // shared)),
      prompts,
    )
    parts.append(
      _generate_batch(
        params,
        piece,
        keys[start : start + size],
        how=dict(model=model, config=config, eos_ids=eos_ids, stops=stops),
        begin=dict(model=model, config=config, pad_id=pad_id, taps=taps),
      )
    )
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _is_compact(params: PyTree, config: Config) -> bool:
  """Says whether finished rows are taken out: by default on one device."""
  if config.compact is not None:
    return config.compact
  sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
  return sharding is None or len(sharding.device_set) == 1


def _generate_batch(
  params, prompts, keys, *, how, begin
) -> tuple[Samples, dict[int, Array]]:
  config = how["config"]
  if _is_compact(params, config):
    room = min(config.max_new_tokens, FIRST_ROOM)
    state = decoding.prefill(params, prompts, keys, room=room, **begin)
    return _decode_compacting(params, state, how)
  state = decoding.prefill(params, prompts, keys, **begin)
  state = decoding.decode(params, state, jnp.int32(0), **how)
  return decoding.samples(state), state.streams


def _decode_compacting(
  params: PyTree, state: decoding.State, how
) -> tuple[Samples, dict[int, Array]]:
  """Decodes in chunks: fewer rows as they finish, a cache that grows.

  The batch is halved down to an eighth; the cache starts with FIRST_ROOM new
  tokens and doubles, so that each token reads little that is empty.
  """
  rows, total = state.tokens.shape
  most = how["config"].max_new_tokens
  sizes = [n for n in (rows // 2, rows // 4, rows // 8) if n >= LEAST_ROWS]
  result: dict[str, np.ndarray] = {}
  while True:
    # A smaller batch is worth moving to when its rows are all that is left.
    stop_at = sizes[0] if sizes else 0
    state = decoding.decode(params, state, jnp.int32(stop_at), **how)
    done, step = jax.device_get((state.done, state.step))
    alive = np.flatnonzero(~done)
    is_over = step >= most or not len(alive)
    if is_over or len(alive) <= stop_at:
      _put(result, state)
    if is_over:
      break
    if len(alive) <= stop_at:
      while sizes and len(alive) <= sizes[0]:
        size = sizes.pop(0)
      filler = np.flatnonzero(done)[: size - len(alive)]
      state = decoding.take(state, jnp.asarray(np.concatenate([alive, filler])))
    slots = cache_lib.cache_slots(state.cache)
    if total - most + step >= slots:
      room = min(2 * (slots - (total - most)), most)
      state = decoding.grow(state, slots=total - most + room)
  found = {name: jnp.asarray(value) for name, value in result.items()}
  return Samples(**found), state.streams


def _put(result: dict[str, np.ndarray], state: decoding.State) -> None:
  """Writes what the rows of a state are now to their places in `result`."""
  found, row = jax.device_get((vars(decoding.samples(state)), state.row))
  for name, value in found.items():
    if name not in result:  # the first time all rows are there, in order
      result[name] = np.array(value)
    result[name][row] = value
