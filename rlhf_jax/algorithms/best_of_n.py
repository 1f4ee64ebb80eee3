"""Best of n: what it selects, how far it moves, what it gains.

  pi_n(y) = pi(y) / pi(level of y) * (F^n - F_<^n)
  KL(pi_n || pi) <= log n - (n - 1) / n

F and F_< are the cumulative probabilities of scores up to y's, with and
without its own level. The bound is exact only where no single answer has
noticeable probability (Beirami et al. 2024, arXiv:2401.01879); on small or
peaked distributions the truth is far below. Curves come from N >= n scored
samples without bias (Nakano et al. 2021, arXiv:2112.09332, appendix). Rejection
sampling keeps the best as demonstrations: per prompt, or a global top share
(RAFT, Dong et al. 2023, arXiv:2304.06767), or the winners of all rounds so far
(Touvron et al. 2023, section 3.2.3).

Distillation of best-of-n into a policy: bond.py. Statistics are float64 numpy:
F^n loses everything in float32. Left out: fitting the curves (METHODS 12).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Array

RULES = ("per_prompt", "global", "pooled", "all")


@dataclasses.dataclass(frozen=True)
class Config:
  """What rejection sampling keeps."""

  # "per_prompt": the winner of each prompt, last round only; "global": the top
  # share of the last round over all prompts; "pooled": the winner of each
  # prompt in every round (Llama 2: dropping old ones made it forget); "all":
  # whatever reaches minimum_score in the last round (ReST-EM, STaR).
  rule: str = "per_prompt"
  share: float = 0.125  # of the samples that "global" keeps; RAFT: 1 / K
  minimum_score: float = -math.inf  # nothing below is kept, winner or not

  def __post_init__(self) -> None:
    if self.rule not in RULES:
      raise ValueError(
        f"rule={self.rule!r} is unknown. Choose one of {', '.join(RULES)}."
      )
    if self.rule == "all" and self.minimum_score == -math.inf:
      raise ValueError(
        "rule='all': keeps what reaches minimum_score, and that is -inf, so "
        "nothing would be rejected. Set minimum_score, 1.0 for a verifier."
      )
    if not 0.0 < self.share <= 1.0:
      raise ValueError(
        f"share={self.share}: a share of the samples. Set 0 < share <= 1."
      )
    if self.share != type(self).share and self.rule != "global":
      raise ValueError(
        f"share={self.share}: only rule='global' keeps a share, and rule is "
        f"{self.rule!r}. Set rule='global', or leave share at "
        f"{type(self).share}."
      )
    if math.isnan(self.minimum_score):
      raise ValueError(
        "minimum_score=nan: nothing compares with it. Set a number, or -inf to "
        "keep all."
      )


def _check_n(n: int) -> None:
  if n < 1:
    raise ValueError(f"n={n}: the best of no sample. Set n >= 1.")


def select_best(scores: Array, valid: Array | None = None) -> Array:
  """Returns [B] int32: the candidate of the largest score, the first on ties.

  Args:
    scores: [B, K], any scorer's; a NaN never wins against a number.
    valid: [B, K], 0 takes a candidate out (a duplicate, too long); None: all.
      Where nothing is valid the answer is 0: look at valid.
  """
  is_playing = ~jnp.isnan(scores)
  if valid is not None:
    is_playing = is_playing & (valid > 0)
  return jnp.argmax(jnp.where(is_playing, scores, -jnp.inf), -1).astype(
    jnp.int32
  )


def _top_share(scores: Array, valid: Array, share: float) -> Array:
  """Returns [B, K] bool: the ceil(share x valid) best of all, stable order."""
  flat = jnp.where(valid, scores, -jnp.inf).reshape(-1)
  order = jnp.argsort(-flat, stable=True)
  rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
  count = jnp.ceil(share * jnp.sum(valid) - 1e-4)
  return (rank < count).reshape(scores.shape) & valid


def rejection_sample(scores: Array, valid: Array, config: Config) -> Array:
  """Returns [R, B, K] bool: the samples to fine-tune on.

  Args:
    scores: [R, B, K], R rounds, the last is the newest.
    valid: [R, B, K], 0 for what must not be kept (padding of rounds with fewer
      samples, duplicates, answers cut at the length limit).
    config: the rule. Pooled winners train from the base checkpoint anew; a
      prompt whose samples all fall below minimum_score is left out.

  Raises:
    ValueError: not three axes, or shapes differ.
  """
  if scores.ndim != 3 or scores.shape != valid.shape:
    raise ValueError(
      f"scores {scores.shape}, valid {valid.shape}: both are [rounds, prompts, "
      "samples]. Pass scores[None] for one round."
    )
  valid = (valid > 0) & ~jnp.isnan(scores)
  is_last = jnp.arange(scores.shape[0])[:, None, None] == scores.shape[0] - 1
  if config.rule == "global":
    top = _top_share(scores[-1], valid[-1], config.share)
    kept = jnp.broadcast_to(top[None], scores.shape) & is_last
  elif config.rule == "all":
    kept = valid & is_last
  else:
    best = select_best(scores, valid)
    kept = jnp.arange(scores.shape[2])[None, None] == best[..., None]
    kept = kept & valid
    if config.rule == "per_prompt":
      kept = kept & is_last
  return kept & (scores >= config.minimum_score)


def first_of_its_kind(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns [B, K] bool, False where an earlier sample has the same tokens.

  Duplicates of low temperatures make a curve flat and a data set repeat.

  Args:
    tokens: [B, K, L] int.
    mask: [B, K, L], 1 on the response.
  """
  tokens, mask = np.asarray(tokens), np.asarray(mask) > 0
  first = np.zeros(tokens.shape[:2], bool)
  for prompt, (rows, masks) in enumerate(zip(tokens, mask, strict=True)):
    seen: set[bytes] = set()
    for k, (row, kept) in enumerate(zip(rows, masks, strict=True)):
      key = row[kept].tobytes()
      first[prompt, k] = key not in seen
      seen.add(key)
  return first


