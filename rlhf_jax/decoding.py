"""The two passes of sampling: over the prompts, and token by token.

What a batch in flight is, and how its rows leave and come, is in slots.py. A
token is drawn and read in the same step, so whoever wants the streams that
entered some layers finds them complete.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlhf_jax import ops, slots
from rlhf_jax.models import attention, transformer
from rlhf_jax.models.cache import (
  cache_slots,
  make_cache,
  repeat_cache,
  repeat_rows,
)
from rlhf_jax.parallel import rules
from rlhf_jax.sampling import Config, sample_tokens
from rlhf_jax.slots import Answers, State
from rlhf_jax.types import Array, PromptBatch, PyTree


def _allowed(
  logits: Array, step: Array, model: transformer.Config, config: Config, eos_ids
) -> Array:
  """Returns logits [n, V], -inf where there is no token or it is too early."""
  logits = ops.hide_rows(logits, model.empty_rows, -jnp.inf)
  if not config.min_new_tokens:
    return logits
  ends = [(i, i + 1) for i in eos_ids if i < logits.shape[-1]]
  is_early = (step + 1 < config.min_new_tokens)[:, None]
  return jnp.where(is_early, ops.hide_rows(logits, ends, -jnp.inf), logits)


def _draw(
  state: State,
  logits: Array,
  stops: Array | None,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
) -> State:
  """Returns the state with one more token in every row that goes on."""
  answers, most = state.answers, config.max_new_tokens
  logits = _allowed(logits, answers.step, model, config, eos_ids)
  uniform = jax.vmap(
    lambda key, step: jax.random.uniform(jax.random.fold_in(key, step))
  )(state.keys, answers.step)
  token, logprob = sample_tokens(logits, uniform, config)
  is_end = jnp.any(token[:, None] == jnp.asarray(eos_ids)[None, :], axis=1)
  alive = slots.alive_rows(answers, most)
  stop = state.stop
  if stops is not None:
    found = stops[state.stop, token]
    is_late = answers.step + 1 >= config.min_new_tokens
    is_end = is_end | ((found >= stops.shape[0]) & is_late)
    stop = jnp.where(alive, found % stops.shape[0], state.stop)
  columns = jnp.arange(answers.tokens.shape[1])[None, :]
  column = answers.tokens.shape[1] - most + answers.step
  is_here = (columns == column[:, None]) & alive[:, None]
  return slots.count(
    state.replace(
      answers=answers.replace(
        tokens=jnp.where(is_here, token[:, None], answers.tokens),
        logprobs=jnp.where(is_here, logprob[:, None], answers.logprobs),
        step=answers.step + alive,
        done=answers.done | (alive & is_end),
      ),
      stop=stop,
    ),
    most,
  )


@functools.partial(
  jax.jit, static_argnames=("model", "config", "pad_id", "room", "taps")
)
def prefill(
  params: PyTree,
  prompts: PromptBatch,
  keys: Array,
  first: Array,
  *,
  model: transformer.Config,
  config: Config,
  pad_id: int,
  room: int | None = None,
  taps: tuple[int, ...] = (),
) -> State:
  """Runs the prompts; nothing is sampled yet.

  Rows of one prompt share its pass: keys [n] are a multiple of the prompts.

  Args:
    params: see generate.generate.
    prompts: [n / times, P].
    keys: [n].
    first: [] int32, which sample of its shard the first row is.
    model, config, pad_id: see generate.generate.
    room: slots of the cache for new tokens; None for all.
    taps: layers whose incoming streams are kept, here and in `decode`.
  """
  rows, width = prompts.tokens.shape
  count, times = keys.shape[0], keys.shape[0] // rows
  room = config.max_new_tokens if room is None else room
  net = transformer.Transformer(model)
  variables = {"params": params}
  positions = ops.positions_from_mask(prompts.valid_mask)
  x = net.apply(variables, prompts.tokens, positions, method="embed")
  cache = make_cache(model, rows, width + room, config.cache_dtype)
  mask = attention.make_masks(model, prompts.valid_mask, positions)
  x, streams, cache = net.apply(
    variables,
    x,
    positions,
    mask,
    cache=cache,
    slot=0,
    taps=taps,
    method="run_layers",
  )
  prompts, last, streams = jax.tree.map(
    lambda x: repeat_rows(x, times), (prompts, x[:, -1], streams)
  )
  pad = ((0, 0), (0, config.max_new_tokens))
  tokens = jnp.pad(prompts.tokens, pad, constant_values=pad_id)
  zeros = jnp.zeros((count,), jnp.int32)
  state = State(
    cache=repeat_cache(cache, times),
    answers=Answers(
      tokens=tokens,
      logprobs=jnp.zeros(tokens.shape, jnp.float32),
      length=jnp.sum(prompts.valid_mask > 0, axis=1).astype(jnp.int32),
      step=zeros,
      done=jnp.zeros((count,), bool),
      streams=jax.tree.map(lambda x: jnp.pad(x, (*pad, (0, 0))), streams),
    ),
    last=last,
    keys=keys,
    row=first
    + jnp.arange(count, dtype=jnp.int32) % (count // slots.ways(count)),
    stop=zeros,
    slot=jnp.int32(width),
    alive=jnp.int32(count),
    need=jnp.int32(width),
  )
  return slots.settle(slots.count(state, config.max_new_tokens))


@functools.partial(
  jax.jit,
  static_argnames=("model", "config", "eos_ids"),
  donate_argnames=("state",),
)
def decode(
  params: PyTree,
  state: State,
  stop_at: Array,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
  stops: Array | None = None,
  until: Array | None = None,
) -> State:
  """Decodes until `stop_at` rows of the fullest shard go on, or slots are few.

  The cache has too few when a row that goes on would write over its own.

  Args:
    params, model, config, eos_ids, stops: see generate.with_streams.
    state: a batch in flight; its memory is used again.
    stop_at: [] int32.
    until: [] int32, slots written at which it ends too, for who wants to see
      tokens as they are drawn; None for no such end.
  """
  net = transformer.Transformer(model)
  variables = {"params": rules.gather_tree(params, model.dtype)}
  width = state.answers.tokens.shape[1] - config.max_new_tokens
  size = cache_slots(state.cache)

  def unfinished(state: State) -> Array:
    goes_on = (state.alive > stop_at) & (state.need <= size)
    return goes_on if until is None else goes_on & (state.slot < until)

  def one_token(state: State) -> State:
    was_alive = slots.alive_rows(state.answers, config.max_new_tokens)
    logits = net.apply(variables, state.last, method="unembed")
    how = dict(model=model, config=config, eos_ids=eos_ids)
    state = _draw(state, logits, stops, **how)
    answers, slot = state.answers, state.slot % size
    column = width + answers.step - 1  # that was sampled last
    token = jnp.take_along_axis(answers.tokens, column[:, None], axis=1)
    used = answers.length + answers.step
    positions = (used - 1)[:, None]
    x = net.apply(variables, token, positions, method="embed")
    age = ((slot - jnp.arange(size)) % size)[None, None, :]
    is_own = age < used[:, None, None]
    x, found, cache = net.apply(
      variables,
      x,
      positions,
      attention.with_window(model, is_own, age),
      cache=state.cache,
      slot=slot,
      taps=tuple(answers.streams),
      method="run_layers",
    )
    streams = {
      layer: _put_stream(answers.streams[layer], new, column, was_alive)
      for layer, new in found.items()
    }
    return state.replace(
      cache=cache,
      slot=state.slot + 1,
      last=x[:, 0],
      answers=answers.replace(streams=streams),
    )

  return jax.lax.while_loop(unfinished, one_token, state)


def _put_stream(
  streams: Array, new: Array, column: Array, is_new: Array
) -> Array:
  """Returns streams [n, L, D] with new [n, 1, D] in a column of each row.

  Args:
    streams: of the rows.
    new: that entered the layer.
    column: [n] int32.
    is_new: [n] bool; other rows keep what they have.
  """

  def put(row: Array, new: Array, column: Array, is_new: Array) -> Array:
    old = jax.lax.dynamic_slice_in_dim(row, column, 1)
    new = jnp.where(is_new, new.astype(row.dtype), old)
    return jax.lax.dynamic_update_slice_in_dim(row, new, column, axis=0)

  return jax.vmap(put)(streams, new, column, is_new)
