"""Parsers, one for each format: (record, where) -> an example.

A record of the wrong shape raises DataError, one that teaches nothing
RefusedExample; records.py has the checks that they share.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.data import records
from rlhf_jax.data.examples import (
  Comparison,
  Demonstration,
  Labelled,
  Prompt,
  RatedText,
)
from rlhf_jax.data.sources import DataError

MOST_RATING = 1e30  # ratings are compared in float32
# Of a preference, in Llama-2's words (Touvron et al. 2023, section 3.2.1).
STRENGTHS = ("significantly", "better", "slightly", "negligibly")


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
      "Assistant turn, so they answer different prompts. Remove the record.",
    )
  return Comparison(
    where,
    prompt,
    records.answer(chosen["content"], "chosen", where),
    records.answer(rejected["content"], "rejected", where),
  )


def parse_comparison(record: dict, where: str) -> Comparison:
  """prompt (text or messages), chosen, rejected; label, margin, strength.

  The last three may be missing.

  Answers are texts or messages; see records.answered.
  """
  label = 1.0
  if "label" in record:
    label = records.field(record, "label", (int, float), "comparison", where)
    if not 0 <= label <= 1:
      raise DataError(
        f"{where}: field 'label' is {label}; it is the probability that "
        "'chosen' wins. Give a number in [0, 1]."
      )
  prompt, answers = records.answered(
    record, ("chosen", "rejected"), "comparison", where
  )
  prompt = records.with_tools(prompt, record, where)
  margin = record.get("margin")
  if margin is not None and not is_number(margin):
    raise DataError(
      f"{where}: field 'margin' is {str(margin)[:60]!r}; it says by how much "
      "the better answer should win. Give a finite number."
    )
  check_strength(record.get("strength"), where)
  for name in (name for pair in records.PAIR_SCORES for name in pair):
    if record.get(name) is not None and not is_number(record[name]):
      raise DataError(
        f"{where}: field {name!r} is {str(record[name])[:60]!r}; it is the "
        "score of an answer. Give a finite number, or null."
      )
  return Comparison(
    where,
    prompt,
    *answers,
    label=float(label),
    margin=None if margin is None else float(margin),
  )


def check_strength(value: Any, where: str) -> None:
  """Raises DataError unless a strength of preference is one, or None."""
  if value is None or (isinstance(value, str) and value in STRENGTHS):
    return
  if isinstance(value, str) or not (is_number(value) and value >= 0):
    raise DataError(
      f"{where}: field 'strength' is {str(value)[:60]!r}; it is one of "
      f"{', '.join(STRENGTHS)}, or a number >= 0. Correct the record."
    )


def parse_labelled(record: dict, where: str) -> Labelled:
  """prompt (text or messages), response and label (true or false).

  The data of KTO; the label may be 1 or 0 too.
  """
  prompt, (response,) = records.answered(
    record, ("response",), "labelled", where
  )
  prompt = records.with_tools(prompt, record, where)
  label = record.get("label")
  if not isinstance(label, (bool, int, float)) or label not in (0, 1):
    raise DataError(
      f"{where}: field 'label' is {label!r}; it says whether the answer is "
      "desirable. Give true or false."
    )
  return Labelled(where, prompt, response, float(label))


def parse_demonstration(record: dict, where: str) -> Demonstration:
  """prompt and response, joined as they are; or messages."""
  prompt, (response,) = records.answered(
    record, ("response",), "demonstration", where
  )
  prompt = records.with_tools(prompt, record, where)
  if isinstance(prompt, str):
    return Demonstration(where, prompt, response)
  last = {"role": "assistant", "content": response}
  return Demonstration(where, messages=[*prompt, last])


def parse_messages(record: dict, where: str) -> Demonstration:
  """messages: a dialogue with at least one assistant turn."""
  messages = records.dialogue(
    records.field(record, "messages", (list,), "messages", where), where
  )
  answers = [m["content"] for m in messages if m["role"] == "assistant"]
  if not answers:
    raise records.RefusedExample(
      "no assistant turn",
      f"{where}: no message has the role 'assistant': nothing to learn from. "
      "Remove the record.",
    )
  for answer in answers:
    if answer is not None:  # beside tool calls
      records.answer(answer, "messages", where)
  return Demonstration(
    where, messages=records.with_tools(messages, record, where)
  )


def parse_prompt(record: dict, where: str) -> Prompt:
  """prompt: text or messages; reference, if any: for a verifier.

  A field "messages" may stand for it.
  """
  if "prompt" not in record and isinstance(record.get("messages"), list):
    prompt = records.to_answer(record["messages"], where, "messages")
  else:
    prompt = records.prompt(record, "prompt", where)
  if isinstance(prompt, str) and not prompt.strip():
    raise records.RefusedExample(
      "empty prompt",
      f"{where}: field 'prompt' is empty: nothing to answer. Remove the "
      "record.",
    )
  prompt = records.with_tools(prompt, record, where)
  return Prompt(where, prompt, record.get("reference"))


def parse_ratings(record: dict, where: str) -> RatedText:
  """text and ratings, a list of numbers by different people."""
  text = records.field(record, "text", (str,), "ratings", where)
  ratings = records.field(record, "ratings", (list,), "ratings", where)
  numbers = [rating for rating in ratings if is_number(rating)]
  if not ratings or len(numbers) < len(ratings):
    raise DataError(
      f"{where}: field 'ratings' is {str(ratings)[:60]}; it must hold finite "
      f"numbers, at least one, none beyond {MOST_RATING:.0e}. Correct the "
      "record."
    )
  return RatedText(
    where, records.answer(text, "text", where), tuple(map(float, numbers))
  )


def is_number(value: Any) -> bool:
  """Says whether a value of a record is a number that can be compared."""
  is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_real and -MOST_RATING <= value <= MOST_RATING  # NaN is not


def parse_rated_dialogue(record: dict, where: str) -> RatedText:
  """messages, rated as a whole: {"witty": 7, ...}, numbers of one person."""
  messages = records.dialogue(
    records.field(record, "messages", (list,), "rated_dialogue", where), where
  )
  given = records.field(record, "ratings", (dict,), "rated_dialogue", where)
  ratings = {
    str(name): _rating(x, str(name), where) for name, x in given.items()
  }
  if not ratings:
    raise records.RefusedExample(
      "no rating", f"{where}: nobody rated this dialogue. Remove the record."
    )
  if all(message["role"] != "assistant" for message in messages):
    raise records.RefusedExample(
      "no assistant turn",
      f"{where}: no message has the role 'assistant': there is no answer to "
      "judge. Remove the record.",
    )
  text = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
  return RatedText(where, text, (), messages, ratings)


def _rating(value: Any, name: str, where: str) -> float:
  if not is_number(value):
    raise DataError(
      f"{where}: ratings.{name} is {value!r}; it must be a finite number. "
      "Correct the record."
    )
  return float(value)


def parse_gsm8k(record: dict, where: str) -> Demonstration:
  """question and answer; a line break joins them (Cobbe et al. 2021)."""
  question = records.field(record, "question", (str,), "gsm8k", where)
  answer = records.field(record, "answer", (str,), "gsm8k", where)
  return Demonstration(
    where, question + "\n", records.answer(answer, "answer", where)
  )
