"""Faults in resuming, in stages, and in who takes part in training."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "resume",
    "runs/loop.py",
    "loop::a_run_goes_on_with_its_arrays_facts_and_data"
    " loop::a_checkpoint_of_another_model_is_refused"
    " loop::nothing_is_saved_while_updates_are_refused"
    " loop::the_third_refused_update_in_a_row_ends_the_run"
    " loop::the_best_step_is_one_with_a_number"
    " loop::trap_45_a_run_that_ends_with_nan_is_not_finished"
    " loop::every_pass_is_a_pass",
    (
      "loop: data start anew",
      'iterator.set_state(meta["iterators"][name])',
      "iterator.get_state()",
    ),
    (
      "loop: facts start anew",
      'step, facts = meta["step"], meta["facts"]',
      'step = meta["step"]',
    ),
    (
      "loop: rows after the checkpoint stay",
      "writer.truncate_after(step, phase)",
      "writer.truncate_after(total_steps, phase)",
    ),
    (
      "loop: a checkpoint of anything will do",
      "check_meta(meta, identity)",
      "check_meta(meta, {})",
    ),
    (
      "loop: saved while updates are refused",
      "saved.due(step)) and not is_last and not refused:",
      "saved.due(step)) and not is_last:",
    ),
    (
      "loop: epochs are rounded down",
      "math.ceil(exact - 1e-6)",
      "math.floor(exact)",
    ),
    (
      "loop: the best of a loss is the largest",
      'return "min" if is_less else "max"',
      'return "max" if is_less else "min"',
    ),
    (
      "loop: a run with NaN at its end is finished",
      "finite.check_end(phase, step, refused, row, arrays, saved.latest())",
      "pass",
    ),
    (
      "loop: one refused update more",
      "if skipped < SKIPPED_LIMIT:",
      "if skipped <= SKIPPED_LIMIT:",
    ),
    (
      "loop: NaN is the best score",
      "return row[name] if math.isfinite(row[name]) else None",
      "return row[name]",
    ),
  ),
  *of(
    "resume",
    "programs/policy_training.py",
    "policy_steps::what_is_carried_from_step_to_step",
    (
      "policy: the KL coefficient is not kept",
      '{"moments": moments, "beta": beta}',
      '{"moments": moments}',
    ),
    (
      "policy: moments of scores are not kept",
      '{"moments": moments, "beta": beta}',
      '{"beta": beta}',
    ),
  ),
  *of(
    "resume",
    "runs/checkpoint.py",
    "checkpoint::keeps_newest_and_final_steps"
    " checkpoint::the_best_step_is_kept_besides_the_newest"
    " checkpoint_damage::damaged_step_is_named_and_passed_over",
    (
      "checkpoint: the oldest steps are kept",
      "plain[-self._keep :]",
      "plain[: self._keep]",
    ),
    (
      "checkpoint: the oldest of the best",
      "max(s for s, score in scored.items() if score == best)",
      "min(s for s, score in scored.items() if score == best)",
    ),
    (
      "checkpoint: the least score is the largest",
      '{"max": max, "min": min}',
      '{"max": max, "min": max}',
    ),
    (
      "checkpoint: the best is removed",
      "{step, *self._best_of(kept)}",
      "{step}",
    ),
    (
      "checkpoint: the oldest good step",
      "for candidate in reversed(candidates):",
      "for candidate in candidates:",
    ),
    (
      "checkpoint: damaged steps count as the newest",
      "{s for s in self._directories() if s > good}",
      "set()",
    ),
    (
      "checkpoint: due one step late",
      "step % self._every_steps == 0",
      "step % self._every_steps == 1",
    ),
  ),
  *of(
    "resume",
    "integrity.py",
    "checkpoint_damage::damaged_step_is_named_and_passed_over"
    " checkpoint_damage::a_manifest_of_another_hand_is_damaged"
    " checkpoint::trap_30_fingerprint_sees_every_bit_and_no_mesh"
    " checkpoint::other_model_is_refused_with_both_shapes",
    (
      "manifest: hashes are not compared",
      "if found_digest != digest:",
      "if not found_digest:",
    ),
    (
      "manifest: sizes and hashes of no file",
      'for name, (size, digest) in content["files"].items():',
      'for name, (size, digest) in list(content["files"].items())[:0]:',
    ),
    (
      "manifest: any text will do",
      "return content if digest == fingerprint(content) else None",
      "return content if digest else None",
    ),
    (
      "fingerprint: values do not count",
      "path: [*describe(leaf), int(_hash_bits(leaf))]",
      "path: [*describe(leaf)]",
    ),
    (
      "arrays: other shapes are let in",
      "if found.get(path) != wanted.get(path)",
      "if (path in found) != (path in wanted)",
    ),
  ),
  *of(
    "resume",
    "runs/reference.py",
    "heldout_numbers::every_row_has_its_own_reference",
    (
      "reference: of another start or other rows",
      "if found != wanted:",
      "if not found:",
    ),
    (
      "reference: every row has the first one's",
      "    start += count\n",
      "    start += 0 * count\n",
    ),
  ),
  *of(
    "stages",
    "rewards/model.py",
    "roles::trap_01_a_scorer_without_end_tokens_ignores_only_sampled_ends"
    " roles::folded_normalisation_gives_normalised_scores",
    (
      "reward: scores are not normalised",
      "return (first - mean) / std",
      "return first + 0.0 * mean",
    ),
    (
      "reward: the deviation multiplies",
      "(first - mean) / std",
      "(first - mean) * std",
    ),
    (
      "critic: not in units of the score",
      '(flat["output/bias"] - mean) / std',
      'flat["output/bias"] / std',
    ),
    (
      "reward: the end token is always read",
      "return jnp.where(is_end, 0.0, samples.valid_mask)",
      "return samples.valid_mask + 0.0 * is_end",
    ),
  ),
  *of(
    "stages",
    "programs/reward_facts.py",
    "heldout_numbers::scores_are_normalised_on_samples_of_the_policy",
    (
      "reward: the deviation of a sample",
      "deviation = float(np.std(scores))",
      "deviation = float(np.std(scores, ddof=1))",
    ),
    (
      "reward: normalised on training rows",
      "if not settings.reference_samples:",
      "if settings.reference_samples != 0:",
    ),
  ),
  *of(
    "stages",
    "programs/actors.py",
    "actors::the_reference_is_the_policy_as_it_starts"
    " actors::a_reward_model_at_chance_is_refused_unless_forced",
    (
      "actors: the base is the reference",
      "reference=reference.variables,",
      'reference=reference.variables | {"params": base.params},',
    ),
    (
      "actors: a reward model at chance is let in",
      'if level == "refuse" and not force:',
      'if level == "" and not force:',
    ),
  ),
  *of(
    "resume",
    "programs/world.py",
    "stage_folders",
    (
      "stages: the newest step, whatever was named",
      "step=stages.step_of(folder),",
      "step=None,",
    ),
  ),
  *of(
    "stages",
    "runs/stages.py",
    "stage_folders::a_stage_is_of_one_model_and_leaves_one_kind"
    " stage_folders::a_stage_starts_from_merged_weights_and_finds_them_again"
    " stage_folders::another_run_where_a_stage_was_merged_from_is_noticed"
    " stage_folders::the_step_that_is_named_is_loaded",
    (
      "stages: weights of the base instead of the merged",
      "if not str(folder):\n    return base.params",
      "if True:\n    return base.params",
    ),
    (
      "stages: another run where it was merged from",
      'if stage_fingerprint(folder) != info["merged_from_fingerprint"]:',
      'if not info["merged_from_fingerprint"]:',
    ),
    (
      "stages: of another model",
      "if info[field] != value:",
      "if not info[field]:",
    ),
    (
      "stages: anything will do",
      "is_wanted = info is not None and kind_of(info) == kind",
      "is_wanted = info is not None",
    ),
  ),
  *of(
    "stages",
    "models/roles.py",
    "roles::merged_factors_equal_factors_applied_inside_the_block"
    " roles::full_training_from_a_layer_up_freezes_the_rest",
    (
      "roles: the sampler reads no factors",
      'if "lora" not in variables:',
      'if "lora" in variables:',
    ),
    (
      "roles: heads train the last norm",
      "return role.head is None",
      "return True",
    ),
  ),
  *of(
    "stages",
    "models/lora.py",
    "roles::merged_factors_equal_factors_applied_inside_the_block",
    (
      "lora: merged without its scale",
      "flat[kernel] + scale * jnp.matmul(",
      "flat[kernel] + jnp.matmul(",
    ),
  ),
  *of(
    "stages",
    "models/lora.py",
    "lora_targets::settings_of_a_model_section"
    " lora_targets::only_chosen_maps_have_factors_and_merging_is_applying_them",
    (
      "lora: rsLoRA divides by the rank",
      "return alpha / (rank**0.5 if is_rank_stabilised else rank)",
      "return alpha / rank",
    ),
    (
      "lora: every map has factors, whatever is chosen",
      "not targets or kind in targets or",
      "targets or kind in targets or",
    ),
  ),
  *of(
    "stages",
    "models/adapters.py",
    "adapters::logits_equal_pefts"
    " adapters::fused_maps_that_we_wrote_are_read_as_they_were",
    (
      "adapters: rsLoRA is not read",
      'return lora.scale_of(alpha, rank, bool(said.get("use_rslora")))',
      "return lora.scale_of(alpha, rank, False)",
    ),
    (
      "adapters: the first block of A for every map",
      "cut = slice(used[0] * rank, (used[0] + 1) * rank)",
      "cut = slice(0, rank)",
    ),
  ),
  *of(
    "stages",
    "programs/starts.py",
    "adapter_runs::policy_critic_and_reference_stand_on_one_base",
    (
      "starts: the reference carries factors that are 0",
      'whole = {"params": start.variables["params"]}',
      "whole = start.variables",
    ),
  ),
  *of(
    "stages",
    "rewards/judge.py",
    "judge_rows::a_rollout_is_what_each_role_says",
    (
      "judge: the reference without temperature",
      "      temperature=plan.temperature,",
      "      temperature=1.0,",
    ),
    (
      "judge: values on prompts",
      "jax.numpy.where(samples.response_mask > 0, values, 0.0)",
      "values",
    ),
    (
      "judge: the reward is no score",
      'score=scores["reward"] if "reward" in scores else no_score',
      'score=scores["reward"] * 0 if "reward" in scores else no_score',
    ),
  ),
  *of(
    "stages",
    "programs/policy_step.py",
    "policy_programs::schedules_count_the_updates_of_their_own_part"
    " policy_programs::advantages_of_an_import_path_are_used",
    (
      "policy: the schedule counts the critic's own steps",
      '"policy_optimizer", (total - pretrain) * each',
      '"policy_optimizer", total * each',
    ),
    (
      "policy: the critic has the policy's optimizer",
      'both = {"policy": policy, "value": fit((total - pretrain) * each)}',
      'both = {"policy": policy, "value": policy}',
    ),
    (
      "method: an advantage of another method",
      "settings.advantages, rollout, settings.method",
      "settings.algorithm.module.advantages, rollout, settings.method",
    ),
  ),
  *of(
    "stages",
    "algorithms/policy_gradient/further_rollouts.py",
    "policy_programs::the_baseline_of_remax_is_shaped_as_the_reward_is"
    " remax::advantages_by_hand",
    (
      "remax: the raw score of the greedy answer",
      "shaping.shaped_scores(other, moments, config)",
      "other.score",
    ),
    (
      "remax: baselines of other prompts",
      "return jnp.repeat(x.astype(jnp.float32), rows // prompts)",
      "return jnp.tile(x.astype(jnp.float32), rows // prompts)",
    ),
  ),
  *of(
    "stages",
    "programs/policy_training.py",
    "policy_steps::the_critic_trains_first_and_samples_are_valued_by_it",
    (
      "policy: the critic in training is not read",
      'params | {"value": arrays["critic"].params}',
      'params | {"value": params["value"]}',
    ),
  ),
  *of(
    "stages",
    "pipelines/online_preference.py",
    "sampled_steps::the_reference_follows_after_every_second_step",
    (
      "online: the reference moves a step late",
      "if every and (step + 1) % every == 0:",
      "if every and step % every == 0:",
    ),
    (
      "online: a step on ties alone",
      'if row["pair/used_share"] > 0.0:',
      'if row["pair/used_share"] >= 0.0:',
    ),
    (
      "online: the reference that moved is not read",
      'phase["refer"](arrays["reference"], frozen, batch)',
      'phase["refer"](arrays["train"].params, frozen, batch)',
    ),
  ),
  *of(
    "stages",
    "pipelines/bond.py",
    "sampled_steps::a_step_of_bond_moves_policy_and_anchor"
    " sampled_steps::the_best_teaches_and_ranks_are_against_all",
    (
      "bond: the policy is its own anchor",
      "reference = logprobs(anchor_params, own)",
      "reference = logprobs(state.params, own)",
    ),
    (
      "bond: the best of all samples",
      "best_of_n.select_best(scores[:, : target.n])",
      "best_of_n.select_best(scores)",
    ),
    (
      "bond: the anchor follows the policy before the step",
      "moved = bond.move_anchor(anchor_params, state.params, "
      "config.anchor_rate)",
      "moved = bond.move_anchor(anchor_params, anchor_params, "
      "config.anchor_rate)",
    ),
  ),
  *of(
    "stages",
    "programs/sampled_steps.py",
    "sampled_steps::only_what_has_no_end_loses_points"
    " sampled_steps::kl_to_the_reference_is_of_the_answer",
    (
      "sampled: answers without an end gain",
      "score=rollout.score - penalty * is_cut",
      "score=rollout.score + penalty * is_cut",
    ),
    (
      "sampled: the KL on prompts too",
      "behaviour - ops.neutral(rollout.reference_logprobs, mask), axis=-1",
      "behaviour - rollout.reference_logprobs, axis=-1",
    ),
  ),
)