def kl_bound(n: int) -> float:
  """Returns log n - (n - 1) / n in nats; no best of n moves further."""
  _check_n(n)
  return math.log(n) - (n - 1) / n


def kl_estimates(winner_logprobs: np.ndarray, n: int) -> np.ndarray:
  """Returns [S] float64 whose mean estimates KL(best of n || one sample).

    (1 - e)^n (log n + (n - 1) log(1 - e) - (n - 1) / n)
      + (1 - (1 - e)^n) log((1 - (1 - e)^n) / e),   e = pi(winner)

  Beirami et al. 2024: tends to the bound for e -> 0 and to -log e for n -> inf.
  It assumes that an answer's own atom is what matters: a little high where
  many answers of middling probability compete.

  Args:
    winner_logprobs: [S] log-probabilities of winners under the sampled policy,
      summed over the response; any number of prompts.
    n: samples that each won against.

  Raises:
    ValueError: n < 1 or a log-probability above 0.
  """
  _check_n(n)
  log_e = np.asarray(winner_logprobs, np.float64)
  if np.any(log_e > 1e-6) or np.any(np.isnan(log_e)):
    raise ValueError(
      f"winner_logprobs reach {log_e.max()}: log-probabilities of whole "
      "responses are <= 0. Sum the tokens' log-probabilities, without lengths."
    )
  e = np.exp(np.minimum(log_e, 0.0))
  with np.errstate(divide="ignore"):
    log_rest = np.log1p(-e)  # -inf where the winner is certain
  missed = np.exp(n * log_rest)
  spread = np.where(
    missed > 0,
    math.log(n) + (n - 1) * np.where(missed > 0, log_rest, 0.0) - (n - 1) / n,
    0.0,
  )
  found = -np.expm1(n * log_rest)
  # found / e -> n for e -> 0, where both underflow together.
  log_found = np.log(np.where(e > 1e-300, found / np.maximum(e, 1e-300), n))
  return missed * spread + found * log_found


def curve_weights(samples: int, n: int) -> np.ndarray:
  """Returns [N] float64: the chance that sample i, ascending, is the best of n.

    C(i - 1, n - 1) / C(N, n),   i = 1 .. N

  Raises:
    ValueError: n outside [1, N].
  """
  if not 1 <= n <= samples:
    raise ValueError(
      f"n={n}, {samples} samples: n are drawn without replacement. Set 1 <= n "
      f"<= {samples}, or sample more."
    )
  gamma = np.array([math.lgamma(i) for i in range(1, samples + 2)])
  # gamma[i] = log i!
  i = np.arange(n, samples + 1)
  log_weights = gamma[i - 1] - gamma[n - 1] - gamma[i - n]
  log_total = gamma[samples] - gamma[n] - gamma[samples - n]
  weights = np.zeros(samples)
  weights[n - 1 :] = np.exp(log_weights - log_total)
  return weights


def curve_points(samples: int) -> list[int]:
  """Returns the n of a curve: 1, 2, 4, ... and all samples."""
  _check_n(samples)
  powers = range(samples.bit_length())
  return [*(2**i for i in powers if 2**i < samples), samples]


def best_of_n_curve(
  proxy: np.ndarray, gold: np.ndarray, ns: Sequence[int]
) -> np.ndarray:
  """Returns [B, len(ns)]: unbiased E[gold of the best of n by proxy].

  Of scores 0 and 1, in both places, it is pass@n (Chen et al. 2021,
  arXiv:2107.03374). The same samples serve every n, so the points of one
  prompt's curve move together: resample prompts, not points, for intervals.

  Args:
    proxy: [B, N] scores that select; tied ones share the mean of their gold.
    gold: [B, N] what is measured; proxy itself gives the proxy curve.
    ns: each in [1, N].

  Raises:
    ValueError: shapes differ, a score is not finite, or an n is too large.
  """
  proxy = np.asarray(proxy, np.float64)
  gold = np.asarray(gold, np.float64)
  if proxy.ndim != 2 or proxy.shape != gold.shape:
    raise ValueError(
      f"proxy {proxy.shape}, gold {gold.shape}: both are [prompts, samples]. "
      "Score the same samples with both."
    )
  if not (np.isfinite(proxy).all() and np.isfinite(gold).all()):
    raise ValueError(
      "proxy or gold holds NaN or inf: an order is wanted. Find out why "
      "scoring failed there."
    )
  weights = np.stack([curve_weights(proxy.shape[1], n) for n in ns], axis=1)
  curve = np.zeros((proxy.shape[0], len(ns)))
  for row in range(proxy.shape[0]):
    order = np.argsort(proxy[row], kind="stable")
    _, level = np.unique(proxy[row], return_inverse=True)
    means = np.bincount(level, weights=gold[row]) / np.bincount(level)
    curve[row] = means[level][order] @ weights
  return curve
