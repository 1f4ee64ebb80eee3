"""Parsers of public layouts of rankings, scores and choices: -> Ranking.

  nectar                 answers with a rank each, 1 the best (InstructGPT's
                         way of ranking, Ouyang et al. 2022, section 3.4)
  ultrafeedback          four completions with ratings by objective (Cui et al.
                         2023, arXiv:2310.01377)
  helpsteer              an answer a record with five attributes; neighbours
                         with one prompt are one ranking (Wang et al. 2023,
                         arXiv:2311.09528)
  helpsteer2_preference  two answers and a strength from -3 to 3 (Wang et al.
                         2024, arXiv:2410.01257)
  helpsteer3             the same, behind a dialogue (arXiv:2505.11475)
  best_of                a query, samples and the best of them (Ziegler et al.
                         2019, arXiv:1909.08593)
  summaries              two summaries of a post and a choice (Stiennon et al.
                         2020, arXiv:2009.01325)

All fields of a record are kept; the annotator is put under that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf_jax.data import parsers, records, transcripts
from rlhf_jax.data.examples import Example, Ranking
from rlhf_jax.data.messages import Message
from rlhf_jax.data.sources import DataError

ATTRIBUTES = (
  *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
)  # of HelpSteer, 0 to 4 each
# Strengths of HelpSteer2 and 3 in Llama-2's words; 0 is a tie.
_WORDS = {3: "significantly", 2: "better", 1: "slightly", 0: "negligibly"}
_ANSWER = "\n\nAssistant:"  # where a transcript wants an answer


def _objects(
  record: dict, name: str, format: str, where: str
) -> list[dict[str, Any]]:
  """Returns a field that is a list of objects, at least one."""
  found = records.field(record, name, (list,), format, where)
  if not found or not all(isinstance(entry, dict) for entry in found):
    raise DataError(
      f"{where}: field {name!r} is {str(found)[:60]}; format={format!r} needs "
      "a list of objects. Correct the record."
    )
  return found


def _texts(
  entries: Iterable[Any], name: str, format: str, where: str
) -> tuple[str, ...]:
  """Returns answers that are texts with something in them."""
  found = []
  for n, text in enumerate(entries):
    if not isinstance(text, str):
      raise DataError(
        f"{where}: {name}[{n}] is a {type(text).__name__}, {str(text)[:60]!r}; "
        f"format={format!r} needs a text. Correct the record."
      )
    found.append(records.answer(text, f"{name}[{n}]", where))
  return tuple(found)


def _transcript_prompt(text: str) -> str | list[Message]:
  """Returns the dialogue of an HH transcript that wants an answer, or text."""
  stripped = text.rstrip()
  if not text.startswith(transcripts.BEGIN) or not stripped.endswith(_ANSWER):
    return text
  return transcripts.parse(f"{stripped} x")[:-1]


def parse_nectar(record: dict, where: str) -> Ranking:
  """prompt, an HH transcript or a text, and answers with "answer" and "rank".

  Ranks are 1 for the best, up to 7.
  """
  prompt = records.field(record, "prompt", (str,), "nectar", where)
  entries = _objects(record, "answers", "nectar", where)
  texts = _texts((e.get("answer") for e in entries), "answers", "nectar", where)
  ranks = []
  for n, entry in enumerate(entries):
    rank = entry.get("rank")
    if not (parsers.is_number(rank) and rank >= 1 and rank == int(rank)):
      raise DataError(
        f"{where}: answers[{n}].rank is {str(rank)[:60]!r}; a rank is 1 for "
        "the best, 2 for the next. Correct the record."
      )
    ranks.append(int(rank) - 1)
  policies = [entry.get("model") for entry in entries]
  return Ranking(
    where,
    _transcript_prompt(prompt),
    texts,
    ranks=tuple(ranks),
    fields=record | {"policies": policies},
  )


def _rating(value: Any) -> float | None:
  """Returns a rating that may be written as a text; None for "N/A"."""
  if isinstance(value, str):
    try:
      value = float(value)
    except ValueError:
      return None
  return float(value) if parsers.is_number(value) else None


def parse_ultrafeedback(record: dict, where: str) -> Ranking:
  """instruction and completions, each with response, scores and annotations.

  The score of the whole is "fine-grained_score", the mean of the four ratings;
  "overall_score" is an objective of its own, as some of its entries are ten
  times too high. Ratings that are "N/A" are none.
  """
  format = "ultrafeedback"
  prompt = records.field(record, "instruction", (str,), format, where)
  entries = _objects(record, "completions", format, where)
  texts = _texts(
    (e.get("response") for e in entries), "completions", format, where
  )
  rated = [e.get("annotations") or {} for e in entries]
  scores = {"": [_rating(e.get("fine-grained_score")) for e in entries]}
  scores["overall"] = [_rating(e.get("overall_score")) for e in entries]
  for name in sorted({name for notes in rated for name in notes}):
    scores[name] = [
      _rating((notes.get(name) or {}).get("Rating")) for notes in rated
    ]
  known = {
    name: tuple(numbers)
    for name, numbers in scores.items()
    if any(number is not None for number in numbers)
  }
  if not known:
    raise records.RefusedExample(
      "no judgement",
      f"{where}: no completion has a rating that is a number. Remove the "
      "record.",
    )
  policies = [entry.get("model") for entry in entries]
  return Ranking(
    where, prompt, texts, scores=known, fields=record | {"policies": policies}
  )


def parse_helpsteer(record: dict, where: str) -> Ranking:
  """prompt, response, and a number for each of ATTRIBUTES.

  One answer; formats.each joins neighbours that answer the same prompt.
  """
  prompt = records.field(record, "prompt", (str,), "helpsteer", where)
  text = records.field(record, "response", (str,), "helpsteer", where)
  scores = {}
  for name in ATTRIBUTES:
    number = records.field(record, name, (int, float), "helpsteer", where)
    scores[name] = (float(number),)
  answer = records.answer(text, "response", where)
  return Ranking(where, prompt, (answer,), scores=scores, fields=record)


def joined(found: Iterable[Example | DataError]) -> Iterator:
  """Yields rankings, those of neighbours with the same prompt as one.

  Args:
    found: rankings of one answer each, and records that were refused.
  """
  before: list[Ranking] = []
  for example in found:
    if not isinstance(example, Ranking):
      yield example
    elif before and before[0].prompt == example.prompt:
      before.append(example)
    else:
      if before:
        yield _together(before)
      before = [example]
  if before:
    yield _together(before)


def _together(members: Sequence[Ranking]) -> Ranking:
  """Returns one ranking of the answers of several, scores and all."""
  first = members[0]
  names = {name: None for member in members for name in member.scores}
  none = (None,)
  scores = {
    name: tuple(x for member in members for x in member.scores.get(name, none))
    for name in names
  }
  return dataclasses.replace(
    first,
    answers=tuple(text for member in members for text in member.answers),
    scores=scores,
    fields={"records": [member.fields for member in members]},
  )


def parse_helpsteer2(record: dict, where: str) -> Ranking:
  """prompt, response_1, response_2 and preference_strength, -3 to 3.

  Above 0 the second is the better.
  """
  format = "helpsteer2_preference"
  prompt = records.field(record, "prompt", (str,), format, where)
  names, strength = ("response_1", "response_2"), "preference_strength"
  return _preferred(record, prompt, names, strength, format, where)


def parse_helpsteer3(record: dict, where: str) -> Ranking:
  """context (messages), response1, response2 and overall_preference, -3 to 3.

  Above 0 the second is the better.
  """
  format = "helpsteer3"
  context = records.field(record, "context", (list,), format, where)
  prompt = records.to_answer(context, where, "context")
  names, strength = ("response1", "response2"), "overall_preference"
  return _preferred(record, prompt, names, strength, format, where)


def _preferred(
  record: dict,
  prompt: str | list[Message],
  names: Sequence[str],
  strength: str,
  format: str,
  where: str,
) -> Ranking:
  """Returns two answers of which a signed strength prefers one.

  Args:
    record, format, where: of the parser.
    prompt: of both.
    names: of the fields with the answers.
    strength: of the field with the strength.
  """
  texts = tuple(
    records.answer(records.field(record, n, (str,), format, where), n, where)
    for n in names
  )
  found = records.field(record, strength, (int, float), format, where)
  if abs(found) not in _WORDS:
    raise DataError(
      f"{where}: field {strength!r} is {found}; it is a whole number from -3 "
      "(the first is much better) to 3. Correct the record."
    )
  return Ranking(
    where,
    prompt,
    texts,
    ranks=(int(found > 0), int(found < 0)),
    strength=_WORDS[abs(found)],
    fields=record,
  )


def parse_best_of(record: dict, where: str) -> Ranking:
  """query, sample0, sample1, ... as texts, and best, the number of one.

  The labels of Ziegler et al. 2019 hold tokens of GPT-2; decode them first.
  """
  query = record.get("query", "")
  count = 0
  while f"sample{count}" in record:
    count += 1
  texts = [record[f"sample{n}"] for n in range(count)]
  if any(isinstance(x, list) for x in (query, *texts)):
    raise DataError(
      f"{where}: fields 'query' and 'sample0', ... hold numbers of tokens; "
      "format='best_of' needs texts. Decode them with the tokenizer that wrote "
      "them (GPT-2's)."
    )
  query = records.field(record, "query", (str,), "best_of", where)
  best = records.field(record, "best", (int,), "best_of", where)
  if count < 2 or not 0 <= best < count:
    raise DataError(
      f"{where}: field 'best' is {best} of {count} samples; it is the number "
      "of one of two or more, from 0. Correct the record."
    )
  answers = _texts(texts, "sample", "best_of", where)
  ranks = tuple(int(n != best) for n in range(count))
  return Ranking(where, query, answers, ranks=ranks, fields=record)


def parse_summaries(record: dict, where: str) -> Ranking:
  """info (post or article), summaries with "text", and choice, a number.

  The prompt is written as Stiennon et al. 2020 do (table 4), up to "TL;DR:".
  """
  info = records.field(record, "info", (dict,), "summaries", where)
  entries = _objects(record, "summaries", "summaries", where)
  choice = records.field(record, "choice", (int,), "summaries", where)
  body = info.get("post") or info.get("article")
  if not isinstance(body, str) or not 0 <= choice < len(entries):
    raise DataError(
      f"{where}: info has {sorted(info)} and choice is {choice} of "
      f"{len(entries)}; format='summaries' needs a text 'post' or 'article', "
      "and the number of a summary from 0. Correct the record."
    )
  heads = (("SUBREDDIT", "subreddit", "r/"), ("TITLE", "title", ""))
  lines = [
    f"{label}: {prefix}{info[name]}"
    for label, name, prefix in heads
    if info.get(name)
  ]
  prompt = "\n\n".join([*lines, f"POST: {body}", "TL;DR:"])
  texts = _texts(
    (e.get("text") for e in entries), "summaries", "summaries", where
  )
  # An answer to a text follows it as it is: it must begin with a space.
  answers = tuple(text if text[:1].isspace() else f" {text}" for text in texts)
  policies = [entry.get("policy") for entry in entries]
  return Ranking(
    where,
    prompt,
    answers,
    ranks=tuple(int(n != choice) for n in range(len(entries))),
    fields=record | {"policies": policies, "annotator": record.get("worker")},
  )
