"""Single judged answers (KTO), and the mismatched ones they are compared with.

Both are Comparisons (dataset.py), read otherwise: `labels` says whether an
answer is desirable, and `pairs` holds the answer alone, [P, 1], or also the
row of the same prompt with the answer to another one, [P, 2].

Which answer goes to which prompt is drawn once for a data set, not in each
batch, so that reference log-probabilities can be computed before training.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from rlhf_jax.data import dataset, encode
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer


def load(data: Data, tokenizer: Tokenizer, seed: int) -> dataset.Comparisons:
  """Returns judged answers, from labels or from comparisons."""
  if not data.has_format("labelled"):
    return from_comparisons(dataset.comparisons(data, tokenizer, seed))
  found, dropped = dataset.records(data, tokenizer)
  encoded, lost = encode.encode_all(
    dataset.encoder(found, data, tokenizer), found
  )
  dataset.check_left(encoded, data, dropped + lost)
  return of_encoded(encoded, dropped + lost)


def of_encoded(encoded: list[dict], dropped: Counter) -> dataset.Comparisons:
  """Returns judged answers of what encode.encode_labelled made.

  Args:
    encoded: at least one.
    dropped: reason -> count of what was left out.
  """
  groups: dict[str, int] = {}
  numbers = [groups.setdefault(e["key"], len(groups)) for e in encoded]
  return dataset.Comparisons(
    rows=[example["answer"] for example in encoded],
    pairs=np.arange(len(encoded), dtype=np.int32)[:, None],
    labels=np.asarray([e["label"] for e in encoded], np.float32),
    groups=np.asarray(numbers, np.int32)[:, None],
    dropped=dropped,
    ceiling=None,
  )


def from_comparisons(data: dataset.Comparisons) -> dataset.Comparisons:
  """Returns both answers of each comparison, judged by who won."""
  by_sentence = data.groups.shape[1] == 2
  single = data.pairs.reshape(-1, 1)
  return dataclasses.replace(
    data,
    pairs=single,
    ranks=None,
    targets=None,
    strengths=None,
    margins=None,
    weights=None if data.weights is None else np.repeat(data.weights, 2),
    labels=np.stack([data.labels, 1.0 - data.labels], axis=1).reshape(-1),
    groups=data.groups.reshape(-1, 1)
    if by_sentence
    else np.repeat(data.groups, 2, axis=0),
  )


def compact(data: dataset.Comparisons) -> dataset.Comparisons:
  """Returns the same comparisons without rows that none of them reads."""
  used, pairs = np.unique(data.pairs, return_inverse=True)
  return dataclasses.replace(
    data,
    rows=[data.rows[i] for i in used],
    pairs=pairs.reshape(data.pairs.shape).astype(np.int32),
  )


def _prompt_length(row: dict[str, np.ndarray]) -> int:
  return int(np.argmax(row["loss_mask"] > 0))


def other_prompts(prompts: np.ndarray, seed: int) -> np.ndarray:
  """Returns for each example another one, whose prompt is not the same.

  The next one with another prompt in a random circle, as in the batches of
  Ethayarajh et al. 2024.

  Args:
    prompts: [P] int, number of each example's prompt, at least two of them.
    seed: of the order.
  """
  order = np.random.default_rng(seed).permutation(len(prompts))
  circle = np.concatenate([prompts[order], prompts[order]])
  changes = np.flatnonzero(circle[1:] != circle[:-1]) + 1
  place = np.searchsorted(changes, np.arange(len(prompts)), side="right")
  others = np.empty(len(prompts), np.int64)
  others[order] = order[changes[place] % len(prompts)]
  return others


def with_mismatched(
  data: dataset.Comparisons, max_length: int, seed: int, source: str
) -> dataset.Comparisons:
  """Returns judged answers, each with the answer to another prompt.

  An answer that does not fit behind its new prompt is cut at its end: it is
  read for the mean log-ratio alone.

  Args:
    data: pairs [P, 1].
    max_length: tokens of a row.
    seed: of the order in which answers go to other prompts.
    source: of the data, for the message.

  Raises:
    DataError: all prompts are equal.
  """
  rows = [data.rows[i] for i in data.pairs[:, 0]]
  prompts = prompt_numbers(rows, data.groups[:, 0])
  if len(np.unique(prompts)) < 2:
    raise DataError(
      f"{source}: all {len(rows)} answers have the same prompt, and KTO "
      "compares with answers to other prompts. Give more prompts, or use "
      "config.algorithm.name='dpo'."
    )
  mismatched = []
  for row, j in zip(rows, other_prompts(prompts, seed), strict=True):
    mismatched.append(_joined(row, rows[j], max_length))
  first = len(data.rows)
  extra = np.arange(first, first + len(rows), dtype=np.int32)
  return dataclasses.replace(
    data,
    rows=[*data.rows, *mismatched],
    pairs=np.stack([data.pairs[:, 0], extra], axis=1),
  )


def prompt_numbers(rows: list[Any], groups: np.ndarray) -> np.ndarray:
  """Returns [P] int, the same where prompts are equal, whole or as cut."""
  numbers: dict[tuple, int] = {}
  shown = [
    numbers.setdefault(
      tuple(row["tokens"][: _prompt_length(row)].tolist()), len(numbers)
    )
    for row in rows
  ]
  found = np.asarray(shown)
  while True:  # the smallest number of all that are linked reaches them all
    before = found.copy()
    for same in (np.asarray(shown), groups):
      least = np.full(same.max() + 1, len(numbers))
      np.minimum.at(least, same, found)
      found = least[same]
    if np.array_equal(found, before):
      return found


def _joined(row: Any, other: Any, max_length: int) -> dict[str, np.ndarray]:
  """Returns the prompt of one row and the answer of another."""
  prompt = row["tokens"][: _prompt_length(row)]
  answer = other["tokens"][_prompt_length(other) :][: max_length - len(prompt)]
  mask = np.concatenate([np.zeros(len(prompt)), np.ones(len(answer))])
  return {
    "tokens": np.concatenate([prompt, answer]).astype(np.int32),
    "loss_mask": mask.astype(np.float32),
  }
