"""Sampling: prefill, decode with a key-value cache, early exit, compaction.

Knows tokens, not text. Three properties that RLHF needs:
  * log-probabilities of the sampled tokens come from the sampler, under the
    distribution it sampled from (temperature and truncation included);
  * each sample's randomness is folded from (key, prompt index, sample index,
    position), so it depends on no batch split, mesh or restart;
  * why a sample ended is said (finish_reason), never inferred from its ids.

Decoding runs in jitted chunks. With `compact` a chunk ends when enough rows
are done, the finished rows are taken out and the rest goes on in a smaller
batch: the work follows the mean length and not the longest.

How one token is drawn from logits is in sampling.py.
"""

from __future__ import annotations

import functools
import operator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.models import attention, transformer
from rlhf_jax.models.cache import LayerCache, make_cache, take_rows
from rlhf_jax.parallel import rules
from rlhf_jax.sampling import Config, sample_tokens
from rlhf_jax.schema import UserError
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
  jax.jit, static_argnames=("model", "config", "eos_ids", "pad_id")
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
) -> State:
  """Runs the prompts and samples the first token of every row."""
  rows, width = prompts.tokens.shape
  total = width + config.max_new_tokens
  pad = ((0, 0), (0, config.max_new_tokens))
  net = transformer.Transformer(model)
  variables = {"params": params}
  positions = ops.positions_from_mask(prompts.valid_mask)
  x = net.apply(variables, prompts.tokens, positions, method="embed")
  cache = make_cache(model, rows, total)
  mask = attention.make_mask(model.attention, prompts.valid_mask)
  if not isinstance(mask, attention.Segments):
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, config.max_new_tokens)))
  x, _, cache = net.apply(
    variables, x, positions, mask, cache=cache, slot=0, method="run_layers"
  )
  logits = net.apply(variables, x[:, -1], method="unembed")
  zeros = jnp.zeros((rows, total), jnp.float32)
  state = State(
    cache=cache,
    tokens=jnp.pad(prompts.tokens, pad, constant_values=pad_id),
    valid=jnp.pad(prompts.valid_mask, pad),
    logprobs=zeros,
    response=zeros,
    keys=keys,
    length=jnp.sum(prompts.valid_mask > 0, axis=1).astype(jnp.int32),
    done=jnp.zeros((rows,), bool),
    row=jnp.arange(rows, dtype=jnp.int32),
    stop=jnp.zeros((rows,), jnp.int32),
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
  """Decodes until at most `stop_at` rows are alive or the budget is spent."""
  net = transformer.Transformer(model)
  variables = {"params": rules.gather_tree(params, model.dtype)}
  prompt_width = state.tokens.shape[1] - config.max_new_tokens

  def unfinished(state: State) -> Array:
    alive = jnp.sum(jnp.logical_not(state.done))
    return (alive > stop_at) & (state.step < config.max_new_tokens)

  def one_token(state: State) -> State:
    slot = prompt_width + state.step - 1  # the column sampled last
    token = jax.lax.dynamic_slice_in_dim(state.tokens, slot, 1, axis=1)
    positions = (state.length + state.step - 1)[:, None]
    x = net.apply(variables, token, positions, method="embed")
    x, _, cache = net.apply(
      variables,
      x,
      positions,
      (state.valid > 0)[:, None, :],
      cache=state.cache,
      slot=slot,
      method="run_layers",
    )
    logits = net.apply(variables, x[:, 0], method="unembed")
    state = state.replace(cache=cache)
    how = dict(model=model, config=config, eos_ids=eos_ids)
    return _draw(state, logits, slot + 1, stops, **how)

  return jax.lax.while_loop(unfinished, one_token, state)


@jax.jit
def _take(state: State, rows: Array) -> State:
  """Returns the state of the given rows."""

  def take(x: Array) -> Array:
    return x[rows]  # jnp.take fills beyond the end, which keys cannot (0.7.2)

  return state.replace(
    cache=take_rows(state.cache, rows),
    **{
      name: take(getattr(state, name))
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
  params: PyTree,
  prompts: PromptBatch,
  key: Array,
  *,
  model: transformer.Config,
  config: Config,
  eos_ids: tuple[int, ...],
  pad_id: int,
  stops: Array | None = None,
) -> Samples:
  """Samples `num_samples` responses to every prompt.

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

  Returns:
    Samples of N = B * num_samples rows, [N, P + max_new_tokens].

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
  prompts = jax.tree.map(
    lambda x: jnp.repeat(x, config.num_samples, axis=0), prompts
  )
  rows = keys.shape[0]
  size = rows if config.batch_size is None else config.batch_size
  if rows % size:
    raise UserError(
      f"{rows} samples are not a multiple of batch_size={size}. Set "
      "generate.batch_size to a divisor."
    )
  parts = []
  for start in range(0, rows, size):
    piece = jax.tree.map(
      operator.itemgetter(slice(start, start + size)), prompts
    )
    parts.append(
      _generate_batch(
        params,
        piece,
        keys[start : start + size],
        how=dict(model=model, config=config, eos_ids=eos_ids, stops=stops),
        pad_id=pad_id,
      )
    )
  if len(parts) == 1:
    return parts[0]
  return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _generate_batch(params, prompts, keys, *, how, pad_id) -> Samples:
  state = prefill(params, prompts, keys, pad_id=pad_id, **how)
  if not how["config"].compact:
    state = decode(params, state, jnp.int32(0), **how)
    return _samples(state)
  return _decode_compacting(params, state, how)


def _samples(state: State) -> Samples:
  return Samples(
    tokens=state.tokens,
    valid_mask=state.valid,
    response_mask=state.response,
    behaviour_logprobs=state.logprobs,
    finish_reason=jnp.where(state.done, FINISH_EOS, FINISH_LENGTH).astype(
      jnp.int32
    ),
  )


def _decode_compacting(params: PyTree, state: State, how) -> Samples:
  """Decodes in chunks, halving the batch down to a quarter as rows finish."""
  rows = state.tokens.shape[0]
  sizes = [n for n in (rows // 2, rows // 4) if n >= 8]
  result: dict[str, np.ndarray] | None = None
  while True:
    # A smaller batch is worth moving to when its rows are all that is left.
    stop_at = sizes[0] if sizes else 0
    state = decode(params, state, jnp.int32(stop_at), **how)
    snapshot = {
      name: np.asarray(value)
      for name, value in (
        ("row", state.row),
        ("done", state.done),
        *vars(_samples(state)).items(),
      )
    }
    if result is None:
      result = {k: v.copy() for k, v in snapshot.items()}
    else:
      for name, value in snapshot.items():
        result[name][snapshot["row"]] = value
    alive = np.flatnonzero(~snapshot["done"])
    finished = int(state.step) >= how["config"].max_new_tokens
    if finished or not len(alive):
      break
    while sizes and len(alive) <= sizes[0]:
      size = sizes.pop(0)
    filler = np.flatnonzero(snapshot["done"])[: size - len(alive)]
    state = _take(state, jnp.asarray(np.concatenate([alive, filler])))
  del result["row"], result["done"]
  return Samples(**{name: jnp.asarray(value) for name, value in result.items()})
