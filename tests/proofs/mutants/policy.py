"""Faults in policy losses, and in how gradients become steps."""

from tests.proofs.mutations import of

POLICY = "algorithms/policy_gradient"

FAULTS = (
  *of(
    "losses",
    f"{POLICY}/ppo.py",
    "ppo::loss_against_a_loop",
    (
      "ppo: twice the value loss",
      "value = 0.5 * ops.masked_mean(losses, mask, tokens)",
      "value = ops.masked_mean(losses, mask, tokens)",
    ),
    (
      "ppo: the smaller value loss",
      "jnp.maximum(losses, clipped_losses)",
      "jnp.minimum(losses, clipped_losses)",
    ),
    (
      "ppo: entropy is punished",
      "total = total - config.entropy_coefficient * average(entropies)",
      "total = total + config.entropy_coefficient * average(entropies)",
    ),
  ),
  *of(
    "losses",
    "models/policy_value.py",
    "policy_value::one_backward_pass_is_the_sum_of_two_gradients"
    " policy_value::a_stopped_gradient_of_the_values_trains_the_head_alone",
    (
      "shared trunk: the values train the head alone",
      "jax.lax.stop_gradient(x) if stops_gradient else x",
      "jax.lax.stop_gradient(x)",
    ),
    (
      "shared trunk: the values always train the trunk",
      "jax.lax.stop_gradient(x) if stops_gradient else x",
      "x",
    ),
  ),
  *of(
    "losses",
    f"{POLICY}/objectives.py",
    "ppo::loss_against_a_loop"
    " surrogate::t03_trap_08_at_ratio_1_all_objectives_are_the_policy"
    "_gradient"
    " ppo::metrics_by_hand"
    " ppo::trap_32_no_gradient_reaches_what_a_rollout_fixed",
    (
      "ppo: the upper clip is the lower",
      "jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + high)\n  losses",
      "jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)\n  losses",
    ),
    (
      "ppo: the larger of the two objectives",
      "jnp.maximum(-advantages * ratio, -advantages * near)",
      "jnp.minimum(-advantages * ratio, -advantages * near)",
    ),
    (
      "ppo: the second clip on the wrong side",
      "jnp.where(advantages < 0, bound, losses)",
      "jnp.where(advantages > 0, bound, losses)",
    ),
    (
      "ppo: approximate_kl is k2 twice",
      "mean(jnp.expm1(log_ratio) - log_ratio)",
      "mean(jnp.square(log_ratio))",
    ),
    (
      "cispo: a gradient through the ratio",
      "rows.logprobs * jax.lax.stop_gradient(ratio)",
      "rows.logprobs * ratio",
    ),
    (
      "gspo: a gradient through the sequence's ratio",
      "log_ratio + jax.lax.stop_gradient(shift)",
      "log_ratio + shift",
    ),
    (
      "objectives: a gradient through advantages",
      "jax.lax.stop_gradient(ops.neutral(rollout.advantages, mask))",
      "ops.neutral(rollout.advantages, mask) + 0.0 * mask",
    ),
  ),
  *of(
    "losses",
    f"{POLICY}/surrogate.py",
    "surrogate::trap_34_loss_against_a_loop"
    " surrogate::straight_through_has_the_value_of_k3_and_the_gradient_of_k2"
    " surrogate::trap_15_off_policy_the_ratio_restores_the_gradient_of_the"
    "_kl",
    (
      "k3+: the gradient of k3",
      "k2 + jax.lax.stop_gradient(k3 - k2)",
      "k3",
    ),
    (
      "kl loss: a gradient through the ratio",
      "penalty * jax.lax.stop_gradient(jnp.exp(log_ratio))",
      "penalty * jnp.exp(log_ratio)",
    ),
    (
      "surrogate: entropy is punished",
      "total = total - config.entropy_coefficient * average(entropies)",
      "total = total + config.entropy_coefficient * average(entropies)",
    ),
    (
      "surrogate: the KL's coefficient is left out",
      "total + config.kl_loss_coefficient * penalty",
      "total + penalty",
    ),
  ),
  *of(
    "losses",
    f"{POLICY}/importance.py",
    "groups::importance_weights_by_hand",
    (
      "importance: no cap",
      "jnp.minimum(ratio, config.cap), 0.0)",
      "ratio, 0.0)",
    ),
    (
      "importance: sampler over trainer",
      "ops.log_ratio(rollout.behaviour_logprobs, sampler_logprobs, mask)",
      "ops.log_ratio(sampler_logprobs, rollout.behaviour_logprobs, mask)",
    ),
  ),
  *of(
    "losses",
    f"{POLICY}/ptx.py",
    "ptx::ptx_adds_the_weighted_gradient_of_pre_training_text",
    (
      "ptx: its gradient without the coefficient",
      "lambda g: g * coefficient, ptx_grads",
      "lambda g: g, ptx_grads",
    ),
  ),
  *of(
    "losses",
    f"{POLICY}/value_pretraining.py",
    "value_pretraining::value_update_trains_the_critic_alone",
    (
      "value pre-training: old values clip",
      "rows.returns, mask, tokens, None",
      "rows.returns, mask, tokens, 0.2",
    ),
  ),
  *of(
    "optimizer",
    "algorithms/accumulate.py",
    "accumulate",
    (
      "accumulate: sums in the dtype of the weights",
      "jnp.zeros_like(p, jnp.float32), params)",
      "jnp.zeros_like(p), params)",
    ),
    (
      "accumulate: maxima are added",
      'jnp.max(x) if name.endswith("_max") else jnp.sum(x)',
      "jnp.sum(x)",
    ),
    (
      "accumulate: parts are blocks of rows",
      "x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)",
      "x.reshape(parts, -1, *x.shape[1:])",
    ),
    (
      "epochs: a minibatch without tokens takes a step",
      "jnp.asarray(tokens > 0)",
      "jnp.asarray(tokens >= 0)",
    ),
    (
      "refused updates are counted in all",
      "skipped=jnp.zeros_like(state.skipped)",
      "skipped=state.skipped",
    ),
    (
      "a refused update moves the moments",
      "lambda state: state, state)",
      "lambda x: x.replace(opt_state=step(x).opt_state), state)",
    ),
  ),
  *of(
    "optimizer",
    f"{POLICY}/epochs.py",
    "policy_update::trap_32_the_scans_equal_a_loop_over_fixed_advantages"
    " policy_update::an_epoch_over_the_kl_limit_is_the_last",
    (
      "epochs: one order for all epochs",
      "jax.random.split(rng, config.epochs)",
      "jax.numpy.repeat(rng[None], config.epochs)",
    ),
    (
      "epochs: only the epoch after the limit is left out",
      "is_stopped | is_over",
      "is_over",
    ),
  ),
  *of(
    "metrics",
    f"{POLICY}/epochs.py",
    "policy_update::steps_that_are_not_finite_are_refused_and_counted",
    (
      "epochs: means over refused steps too",
      "jnp.sum(jnp.where(applied, x, 0.0)) / count",
      "jnp.mean(x)",
    ),
  ),
  *of(
    "metrics",
    f"{POLICY}/update.py",
    "policy_update::trap_06_08_first_minibatch_has_ratio_1"
    " policy_update::golden_metrics_of_one_step",
    (
      "first ratio: of the last step",
      "sum(metrics[part][0, 0] for part in parts)",
      "sum(metrics[part][-1, -1] for part in parts)",
    ),
    (
      "explained variance: of the sum",
      "error = ops.neutral(rollout.returns, mask) - ops",
      "error = ops.neutral(rollout.returns, mask) + ops",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/ppo.py",
    "ppo::t04_gae_against_a_double_sum"
    " ppo::advantages_are_whitened_and_returns_are_not",
    (
      "gae: the next value is not discounted",
      "reward + discount * next_value - value",
      "reward + next_value - value",
    ),
    (
      "gae: advantages are not discounted",
      "delta + discount * gae_lambda * advantage",
      "delta + gae_lambda * advantage",
    ),
    (
      "gae: a gap ends the answer",
      "advantage = jnp.where(counted > 0, here, advantage)",
      "advantage = here",
    ),
    (
      "ppo: returns of whitened advantages",
      "  returns = estimate + ops.neutral(rollout.values, mask)\n"
      "  if config.whitens_advantages:\n"
      "    estimate = ops.whiten(estimate, mask)\n",
      "  if config.whitens_advantages:\n"
      "    estimate = ops.whiten(estimate, mask)\n"
      "  returns = estimate + ops.neutral(rollout.values, mask)\n",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/groups.py",
    "groups::known_answers"
    " ties_and_fillers::equal_rewards_give_exactly_nothing_whatever_they_are",
    (
      "groups: the deviation of a population",
      "square / jnp.maximum(count - 1.0, 1.0)",
      "square / jnp.maximum(count, 1.0)",
    ),
    (
      "rloo: an answer is in its own baseline",
      "count / jnp.maximum(count - 1.0, 1.0), 0.0)",
      "1.0, 0.0)",
    ),
    (
      "groups: the rounding of equal rewards",
      "jnp.where(is_flat[:, None], 0.0, (x - mean) * weights)",
      "(x - mean) * weights",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/returns.py",
    "groups::metrics_by_hand groups::returns_of_answers_against_loops",
    (
      "returns: masked answers are in baselines",
      "return jnp.any(rollout.response_mask > 0, axis=-1).astype(jnp.float32)",
      "return jnp.ones(rollout.response_mask.shape[0])",
    ),
    ("returns: they decay", "gae_lambda=1.0,", "gae_lambda=0.95,"),
  ),
  *of(
    "returns",
    f"{POLICY}/grpo.py",
    "grpo::advantages_by_hand",
    (
      "grpo: a batch's deviation of raw rewards",
      "ops.masked_variance(difference, exists)",
      "ops.masked_variance(earned, exists)",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/reinforce_pp.py",
    "reinforce_pp::rewards_to_go_are_whitened_over_tokens",
    (
      "reinforce++: no discount",
      "returns.to_go(rollout, config.discount)",
      "returns.to_go(rollout, 1.0)",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/remax.py",
    "remax::advantages_by_hand",
    ("remax: no baseline", "advantages=earned - baseline", "advantages=earned"),
  ),
  *of(
    "returns",
    f"{POLICY}/reinforce.py",
    "reinforce::masked_answers_enter_no_baseline",
    (
      "reinforce: masked answers are in the baseline",
      "ops.centred(earned, returns.exists(rollout))",
      "ops.centred(earned, 1.0 + 0.0 * earned)",
    ),
  ),
)
