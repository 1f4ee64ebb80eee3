"""Faults in what records become: rows, masks, splits, batches."""

from tests.proofs.mutations import of

FAULTS = (
  *of(
    "data",
    "data/encode.py",
    "encode",
    (
      "a text prompt is cut at its end",
      "prompt[:first] + prompt[first + cut :], responses",
      "prompt[: len(prompt) - cut], responses",
    ),
    (
      "dialogue: what does not fit is cut without a word",
      "return found, len(shorter) < len(messages)",
      "return found, False",
    ),
    (
      "encode: the first token is a target",
      "loss_mask[0] = 0.0",
      "loss_mask[0] *= 1.0",
    ),
    (
      "demonstration: the mask is off by one",
      "return [0] * len(prompt) + [1] * len(response)\n",
      "return [0] * (len(prompt) + 1) + [1] * (len(response) - 1)\n",
    ),
    (
      "encode: no end token",
      "found.append(ids + [tokenizer.eos_id] * end_token)",
      "found.append(ids)",
    ),
  ),
  *of(
    "data",
    "data/streams.py",
    "encode one_stream",
    (
      "dialogue: cut at an answer",
      'if messages[n]["role"] == "user":',
      'if messages[n]["role"] != "user":',
    ),
    (
      "dialogue: two streams pass",
      "if before != found.ids[: found.prompt]:",
      "if before is None:",
    ),
    (
      "dialogue: the system's turn is cut",
      "first, *rest = [*messages[:head], *messages[n:]]",
      "first, *rest = [*messages[n:]]",
    ),
  ),
  *of(
    "data",
    "data/word_starts.py",
    "streams",
    (
      "word starts: an answer starts a word",
      'step["prepend_scheme"] = "never"',
      'step["prepend_scheme"] = "always"',
    ),
    (
      "word starts: a text begins with nothing",
      "return tuple(whole[:start])",
      "return ()",
    ),
  ),
  *of(
    "data",
    "data/stops.py",
    "stops",
    (
      "stops: strings across tokens are lost",
      "step[state] = step[fallback[state]]",
      "step[state] = 0",
    ),
    (
      "stops: the end of turn of the template is forgotten",
      "if i is not None]\n",
      "if i is None and i]\n",
    ),
  ),
  *of(
    "data",
    "data/overlap.py",
    "overlap",
    (
      "overlap: the other way round",
      "pairs.append((record.where, places[keys[0]]))",
      "pairs.append((places[keys[0]], record.where))",
    ),
  ),
  *of(
    "data",
    "data/batches.py",
    "batches",
    (
      "preferences: the rejected first",
      'for name in ("chosen", "rejected")]',
      'for name in ("rejected", "chosen")]',
    ),
    (
      "collate: filler rows have targets",
      "loss_mask[len(examples) :] = 0.0",
      "loss_mask[len(examples) :] *= 1.0",
    ),
    (
      "collate: filler pairs have weight",
      "weight[len(examples) :] = 0.0",
      "weight[len(examples) :] = 1.0",
    ),
    (
      "prompts: numbered by batch",
      "np.arange(len(prompts)) if index is None else np.asarray(index)",
      "np.arange(len(prompts)) if True else np.asarray(index)",
    ),
    (
      "prompts: padded on the right",
      "tokens[n, length - len(prompt) :] = prompt",
      "tokens[n, : len(prompt)] = prompt",
    ),
    (
      "loader: hosts take every other row",
      "list(batch)[shard_index * rows : (shard_index + 1) * rows]",
      "list(batch)[shard_index::shard_count]",
    ),
    ("loader: one seed for all", ".seed(seed)", ".seed(0)"),
    (
      "loader: a position of other data",
      "if state.get(name) != value:",
      "if name not in state:",
    ),
  ),
  *of(
    "data",
    "data/assets.py",
    "assets::splits_are_disjoint_and_deterministic",
    (
      "split: parts overlap",
      "    start += size\n  return parts",
      "    start += size - 1\n  return parts",
    ),
  ),
  *of(
    "data",
    "data/ratings.py",
    "ratings::pairs_follow_the_raters ratings::pairs_that_cannot_be_drawn",
    (
      "ratings: labels are turned round",
      "np.sign(rating_a - rating_b)[keep]",
      "np.sign(rating_b - rating_a)[keep]",
    ),
    (
      "ratings: a text against itself",
      "random.integers(1, len(texts), count)) % len(texts)",
      "random.integers(0, len(texts), count)) % len(texts)",
    ),
    (
      "ceiling: ties count",
      "decided = labels != 0.5",
      "decided = labels >= 0.0",
    ),
  ),
  *of(
    "data",
    "data/parsers.py",
    "formats::demonstrations_keep_their_text_and_want_an_answer",
    (
      "gsm8k: question and answer without a break",
      'question + "\\n", records',
      "question, records",
    ),
  ),
  *of(
    "data",
    "data/chat.py",
    "chat::trap_17_golden_mask_token_by_token"
    " chat::special_tokens_in_messages_stay_text",
    (
      "chat: the end token is not learned",
      "learned.append((span.start if start is None else start, after[0][1]))",
      "learned.append((span.start if start is None else start, span.end))",
    ),
    (
      "chat: users are learned too",
      "if not spans.is_answer(message) or not said:",
      'if message["role"] == "system" or not said:',
    ),
  ),
  *of(
    "data",
    "data/controls.py",
    "chat::special_tokens_in_messages_stay_text families control_tokens",
    (
      "chat: a message can write special tokens",
      "    position = end\n  return found",
      "    position = start\n  return found",
    ),
    (
      "chat: a token is put together from two fields",
      "if is_inner or any(text[-k:] in self._heads for k in sizes):",
      "if is_inner:",
    ),
    (
      "chat: white space that a token takes in has tokens of its own",
      "while takes_right and final < right",
      "while takes_left and final < right",
    ),
  ),
  *of(
    "data",
    "data/rendering.py",
    "families",
    (
      "chat: a message that the template passes over is lost",
      "  _check_said(messages, found)\n",
      "",
    ),
  ),
  *of(
    "data",
    "data/dataset.py",
    "dataset_rows::rated_texts_become_prompt_and_answer"
    " dataset_rows::prompts_of_rated_texts_are_their_first_tokens"
    " dataset_rows::records_are_filtered_split_and_cut_in_this_order"
    " dataset_rows::comparisons_of_one_prompt_are_one_group",
    (
      "rated: the first token is a target",
      "mask[0] = 0.0  # the first token",
      "mask[0] *= 1.0  # the first token",
    ),
    (
      "rated: the prompt is always a target",
      "mask = [1.0 if train_on_prompt else 0.0] * len(prompt)",
      "mask = [1.0] * len(prompt)",
    ),
    (
      "rated: prompts without what stands before",
      "row = before + text[: data.prefix_tokens]",
      "row = text[: data.prefix_tokens]",
    ),
    (
      "rated: all of the text is a prompt",
      "row = before + text[: data.prefix_tokens]",
      "row = before + text[: -data.prefix_tokens]",
    ),
    (
      "comparisons: a prompt is on both sides of a split",
      'groups.setdefault(example["key"], len(groups))',
      "len(group_of_pair)",
    ),
    (
      "records: the last ones",
      "found = found[: data.limit]",
      "found = found[-data.limit :]",
    ),
  ),
  *of(
    "data",
    "data/kept_records.py",
    "dataset_rows::records_are_filtered_split_and_cut_in_this_order",
    (
      "filter: short texts stay",
      "if len(record.text.split()) < data.min_words:",
      "if len(record.text) < data.min_words:",
    ),
  ),
  *of(
    "data",
    "programs/features.py",
    "heldout_numbers::pairs_across_a_split_are_on_neither_side"
    " dataset_rows::what_is_held_out_depends_on_the_seed_alone"
    " heldout_numbers::features_stand_where_their_rows_do"
    " dataset_rows::a_batch_holds_the_rows_and_labels_of_its_comparisons",
    (
      "split: pairs across the border train",
      "~is_held.any(axis=1), is_held.all(axis=1)",
      "~is_held.all(axis=1), is_held.all(axis=1)",
    ),
    (
      "split: one seed for all",
      "np.random.default_rng(seed).permutation(groups)[:count]",
      "np.random.default_rng(0).permutation(groups)[:count]",
    ),
    (
      "features: in the order of batches",
      "result[numbers] = found[: len(numbers)]",
      "result[done : done + len(numbers)] = found[: len(numbers)]",
    ),
    (
      "batches: labels in the order of the data",
      '"label": data.labels[chosen]',
      '"label": data.labels[: len(chosen)]',
    ),
  ),
  *of(
    "data",
    "data/layout.py",
    "layout",
    (
      "packing: the first token of a segment is a target",
      "  for mask in masks:\n    mask[0] = 0.0",
      "  for mask in masks:\n    mask[0] *= 1.0",
    ),
    (
      "packing: positions run on",
      "[np.arange(count, dtype=np.int32) for count in counts]",
      "[np.arange(sum(counts), dtype=np.int32)]",
    ),
    (
      "packing: examples of one portion alone",
      "bins += [[g.moved(start) for g in groups] for groups in part]",
      "bins = [[g.moved(start) for g in groups] for groups in part[:-1]]",
    ),
    (
      "layout: no number of rows that is enough for any batch",
      "{usual, most, batch_size * items.shape[1]}",
      "{usual, most}",
    ),
    (
      "layout: examples share rows where nothing is gained",
      'if mode == "batch" or _cost(best) < WORTH * cost:',
      "if True:",
    ),
    (
      "layout: the last example of a portion is lost",
      "part = _placed(rows[start : start + PORTION], shape)",
      "part = _placed(rows[start : start + PORTION][:-1], shape)",
    ),
    (
      "packing: all tokens of a row are an example's",
      "is_own & (batch.loss_mask[row] > 0)",
      "batch.loss_mask[row] > 0",
    ),
  ),
  *of(
    "data",
    "data/judged.py",
    "pipeline_preference::mismatched_answers_belong_to_other_prompts"
    " pipeline_preference::kto_reads_labels_as_it_reads_comparisons",
    (
      "judged: labels are turned round",
      "np.stack([data.labels, 1.0 - data.labels], axis=1)",
      "np.stack([1.0 - data.labels, data.labels], axis=1)",
    ),
    (
      "mismatched: the same prompt",
      "others[order] = order[changes[place] % len(prompts)]",
      "others[order] = np.roll(order, -1) + 0 * changes[place]",
    ),
    (
      "mismatched: answers are not cut",
      "[: max_length - len(prompt)]",
      "[: max_length]",
    ),
  ),
)
