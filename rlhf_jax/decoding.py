"""The two passes of sampling: over the prompts, and token by token.

State is a batch in flight. A row that has ended stays, and changes no more,
until generate.py takes it out. A token is drawn and read in the same step, so
whoever wants the streams that entered some layers finds them complete.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.models import attention, transformer
from rlhf_jax.models.cache import (
  LayerCache,
  cache_slots,
  grow_cache,
  make_cache,
  repeat_cache,
  repeat_rows,
  take_rows,
)
from rlhf_jax.parallel import rules
from rlhf_jax.sampling import Config, sample_tokens
from rlhf_jax.types import (
  FINISH_EOS,
  FINISH_LENGTH,
  Array,
  PromptBatch,
  PyTree,
  Samples,
)


@flax.struct.dataclass
class State:
  """A batch in flight; n rows, some of them done."""

  cache: list[LayerCache]
  tokens: Array  # [n, L]
  valid: Array  # [n, L] what attention may read
  logprobs: Array  # [n, L]
  response: Array  # [n, L]
  keys: Array  # [n] random keys of the rows
  length: Array  # [n] prompt length, the position of the first new token
  done: Array  # [n] bool
  row: Array  # [n] int32, which sample this is; repeated on filler rows
  stop: Array  # [n] int32, state of the automaton of stop strings
  step: Array  # [] int32, tokens sampled so far
  last: Array  # [n, D] stream that left the last layer at the newest token
  # Layer -> [N, L, D] stream that entered it, of all rows, also those that have
  # been taken out; what stands off the valid tokens means nothing.
  streams: dict[int, Array]


def _allowed(
  logits: Array, step: Array, model: transformer.Config, config: Config, eos_ids
) -> Array:
  """Returns logits [n, V], -inf where there is no token or it is too early."""
  logits = ops.hide_rows(logits, model.empty_rows, -jnp.inf)
  if not config.min_new_tokens:
    return logits
  ends = [(i, i + 1) for i in eos_ids if i < logits.shape[-1]]
  is_early = step + 1 < config.min_new_tokens
  return jnp.where(is_early, ops.hide_rows(logits, ends, -jnp.inf), logits)


def _draw(
  state: State,
  logits: Array,
  column: Array,
  stops: Array | None,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
) -> State:
  """Returns the state with one more token in every row that is not done."""
  logits = _allowed(logits, state.step, model, config, eos_ids)
  uniform = jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, state.step))
  )(state.keys)
  token, logprob = sample_tokens(logits, uniform, config)
  is_end = jnp.any(token[:, None] == jnp.asarray(eos_ids)[None, :], axis=1)
  stop = state.stop
  if stops is not None:
    found = stops[state.stop, token]
    is_late = state.step + 1 >= config.min_new_tokens
    is_end = is_end | ((found >= stops.shape[0]) & is_late)
    stop = jnp.where(state.done, state.stop, found % stops.shape[0])
  alive = jnp.logical_not(state.done).astype(jnp.float32)

  def put(array: Array, new: Array) -> Array:
    old = jax.lax.dynamic_slice_in_dim(array, column, 1, axis=1)[:, 0]
    new = jnp.where(state.done, old, new.astype(array.dtype))
    return jax.lax.dynamic_update_slice_in_dim(
      array, new[:, None], column, axis=1
    )

  return state.replace(
    tokens=put(state.tokens, token),
    logprobs=put(state.logprobs, logprob),
    valid=put(state.valid, alive),
    response=put(state.response, alive),
    done=state.done | is_end,
    stop=stop,
    step=state.step + 1,
  )


@functools.partial(
  jax.jit, static_argnames=("model", "config", "pad_id", "room", "taps")
)
def prefill(
  params: PyTree,
  prompts: PromptBatch,
  keys: Array,
  *,
  model: transformer.Config,
  config: Config,
  pad_id: int,
  room: int | None = None,
  taps: tuple[int, ...] = (),
) -> State:
  """Runs the prompts; nothing is sampled yet.

  Rows of one prompt share its pass: keys [n] are a multiple of the prompts.
  The cache has room for `room` new tokens, None for all. The streams that
  enter the layers `taps` are kept, here and in `decode`.
  """
  rows, width = prompts.tokens.shape
  room = config.max_new_tokens if room is None else room
  net = transformer.Transformer(model)
  variables = {"params": params}
  positions = ops.positions_from_mask(prompts.valid_mask)
  x = net.apply(variables, prompts.tokens, positions, method="embed")
  cache = make_cache(model, rows, width + room)
  mask = attention.make_mask(model.attention, prompts.valid_mask)
  if not isinstance(mask, attention.Segments):
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
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
  count, times = keys.shape[0], keys.shape[0] // rows
  prompts, last, streams = jax.tree.map(
    lambda x: repeat_rows(x, times), (prompts, x[:, -1], streams)
  )

  def longer(x: Array, filler: int = 0) -> Array:
    pad = [(0, 0), (0, config.max_new_tokens), (0, 0)][: x.ndim]
    return jnp.pad(x, pad, constant_values=filler)

  zeros = jnp.zeros((count, width + config.max_new_tokens), jnp.float32)
  return State(
    cache=repeat_cache(cache, times),
    tokens=longer(prompts.tokens, pad_id),
    valid=longer(prompts.valid_mask),
    logprobs=zeros,
    response=zeros,
    keys=keys,
    length=jnp.sum(prompts.valid_mask > 0, axis=1).astype(jnp.int32),
    done=jnp.zeros((count,), bool),
    row=jnp.arange(count, dtype=jnp.int32),
    stop=jnp.zeros((count,), jnp.int32),
    step=jnp.int32(0),
    last=last,
    streams=jax.tree.map(longer, streams),
  )


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
) -> State:
  """Decodes until `stop_at` rows are alive, or budget or cache are spent."""
  net = transformer.Transformer(model)
  variables = {"params": rules.gather_tree(params, model.dtype)}
  prompt_width = state.tokens.shape[1] - config.max_new_tokens
  slots = cache_slots(state.cache)
  last = min(config.max_new_tokens, slots - prompt_width)

  def unfinished(state: State) -> Array:
    alive = jnp.sum(jnp.logical_not(state.done))
    return (alive > stop_at) & (state.step < last)

  def one_token(state: State) -> State:
    slot = prompt_width + state.step
    positions = (state.length + state.step)[:, None]
    logits = net.apply(variables, state.last, method="unembed")
    how = dict(model=model, config=config, eos_ids=eos_ids)
    state = _draw(state, logits, slot, stops, **how)
    token = jax.lax.dynamic_slice_in_dim(state.tokens, slot, 1, axis=1)
    x = net.apply(variables, token, positions, method="embed")
    x, found, cache = net.apply(
      variables,
      x,
      positions,
      (state.valid[:, :slots] > 0)[:, None, :],
      cache=state.cache,
      slot=slot,
      taps=tuple(state.streams),
      method="run_layers",
    )
    streams = {
      layer: _put_stream(state.streams[layer], new, state.row, slot)
      for layer, new in found.items()
    }
    return state.replace(cache=cache, last=x[:, 0], streams=streams)

  return jax.lax.while_loop(unfinished, one_token, state)


def _put_stream(whole: Array, new: Array, row: Array, column: Array) -> Array:
  """Returns [N, L, D] with new [n, 1, D] at a column of some of its rows."""
  if len(new) == len(whole):  # no row has been taken out
    return jax.lax.dynamic_update_slice_in_dim(whole, new, column, axis=1)
  return whole.at[row, column].set(new[:, 0])


@functools.partial(jax.jit, static_argnames="slots")
def grow(state: State, *, slots: int) -> State:
  """Returns the state with a cache of so many slots."""
  return state.replace(cache=grow_cache(state.cache, slots))


@jax.jit
def take(state: State, rows: Array) -> State:
  """Returns the state of the given rows; streams stay whole."""

  def one(x: Array) -> Array:
    return x[rows]  # jnp.take fills beyond the end, which keys cannot (0.7.2)

  return state.replace(
    cache=take_rows(state.cache, rows),
    **{
      name: one(getattr(state, name))
      for name in (
        "tokens",
        "valid",
        "logprobs",
        "response",
        "keys",
        "length",
        "done",
        "row",
        "stop",
        "last",
      )
    },
  )


def samples(state: State) -> Samples:
  """Returns what is sampled so far."""
  return Samples(
    tokens=state.tokens,
    valid_mask=state.valid,
    response_mask=state.response,
    behaviour_logprobs=state.logprobs,
    finish_reason=jnp.where(state.done, FINISH_EOS, FINISH_LENGTH).astype(
      jnp.int32
    ),
  )
