"""Faults in masks, alignments, shaping and sampling."""

from tests.proofs.mutations import of

POLICY = "algorithms/policy_gradient"

FAULTS = (
  *of(
    "masks",
    "ops.py",
    "ops::positions_and_last_index_do_not_depend_on_padding"
    " ops::trap_27_poisoned_padding_reaches_neither_value_nor_gradient"
    " ops::t05_whitening_gives_mean_0_and_variance_1"
    " ops::trap_14_variance_is_divided_by_n"
    " ops::log_ratio_is_clipped_at_20_nats_and_0_off_the_mask",
    (
      "neutral: a product with the mask",
      "jnp.where(mask > 0, x.astype(jnp.float32), jnp.float32(fill))",
      "x.astype(jnp.float32) * (mask > 0) + fill * (mask <= 0)",
    ),
    (
      "last_index: counts ones",
      "length - 1 - jnp.argmax(mask[..., ::-1] > 0, axis=-1).astype(jnp.int32)",
      "jnp.sum(mask > 0, axis=-1).astype(jnp.int32) - 1 + 0 * length",
    ),
    (
      "positions: padding counts",
      "jnp.cumsum(mask, axis=-1) - mask",
      "jnp.cumsum(jnp.ones_like(mask), axis=-1) - 1",
    ),
    (
      "whiten: what is masked keeps a value",
      "return jnp.where(mask > 0, white, 0.0)",
      "return white",
    ),
    (
      "variance: of a sample",
      "masked_mean(jnp.square(neutral(x, mask) - mean), mask)",
      "masked_mean(\n"
      "    jnp.square(neutral(x, mask) - mean), mask, jnp.sum(mask) - 1\n"
      "  )",
    ),
    (
      "log_ratio: no limit",
      "return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)",
      "return difference",
    ),
  ),
  *of(
    "masks",
    "models/targets.py",
    "roles::logprobs_equal_softmax_of_full_logits",
    (
      "log-probabilities: of the token that is read",
      "sources = jnp.maximum(targets - 1, 0)",
      "sources = jnp.maximum(targets, 0)",
    ),
  ),
  *of(
    "masks",
    "models/outputs.py",
    "roles::critic_values_are_the_reward_models_scores_of_prefixes",
    (
      "values: of the state after the token",
      "return jnp.pad(scores[:, :-1], ((0, 0), (1, 0)))",
      "return scores",
    ),
  ),
  *of(
    "masks",
    "models/attention.py",
    "transformer::causal_mask_by_hand",
    (
      "attention: packed answers read each other",
      "mask & (segment_ids[:, :, None] == segment_ids[:, None, :])",
      "mask & (segment_ids[:, :, None] >= segment_ids[:, None, :])",
    ),
    (
      "attention: a token reads the next one",
      "mask = (order[:, None] >= order[None, :])[None]",
      "mask = (order[:, None] >= order[None, :] - 1)[None]",
    ),
  ),
  *of(
    "masks",
    "models/attention.py",
    "shared_prompts::what_reads_what_by_hand",
    (
      "attention: answers behind one prompt read each other",
      "(key == 0) | (branch_ids[:, :, None] == key)",
      "(key == 0) | (branch_ids[:, :, None] >= key)",
    ),
  ),
  *of(
    "masks",
    "models/rows.py",
    "shared_prompts::what_reads_what_by_hand",
    (
      "branches: the first token is predicted by the answer before",
      "jnp.where(is_first, shared, columns - 1)",
      "jnp.where(is_first, columns - 1, columns - 1)",
    ),
    (
      "branches: positions of the row",
      "shared = segment + self.positions - 1",
      "shared = self.positions - 1",
    ),
  ),
  *of(
    "masks",
    "algorithms/policy_gradient/packing.py",
    "shared_prompts::every_token_is_there_and_prompts_once",
    (
      "branches: the second answer stands on the first",
      "span[shared:] += end - start - shared",
      "span[shared:] += 0",
    ),
  ),
  *of(
    "masks",
    "models/heads.py",
    "roles::packed_rows_give_the_values_of_separate_rows",
    (
      "heads: the mean of a packed row runs on",
      "total = total - until(columns - positions)",
      "total = total - 0.0 * until(columns - positions)",
    ),
  ),
  *of(
    "masks",
    f"{POLICY}/packing.py",
    "packing::segments_are_whole_samples_with_positions_from_zero"
    " packing::rows_respect_both_capacities"
    " packing::the_number_of_rows_follows_lengths_that_change"
    " packing::samples_are_spread_evenly_over_the_rows",
    (
      "packing: positions go on",
      "positions[row, span] = np.arange(columns.size)",
      "positions[row, span] = span",
    ),
    (
      "packing: one segment a row",
      "segment_ids[row, span] = segment",
      "segment_ids[row, span] = 1",
    ),
    (
      "packing: targets of a row have no bound",
      "np.asarray([shape.tokens, shape.targets])",
      "np.asarray([shape.tokens, shape.tokens])",
    ),
    (
      "packing: samples into the fullest row",
      "int(np.argmin(np.where(has_room, load[:, 0], capacity[0] + 1)))",
      "int(np.argmax(np.where(has_room, load[:, 0], -1)))",
    ),
    (
      "packing: every rollout its own number of rows",
      "count = usual if count <= usual <= 1.5 * count else count",
      "count = count",
    ),
    (
      "packing: the number of rows never falls",
      "count = usual if count <= usual <= 1.5 * count else count",
      "count = max(usual, count)",
    ),
  ),
  *of(
    "returns",
    f"{POLICY}/shaping.py",
    "shaping shaping_by_hand",
    (
      "shaping: the score on every token",
      "jnp.where(is_last, score[:, None], 0.0)",
      "jnp.where(mask > 0, score[:, None], 0.0)",
    ),
    (
      "shaping: the KL is rewarded",
      "kl_term = -kl_coefficient * difference",
      "kl_term = kl_coefficient * difference",
    ),
    (
      "shaping: short answers gain by the overlong penalty",
      "jnp.clip((lengths - start) / config.overlong_cache, 0.0, 1.0)",
      "jnp.minimum((lengths - start) / config.overlong_cache, 1.0)",
    ),
    (
      "shaping: 'scale' takes the mean away",
      'moments.mean if config.normalise == "standardise" else 0.0',
      "moments.mean",
    ),
    (
      "moments: the distance of the means is left out",
      "m2=moments.m2 + m2 + jnp.square(delta) * moments.count * count / "
      "divisor",
      "m2=moments.m2 + m2",
    ),
    (
      "moments: masked answers enter",
      "update_moments(moments, score, kept)",
      "update_moments(moments, score, jnp.ones_like(kept))",
    ),
    (
      "controller: the wrong way",
      "beta * (1.0 + gain * error)",
      "beta * (1.0 - gain * error)",
    ),
    (
      "controller: no bound on the error",
      "sequence_kl / config.kl_target - 1.0, -config.kl_clip, config.kl_clip",
      "sequence_kl / config.kl_target - 1.0, -1e9, 1e9",
    ),
    (
      "check_kl: NaN is well",
      "if not sequence_kl <= config.halt_nats:",
      "if sequence_kl > config.halt_nats:",
    ),
    (
      "missing end: the penalty is a gift",
      "is_truncated, score - config.missing_eos_penalty, score",
      "is_truncated, score + config.missing_eos_penalty, score",
    ),
    (
      "missing end: finished answers are replaced",
      "jnp.where(is_truncated, config.missing_eos_value, score)",
      "jnp.where(is_truncated, score, config.missing_eos_value)",
    ),
    (
      "shaping: the length penalty from the first token",
      "jnp.maximum(lengths - config.length_penalty_start, 0.0)",
      "lengths",
    ),
  ),
  *of(
    "metrics",
    f"{POLICY}/shaping.py",
    "shaping::rollout_metrics_against_numpy",
    (
      "eos_share: of truncated answers",
      "(rollout.finish_reason != FINISH_LENGTH) * 1.0",
      "(rollout.finish_reason == FINISH_LENGTH) * 1.0",
    ),
    (
      "kl: the deviation as its standard error",
      "ops.masked_variance(k1, exists) / answers",
      "ops.masked_variance(k1, exists)",
    ),
    (
      "kl per token: mean over answers",
      "jnp.sum(k1) / jnp.maximum(jnp.sum(mask), 1.0)",
      "jnp.sum(k1) / answers",
    ),
  ),
  *of(
    "metrics",
    f"{POLICY}/groups.py",
    "ties_and_fillers::a_score_at_the_limit_is_not_right"
    " groups::metrics_by_hand",
    (
      "groups: the limit itself is right",
      "(score > correct_above)",
      "(score >= correct_above)",
    ),
    (
      "groups: groups that differ are flat",
      "flat = 1.0 - informative(",
      "flat = 0.0 + informative(",
    ),
  ),
  *of(
    "sampling",
    "sampling.py",
    "generate::a_nucleus_after_top_k_is_of_the_mass_that_is_left"
    " generate::trap_06_sampler_logprobs_equal_the_trainers_at_temperature"
    " generate::rounding_of_sums_does_not_reach_past_the_support"
    " generate::rounding_of_sums_does_not_draw_a_block_without_mass",
    (
      "sampling: temperature multiplies",
      "truncate(logits / config.temperature, config)",
      "truncate(logits * config.temperature, config)",
    ),
    (
      "nucleus: the token that reaches the mass is left out",
      "keep = before < config.top_p",
      "keep = mass <= config.top_p",
    ),
    (
      "nucleus: the mass of all tokens after top_k",
      "scope = best if config.top_k else logits",
      "scope = logits",
    ),
    (
      "sampling: a token without mass, where rounding lets a sum grow",
      "(masses > 0.0) & (cumulative > target[:, None])",
      "cumulative > target[:, None]",
    ),
    (
      "sampling: rounding reaches past the support",
      "ops.last_index(masses))",
      "masses.shape[-1] - 1)",
    ),
  ),
  *of(
    "sampling",
    "generate.py",
    "generate::keys_are_of_step_prompt_and_sample",
    (
      "generate: a prompt that comes twice gets the same samples",
      "earlier = jnp.tril(index[:, None] == index[None, :], k=-1).sum(axis=1)",
      "earlier = jnp.zeros_like(index)",
    ),
    (
      "generate: samples depend on the place in the batch",
      "index, sample = jnp.repeat(index, num_samples), sample.reshape(-1)",
      "index, sample = jnp.repeat(\n"
      "    jnp.arange(index.shape[0]), num_samples\n"
      "  ), sample.reshape(-1)",
    ),
    (
      "generate: the samples of a prompt are equal",
      "jax.random.fold_in(jax.random.fold_in(key, i), g)",
      "jax.random.fold_in(key, i + 0 * g)",
    ),
  ),
  *of(
    "sampling",
    "decoding.py",
    "generate::trap_01_pad_equals_eos_and_the_sampled_eos_counts"
    " generate::trap_06_sampler_logprobs_equal_the_trainers_at_temperature"
    " generate::trap_38_rows_without_a_token_are_never_sampled"
    " generate::a_stop_string_ends_an_answer",
    (
      "generate: one random number for all tokens",
      "jax.random.fold_in(key, step)",
      "jax.random.fold_in(key, 0)",
      "generate::each_token_has_a_random_number_of_its_own",
    ),
    (
      "generate: finished rows go on",
      "(columns == column[:, None]) & alive[:, None]",
      "columns == column[:, None]",
    ),
    (
      "generate: the end token does not count",
      "step=answers.step + alive,",
      "step=answers.step + (alive & ~is_end),",
    ),
    (
      "generate: positions count padding",
      "positions = (used - 1)[:, None]",
      "positions = (0 * used + slot)[:, None]",
    ),
    (
      "generate: rows without a token are sampled",
      "ops.hide_rows(logits, model.empty_rows, -jnp.inf)",
      "ops.hide_rows(logits, (), -jnp.inf)",
    ),
    (
      "generate: strings do not end an answer",
      "is_end = is_end | ((found >= stops.shape[0]) & is_late)",
      "is_end = is_end | ((found < 0) & is_late)",
    ),
    (
      "generate: a row reads what another left in the ring",
      "age < used[:, None, None]",
      "age <= used[:, None, None]",
      "slots::waiting_prompts_take_the_place_of_done_rows",
    ),
    (
      "generate: one token beyond the cache",
      "(state.need <= size)",
      "(state.need <= size + 1)",
      "generate::a_cache_that_grows_changes_nothing",
    ),
  ),
  *of(
    "sampling",
    "slots.py",
    "generate::compaction_changes_nothing"
    " generate::a_cache_that_grows_changes_nothing"
    " slots::waiting_prompts_take_the_place_of_done_rows"
    " slots::a_ring_that_has_gone_round_grows",
    (
      "generate: all ended by themselves",
      "finish_reason=jnp.where(answers.done, FINISH_EOS, FINISH_LENGTH)",
      "finish_reason=jnp.where(answers.done, FINISH_EOS, FINISH_EOS)",
      "generate::trap_01_pad_equals_eos_and_the_sampled_eos_counts",
    ),
    (
      "generate: the cache is not what the rows are",
      "cache_lib.take_rows(state.cache, rows)",
      "cache_lib.take_rows(state.cache, jnp.sort(rows)[::-1])",
    ),
    (
      "generate: rows that wait are written over",
      "x.at[state.row].set(new)",
      "x.at[: len(state.row)].set(new)",
    ),
    (
      "generate: new rows take the place of some that go on",
      "at = jnp.argsort(alive, stable=True)",
      "at = jnp.argsort(~alive, stable=True)",
    ),
    (
      "generate: prompts do not end where their rows go on",
      "(jnp.arange(slots) - slot + width) % slots",
      "jnp.arange(slots)",
    ),
    (
      "generate: a ring that grows is not turned",
      "source = (state.slot + jnp.arange(size)) % before",
      "source = jnp.arange(size) % before",
    ),
  ),
  *of(
    "sampling",
    "programs/rollouts.py",
    "rollouts::uninformative_groups_are_replaced_in_order_and_counted"
    " rollouts::truncated_answers_do_not_make_a_group_informative",
    (
      "resampling: the last informative groups",
      "source[empty[:count]] = ready[:count]",
      "source[empty[:count]] = ready[-count:]",
    ),
    (
      "resampling: each round has the same key",
      "step_key = key if number == 0 else jax.random.fold_in(key, number)",
      "step_key = key",
    ),
    (
      "resampling: cut answers inform",
      "counts = exists * (rollout.finish_reason != FINISH_LENGTH)",
      "counts = exists",
    ),
  ),
  *of(
    "sampling",
    "programs/policy_step.py",
    "policy_programs::further_answers_are_the_methods"
    " policy_programs::the_trainer_recomputes_and_weighs_against_the_sampler",
    (
      "remax: the greedy answer is sampled",
      "dataclasses.replace(settings.generate, **changes)",
      "dataclasses.replace(settings.generate, num_samples=1)",
    ),
    (
      "importance: the trainer against itself",
      "importance.weigh(rollout, sampler_logprobs, weights)",
      "importance.weigh(rollout, rollout.behaviour_logprobs, weights)",
    ),
  ),
  *of(
    "sampling",
    "data/retold.py",
    "retold",
    (
      "retold: a cut answer has an end",
      "has_end = bool(has_ended and answer and answer[-1] in ends)",
      "has_end = bool(answer)",
    ),
    (
      "retold: the policy's white space stays",
      "text = text.removeprefix(before)\n",
      "text = text.removeprefix('')\n",
    ),
    (
      "retold: an answer begins a word",
      "return whole[len(before) :]",
      "return tokenizer.decode(answer)",
    ),
    (
      "retold: the end is that of a text",
      "tokenizer.eos_id if turn is None else turn",
      "tokenizer.eos_id + 1 if turn is None else turn",
    ),
    (
      "retold: the answer gives way before its prompt",
      "while shorter is not None and len(shorter) + len(ids) > most:",
      "while False:",
    ),
  ),
  *of(
    "sampling",
    "rewards/reader.py",
    "reader",
    (
      "reader: rows come back in the order of their length",
      "result[part] = distributed.fetch(found)[: len(part)]",
      "result[first : first + size] = distributed.fetch(found)[: len(part)]",
    ),
    (
      "reader: the scale of another reference",
      "return normalised(scorer, weights, raw)",
      "return raw + 0.0 * normalised(scorer, weights, raw)",
    ),
  ),
  *of(
    "sampling",
    "notebook/streaming.py",
    "talk",
    (
      "streaming: the second sample's key",
      "keys = generate.sample_keys(key, batch.index, 1)",
      "keys = generate.sample_keys(key, batch.index + 1, 1)",
    ),
    (
      "streaming: a width for each prompt",
      "width = next(w for w in widths(self.room) if w >= len(prompt))",
      "width = len(prompt)",
    ),
  ),
  *of(
    "sampling",
    "sampling.py",
    "generate::min_p_keeps_a_share_of_the_most_likely",
    (
      "min_p: the most likely one is none",
      "kept = jnp.where(logits >= least, logits, -jnp.inf)",
      "kept = jnp.where(logits > least, logits, -jnp.inf)",
    ),
  ),
)
