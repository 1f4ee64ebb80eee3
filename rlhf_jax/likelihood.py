"""Log-probabilities of tokens through the unembedding, chunk by chunk.

  log p(token) = z_token - log sum_v exp(z_v),   z = cap(x W) / temperature
  d log p / d z_v = 1[v = token] - p_v

Rows go through the unembedding W in chunks whose float32 logits stay under
`chunk_bytes`, so memory does not grow with the vocabulary (METHODS 20.2).
What the gradient costs depends on what is known in the forward pass:

  token_logprobs, W frozen   d log p / d x is formed there: 2 matrix products
  weighted_logprobs          the loss is a weighted sum whose weights are known
                             (cross-entropy): both gradients are formed there,
                             3 products
  token_logprobs, W trains   what reaches each log-probability is only known
                             after the loss: the backward pass computes each
                             chunk's logits again, 4 products; 3 where all rows
                             are one chunk, whose logits are kept

Gradients of W are summed over chunks in float32, and over devices once, after
the last chunk. Left out: chunks of the vocabulary, and kept logits of several
chunks, whose bytes would grow with it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from rlhf_jax import ops, products
from rlhf_jax.types import Array

CHUNK_BYTES = 128 * 2**20  # of a chunk's float32 logits, on each device
_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class _Logits:
  """How logits follow from states; see `token_logprobs`."""

  temperature: float
  soft_cap: float | None
  empty_rows: tuple[tuple[int, int], ...]
  ways: int

  def __call__(self, hidden: Array, unembedding: Array) -> tuple[Array, Array]:
    """Returns float32 logits [M, V] and their slope in the raw ones."""
    raw = jnp.matmul(hidden, unembedding, preferred_element_type=jnp.float32)
    if self.soft_cap is None:
      logits, slope = raw, jnp.float32(1.0 / self.temperature)
    else:
      squashed = jnp.tanh(raw / self.soft_cap)
      slope = (1.0 - jnp.square(squashed)) / self.temperature
      logits = self.soft_cap * squashed
    return ops.hide_rows(logits / self.temperature, self.empty_rows), slope


def chunk_rows(chunk_bytes: int, vocabulary: int) -> int:
  """Returns how many rows of float32 logits fit into so many bytes.

  Raises:
    ValueError: not one does, or chunk_bytes is no whole number.
  """
  row = _FLOAT * vocabulary
  if not isinstance(chunk_bytes, int) or chunk_bytes < row:
    raise ValueError(
      f"chunk_bytes={chunk_bytes!r}: must be a whole number of at least {row}, "
      f"the bytes of one row of {vocabulary} float32 logits; {CHUNK_BYTES} is "
      "usual."
    )
  return chunk_bytes // row


@dataclasses.dataclass(frozen=True)
class _Cut:
  """Rows [M, ...] as [chunks, ways * rows, ...], padded, and back."""

  total: int  # M
  ways: int
  chunks: int
  rows: int  # of a chunk, of each device

  @staticmethod
  def of(total: int, ways: int, most: int) -> _Cut:
    """Returns the fewest even chunks of at most `most` rows a device."""
    ways = ways if total % ways == 0 else 1
    chunks = max(-(-(total // ways) // most), 1)
    return _Cut(total, ways, chunks, -(-(total // ways) // chunks))

  def __call__(self, x: Array) -> Array:
    """Returns [chunks, ways * rows, ...] of x [M, ...]."""
    share, rest = self.total // self.ways, x.shape[1:]
    x = x.reshape(self.ways, share, *rest)
    filler = self.chunks * self.rows - share
    x = jnp.pad(x, ((0, 0), (0, filler)) + ((0, 0),) * len(rest))
    x = x.reshape(self.ways, self.chunks, self.rows, *rest).swapaxes(0, 1)
    return x.reshape(self.chunks, self.ways * self.rows, *rest)

  def joined(self, x: Array) -> Array:
    """Returns [M] of x [chunks, ways * rows]."""
    x = x.reshape(self.chunks, self.ways, self.rows).swapaxes(0, 1)
    x = x.reshape(self.ways, self.chunks * self.rows)
    return x[:, : self.total // self.ways].reshape(-1)


def _softmax_parts(logits: Array) -> tuple[Array, Array, Array, Array]:
  """Returns exp(z - max), its sum, logsumexp(z) and the entropy."""
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - top)
  total = jnp.sum(weights, axis=-1)
  normaliser = top[:, 0] + jnp.log(total)
  finite = jnp.where(jnp.isneginf(logits), 0.0, logits)  # its weight is 0
  entropies = normaliser - jnp.sum(weights * finite, axis=-1) / total
  return weights, total, normaliser, entropies


def _picked(logits: Array, tokens: Array) -> Array:
  return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]


def _is_token(logits: Array, tokens: Array) -> Array:
  """Returns bool [M, V]; compared, not scattered: V may be split."""
  return jnp.arange(logits.shape[-1])[None] == tokens[:, None]


def _map(function, *chunks: Array):
  """Returns function of each chunk, stacked; without a loop where it is one."""
  if chunks[0].shape[0] == 1:
    found = function(*(x[0] for x in chunks))
    return jax.tree.map(lambda x: x[None], found)
  return jax.lax.map(lambda parts: function(*parts), chunks)


# W is frozen.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _frozen_chunk(hidden, unembedding, tokens, head):
  logits, _ = head(hidden, unembedding)
  _, _, normaliser, entropies = _softmax_parts(logits)
  return _picked(logits, tokens) - normaliser, entropies


def _frozen_forward(hidden, unembedding, tokens, head):
  """Computes d log p / d hidden = (e_token - p) W^T beside log p."""
  logits, slope = head(hidden, unembedding)
  weights, total, normaliser, entropies = _softmax_parts(logits)
  if head.soft_cap is None:
    towards = jnp.take(unembedding, tokens, axis=1).T.astype(jnp.float32)
    mean = jnp.matmul(
      weights, unembedding.T, preferred_element_type=jnp.float32
    )
    jacobian = (towards - mean / total[:, None]) * slope
  else:
    inner = (_is_token(logits, tokens) - weights / total[:, None]) * slope
    jacobian = jnp.matmul(
      inner, unembedding.T, preferred_element_type=jnp.float32
    )
  found = _picked(logits, tokens) - normaliser, entropies
  return found, jacobian.astype(hidden.dtype)


def _frozen_backward(head, jacobian, cotangents):
  del head
  return jacobian * cotangents[0][:, None].astype(jacobian.dtype), None, None


_frozen_chunk.defvjp(_frozen_forward, _frozen_backward)


# W trains.


def _products(
  slopes: Array, hidden: Array, unembedding: Array, ways: int
) -> tuple[Array, Array]:
  """Returns gradients in states [M, D] and in W, float32 [ways, D, V].

  Args:
    slopes: [M, V], of raw logits, float32.
    hidden: [M, D].
    unembedding: [D, V].
    ways: devices with M / ways rows each, whose sums stay apart.
  """
  slopes = slopes.astype(hidden.dtype)
  to_hidden = jnp.matmul(
    slopes, unembedding.T, preferred_element_type=jnp.float32
  )
  to_unembedding = products.rows_contracted(
    hidden.reshape(ways, -1, hidden.shape[-1]),
    slopes.reshape(ways, -1, slopes.shape[-1]),
    dtype="float32",
  )
  return to_hidden.astype(hidden.dtype), to_unembedding


def _summed(function, unembedding: Array, ways: int, *chunks: Array):
  """Returns what function gives of each chunk, its gradients of W summed.

  Args:
    function: (*chunk) -> (outputs, float32 [ways, D, V]).
    unembedding: [D, V].
    ways: see `_products`.
    *chunks: [chunks, M, ...].

  Returns:
    Stacked outputs, and [D, V] float32.
  """
  if chunks[0].shape[0] == 1:
    found, total = function(*(x[0] for x in chunks))
    return jax.tree.map(lambda x: x[None], found), jnp.sum(total, axis=0)

  def one(total, parts):
    found, part = function(*parts)
    return total + part, found

  zeros = jnp.zeros((ways, *unembedding.shape), jnp.float32)
  total, found = jax.lax.scan(one, zeros, chunks)
  return found, jnp.sum(total, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _trained(hidden, unembedding, tokens, head):
  def one(hidden, tokens):
    logits, _ = head(hidden, unembedding)
    _, _, normaliser, entropies = _softmax_parts(logits)
    return _picked(logits, tokens) - normaliser, entropies

  return _map(one, hidden, tokens)


def _trained_forward(hidden, unembedding, tokens, head):
  """Keeps the logits where they are one chunk."""
  hidden, unembedding, tokens = (x.value for x in (hidden, unembedding, tokens))
  is_one = hidden.shape[0] == 1

  def one(hidden, tokens):
    logits, slope = head(hidden, unembedding)
    _, _, normaliser, entropies = _softmax_parts(logits)
    found = _picked(logits, tokens) - normaliser, entropies
    return found, normaliser, (logits, slope) if is_one else None

  found, normaliser, kept = _map(one, hidden, tokens)
  return found, (hidden, unembedding, tokens, normaliser, found[1], kept)


def _trained_backward(head, residuals, cotangents):
  """Passes over the entropies where nothing reaches them."""
  hidden, unembedding, tokens, normaliser, entropies, kept = residuals
  towards, spread = cotangents
  if isinstance(towards, SymbolicZero):
    towards = jnp.zeros_like(normaliser)
  has_spread = not isinstance(spread, SymbolicZero)

  def one(hidden, tokens, normaliser, entropies, towards, spread, kept):
    logits, slope = head(hidden, unembedding) if kept is None else kept
    log_p = logits - normaliser[:, None]
    p = jnp.exp(log_p)
    slopes = towards[:, None] * (_is_token(logits, tokens) - p)
    if has_spread:
      finite = jnp.where(jnp.isneginf(log_p), 0.0, log_p)
      slopes -= spread[:, None] * p * (finite + entropies[:, None])
    return _products(slopes * slope, hidden, unembedding, head.ways)

  spread = spread if has_spread else jnp.zeros_like(towards)
  chunks = hidden, tokens, normaliser, entropies, towards, spread
  kept = None if kept is None else jax.tree.map(lambda x: x[0], kept)
  to_hidden, total = _summed(
    lambda *parts: one(*parts, kept), unembedding, head.ways, *chunks
  )
  return to_hidden, total.astype(unembedding.dtype), None


_trained.defvjp(_trained_forward, _trained_backward, symbolic_zeros=True)


# W trains, and the weights of the log-probabilities are known.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted(hidden, unembedding, tokens, weights, head):
  log_p, entropies = _trained(hidden, unembedding, tokens, head)
  return jnp.sum(weights * log_p), log_p, entropies


def _weighted_forward(hidden, unembedding, tokens, weights, head):
  def one(hidden, tokens, weights):
    logits, slope = head(hidden, unembedding)
    shares, total, normaliser, entropies = _softmax_parts(logits)
    log_p = _picked(logits, tokens) - normaliser
    slopes = _is_token(logits, tokens) - shares / total[:, None]
    slopes = weights[:, None] * slopes * slope
    to_hidden, part = _products(slopes, hidden, unembedding, head.ways)
    return (log_p, entropies, to_hidden), part

  (log_p, entropies, to_hidden), total = _summed(
    one, unembedding, head.ways, hidden, tokens, weights
  )
  found = jnp.sum(weights * log_p), log_p, entropies
  return found, (to_hidden, total.astype(unembedding.dtype))


def _weighted_backward(head, gradients, cotangents):
  del head
  scaled = (x * cotangents[0].astype(x.dtype) for x in gradients)
  return *scaled, None, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def token_logprobs(
  hidden: Array,
  unembedding: Array,
  tokens: Array,
  *,
  temperature: float = 1.0,
  chunk_bytes: int = CHUNK_BYTES,
  soft_cap: float | None = None,
  empty_rows: tuple[tuple[int, int], ...] = (),
  is_unembedding_frozen: bool = False,
  ways: int = 1,
) -> tuple[Array, Array]:
  """Returns log-probabilities and entropies without a full logits array.

  Args:
    hidden: [M, D] states that predict `tokens`, compute dtype.
    unembedding: [D, V].
    tokens: [M] int32.
    temperature: divides the logits, as when the tokens were sampled.
    chunk_bytes: that the float32 logits of a chunk of rows have at most, on
      each device; at least one row's.
    soft_cap: c in c * tanh(logits / c), before the temperature; None for none.
    empty_rows: (start, end) of columns of the unembedding that have no token;
      they have probability 0, and the others share 1.
    is_unembedding_frozen: no gradient reaches the unembedding, and NONE flows
      through the entropies, which then are for monitoring only.
    ways: devices that hold M / ways rows each, one after the other; a chunk
      has rows of all of them. 1 where M does not divide.

  Returns:
    log-probabilities [M] <= 0 and entropies [M] in nats, float32.

  Raises:
    ValueError: chunk_bytes below the bytes of one row of logits.
  """
  most = chunk_rows(chunk_bytes, unembedding.shape[-1])
  cut = _Cut.of(hidden.shape[0], ways, most)
  head = _Logits(temperature, soft_cap, empty_rows, cut.ways)
  if is_unembedding_frozen:
    found = _map(
      lambda x, y: _frozen_chunk(x, unembedding, y, head),
      cut(hidden),
      cut(tokens),
    )
  else:
    found = _trained(cut(hidden), unembedding, cut(tokens), head)
  return cut.joined(found[0]), cut.joined(found[1])


def weighted_logprobs(
  hidden: Array,
  unembedding: Array,
  tokens: Array,
  weights: Array,
  *,
  temperature: float = 1.0,
  chunk_bytes: int = CHUNK_BYTES,
  soft_cap: float | None = None,
  empty_rows: tuple[tuple[int, int], ...] = (),
  ways: int = 1,
) -> tuple[Array, Array, Array]:
  """Returns sum_m weights_m log p_m, whose gradient the forward pass forms.

  Args:
    hidden, unembedding, tokens: see `token_logprobs`; both of the first train.
    weights: [M] float32, of any sign; without gradient.
    temperature, chunk_bytes, soft_cap, empty_rows, ways: see `token_logprobs`.

  Returns:
    The sum [], then the log-probabilities [M] and entropies [M] in nats. Only
    the sum has a gradient: the others are for metrics.

  Raises:
    ValueError: chunk_bytes below the bytes of one row of logits.
  """
  most = chunk_rows(chunk_bytes, unembedding.shape[-1])
  cut = _Cut.of(hidden.shape[0], ways, most)
  head = _Logits(temperature, soft_cap, empty_rows, cut.ways)
  total, log_p, entropies = _weighted(
    cut(hidden), unembedding, cut(tokens), cut(weights), head
  )
  log_p, entropies = jax.lax.stop_gradient((log_p, entropies))
  return total, cut.joined(log_p), cut.joined(entropies)


def top_tokens(
  hidden: Array,
  unembedding: Array,
  *,
  chunk_bytes: int = CHUNK_BYTES,
  soft_cap: float | None = None,
  empty_rows: tuple[tuple[int, int], ...] = (),
  ways: int = 1,
) -> Array:
  """Returns [M] int32, the likeliest token of each state; the first of equals.

  Args:
    hidden, unembedding, chunk_bytes, soft_cap, empty_rows, ways: see
      `token_logprobs`.
  """
  most = chunk_rows(chunk_bytes, unembedding.shape[-1])
  cut = _Cut.of(hidden.shape[0], ways, most)
  head = _Logits(1.0, soft_cap, empty_rows, cut.ways)

  def top(x: Array) -> Array:
    return jnp.argmax(head(x, unembedding)[0], axis=-1).astype(jnp.int32)

  return cut.joined(_map(top, cut(hidden)))
