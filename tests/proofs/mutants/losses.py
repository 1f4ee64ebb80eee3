"""Faults in losses: supervised, reward models, preferences."""

from tests.proofs.mutations import of

PREFERENCE = "algorithms/preference"

FAULTS = (
  *of(
    "losses",
    "algorithms/sft.py",
    "sft_loss::t14_trap_34_packed_equals_unpacked_equals_a_loop"
    " sft_loss::golden_metrics"
    " ties_and_fillers::perplexity_is_of_tokens_whatever_the_loss_averages",
    ("sft: the sign", "    -logprobs,\n    mask,", "    logprobs,\n    mask,"),
    (
      "sft: prompts count as targets",
      '"targets": jnp.sum(batch.loss_mask)',
      '"targets": jnp.sum(batch.valid_mask)',
    ),
    (
      "sft: perplexity of another average",
      'jnp.exp(metrics["sft/token_loss"])',
      'jnp.exp(metrics["sft/loss"])',
    ),
  ),
  *of(
    "losses",
    "algorithms/aggregate.py",
    "aggregate::packing_does_not_change_an_average"
    " aggregate::trap_34_each_average_is_a_named_choice",
    (
      "aggregate: a packed row is one sequence",
      "lengths = sequence_lengths(mask, segment_ids)",
      "lengths = sequence_lengths(mask)",
    ),
    (
      "aggregate: the constant is left out",
      "return sequences * constant_tokens",
      "return sequences",
    ),
  ),
  *of(
    "losses",
    "algorithms/ensemble.py",
    "ensemble",
    (
      "ensemble: disagreement is rewarded",
      "scores.mean(-1) - how.uncertainty_weight",
      "scores.mean(-1) + how.uncertainty_weight",
    ),
    (
      "ensemble: members learn from all pairs alike",
      "    part = plain.replace(weight=plain.weight * weight)\n"
      "    return reward.loss(",
      "    part = plain.replace(weight=plain.weight + 0.0 * weight)\n"
      "    return reward.loss(",
    ),
    (
      "ensemble: a bootstrap is the same for all members",
      "rng = np.random.default_rng([seed, member])",
      "rng = np.random.default_rng([seed, 0])",
    ),
    (
      "ensemble: a shared trunk moves by the sum",
      "return jnp.mean(values) if is_shared else",
      "return jnp.sum(values) if is_shared else",
    ),
  ),
  *of(
    "losses",
    "rewards/model.py",
    "ensemble_runs::members_are_diagnosed_and_normalised_each",
    (
      "ensemble: members keep their own zero",
      "return (first - mean) / std",
      "return (first - 0.0 * mean) / std",
    ),
    (
      "ensemble: members keep their own scale",
      "return (first - mean) / std",
      "return (first - mean) / jnp.mean(std)",
    ),
  ),
  *of(
    "losses",
    "algorithms/reward.py",
    "reward_loss::margin_and_smoothing"
    " reward_loss::t10_gradient_of_centering"
    " ties_and_fillers::tied_candidates_stay_in_each_others_choice_set"
    " ties_and_fillers::equal_scores_are_not_right",
    (
      "reward: the margin goes to candidate 0",
      "margin * jnp.sign(label - 0.5)",
      "margin",
    ),
    (
      "reward: labels are not smoothed",
      "target = label * (1.0 - label_smoothing) + (1.0 - label) * "
      "label_smoothing",
      "target = label",
    ),
    (
      "reward: k-wise mean over all cells",
      "jnp.maximum(jnp.sum(wins, (1, 2)), 1.0)",
      "wins[0].size",
    ),
    (
      "reward: ties leave the choice set",
      "rank[:, None, :] >= rank[:, :, None]",
      "rank[:, None, :] > rank[:, :, None]",
    ),
    (
      "reward: centring of differences",
      "total = scores[:, :, None] + scores[:, None, :]",
      "total = scores[:, :, None] - scores[:, None, :]",
    ),
    ("reward: equal scores are right", "(difference > 0)", "(difference >= 0)"),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/dpo.py",
    "preference_losses::known_answers_of_one_token"
    " preference_losses::trap_26_sums_and_averages_over_tokens",
    (
      "dpo: robust by half",
      "/ (1.0 - 2.0 * epsilon)",
      "/ (1.0 - epsilon)",
    ),
    (
      "dpo: the second order has the link of the first",
      "link(margin), link(-margin)",
      "link(margin), link(margin)",
    ),
    (
      "dpo: never normalised by length",
      "average=config.is_length_normalised",
      "average=False",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/ipo.py",
    "preference_losses::known_answers_of_one_token",
    ("ipo: the goal", "goal = 1.0 / (2.0 * config.tau)", "goal = 1.0"),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/kto.py",
    "kto::t11_kto_by_hand"
    " kto::kto_takes_no_negative_baseline_and_no_gradient"
    "_through_it",
    (
      "kto: the sign of undesirable answers",
      "(1.0 - liked) * jax.nn.sigmoid(gain)",
      "(1.0 - liked) * jax.nn.sigmoid(-gain)",
    ),
    (
      "kto: a negative baseline",
      "jnp.maximum(batch.baseline, 0.0)",
      "batch.baseline",
    ),
    (
      "kto: the weights change places",
      "config.desirable_weight * liked * jax",
      "config.undesirable_weight * liked * jax",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/orpo.py",
    "preference_losses::trap_26_sums_and_averages_over_tokens",
    (
      "orpo: sums instead of averages",
      "a = pairs.averages(logprobs, batch)",
      "a = pairs.sums(logprobs, batch)",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/simpo.py",
    "preference_losses::ragged_rows_and_soft_labels_as_a_naive_loop",
    (
      "simpo: the margin of the second order",
      "-jax.nn.log_sigmoid(-difference - gamma)",
      "-jax.nn.log_sigmoid(-difference + gamma)",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/cpo.py",
    "preference_losses::known_answers_of_one_token",
    (
      "cpo: the likelihood of the other answer",
      "likelihood[:, 0], likelihood[:, 1])",
      "likelihood[:, 1], likelihood[:, 0])",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/spin.py",
    "preference_losses::known_answers_of_one_token",
    (
      "spin: the sample beats the demonstration",
      "rewards[:, 0] - rewards[:, 1]",
      "rewards[:, 1] - rewards[:, 0]",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/pairs.py",
    "preference_losses::metrics_leave_ties_out_and_follow_the_label"
    " preference_losses::known_answers_of_one_token",
    (
      "pairs: averages over padding too",
      "/ jnp.maximum(lengths(batch), 1.0)",
      "/ batch.tokens.shape[-1]",
    ),
    (
      "pairs: ties count in the metrics",
      "decided = (batch.label != 0.5)",
      "decided = (batch.label >= 0.0)",
    ),
    (
      "pairs: half a win on either side",
      "is_first = batch.label >= 0.5",
      "is_first = batch.label >= 0.0",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/update.py",
    "ties_and_fillers::rows_without_weight_change_neither_step_nor_numbers"
    " preference_update::kto_compares_with_the_mean_over_the_whole_batch",
    (
      "kto: the baseline counts rows without weight",
      "jax.lax.stop_gradient(total) / _at_least(jnp.sum(batch.weight))",
      "jax.lax.stop_gradient(total) / batch.weight.shape[0]",
    ),
    (
      "kto: the baseline of the judged answers",
      "split_rows(candidates(batch, 1, 2), microbatches)",
      "split_rows(candidates(batch, 0, 1), microbatches)",
    ),
    (
      "preference: the loss counts rows without weight",
      "    _at_least(jnp.sum(batch.weight)),\n  )",
      "    jnp.float32(batch.weight.shape[0]),\n  )",
    ),
  ),
  *of(
    "losses",
    f"{PREFERENCE}/pairing.py",
    "pairing::best_against_worst_and_ties_by_hand"
    " ties_and_fillers::equal_scores_are_no_preference_with_no_least_gap",
    (
      "pairing: the worst first",
      "jnp.argmax(table, 1), jnp.argmin(table, 1)",
      "jnp.argmin(table, 1), jnp.argmax(table, 1)",
    ),
    (
      "pairing: ties count with no least gap",
      "(gap > 0.0) & (gap >= config.minimum_gap)",
      "gap >= config.minimum_gap",
    ),
  ),
  *of(
    "losses",
    "algorithms/bond.py",
    "bond::baseline_leaves_the_expected_gradient_alone"
    " bond::quantiles_by_hand_and_finite"
    " bond::j_bond_reward_by_hand"
    " bond::trap_18_zero_weights_are_honoured"
    " bond::trap_15_expected_gradient_is_the_exact_one",
    (
      "bond: the baseline holds the row itself",
      " * rows / (rows - 1)",
      "",
    ),
    (
      "bond: a quantile without equals",
      "reference_scores <= scores[:, None]",
      "reference_scores < scores[:, None]",
    ),
    (
      "j-bond: below one of two is enough",
      "jnp.min(anchor_scores, axis=1)",
      "jnp.max(anchor_scores, axis=1)",
    ),
    (
      "bond: the anchor is the policy",
      "a + rate * (p - a)",
      "p + rate * (a - p)",
    ),
    (
      "bond: forward and backward change places",
      "(1.0 - backward) * forward",
      "backward * forward",
    ),
  ),
  *of(
    "losses",
    "likelihood.py",
    "likelihood",
    (
      "likelihood: weights do not reach the gradient",
      "slopes = weights[:, None] * slopes * slope",
      "slopes = slopes * slope",
    ),
    (
      "likelihood: the entropy's own slope is left out",
      "spread[:, None] * p * (finite + entropies[:, None])",
      "spread[:, None] * p * finite",
    ),
    (
      "likelihood: gradients of the last chunk alone",
      "return total + part, found",
      "return part, found",
    ),
    (
      "likelihood: the slope of the cap is left out",
      "_products(slopes * slope, hidden, unembedding, head.ways)",
      "_products(slopes, hidden, unembedding, head.ways)",
    ),
    (
      "likelihood: the mean is not normalised",
      "jacobian = (towards - mean / total[:, None]) * slope",
      "jacobian = (towards - mean) * slope",
      "ops::trap_21_frozen_unembedding_has_the_same_values_and_gradient",
    ),
  ),
)
