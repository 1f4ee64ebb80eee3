"""The two passes of sampling: over the prompts, and token by token.

State is a batch in flight. A row that has ended stays, and changes no more,
until generate.py takes it out.
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
  jax.jit, static_argnames=("model", "config", "eos_ids", "pad_id", "room")
)
def prefill(
  params: PyTree,
  prompts: PromptBatch,
  keys: Array,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
  pad_id: int,
  stops: Array | None = None,
  room: int | None = None,
) -> State:
  """Runs the prompts and samples the first token of every row.

  Rows of one prompt share its pass: keys [n] are a multiple of the prompts.
  The cache has room for `room` new tokens, None for all.
  """
  rows, width = prompts.tokens.shape
  room = config.max_new_tokens if room is None else room
  pad = ((0, 0), (0, config.max_new_tokens))
  net = transformer.Transformer(model)
  variables = {"params": params}
  positions = ops.positions_from_mask(prompts.valid_mask)
  x = net.apply(variables, prompts.tokens, positions, method="embed")
  cache = make_cache(model, rows, width + room)
  mask = attention.make_mask(model.attention, prompts.valid_mask)
  if not isinstance(mask, attention.Segments):
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
  x, _, cache = net.apply(
    variables, x, positions, mask, cache=cache, slot=0, method="run_layers"
  )
  logits = net.apply(variables, x[:, -1], method="unembed")
  count, times = keys.shape[0], keys.shape[0] // rows
  prompts, logits = (
    jax.tree.map(lambda x: repeat_rows(x, times), tree)
    for tree in (prompts, logits)
  )
  zeros = jnp.zeros((count, width + config.max_new_tokens), jnp.float32)
  state = State(
    cache=repeat_cache(cache, times),
    tokens=jnp.pad(prompts.tokens, pad, constant_values=pad_id),
    valid=jnp.pad(prompts.valid_mask, pad),
    logprobs=zeros,
    response=zeros,
    keys=keys,
    length=jnp.sum(prompts.valid_mask > 0, axis=1).astype(jnp.int32),
    done=jnp.zeros((count,), bool),
    row=jnp.arange(count, dtype=jnp.int32),
    stop=jnp.zeros((count,), jnp.int32),
    step=jnp.int32(0),
  )
  how = dict(model=model, config=config, eos_ids=eos_ids)
  return _draw(state, logits, jnp.int32(width), stops, **how)


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
  last = min(config.max_new_tokens, slots - prompt_width + 1)

  def unfinished(state: State) -> Array:
    alive = jnp.sum(jnp.logical_not(state.done))
    return (alive > stop_at) & (state.step < last)

  def one_token(state: State) -> State:
    slot = prompt_width + state.step - 1  # the column sampled last
    token = jax.lax.dynamic_slice_in_dim(state.tokens, slot, 1, axis=1)
    positions = (state.length + state.step - 1)[:, None]
    x = net.apply(variables, token, positions, method="embed")
    x, _, cache = net.apply(
      variables,
      x,
      positions,
      (state.valid[:, :slots] > 0)[:, None, :],
      cache=state.cache,
      slot=slot,
      method="run_layers",
    )
    logits = net.apply(variables, x[:, 0], method="unembed")
    state = state.replace(cache=cache)
    how = dict(model=model, config=config, eos_ids=eos_ids)
    return _draw(state, logits, slot + 1, stops, **how)

  return jax.lax.while_loop(unfinished, one_token, state)


@functools.partial(jax.jit, static_argnames="slots")
def grow(state: State, *, slots: int) -> State:
  """Returns the state with a cache of so many slots."""
  return state.replace(cache=grow_cache(state.cache, slots))


@jax.jit
def take(state: State, rows: Array) -> State:
  """Returns the state of the given rows."""

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
