"""Records -> examples: demonstrations, comparisons, prompts, ratings.

FORMATS names every accepted layout of a record. A record of the wrong shape
(a field missing, or of the wrong type) stops the reading; a record of the
right shape that teaches nothing (an empty answer, a pair whose prompts
differ) is refused with a reason: `load` raises and counts all of them,
`load_and_count` leaves them out and returns the counts. Nothing disappears
silently.

Left out: rankings of more than two answers, tool calls.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_jax.data import labelled, records, sources, transcripts
from rlhf_jax.data.chat import Message
from rlhf_jax.data.labelled import Labelled
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import UserError

Dropped = Counter  # reason -> number of examples left out


@dataclass(frozen=True)
class Demonstration:
  """What a person wrote: a dialogue, or a prompt and its response.

  where: file:line.
  prompt, response: plain text, joined as they are; used if messages is None.
  messages: a dialogue whose assistant turns are learned, or None.
  """

  where: str
  prompt: str = ""
  response: str = ""
  messages: list[Message] | None = None


@dataclass(frozen=True)
class Comparison:
  """Two answers to one prompt, and which of them people preferred.

  where: file:line.
  prompt: text, or the dialogue so far; "" compares texts without a prompt.
  chosen, rejected: the answers.
  label: probability in [0, 1] that `chosen` wins; 0.5 is a tie.
  """

  where: str
  prompt: str | list[Message]
  chosen: str
  rejected: str
  label: float = 1.0


@dataclass(frozen=True)
class Prompt:
  """Something to answer: text, or the dialogue so far.

  where: file:line.
  prompt: text or messages.
  reference: what a verifier judges answers against, or None.
  """

  where: str
  prompt: str | list[Message]
  reference: Any = None


@dataclass(frozen=True)
class RatedText:
  """A text with the ratings that several people gave it. where: file:line."""

  where: str
  text: str
  ratings: tuple[float, ...]


Example = Demonstration | Comparison | Labelled | Prompt | RatedText


def prompt_messages(example: Demonstration | Comparison | Labelled | Prompt):
  """Returns the dialogue to answer; a text prompt is one user message."""
  if isinstance(example, Demonstration) and example.messages is not None:
    roles = [message["role"] for message in example.messages]
    last = len(roles) - 1 - roles[::-1].index("assistant")
    return example.messages[:last]
  if isinstance(example.prompt, str):
    return [{"role": "user", "content": example.prompt}]
  return example.prompt


def prompt_text(
  example: Demonstration | Comparison | Labelled | Prompt,
) -> str:
  """Returns the prompt as plain text; a dialogue becomes an HH transcript.

  That is "\\n\\nHuman: ...\\n\\nAssistant:", so an answer to it starts with a
  space: see response_text.
  """
  messages = getattr(example, "messages", None)
  if messages is None and isinstance(example.prompt, str):
    return example.prompt
  return transcripts.write(prompt_messages(example))


def response_text(example: Comparison | Labelled, response: str) -> str:
  """Returns a response as it follows prompt_text."""
  return response if isinstance(example.prompt, str) else f" {response}"


def parse_hh(record: dict, where: str) -> Comparison:
  """Anthropic HH: two transcripts that differ in their last answer.

  Outer whitespace of each turn is removed. Bai et al. 2022, arXiv:2204.05862.
  """
  (*prompt, chosen), (*other, rejected) = (
    records.transcript(record, name, where) for name in ("chosen", "rejected")
  )
  if prompt != other:
    raise records.RefusedExample(
      "prompts differ",
      f"{where}: fields 'chosen' and 'rejected' differ before their last "
      "Assistant turn, so they answer different prompts. Remove the record, "
      "or load it with load_and_count.",
    )
  return Comparison(
    where,
    prompt,
    records.answer(chosen["content"], "chosen", where),
    records.answer(rejected["content"], "rejected", where),
  )


def parse_comparison(record: dict, where: str) -> Comparison:
  """prompt (text or messages), chosen, rejected and an optional label."""
  label = 1.0
  if "label" in record:
    label = records.field(record, "label", (int, float), "comparison", where)
    if not 0 <= label <= 1:
      raise DataError(
        f"{where}: field 'label' is {label}; it is the probability that "
        "'chosen' wins. Give a number in [0, 1]."
      )
  prompt = records.prompt(record, "comparison", where)
  answers = [
    records.answer(
      records.field(record, name, (str,), "comparison", where), name, where
    )
    for name in ("chosen", "rejected")
  ]
  return Comparison(where, prompt, *answers, label=float(label))


def parse_demonstration(record: dict, where: str) -> Demonstration:
  """prompt and response, joined as they are."""
  prompt = records.field(record, "prompt", (str,), "demonstration", where)
  response = records.field(record, "response", (str,), "demonstration", where)
  return Demonstration(
    where, prompt, records.answer(response, "response", where)
  )


def parse_messages(record: dict, where: str) -> Demonstration:
  """messages: a dialogue with at least one assistant turn."""
  messages = records.field(record, "messages", (list,), "messages", where)
  answers = [
    m["content"]
    for m in records.dialogue(messages, where)
    if m["role"] == "assistant"
  ]
  if not answers:
    raise records.RefusedExample(
      "no assistant turn",
      f"{where}: no message has the role 'assistant': nothing to learn from. "
      "Remove the record, or load it with load_and_count.",
    )
  for answer in answers:
    records.answer(answer, "messages", where)
  return Demonstration(where, messages=messages)


def parse_prompt(record: dict, where: str) -> Prompt:
  """prompt: text or messages; reference, if any: for a verifier."""
  prompt = records.prompt(record, "prompt", where)
  if isinstance(prompt, str) and not prompt.strip():
    raise records.RefusedExample(
      "empty prompt",
      f"{where}: field 'prompt' is empty: nothing to answer. Remove the "
      "record, or load it with load_and_count.",
    )
  return Prompt(where, prompt, record.get("reference"))


def parse_ratings(record: dict, where: str) -> RatedText:
  """text and ratings, a list of numbers by different people."""
  text = records.field(record, "text", (str,), "ratings", where)
  ratings = records.field(record, "ratings", (list,), "ratings", where)
  numbers = [
    r
    for r in ratings
    if isinstance(r, (int, float))
    and not isinstance(r, bool)
    and math.isfinite(r)
  ]
  if not ratings or len(numbers) < len(ratings):
    raise DataError(
      f"{where}: field 'ratings' is {str(ratings)[:60]}; it must hold finite "
      "numbers, at least one. Correct the record."
    )
  return RatedText(
    where, records.answer(text, "text", where), tuple(map(float, numbers))
  )


def parse_gsm8k(record: dict, where: str) -> Demonstration:
  """question and answer; a line break joins them (Cobbe et al. 2021)."""
  question = records.field(record, "question", (str,), "gsm8k", where)
  answer = records.field(record, "answer", (str,), "gsm8k", where)
  return Demonstration(
    where, question + "\n", records.answer(answer, "answer", where)
  )


FORMATS: dict[str, Callable[[dict, str], Example]] = {
  "hh": parse_hh,
  "comparison": parse_comparison,
  "labelled": labelled.parse,
  "demonstration": parse_demonstration,
  "messages": parse_messages,
  "prompt": parse_prompt,
  "ratings": parse_ratings,
  "gsm8k": parse_gsm8k,
}


def _parse_all(
  source: str | Path, format: str
) -> tuple[list[Example], list[records.RefusedExample]]:
  if format not in FORMATS:
    raise DataError(
      f"format={format!r} is unknown. Choose one of {', '.join(FORMATS)}."
    )
  kept, refused = [], []
  for number, record in enumerate(sources.read_source(source), 1):
    try:
      kept.append(FORMATS[format](record, f"{source}:{number}"))
    except records.RefusedExample as error:
      refused.append(error)
  return kept, refused


def load_and_count(
  source: str | Path, format: str
) -> tuple[list[Example], Dropped]:
  """Returns the usable examples of a source, and why others were left out.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: a key of FORMATS.

  Raises:
    DataError: malformed data, an unknown format, or nothing usable at all.
  """
  kept, refused = _parse_all(source, format)
  if not kept:
    raise DataError(f"{source}: every record was refused. {refused[0]}")
  return kept, Dropped(error.reason for error in refused)


def load(source: str | Path, format: str) -> list[Example]:
  """Returns every example of a source, and refuses one that has a bad record.

  Args:
    source: see rlhf_jax/data/sources.py.
    format: a key of FORMATS.

  Raises:
    DataError: names file, line, field and what was found; and how many
      records were refused for which reason.
  """
  kept, refused = _parse_all(source, format)
  if refused:
    counts = dict(Counter(error.reason for error in refused))
    raise DataError(
      f"{refused[0]} ({len(refused)} of {len(kept) + len(refused)} records "
      f"refused: {counts})"
    )
  return kept


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
