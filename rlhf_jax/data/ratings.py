"""Rated texts -> rows and pairs, and how often raters agree with their mean.

Raters of different texts are compared, not two judgements of one person; which
noise that is, `rater_ceiling` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlhf_jax.data import streams
from rlhf_jax.data.examples import RatedText
from rlhf_jax.data.section import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError


def row(record: RatedText, data: Data, tokenizer: Tokenizer) -> dict:
  """Returns the row of a rated text after data.prompt: tokens, loss_mask [n].

  Args:
    record: without messages.
    data: the section.
    tokenizer: of the model.

  Raises:
    DataError: longer than data.max_length.
  """
  prompt, response = streams.rated(data.prompt, record.text, tokenizer)
  if data.end_token:
    response = [*response, tokenizer.eos_id]
  if len(prompt) + len(response) > data.max_length:
    raise DataError(
      f"{record.where}: {len(prompt)} + {len(response)} tokens do not fit in "
      f"max_length={data.max_length}. Raise it, or set max_text_tokens to "
      "leave out long texts."
    )
  return _row(prompt, response, data.train_on_prompt)


def _row(prompt: list[int], response: list[int], train_on_prompt: bool) -> dict:
  mask = [1.0 if train_on_prompt else 0.0] * len(prompt) + [1.0] * len(response)
  mask[0] = 0.0  # the first token has nothing before it to be predicted from
  return {
    "tokens": np.asarray(prompt + response, np.int32),
    "loss_mask": np.asarray(mask, np.float32),
  }


def _rating_table(
  texts: Sequence[RatedText],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ratings [texts, most raters], zero-padded, and counts [texts]."""
  counts = np.array([len(t.ratings) for t in texts])
  table = np.zeros((len(texts), counts.max()), np.float32)
  for row, text in zip(table, texts, strict=True):
    row[: len(text.ratings)] = text.ratings
  return table, counts


def comparisons_from_ratings(
  texts: Sequence[RatedText],
  count: int,
  seed: int,
  ties: Literal["drop", "soft"] = "drop",
) -> tuple[np.ndarray, np.ndarray]:
  """Draws pairs of texts and which of them a random rater of each prefers.

    P(i beats j) = P(r_i > r_j),  r_i, r_j drawn from the raters of i and of j.

  These are not judgements between two answers to one prompt: raters use the
  scale differently, and rater_ceiling measures that noise.

  Args:
    texts: at least two, each with at least one rating.
    count: pairs to return.
    seed: >= 0; the same seed gives the same pairs.
    ties: "drop" draws again until no pair is tied; "soft" labels ties 0.5.

  Returns:
    pairs [count, 2] int32, indices into texts, never equal in a row; label
    [count] float32, 1.0 where the first wins, 0.0 or 0.5.

  Raises:
    ValueError: too few texts, count < 1, unknown `ties`, or nothing but ties.
  """
  if len(texts) < 2 or count < 1:
    raise UserError(
      f"{len(texts)} texts, count={count}: a comparison needs two texts. Give "
      "at least 2 texts and count >= 1."
    )
  if ties not in ("drop", "soft"):
    raise UserError(f"ties={ties!r} is unknown. Choose 'drop' or 'soft'.")
  table, counts = _rating_table(texts)
  values = {rating for text in texts for rating in text.ratings}
  if ties == "drop" and len(values) == 1:
    raise UserError(
      f"every rating is {values.pop()}: all pairs tie, and ties='drop' would "
      "draw forever. Set ties='soft' or give texts whose ratings differ."
    )
  random = np.random.default_rng(seed)
  pairs, labels, found = [], [], 0
  while found < count:
    first = random.integers(0, len(texts), count)
    second = (first + random.integers(1, len(texts), count)) % len(texts)
    rating_a = table[first, random.integers(0, counts[first])]
    rating_b = table[second, random.integers(0, counts[second])]
    keep = np.flatnonzero((rating_a != rating_b) | (ties == "soft"))
    pairs.append(np.stack([first, second], axis=1)[keep])
    labels.append(0.5 + 0.5 * np.sign(rating_a - rating_b)[keep])
    found += len(keep)
  return (
    np.concatenate(pairs)[:count].astype(np.int32),
    np.concatenate(labels)[:count].astype(np.float32),
  )


def rater_ceiling(
  texts: Sequence[RatedText], pairs: np.ndarray, labels: np.ndarray
) -> float:
  """Returns how often the higher mean rating agrees with the single raters.

  Args:
    texts: what `pairs` indexes.
    pairs: [count, 2] int.
    labels: [count] float, 1.0 where the first won; ties (0.5) are left out.

  Returns:
    accuracy in [0, 1]; equal means count one half.

  Raises:
    ValueError: every label is a tie.
  """
  decided = labels != 0.5
  if not decided.any():
    raise UserError(
      f"all {len(labels)} labels are ties: accuracy is undefined. Give at "
      "least one pair with label 0.0 or 1.0."
    )
  means = np.array([np.mean(t.ratings, dtype=np.float64) for t in texts])
  gap = means[pairs[decided, 0]] - means[pairs[decided, 1]]
  predicted = 0.5 + 0.5 * np.sign(gap)
  return float(np.mean(1.0 - np.abs(predicted - labels[decided])))
