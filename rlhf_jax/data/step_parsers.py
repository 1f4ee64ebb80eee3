"""Parsers of answers whose steps were judged: (record, where) -> Steps.

  steps           {"prompt", "steps": [text, ...], "labels": [0, 1, null, ...]}
  prm800k         Lightman et al. 2023 (arXiv:2305.20050): question.problem, and
                  label.steps with rated completions; 1 and 0 (neutral) are
                  right, as in its main results, -1 is wrong
  math_shepherd   Wang et al. 2024 (arXiv:2312.08935): input with a marker
                  behind each step, and label, the same text with + or - there

Of a label that is null nothing is learned. steps.py makes rows of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import records
from rlhf_jax.data.examples import Steps
from rlhf_jax.data.sources import DataError

MARKER = "ки"  # of Math-Shepherd


def parse_steps(record: dict, where: str) -> Steps:
  """prompt (text or messages), steps and their labels, 0 to 1 or null."""
  texts = records.field(record, "steps", (list,), "steps", where)
  labels = records.field(record, "labels", (list,), "steps", where)
  asked = records.prompt(record, "steps", where)
  return made(where, records.with_tools(asked, record, where), texts, labels)


def made(
  where: str, prompt: Any, texts: Sequence[Any], labels: Sequence[Any]
) -> Steps:
  """Returns checked steps.

  Args:
    where: "FILE:LINE".
    prompt: text or messages.
    texts: of the steps.
    labels: as many: numbers in [0, 1], true, false or None.

  Raises:
    DataError: other texts or labels, or not as many.
    records.RefusedExample: no step, or none that was judged.
  """
  if len(texts) != len(labels):
    raise DataError(
      f"{where}: {len(texts)} steps and {len(labels)} labels. Give each step "
      "a label, null for one that nobody judged."
    )
  for number, (text, label) in enumerate(zip(texts, labels, strict=True)):
    is_number = isinstance(label, (bool, int, float)) or label is None
    if not isinstance(text, str):
      raise DataError(
        f"{where}: step {number} is {str(text)[:60]!r}. Give texts."
      )
    if not is_number or (label is not None and not 0 <= label <= 1):
      raise DataError(
        f"{where}: label {number} is {label!r}; it is the probability that the "
        "step is right. Give a number in [0, 1], true, false or null."
      )
  if all(label is None for label in labels):
    raise records.RefusedExample(
      "no judged step",
      f"{where}: no step has a label: nothing to learn from. Remove the "
      "record.",
    )
  found = tuple(None if x is None else float(x) for x in labels)
  return Steps(where, prompt, tuple(texts), found)


def parse_prm800k(record: dict, where: str) -> Steps:
  """question.problem and label.steps, rated 1, 0 or -1 (Lightman et al. 2023).

  Of several completions of a step the chosen one stands for it, else what a
  person wrote (right), else, at the end, the first one that was rated.
  """
  question = records.field(record, "question", (dict,), "prm800k", where)
  label = records.field(record, "label", (dict,), "prm800k", where)
  asked = records.field(question, "problem", (str,), "prm800k", where)
  steps = records.field(label, "steps", (list,), "prm800k", where)
  texts, labels = [], []
  for number, step in enumerate(steps):
    found, is_end = _completion(step, f"{where}: label.steps[{number}]")
    if found is not None:
      texts.append(found[0])
      labels.append(found[1])
    if is_end:
      break
  return made(where, asked + "\n", texts, labels)


def _completion(step: Any, where: str) -> tuple[Any, bool]:
  """Returns (text, label) of a step of PRM800K, or None; whether it is last."""
  if not isinstance(step, dict):
    raise DataError(f"{where} is {str(step)[:60]!r}, not an object.")
  others = step.get("completions") or []
  chosen, written = step.get("chosen_completion"), step.get("human_completion")
  if chosen is None and written:
    text = written["text"] if isinstance(written, dict) else written
    return (text, 1.0), False
  rated = [x for x in others if isinstance(x, dict) and _is_rated(x)]
  if chosen is not None:
    if not 0 <= chosen < len(others):
      raise DataError(
        f"{where}: chosen_completion={chosen} of {len(others)} completions."
      )
    rated = [others[chosen]]
  if not rated:
    return None, True
  rating = rated[0].get("rating")
  label = None if rating is None else float(rating >= 0)
  return (rated[0].get("text"), label), chosen is None


def _is_rated(completion: dict) -> bool:
  return completion.get("rating") in (-1, 0, 1)


def parse_math_shepherd(record: dict, where: str) -> Steps:
  """input with a marker behind each step; label, with + or - (Math-Shepherd).

  The first step begins at "Step 1:"; what stands before it is the prompt.
  """
  text = records.field(record, "input", (str,), "math_shepherd", where)
  label = records.field(record, "label", (str,), "math_shepherd", where)
  *parts, rest = text.split(MARKER)
  start = text.find("Step 1:")
  if not parts or rest.strip() or start < 0:
    raise DataError(
      f"{where}: field 'input' is no text with 'Step 1:' and {MARKER!r} behind "
      "each step. Correct the record."
    )
  labels, place = [], 0
  for part in parts:
    place += len(part)
    sign = label[place : place + 1]
    if label[place - len(part) : place] != part or sign not in ("+", "-"):
      raise DataError(
        f"{where}: field 'label' is not field 'input' with '+' or '-' where "
        f"{MARKER!r} stands (character {place}). Correct the record."
      )
    labels.append(float(sign == "+"))
    place += 1
  texts = [part.strip() for part in (parts[0][start:], *parts[1:])]
  return made(where, text[:start], texts, labels)
