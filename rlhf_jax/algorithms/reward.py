"""Reward models: the settings of their losses, and one update on comparisons.

The losses themselves are in reward_losses.py. A batch holds K candidates a
prompt, [B, K]; its order is `rank`, or of two candidates their label. All of a
prompt are in one forward, so a ranking costs K rows and not K (K - 1) (Ouyang
et al. 2022, section 3.5).

Left out: L2 is the optimizer's business; a soft label is taken as certain by
all losses but 'pairwise', so `check_labels` refuses it there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import ops
from rlhf_jax.algorithms import reward_losses
from rlhf_jax.algorithms.accumulate import accumulate, apply_gradients
from rlhf_jax.types import Array, Metrics, PreferenceBatch, PyTree, TrainState

OBJECTIVES = (
  *("pairwise", "k-wise", "plackett-luce", "choice"),
  *("regression", "ordinal"),
)
SCORED = ("regression", "ordinal")  # those that read scores, not an order
# Nats by which the better answer must win, by the strength of the preference:
# Touvron et al. 2023, table 27; and what else a margin may come from.
MARGINS = {
  "small": {
    "significantly": 1.0,
    "better": 2 / 3,
    "slightly": 1 / 3,
    "negligibly": 0.0,
  },
  "large": {
    "significantly": 3.0,
    "better": 2.0,
    "slightly": 1.0,
    "negligibly": 0.0,
  },
}
MOST_GRADES = 20
OF_SCORES = "scores"  # margins that are differences of scores


@dataclasses.dataclass(frozen=True)
class Config:
  """Settings of reward-model training."""

  objective: str = "pairwise"  # two answers; or K of one prompt: "k-wise", all
  # their pairs (Ouyang et al. 2022), "plackett-luce", "choice" of the best
  # (Ziegler et al. 2019); or their scores: "regression", "ordinal"
  margins: str = (
    ""  # what the better must win by: "small" or "large", Llama-2's
  )
  # scales of its words; "given", numbers of the data; "scores", differences of
  # theirs; "": nothing
  label_smoothing: float = 0.0  # epsilon: label p becomes p(1-e) + (1-p)e
  counts_ties: bool = False  # k-wise: answers that tie are a pair of p = 1/2
  centering: float = 0.0  # eta of eta (r_i + r_j)^2, which holds scores near
  # 0; 0.01 in Eisenstein et al. 2023
  microbatches: int = 1  # parts of a batch; one part's activations at a time

  def __post_init__(self) -> None:
    if self.objective not in OBJECTIVES:
      raise ValueError(
        f"objective={self.objective!r}: must be one of {', '.join(OBJECTIVES)}."
      )
    known = ("", *MARGINS, "given", OF_SCORES)
    if self.margins not in known:
      raise ValueError(f"margins={self.margins!r}: must be one of {known}.")
    if not 0.0 <= self.label_smoothing < 0.5:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 0.5); at 0.5 "
        "labels say nothing."
      )
    if self.centering < 0.0:
      raise ValueError(f"centering={self.centering}: must be >= 0.")
    if self.microbatches < 1:
      raise ValueError(
        f"microbatches={self.microbatches}: must be >= 1. Set 1 for no split."
      )
    self._check_read()

  def _check_read(self) -> None:
    """Raises ValueError for a setting that the objective does not read."""
    of_pairs = ("pairwise", "k-wise")
    for name, usual, readers in (
      ("margins", "", of_pairs),
      ("label_smoothing", 0.0, of_pairs),
      ("counts_ties", False, ("k-wise",)),
    ):
      value = getattr(self, name)
      if value != usual and self.objective not in readers:
        raise ValueError(
          f"{name}={value!r}: {self.objective!r} has no such form. Leave it at "
          f"{usual!r}, or set objective to {' or '.join(map(repr, readers))}."
        )
    if self.centering and self.objective in SCORED:
      raise ValueError(
        f"centering={self.centering}: {self.objective!r} learns the score "
        "itself, and centring pulls it to 0. Set 0."
      )


def _wins(batch: PreferenceBatch, objective: str) -> Array:
  """Returns [B, K, K], 1 where the label says that i beats j; ties give 0."""
  if objective == "pairwise":
    first = (batch.label > 0.5).astype(jnp.float32)
    second = (batch.label < 0.5).astype(jnp.float32)
    zero = jnp.zeros_like(first)
    return jnp.stack(
      [jnp.stack([zero, first], -1), jnp.stack([second, zero], -1)], axis=1
    )
  return reward_losses.pair_wins(_rank(batch), _valid(batch))


def _rank(batch: PreferenceBatch) -> Array:
  """Returns [B, K] ranks, 0 is best: those of the batch, or of two by label."""
  if batch.rank is not None:
    return batch.rank
  candidates = batch.tokens.shape[1]
  if candidates != 2:
    raise ValueError(
      f"rank=None with K={candidates} candidates: nobody says which is better. "
      "Give the ranks [B, K], 0 for the best."
    )
  first, second = batch.label < 0.5, batch.label > 0.5
  return jnp.stack([first, second], axis=1).astype(jnp.float32)


def _margins(batch: PreferenceBatch, config: Config) -> Array | None:
  """Returns [B, K, K], by how much i must win over j, or None."""
  if config.margins == OF_SCORES:
    apart = batch.target[:, :, None] - batch.target[:, None, :]
    return jnp.where(jnp.isnan(apart), 0.0, apart)
  if not config.margins:
    return None
  return batch.margin[:, None, None]


def each_loss(
  scores: Array, batch: PreferenceBatch, mask: Array, config: Config
) -> Array:
  """Returns [B], the loss of each prompt (reward_losses.py), without centring.

  Args:
    scores: [B, K] float32.
    batch: these prompts.
    mask: [B, K], 0 where there is no candidate.
    config: settings.
  """
  smoothing, margins = config.label_smoothing, _margins(batch, config)
  match config.objective:
    case "pairwise":
      if margins is not None:
        towards = jnp.sign(batch.label - 0.5)
        own = margins[:, 0, -1]
        margins = own * towards if config.margins == OF_SCORES else own
      return reward_losses.pairwise_loss(
        scores, batch.label, margin=margins, label_smoothing=smoothing
      )
    case "k-wise":
      return reward_losses.kwise_loss(
        scores,
        _rank(batch),
        mask,
        margin=margins,
        label_smoothing=smoothing,
        counts_ties=config.counts_ties,
      )
    case "plackett-luce":
      return reward_losses.plackett_luce_loss(scores, _rank(batch), mask)
    case "choice":
      return reward_losses.choice_loss(scores, _rank(batch), mask)
    case "regression":
      return reward_losses.regression_loss(scores, batch.target, mask)
  return reward_losses.ordinal_loss(scores, batch.target, mask)


def _valid(batch: PreferenceBatch) -> Array:
  """Returns [B, K], 1 where a candidate has any response token."""
  return jnp.any(batch.loss_mask > 0, axis=-1).astype(jnp.float32)


def check_labels(labels: np.ndarray, config: Config) -> None:
  """Raises ValueError for labels that the objective cannot express.

  Args:
    labels: [P], probability that the first of two candidates is the better.
    config: settings.
  """
  if config.objective == "pairwise":
    return
  soft = labels[(labels != 0.0) & (labels != 1.0)]
  if soft.size:
    raise ValueError(
      f"objective={config.objective!r}: {soft.size} of {labels.size} labels "
      f"are neither 0 nor 1 (for example {soft[0]:g}), and a ranking has no "
      "soft order. Use objective='pairwise', or leave them out (data.ties="
      "'drop')."
    )


def margins_of(strengths: np.ndarray, margins: str) -> np.ndarray:
  """Returns [P] float32 margins in nats; 0 where there is no strength.

  Args:
    strengths: [P], a word of MARGINS["small"], a number or None each.
    margins: a scale of MARGINS for words, or "given" for numbers.

  Raises:
    ValueError: a number where words are asked for, or the other way round.
  """
  found = np.zeros(len(strengths), np.float32)
  for n, strength in enumerate(strengths):
    if strength is None:
      continue
    is_word = isinstance(strength, str)
    if is_word != (margins in MARGINS):
      asked = "words" if margins in MARGINS else "numbers"
      other = "'given'" if margins in MARGINS else "'small' or 'large'"
      raise ValueError(
        f"margins={margins!r}: it reads {asked}, and a preference has the "
        f"strength {strength!r}. Set margins={other}."
      )
    found[n] = MARGINS[margins][strength] if is_word else strength
  return found


def grade_bounds(
  targets: np.ndarray, training: np.ndarray | None = None
) -> np.ndarray:
  """Returns [..., 2] float32, the thresholds of 'ordinal' around each grade.

  A score of 0 then has the grades' shares of the training data: the threshold
  below grade g is -logit P(grade >= g).

  Args:
    targets: grades, NaN for none.
    training: grades whose shares count; None for the same.

  Raises:
    ValueError: fewer than two grades, or more than MOST_GRADES.
  """
  training = targets if training is None else training
  known = training[~np.isnan(training)]
  grades, counts = np.unique(known, return_counts=True)
  if not 2 <= len(grades) <= MOST_GRADES:
    raise ValueError(
      f"objective='ordinal': the data have {len(grades)} different scores; "
      f"grades are 2 to {MOST_GRADES}. Use objective='regression'."
    )
  above = 1.0 - np.cumsum(counts)[:-1] / counts.sum()  # P(grade > g)
  inner = np.log(1.0 - above) - np.log(above)
  edges = np.concatenate([[-np.inf], inner, [np.inf]])
  place = np.searchsorted(grades, targets)
  is_none = np.isnan(targets)
  place = np.where(is_none, 0, np.minimum(place, len(grades) - 1))
  bounds = np.stack([edges[place], edges[place + 1]], axis=-1)
  return np.where(is_none[..., None], np.nan, bounds).astype(np.float32)


def denominators(batch: PreferenceBatch, config: Config) -> Metrics:
  """Returns the weights of a whole batch that `loss` divides by."""
  has_winner = jnp.any(_wins(batch, config.objective) > 0, axis=(1, 2))
  return {
    "prompts": jnp.sum(batch.weight),
    "decided": jnp.sum(batch.weight * has_winner),
  }


def loss(
  scores: Array, batch: PreferenceBatch, config: Config, denominators: Metrics
) -> tuple[Array, Metrics]:
  """Returns the loss plus centring, as a contribution to the batch's.

  Metrics (over prompts; ties count in neither accuracy nor margin):
    reward_model/loss: nats (of 'regression' squared deviations), without
      centring. Up is bad; of pairs log 2 is chance.
    reward_model/accuracy: share of pairs ordered as labelled. Down is bad; 0.5
      is chance.
    reward_model/margin: score of the better minus score of the worse. Below 0
      is bad.
    reward_model/spread: standard deviation (divided by K) of the scores of one
      prompt. Stuck near 0 is bad: a collapsed model.
    reward_model/score_mean: of all candidates. Far from 0 is drift; harmless
      to ranks.

  Args:
    scores: [B, K] float32; anything where weight is 0.
    batch: these prompts.
    config: settings.
    denominators: of the whole batch.
  """
  weight = batch.weight
  mask = jnp.broadcast_to(weight[:, None], scores.shape)
  if config.objective != "pairwise":
    mask = mask * _valid(batch)
  scores = ops.neutral(scores, mask)
  wins = _wins(batch, config.objective)
  losses = each_loss(scores, batch, mask, config)
  prompts = jnp.maximum(denominators["prompts"], 1e-8)
  decided = jnp.maximum(denominators["decided"], 1e-8)
  value = jnp.sum(losses * weight) / prompts
  centring = (
    jnp.sum(reward_losses.centering_loss(scores, mask) * weight) / prompts
  )
  count = jnp.maximum(jnp.sum(mask > 0, -1), 1)
  mean = jnp.sum(scores, -1) / count
  deviation = jnp.where(mask > 0, scores - mean[:, None], 0.0)
  spread = jnp.sqrt(jnp.sum(jnp.square(deviation), -1) / count)
  difference = scores[:, :, None] - scores[:, None, :]
  right = reward_losses.pair_mean((difference > 0) * 1.0, wins)
  metrics = {
    "reward_model/loss": value,
    "reward_model/accuracy": jnp.sum(right * weight) / decided,
    "reward_model/margin": jnp.sum(
      reward_losses.pair_mean(difference, wins) * weight
    )
    / decided,
    "reward_model/spread": jnp.sum(spread * weight) / prompts,
    "reward_model/score_mean": jnp.sum(mean * weight) / prompts,
  }
  return value + config.centering * centring, metrics


def update(
  state: TrainState,
  frozen: PyTree,
  batch: PreferenceBatch,
  rng: Array,
  *,
  config: Config,
  apply: Callable[..., Array],
  optimizer: Any,
) -> tuple[TrainState, Metrics]:
  """Takes one optimizer step on one batch of comparisons.

  `frozen` is an argument, not a closure, so that jit does not bake gigabytes
  of frozen weights into the program as constants; it is {} when all weights
  train. `rng` is unused (there is no dropout): all updates share a signature.

  Metrics: those of `loss`, and
    reward_model/gradient_norm: before clipping. Sudden growth is bad.
    sys/skipped_updates: 1 if the step was refused as not finite. Bad.

  Args:
    state: donate it.
    frozen: weights that do not train.
    batch: [B, K, L]; K = 2 is ordered by its label where it has no rank;
      candidates without a response token are absent.
    rng: unused.
    config: settings.
    apply: (params, frozen, batch) -> scores [B, K] float32.
    optimizer: an optax.GradientTransformation.

  Raises:
    ValueError: microbatches does not divide B, or K does not fit objective.
  """
  del rng

  def contribution(params, microbatch, frozen, counts):
    return loss(apply(params, frozen, microbatch), microbatch, config, counts)

  grads, value, metrics = accumulate(
    contribution,
    state.params,
    batch,
    config.microbatches,
    frozen,
    denominators(batch, config),
  )
  state, report = apply_gradients(state, grads, optimizer, jnp.isfinite(value))
  metrics |= {
    "reward_model/gradient_norm": report.gradient_norm,
    "sys/skipped_updates": 1.0 - report.applied,
  }
  return state, metrics
