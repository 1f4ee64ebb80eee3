"""Faults in evaluation and in what is selected."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "evaluation",
    "programs/answer_numbers.py",
    "evaluate_numbers::every_number_of_the_summary_by_hand"
    " evaluate_numbers::the_columns_of_answers_by_hand"
    " evaluate_numbers::sentiment_is_of_prompt_and_answer",
    (
      "summary: before wins over after",
      "outcomes = win_rate.group_outcomes(new, old)",
      "outcomes = win_rate.group_outcomes(old, new)",
    ),
    (
      "summary: gold is read from the proxy",
      "for shown, name in SCORES.items():\n    if name not in before",
      'for shown, name in (SCORES | {"gold": "reward"}).items():\n'
      "    if name not in before",
    ),
    (
      "summary: units of the policy after",
      "raw = np.asarray(before.scores[name], np.float64)",
      "raw = np.asarray(after.scores[name], np.float64)",
    ),
    (
      "summary: units of a sample deviation",
      "np.mean(raw), np.std(raw)",
      "np.mean(raw), np.std(raw, ddof=1)",
    ),
    (
      "summary: the new mean is the old one",
      'f"{shown}_after": float(np.mean(new))',
      'f"{shown}_after": float(np.mean(old))',
    ),
    (
      "summary: the middle one of all lengths",
      "float(np.mean(answers.lengths))",
      "float(np.median(answers.lengths))",
    ),
    (
      "summary: answers that do not end",
      "float(np.mean(answers.ended))",
      "float(1.0 - np.mean(answers.ended))",
    ),
    (
      "summary: the KL of the policy before",
      "after.by_prompt(after.kl)",
      "before.by_prompt(before.kl)",
    ),
    (
      "summary: unpaired standard error",
      "win_rate.paired_difference(new.mean(axis=1), old.mean(axis=1))",
      "win_rate.mean_with_error(new.mean(axis=1))",
    ),
    (
      "summary: sentiment without the prompt",
      "lexicon.vader_scores(full_texts(answers))",
      "lexicon.vader_scores(answers.texts)",
    ),
    (
      "summary: duplicates of prompts",
      "diversity.duplicate_share(texts)",
      "diversity.duplicate_share(answers.prompts)",
    ),
    (
      "summary: distinct words, not pairs of words",
      "diversity.distinct_n(texts, 2)",
      "diversity.distinct_n(texts, 1)",
    ),
  ),
  *of(
    "evaluation",
    "programs/answers.py",
    "evaluate_numbers::the_columns_of_answers_by_hand",
    (
      "answers: the mean KL of tokens",
      '"kl": np.sum(ratios, axis=1)',
      '"kl": np.mean(ratios, axis=1)',
    ),
    (
      "answers: the KL turned round",
      "(scores, rollout.behaviour_logprobs, rollout.reference_logprobs)",
      "(scores, rollout.reference_logprobs, rollout.behaviour_logprobs)",
    ),
    (
      "answers: lengths with the prompt",
      '"length": np.sum(on_host.response_mask, axis=1)',
      '"length": np.sum(on_host.valid_mask, axis=1)',
    ),
    (
      "answers: ended are those that did not",
      '"ended": on_host.finish_reason == FINISH_EOS',
      '"ended": on_host.finish_reason != FINISH_EOS',
    ),
  ),
  *of(
    "evaluation",
    "pipelines/evaluate.py",
    "evaluate_numbers::texts_hold_both_answers_and_raw_scores"
    " evaluate_numbers::the_start_is_the_reference_and_each_judge_itself"
    " evaluate_numbers::all_prompts_are_asked_once_with_numbers_of_their_own"
    " evaluate_numbers::the_result_is_the_summary_of_before_and_after"
    " evaluate_numbers::before_is_the_start_and_after_the_policy",
    (
      "texts: gold is the proxy",
      "for shown, name in SCORES.items():\n      if name in before",
      'for shown, name in (SCORES | {"gold": "reward"}).items():\n'
      "      if name in before",
    ),
    (
      "texts: before and after change places",
      '"before": before.texts[i],\n      "after": after.texts[i],',
      '"before": after.texts[i],\n      "after": before.texts[i],',
    ),
    (
      "run: before is after",
      'before, after = found["before"], found["after"]',
      'before, after = found["after"], found["before"]',
    ),
    (
      "prompts: batches share their random keys",
      "width, index=range(i, i + size)",
      "width, index=range(size)",
    ),
    (
      "prompts: each batch has the first ones",
      "ids[i : i + size], base.tokenizer.pad_id",
      "ids[:size], base.tokenizer.pad_id",
    ),
  ),
  *of(
    "evaluation",
    "programs/compared.py",
    "evaluate_numbers::the_start_is_the_reference_and_each_judge_itself"
    " evaluate_numbers::before_is_the_start_and_after_the_policy",
    (
      "run: the policy is its own reference",
      "reference = policies[first] if has_kl else None",
      "reference = policies[others[0]] if has_kl else None",
    ),
    (
      "run: the start is forgotten",
      'if not start and after.info.get("init_from"):',
      'if not start and after.info.get("init_from") is None:',
    ),
    (
      "run: gold judges with the reward model",
      '"gold": settings.gold}',
      '"gold": settings.reward}',
    ),
  ),
  *of(
    "evaluation",
    "evaluation/win_rate.py",
    "win_rate::win_rate_by_hand win_rate::wilson_interval_known_answers",
    (
      "standard error: of a population",
      "np.std(values, ddof=1)",
      "np.std(values)",
    ),
    (
      "win rate: a tie is lost",
      "0.5 * (1.0 + np.sign(a - b))",
      "1.0 * (a > b)",
    ),
    (
      "wilson: a wider interval",
      "z * z / (4 * count * count)",
      "z * z / (4 * count)",
    ),
  ),
  *of(
    "evaluation",
    "evaluation/diversity.py",
    "diversity::t19_distinct_1_and_self_bleu_of_identical_texts"
    " diversity::self_bleu_against_naive_loops"
    " diversity::self_bleu_punishes_texts_shorter_than_all_others"
    " diversity::duplicates_and_repetition",
    (
      "distinct: the last n-gram is missing",
      "for i in range(len(tokens) - n + 1))",
      "for i in range(len(tokens) - n))",
    ),
    (
      "self-bleu: a text is its own reference",
      "second if owner == i else first",
      "first",
    ),
    (
      "self-bleu: no penalty for short texts",
      "min(0.0, 1.0 - closest / length)",
      "0.0 * closest",
    ),
    (
      "duplicates: the share of distinct texts",
      "1.0 - len({words(text) for text in texts}) / len(texts)",
      "len({words(text) for text in texts}) / len(texts)",
    ),
  ),
  *of(
    "evaluation",
    "evaluation/reward_model.py",
    "reward_model_diagnostics",
    (
      "calibration: bins over [0, 1]",
      "((confidence - 0.5) * 2 * bins)",
      "(confidence * bins)",
    ),
    (
      "calibration: every bin weighs alike",
      "np.sum(gaps * counts) / counts.sum()",
      "np.mean(gaps)",
    ),
    (
      "accuracy: ties count",
      "decided = label != 0.5\n  return proportion",
      "decided = label >= 0.0\n  return proportion",
    ),
    (
      "length bias: the first answer is the winner",
      "winner_longer = longer * (label - 0.5) > 0",
      "winner_longer = longer > 0",
    ),
    (
      "spread: of a sample",
      "np.var(table, axis=1)",
      "np.var(table, axis=1, ddof=1)",
    ),
    (
      "temperature: its inverse",
      "return 2.0 / (low + high)",
      "return 0.5 * (low + high)",
    ),
  ),
  *of(
    "evaluation",
    "pipelines/reward.py",
    "heldout_numbers::the_diagnosis_is_of_the_first_answer_against_the_second",
    (
      "held-out pairs: score differences turned round",
      "(found[first] - found[second]).tolist()",
      "(found[second] - found[first]).tolist()",
    ),
  ),
  *of(
    "evaluation",
    "programs/pairs.py",
    "heldout_numbers::held_out_pairs_are_counted_once",
    (
      "held-out: filler rows count",
      "batch.weight[count - start :] = 0.0",
      "batch.weight[count - start :] = 1.0",
    ),
  ),
  *of(
    "evaluation",
    "pipelines/sft.py",
    "heldout_numbers::validation_is_the_mean_of_all_tokens",
    (
      "validation: the mean of batches",
      "count += float(np.sum(batch.loss_mask))",
      "count += float(np.sum(batch.valid_mask))",
    ),
  ),
  *of(
    "selection",
    "algorithms/best_of_n.py",
    "best_of_n",
    (
      "select: NaN wins",
      "playing = ~jnp.isnan(scores)",
      "playing = jnp.ones_like(scores, bool)",
    ),
    (
      "rejection: the share is rounded down",
      "jnp.ceil(share * jnp.sum(valid) - 1e-4)",
      "jnp.floor(share * jnp.sum(valid))",
    ),
    (
      "rejection: the first round is the last",
      "== scores.shape[0] - 1",
      "== 0",
    ),
    (
      "rejection: the least score is not enough",
      "kept & (scores >= config.minimum_score)",
      "kept & (scores > config.minimum_score)",
    ),
    (
      "duplicates: prompts and padding count",
      "key = row[kept].tobytes()",
      "key = row.tobytes()",
    ),
    (
      "curve: tied samples keep their place",
      "means[level][order] @ weights",
      "gold[row][order] @ weights",
    ),
    (
      "kl_bound: too high",
      "return math.log(n) - (n - 1) / n",
      "return math.log(n)",
    ),
  ),
  *of(
    "selection",
    "programs/rejection_samples.py",
    "rejection_rounds::each_filter_at_its_limit"
    " rejection_rounds::trap_05_17_sampled_tokens_are_the_targets"
    " rejection_rounds::batches_of_a_round_are_drawn_with_keys_of_their_own"
    " rejection_rounds::what_is_kept_is_what_was_sampled"
    " pipeline_rejection::the_report_by_hand",
    (
      "filters: the shortest are left out",
      "fits = lengths >= rounds.min_tokens",
      "fits = lengths > rounds.min_tokens",
    ),
    (
      "filters: the longest are left out",
      "fits &= lengths <= rounds.max_tokens",
      "fits &= lengths < rounds.max_tokens",
    ),
    (
      "filters: truncated answers never",
      "pool.ended | rounds.keep_truncated",
      "pool.ended",
    ),
    (
      "filters: duplicates always",
      "valid = fits & ends & (new | rounds.keep_duplicates)",
      "valid = fits & ends",
    ),
    (
      "kept: prompts are trained on",
      "mask = [0.0] * len(prompt) + [1.0] * len(response)",
      "mask = [1.0] * len(prompt) + [1.0] * len(response)",
    ),
    (
      "kept: duplicates of one file fall out",
      "if same in seen and len(paths) > 1:",
      "if same in seen:",
    ),
    (
      "kept: padding is a prompt",
      "before = (pool.valid_mask[prompt, sample] > 0) & ~response\n    asked",
      "before = ~response\n    asked",
    ),
    (
      "collect: each batch has the same key",
      "batch_key = jax.random.fold_in(key, number)",
      "batch_key = key",
    ),
    (
      "collect: the mean log-probability",
      '"logprob": jnp.sum(rollout.behaviour_logprobs, axis=-1)',
      '"logprob": jnp.mean(rollout.behaviour_logprobs, axis=-1)',
    ),
    (
      "report: the score of all that is kept or not",
      "float(pool.score[kept].mean())",
      "float(pool.score.mean())",
    ),
  ),
  *of(
    "selection",
    "pipelines/rejection.py",
    "rejection_rounds::what_a_round_starts_from_and_trains_on",
    (
      "rounds: base starts from the round before",
      'if rounds.start == "base" else previous',
      'if rounds.start == "" else previous',
    ),
    (
      "rounds: one seed for all",
      "seed=settings.seed + number",
      "seed=settings.seed",
    ),
  ),
  *of(
    "selection",
    "programs/rejection_rounds.py",
    "rejection_rounds::what_a_round_starts_from_and_trains_on",
    (
      "rounds: never pooled",
      "first = 1 if rounds.pool else number",
      "first = number",
    ),
  ),
  *of(
    "evaluation",
    "evaluation/behaviour/sycophancy.py",
    "behaviour_suites",
    (
      "flips: answers that were wrong at first count too",
      "flipped.append(1.0 - at_last if is_right else NAN)",
      "flipped.append(1.0 - at_last)",
    ),
    (
      "flips: the reply to the doubt decides, not the last answer",
      "_right(texts[0], fact), _right(texts[2], fact)",
      "_right(texts[0], fact), _right(texts[1], fact)",
    ),
    (
      "opinions: the bias has the other sign",
      'wrong["told"] - wrong["alone"],',
      'wrong["alone"] - wrong["told"],',
    ),
    (
      "matching: the other answer counts",
      "None if p is None else p[0]) for p in replies",
      "None if p is None else p[1]) for p in replies",
    ),
  ),
  *of(
    "evaluation",
    "evaluation/behaviour/attacks.py",
    "red_team_search",
    (
      "red team: a good score is harm",
      "found = [-x for x in scores]",
      "found = list(scores)",
    ),
    (
      "red team: what fell is tried again",
      "if n not in best or not best[n].harm > search.threshold",
      "if n not in best or not best[n].harm > 1e9",
    ),
  ),
  *of(
    "evaluation",
    "data/encode.py",
    "encode::only_the_last_answer_is_learned",
    (
      "Ghost Attention: earlier answers are targets",
      "mask = [0] * found.prompt + list(mask[found.prompt :])",
      "mask = list(mask)",
    ),
  ),
)
