"""One token from logits: temperature, truncation, and its log-probability.

Tokens are drawn by inverting the cumulative distribution in two levels
(blocks, then inside a block): one uniform number a row, no sort, no Gumbel
noise for every vocabulary entry. The uniform has 24 bits, so tokens under
about 6e-8 are drawn only in groups.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from rlhf_jax import ops
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array

BLOCK = 256  # vocabulary entries a block of the two-level inverse


@dataclasses.dataclass(frozen=True)
class Config:
  """How to sample."""

  max_new_tokens: int = 64  # of an answer at most, its end token included
  temperature: float = 1.0  # divides the logits; 0 is greedy
  top_k: int = 0  # sample among so many most likely tokens; 0 keeps all
  top_p: float = 1.0  # sample among the most likely tokens that hold this
  # probability (Holtzman et al. 2020); 1 keeps all
  min_p: float = 0.0  # sample among tokens of at least this share of the most
  # likely one's probability (Nguyen et al. 2024, arXiv:2407.01082); 0: all
  nucleus_candidates: int = 1024  # most likely tokens that top_p chooses from
  num_samples: int = 1  # G, samples of each prompt
  min_new_tokens: int = 0  # no end before so many; not for policy training
  stop_tokens: tuple = ()  # texts of tokens that end an answer, beside those of
  # the model's files and its chat template
  stop_strings: tuple = ()  # texts that end an answer, whatever their tokens
  compact: bool | None = None  # shrink the batch as rows finish; None: yes
  batch_size: int | None = None  # rows decoded together; None for all
  cache_dtype: str | None = None  # of keys and values: "int8", a quarter of the
  # bytes of float32 and half of bfloat16; None: what the model computes in
  refill: bool | None = None  # put the next prompts where rows have finished,
  # where batch_size leaves some waiting; None: yes

  def __post_init__(self) -> None:
    if self.max_new_tokens < 1 or self.num_samples < 1:
      raise UserError(
        f"max_new_tokens={self.max_new_tokens}, num_samples="
        f"{self.num_samples}: both must be >= 1."
      )
    if self.cache_dtype not in (None, "int8"):
      raise UserError(
        f"cache_dtype={self.cache_dtype!r}: must be 'int8', or None for what "
        "the model computes in."
      )
    if self.refill and self.batch_size is None:
      raise UserError(
        "refill=True with batch_size=None: all rows are decoded together, so "
        "no prompt waits. Set batch_size, or refill=None."
      )
    if not 0 <= self.min_new_tokens <= self.max_new_tokens:
      raise UserError(
        f"min_new_tokens={self.min_new_tokens}: must be in 0..max_new_tokens="
        f"{self.max_new_tokens}."
      )
    for name in ("stop_tokens", "stop_strings"):
      texts = getattr(self, name)
      if any(not isinstance(text, str) or not text for text in texts):
        raise UserError(
          f"{name}={texts!r}: is a tuple of texts, none of them empty. Write "
          "for example ('Question:',)."
        )
    if not self.temperature >= 0.0:
      raise UserError(f"temperature={self.temperature}: must be >= 0.")
    if self.top_k < 0 or not 0.0 < self.top_p <= 1.0:
      raise UserError(
        f"top_k={self.top_k}, top_p={self.top_p}: need top_k >= 0 and "
        "0 < top_p <= 1."
      )
    few = self.nucleus_candidates
    if few < 1:
      raise UserError(f"nucleus_candidates={few}: must be >= 1.")
    if few != type(self).nucleus_candidates and (
      self.top_k or self.top_p == 1.0
    ):
      raise UserError(
        f"nucleus_candidates={few} with top_k={self.top_k}, top_p={self.top_p}:"
        " they are those of top_p without top_k. Set top_p < 1, or leave it "
        "out."
      )
    if not 0.0 <= self.min_p <= 1.0:
      raise UserError(f"min_p={self.min_p}: must be in 0..1; 0 keeps all.")

  @property
  def is_truncated(self) -> bool:
    """Whether some tokens are never sampled."""
    return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


def truncate(logits: Array, config: Config) -> Array:
  """Returns logits [n, V] with -inf where top_k, top_p or min_p leave out.

  Each looks at the whole distribution, but for the nucleus, which is of the
  top_k: the smallest set of most likely tokens whose mass reaches top_p
  (Holtzman et al. 2020), sought among `nucleus_candidates`.
  """
  kept = logits
  if config.min_p > 0.0:
    least = jnp.max(logits, axis=-1, keepdims=True) + math.log(config.min_p)
    kept = jnp.where(logits >= least, logits, -jnp.inf)
  if not config.top_k and config.top_p >= 1.0:
    return kept
  vocabulary = logits.shape[-1]
  count = min(
    config.top_k if config.top_k else config.nucleus_candidates, vocabulary
  )
  best, _ = jax.lax.top_k(logits, count)
  keep = jnp.ones_like(best, bool)
  if config.top_p < 1.0:
    scope = best if config.top_k else logits
    total = jax.nn.logsumexp(scope, axis=-1, keepdims=True)
    mass = jnp.cumsum(jnp.exp(best - total), axis=-1)
    before = jnp.concatenate([jnp.zeros_like(mass[:, :1]), mass[:, :-1]], -1)
    keep = before < config.top_p
  threshold = jnp.min(jnp.where(keep, best, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= threshold, kept, -jnp.inf)


def sample_tokens(
  logits: Array, uniform: Array, config: Config
) -> tuple[Array, Array]:
  """Returns a token and its log-probability for every row.

  Args:
    logits: [n, V] float32, of the model.
    uniform: [n] in [0, 1).
    config: temperature 0 takes the most likely token, log-probability 0.

  Returns:
    tokens [n] int32 and log-probabilities [n] under the distribution drawn
    from: softmax(logits / temperature), renormalised after truncation.
  """
  if config.temperature == 0.0:
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, jnp.zeros(tokens.shape, jnp.float32)
  logits = truncate(logits / config.temperature, config)
  rows, vocabulary = logits.shape
  shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
  blocks = -(-vocabulary // BLOCK)
  weights = jnp.pad(
    jnp.exp(shifted), ((0, 0), (0, blocks * BLOCK - vocabulary))
  ).reshape(rows, blocks, BLOCK)
  masses = jnp.sum(weights, axis=-1)
  block_ends = jnp.cumsum(masses, axis=-1)
  total = block_ends[:, -1]
  target = uniform * total
  block = _first_above(block_ends, target, masses)
  start = jnp.where(
    block > 0,
    jnp.take_along_axis(block_ends, jnp.maximum(block - 1, 0)[:, None], axis=1)[
      :, 0
    ],
    0.0,
  )
  chosen = jnp.take_along_axis(weights, block[:, None, None], axis=1)[:, 0]
  inside = _first_above(jnp.cumsum(chosen, axis=-1), target - start, chosen)
  token = block * BLOCK + inside
  picked = jnp.take_along_axis(shifted, token[:, None], axis=1)[:, 0]
  return token.astype(jnp.int32), picked - jnp.log(total)


def _first_above(cumulative: Array, target: Array, masses: Array) -> Array:
  """Returns [n], the first of `masses` [n, K] whose sum so far is above target.

  One without mass is never it: its sum, added up in another order, may be
  above that of its neighbour by rounding. Where rounding leaves none above, it
  is the last with mass.
  """
  is_able = (masses > 0.0) & (cumulative > target[:, None])
  first = jnp.argmax(is_able, axis=-1).astype(jnp.int32)
  return jnp.where(jnp.any(is_able, axis=-1), first, ops.last_index(masses))
