"""Every pytree that crosses a file border, and the two rules they all keep.

Axes, used everywhere by these letters:
  B batch, K candidates of one prompt, L tokens of a row (prompt + response),
  N rows of a rollout = prompts x G samples, V vocabulary, D model width,
  H heads, T query length, S key length.

Invariants:
  1. x[n, t] concerns tokens[n, t] given tokens[n, <t], with length L
     everywhere, never L - 1. values[n, t] is the value of the state BEFORE
     token t was chosen. A mask that is 1 at t says that token t counts.
  2. The G samples of a prompt are contiguous rows.

Masks and lengths travel explicitly. Nothing is ever inferred from a token id:
the padding id may equal the end-of-sequence id.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]

# Values of finish_reason: why a sample ended.
FINISH_EOS = 0  # the policy sampled an end token, which is part of the response
FINISH_LENGTH = 1  # cut at the length limit; no end token was sampled


@flax.struct.dataclass
class TokenBatch:
  """Rows of tokens for language modelling.

  tokens: [B, L] int32.
  valid_mask: [B, L] float32, 1 on real tokens, 0 on padding (attention).
  loss_mask: [B, L] float32, 1 where token t is a target (invariant 1).
  segment_ids: [B, L] int32, > 0 for packed examples, or None.
  positions: [B, L] int32 position of each token in its example, or None to
    derive it from valid_mask.
  branch_ids: [B, L] int32 where examples of a segment begin alike: 0 on what
    they share, which stands once, and k on what only the k-th has; or None.
  """

  tokens: Array
  valid_mask: Array
  loss_mask: Array
  segment_ids: Array | None = None
  positions: Array | None = None
  branch_ids: Array | None = None


@flax.struct.dataclass
class PreferenceBatch:
  """K answers to each of B prompts and what people said of them.

  tokens: [B, K, L] int32, prompt and response.
  valid_mask: [B, K, L] float32, 1 on real tokens.
  loss_mask: [B, K, L] float32, 1 on response tokens, end token included.
  label: [B] float32, probability that candidate 0 beats candidate 1 (K = 2);
    1.0 when candidate 0 is simply the chosen one, 0.5 for a tie.
  weight: [B] float32, 0 drops a row (padding of the last batch).
  reference_logprobs: [B, K, L] float32 or None.
  features: [B, K, F] float32 or None: what the frozen trunk makes of each
    row, when only a head trains; tokens are then not read.
  packing: where each token stands in rows that the candidates share
    (algorithms/policy_gradient/packing.py), or None.
  baseline: [B] float32 or None, what the value of an answer is compared with
    (kto.py), the same in all rows of a batch.
  rank: [B, K] float32 or None: 0 is the best, equal ones tie, NaN is not
    ranked or not there.
  margin: [B] float32 or None, nats by which the better of two should win.
  target: [B, K] float32 or None: the score that people gave, NaN for none; of
    grades [B, K, 2], the thresholds around them (reward_losses.ordinal_loss).
  member_weight: [B, M] float32 or None, how often a row counts for each member
    of an ensemble, beside weight.
  """

  tokens: Array
  valid_mask: Array
  loss_mask: Array
  label: Array
  weight: Array
  reference_logprobs: Array | None = None
  features: Array | None = None
  packing: PyTree | None = None
  baseline: Array | None = None
  rank: Array | None = None
  margin: Array | None = None
  target: Array | None = None
  member_weight: Array | None = None


@flax.struct.dataclass
class StepBatch:
  """Answers whose steps were judged.

  tokens, valid_mask, segment_ids, positions: as in TokenBatch.
  step_mask: [B, L] float32, 1 on the last token of each judged step; with
    features [B, M], 1 where there is a step.
  labels: of the shape of step_mask, probability that the step is right.
  features: [B, M, F] float32 or None: what the frozen trunk makes of each
    step's last token, when only a head trains; tokens are then not read.
  """

  tokens: Array
  valid_mask: Array
  step_mask: Array
  labels: Array
  segment_ids: Array | None = None
  positions: Array | None = None
  features: Array | None = None


@flax.struct.dataclass
class PromptBatch:
  """Prompts, padded on the left.

  tokens: [B, P] int32.
  valid_mask: [B, P] float32, 0 on the padding at the left.
  index: [B] int32 or uint32, which prompt of the data set this is; part of
    the random key of its samples.
  """

  tokens: Array
  valid_mask: Array
  index: Array


@flax.struct.dataclass
class Samples:
  """What the sampler returns: L = P + T, prompts padded left, T columns.

  tokens: [N, L] int32.
  valid_mask: [N, L] float32, prompt and response, 0 on padding.
  response_mask: [N, L] float32, 1 on sampled tokens, a sampled end token
    included.
  behaviour_logprobs: [N, L] float32, log-probability under the sampling
    distribution (temperature included), 0 where response_mask is 0.
  finish_reason: [N] int32, FINISH_EOS or FINISH_LENGTH.
  """

  tokens: Array
  valid_mask: Array
  response_mask: Array
  behaviour_logprobs: Array
  finish_reason: Array


@flax.struct.dataclass
class Components:
  """The scores of several judges, before they become one.

  values: [N, K] float32, of judge k, each on the scale of its own; 0 where
    it does not judge.
  mask: [N, K] float32, 1 where judge k judges the answer.
  tagged: [N] float32, 1 where the prompt carries the tag that a combination
    asks for, else 0.
  """

  values: Array
  mask: Array
  tagged: Array


@flax.struct.dataclass
class Rollout:
  """Samples, judged: everything that an update reads, fixed for all epochs.

  tokens, valid_mask, response_mask, behaviour_logprobs, finish_reason: as in
    Samples; behaviour_logprobs is what the importance ratio divides by.
  reference_logprobs: [N, L] float32.
  score: [N] float32, the reward model's or verifier's, or what several judges
    make together, before any shaping.
  components: the scores of several judges, or None; `advantages` uses them
    up.
  values: [N, L] float32 or None (critic-free methods).
  prefix_values: [N, L] float32, what the judge thinks of the text up to and
    with token t, in units of the score, where prefix_mask is 1; both None
    unless shaping asks for token rewards, and after it.
  prefix_mask: [N, L] float32.
  rewards, advantages, returns: [N, L] float32, 0 off the response; None until
    shaping and `advantages` have run; returns stay None without a critic.
  further: name -> judged answers to the same prompts, drawn otherwise, where
    the method wants some (further_rollouts.py); `advantages` uses them up.
  importance_weights: [N, L] float32 or None, of trainer against sampler
    (importance.py); None counts as 1.
  hidden: role name -> [N, L, D], the frozen hidden states that enter the
    first trainable layer of that role; empty when every layer trains.
  segment_ids, positions: [N, L] int32 when several samples share a row
    (packing), else None. All other fields are then packed alike, except the
    per-sample ones, which stay [samples].
  branch_ids: [N, L] int32 where samples of a segment share their prompt, as in
    TokenBatch, or None.
  """

  tokens: Array
  valid_mask: Array
  response_mask: Array
  behaviour_logprobs: Array
  finish_reason: Array
  reference_logprobs: Array
  score: Array
  values: Array | None = None
  prefix_values: Array | None = None
  prefix_mask: Array | None = None
  rewards: Array | None = None
  advantages: Array | None = None
  returns: Array | None = None
  further: dict[str, Rollout] = flax.struct.field(default_factory=dict)
  components: Components | None = None
  importance_weights: Array | None = None
  hidden: dict[str, Array] = flax.struct.field(default_factory=dict)
  segment_ids: Array | None = None
  positions: Array | None = None
  branch_ids: Array | None = None

  @property
  def sequence_ids(self) -> Array | None:
    """[N, L] int32 of packed rows: equal and adjacent within an answer."""
    if self.branch_ids is None:
      return self.segment_ids
    return self.segment_ids * self.tokens.shape[1] + self.branch_ids


@flax.struct.dataclass
class PolicyRows:
  """What a policy objective may ask for beside log-ratio and advantages.

  Everything is 0 where mask is 0, so that no padding reaches an objective.

  logprobs: [N, L] float32, of the sampled tokens, of the policy in training.
  entropies: [N, L] float32, nats, of that policy; without gradient where the
    unembedding is frozen and there is no entropy bonus.
  reference_logprobs: [N, L] float32, without gradient.
  mask: [N, L] float32, 1 on response tokens.
  tokens: [] float32, the sum of mask over the whole minibatch, of which these
    rows may be a part: what a mean over tokens divides by.
  segment_ids: [N, L] int32 of packed rows, equal and adjacent within an
    answer, or None.
  """

  logprobs: Array
  entropies: Array
  reference_logprobs: Array
  mask: Array
  tokens: Array
  segment_ids: Array | None = None


@flax.struct.dataclass
class TrainState:
  """What training changes: arrays only.

  step: [] int32, optimizer steps taken.
  params: the trainable tree (all weights, or LoRA factors and heads).
  opt_state: the optimizer's.
  skipped: [] int32, updates refused in a row because they were not finite.
  """

  step: Array
  params: PyTree
  opt_state: PyTree
  skipped: Array
