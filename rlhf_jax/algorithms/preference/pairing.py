"""Pairs of one policy's own answers: which two are compared, and who won.

OAIF (Guo et al. 2024, arXiv:2402.04792) compares two answers; with G of them
the best against the worst is the clearest preference (Xiong et al. 2023,
arXiv:2312.11456), and two at random the least selected. Scores are a reward
model's or a verifier's; a tie teaches nothing, so its pair has weight 0.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array, Metrics, PreferenceBatch, Rollout


@dataclasses.dataclass(frozen=True)
class Config:
  """Which two of the answers to a prompt are compared."""

  # "best_worst": the highest score against the lowest; "random": two of them,
  # ordered by score (all there is with two answers, as in OAIF).
  rule: str = "best_worst"
  # The smallest difference of scores that counts as a preference: less is the
  # rounding of a reward model. Equal scores are a tie whatever this says.
  minimum_gap: float = 1e-4
  # Steps after which the policy becomes its own reference; 0: it stays the
  # start of the run.
  reference_every: int = 0

  def __post_init__(self) -> None:
    if self.rule not in ("best_worst", "random"):
      raise ValueError(f"rule={self.rule!r}: must be 'best_worst' or 'random'.")
    if self.minimum_gap < 0.0:
      raise ValueError(
        f"minimum_gap={self.minimum_gap}: a distance. Set it >= 0."
      )
    if self.reference_every < 0:
      raise ValueError(
        f"reference_every={self.reference_every}: steps. Set it >= 0; 0 keeps "
        "the start of the run."
      )


def choose(
  score: Array, key: Array, *, num_samples: int, config: Config
) -> tuple[Array, Array]:
  """Returns rows [P, 2] of each pair, the better first, and weights [P].

  Args:
    score: [N], the G answers of a prompt in contiguous rows.
    key: of the random pairs.
    num_samples: G >= 2.
    config: the rule; a tie has weight 0.
  """
  table = score.reshape(-1, num_samples)
  prompts = table.shape[0]
  if config.rule == "best_worst":
    pair = jnp.stack([jnp.argmax(table, 1), jnp.argmin(table, 1)], axis=1)
  else:
    pair = jax.vmap(lambda k: jax.random.permutation(k, num_samples)[:2])(
      jax.random.split(key, prompts)
    )
    values = jnp.take_along_axis(table, pair, axis=1)
    is_ordered = values[:, :1] >= values[:, 1:]
    pair = jnp.where(is_ordered, pair, pair[:, ::-1])
  values = jnp.take_along_axis(table, pair, axis=1)
  gap = values[:, 0] - values[:, 1]
  weight = (gap > 0.0) & (gap >= config.minimum_gap)
  rows = pair + jnp.arange(prompts)[:, None] * num_samples
  return rows, weight.astype(jnp.float32)


def pairs_of(
  rollout: Rollout, key: Array, *, num_samples: int, config: Config
) -> tuple[PreferenceBatch, Metrics]:
  """Returns the pairs of a rollout and what to watch in them.

  Metrics:
    pair/used_share: prompts with a preference. Towards 0 is bad: ties.
    pair/gap: mean difference of score of the used pairs. Towards 0 is bad.
    pair/longer_share: used pairs whose better answer is longer. Far from 1/2
      is a length bias of the judge.

  Args:
    rollout: judged, not packed.
    key: of random pairs.
    num_samples: G.
    config: the rule.
  """
  rows, weight = choose(
    rollout.score, key, num_samples=num_samples, config=config
  )

  def take(x: Array) -> Array:
    return jnp.take(x, rows, axis=0)

  batch = PreferenceBatch(
    tokens=take(rollout.tokens),
    valid_mask=take(rollout.valid_mask),
    loss_mask=take(rollout.response_mask),
    label=jnp.ones_like(weight),
    weight=weight,
    reference_logprobs=take(rollout.reference_logprobs),
  )
  score, used = take(rollout.score), jnp.maximum(jnp.sum(weight), 1.0)
  lengths = jnp.sum(batch.loss_mask, axis=-1)
  is_longer = (lengths[:, 0] > lengths[:, 1]) * weight
  return batch, {
    "pair/used_share": jnp.mean(weight),
    "pair/gap": jnp.sum((score[:, 0] - score[:, 1]) * weight) / used,
    "pair/longer_share": jnp.sum(is_longer) / used,
  }
