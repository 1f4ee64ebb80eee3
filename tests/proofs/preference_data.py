"""Comparisons of the arms of a bandit, and their rows of a PreferenceBatch.

A Bradley-Terry reward decides them: P(i beats j) = s(r_i - r_j). A sample of
them is a table of counts, so 500,000 comparisons are K^2 weighted rows.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import PreferenceBatch
from tests.proofs.fixed_points import log_softmax


def sigmoid(x: np.ndarray) -> np.ndarray:
  """Returns 1 / (1 + e^-x) without overflow."""
  return 0.5 * (1.0 + np.tanh(0.5 * x))


def differences(x: np.ndarray) -> np.ndarray:
  """Returns [K, K], x_i - x_j."""
  return x[:, None] - x[None, :]


@dataclasses.dataclass(frozen=True)
class Bandit:
  """Rewards and reference of K arms: float64 [K], the latter log p_ref."""

  reward: np.ndarray
  reference: np.ndarray

  @property
  def wins(self) -> np.ndarray:
    """[K, K], probability that i beats j."""
    return sigmoid(differences(self.reward))


def make_bandit(seed: int, arms: int = 16) -> Bandit:
  """Returns a bandit with normal rewards and a reference that is not flat."""
  rng = np.random.default_rng(seed)
  reward = rng.normal(size=arms)
  return Bandit(reward, log_softmax(rng.normal(0.0, 0.7, arms)))


def draw(bandit: Bandit, count: int, seed: int, flips: float) -> np.ndarray:
  """Returns [K, K]: how often i was labelled better than j."""
  rng = np.random.default_rng(seed)
  arms = len(bandit.reward)
  i, j = np.triu_indices(arms, 1)
  shown = rng.multinomial(count, np.full(len(i), 1.0 / len(i)))
  first = rng.binomial(shown, bandit.wins[i, j] * (1.0 - 2.0 * flips) + flips)
  counts = np.zeros((arms, arms))
  counts[i, j], counts[j, i] = first, shown - first
  return counts


def make_batch(
  arms: np.ndarray,
  weight: np.ndarray,
  label: np.ndarray,
  log_reference: np.ndarray,
) -> PreferenceBatch:
  """Returns rows [B, 2 candidates] of arms, one answer token after a prompt."""
  mask = np.zeros((*arms.shape, 2), np.float32)
  mask[..., 1] = 1.0
  reference = np.stack([np.zeros(arms.shape), log_reference[arms]], axis=-1)
  return PreferenceBatch(
    tokens=jnp.asarray(np.stack([0 * arms, arms], axis=-1), jnp.int32),
    valid_mask=jnp.ones(mask.shape),
    loss_mask=jnp.asarray(mask),
    label=jnp.asarray(label, jnp.float32),
    weight=jnp.asarray(weight / weight.mean(), jnp.float32),
    reference_logprobs=jnp.asarray(reference, jnp.float32),
  )


def pairs_batch(
  counts: np.ndarray, log_reference: np.ndarray
) -> PreferenceBatch:
  """Returns the rows of comparisons counted in [K, K]; i against i is out."""
  i, j = (x.ravel() for x in np.indices(counts.shape))
  weight = counts.ravel() * (i != j)
  arms = np.stack([i, j], axis=1)
  return make_batch(arms, weight, np.ones(len(weight)), log_reference)
