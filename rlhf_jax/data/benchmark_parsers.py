"""Parsers of local files that are laid out as benchmarks of reward models.

  rewardbench  prompt, chosen, rejected, subset; texts, or lists of texts
  llmbar       input, output_1, output_2, label 1 or 2
  judgebench   question, response_A, response_B, label "A>B" or "B>A"

RewardBench and RewardBench 2 (Lambert et al. 2024; Malik et al. 2025), LLMBar
(Zeng et al. 2023), JudgeBench (Tan et al. 2024). No benchmark is part of this
project. Of several chosen answers all are right, and none is better.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.data import records
from rlhf_jax.data.examples import Ranking
from rlhf_jax.data.sources import DataError


def _texts(record: dict, name: str, where: str) -> list[str]:
  """Returns one text or several."""
  value = records.field(record, name, (str, list), "rewardbench", where)
  found = [value] if isinstance(value, str) else value
  if not found or not all(isinstance(text, str) for text in found):
    raise DataError(
      f"{where}: field {name!r} is {str(value)[:60]}; it is a text, or a list "
      "of texts. Correct the record."
    )
  return [records.answer(text, name, where) for text in found]


def parse_rewardbench(record: dict, where: str) -> Ranking:
  """prompt, chosen, rejected (one text or several of each) and subset."""
  records.field(record, "subset", (str,), "rewardbench", where)
  chosen = _texts(record, "chosen", where)
  rejected = _texts(record, "rejected", where)
  return Ranking(
    where,
    records.prompt(record, "rewardbench", where),
    (*chosen, *rejected),
    ranks=(0,) * len(chosen) + (1,) * len(rejected),
    fields=dict(record),
  )


def _judged(
  record: dict,
  where: str,
  format: str,
  names: tuple[str, str, str],
  better: Any,
  allowed: tuple[Any, Any],
) -> Ranking:
  """Returns two answers of which the label says which is better.

  Args:
    record, where: see above.
    format: of the record.
    names: of the prompt and both answers.
    better: the label.
    allowed: labels that say the first, the second.
  """
  if better not in allowed or isinstance(better, bool):
    raise DataError(
      f"{where}: field 'label' is {better!r}; format={format!r} knows "
      f"{allowed[0]!r} and {allowed[1]!r}. Correct the record."
    )
  prompt, *answers = (
    records.field(record, name, (str,), format, where) for name in names
  )
  texts = tuple(
    records.answer(text, name, where)
    for text, name in zip(answers, names[1:], strict=True)
  )
  ranks = (0, 1) if better == allowed[0] else (1, 0)
  return Ranking(where, prompt, texts, ranks=ranks, fields=dict(record))


def parse_llmbar(record: dict, where: str) -> Ranking:
  """input, output_1, output_2, and label: 1 or 2 is better."""
  names = ("input", "output_1", "output_2")
  label = record.get("label")
  return _judged(record, where, "llmbar", names, label, (1, 2))


def parse_judgebench(record: dict, where: str) -> Ranking:
  """question, response_A, response_B, and label: "A>B" or "B>A"."""
  names = ("question", "response_A", "response_B")
  label = record.get("label")
  return _judged(record, where, "judgebench", names, label, ("A>B", "B>A"))
