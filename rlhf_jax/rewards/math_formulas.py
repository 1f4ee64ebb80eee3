r"""Formulas as answers: find THE final answer of a text, compare it by sympy.

  score = 1 if the answer is proved equal to the reference, else 0

Where answers stand and how numbers are read is as for "number"
(math_answers.py), and two numbers are compared as there. All else is read into
trees (formulas.py) and compared in a process with limits (formula_process.py):
x + 1 is 1 + x, \frac{\sqrt{2}}{2} is \frac{1}{\sqrt{2}}, {1, 2} is {2, 1} and
(1, 2) not (2, 1), [0, 1) not (0, 1), x > 2 is (2, \infty), x = 5 is 5, y = 2x
is 2x - y = 0, x = 5 or x = -1 is -1, 5, (B) is \text{B}. Names of variables
count, upper and lower case too.

Left out: what formulas.py and expressions.py leave out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.rewards import (
  formula_process,
  formulas,
  marked,
  math_answers,
  rows,
  units,
)
from rlhf_jax.rewards.functions import Parts
from rlhf_jax.schema import UserError


@dataclass(frozen=True)
class Config(math_answers.Config):
  """How an answer is found and compared; the first fields as for "number"."""

  # CPU time of one comparison, and twice that by the clock; then it
  # scores 0.
  seconds: float = 3.0
  memory_bytes: int = 2 << 30  # address space of a process that compares
  workers: int = 2  # comparisons at a time, a process each

  def __post_init__(self):
    super().__post_init__()
    if not 0.0 < self.seconds <= 3600.0:
      raise UserError(
        f"seconds={self.seconds}: a comparison may never end. Set 0 < seconds "
        "<= 3600."
      )
    if self.memory_bytes < 256 << 20:
      raise UserError(
        f"memory_bytes={self.memory_bytes}: sympy itself needs some 100 MiB. "
        "Set memory_bytes >= 268435456."
      )
    if self.workers < 1:
      raise UserError(
        f"workers={self.workers}: nothing could be compared. Set it >= 1."
      )


class Answer(NamedTuple):
  """An answer as read.

  quantity: where it is one number.
  tree: see formulas.py.
  unit: "" when none.
  """

  quantity: math_answers.Quantity | None
  tree: formulas.Tree
  unit: str


def read(text: str, config: Config) -> Answer:
  """Returns an answer as it is written.

  Raises:
    Unreadable: it is no formula, or has two readings; says why.
  """
  if len(text) > marked.MAX_CHARACTERS:
    raise formulas.Unreadable("it is too long for an answer")
  quantity = math_answers.parse_quantity(text, config.percent)
  if quantity is None:
    return Answer(None, *formulas.read(text))
  kind = "d" if "." in text and quantity.value.denominator > 1 else "n"
  tree = [kind, str(quantity.value)]
  if quantity.name:
    tree = ["named", quantity.name, tree]
  return Answer(quantity, tree, quantity.unit)


def reference_answer(reference: Any, row: int, config: Config) -> Answer:
  """Returns the answer of a reference: a number, a formula, a marked solution.

  Raises:
    ValueError: it cannot be read as one.
  """
  text = str(reference)
  contents = marked.answers(text, math_answers.REFERENCE_FORMATS)
  why = "it is neither a text nor a number"
  if isinstance(reference, (str, int, float)) and reference is not True:
    try:
      if reference is not False:
        return read(contents[-1] if contents else text, config)
    except formulas.Unreadable as error:
      why = f"it cannot be read as a formula, because {error}"
  raise rows.bad_reference(
    row,
    reference,
    why,
    "Correct the record, or compare texts with the verifier 'exact'.",
  )


def committed(text: str, config: Config) -> list[Answer]:
  """Returns the answers that a response commits to, [] for none."""
  contents = marked.committed(
    text, config.formats, config.inside_tag, config.thought_tag
  )
  if config.several == "last":
    contents = contents[-1:]
  try:
    return [read(content, config) for content in contents]
  except formulas.Unreadable:
    return []


def settled(answer: Answer, wanted: Answer, config: Config) -> bool | None:
  """Returns whether two answers agree, None where it takes sympy to tell."""
  if answer.quantity is not None and wanted.quantity is not None:
    return math_answers.equal(answer.quantity, wanted.quantity, config)
  if units.are_halves(answer.unit, wanted.unit):
    return False
  if config.units == "match" and wanted.unit not in ("", answer.unit):
    return False
  return True if answer.tree == wanted.tree else None


def score(
  texts: Sequence[str], references: Sequence[Any], config: Config
) -> Parts:
  """Returns [N] float32: 1 where all marked answers are the reference's.

  Also {"timeout": [N]}: 1 where a comparison ran out of time, which scores 0.

  Args:
    texts: N responses.
    references: N numbers, formulas or marked solutions.
    config: how to read and compare them.

  Raises:
    ValueError: lengths differ, a reference cannot be read, or sympy is not
      installed.
  """
  rows.check(texts, references)
  formula_process.require()
  needed: list[list[str]] = []  # of each row, keys of `found`
  found: dict[str, bool | None] = {}
  is_right = np.zeros(len(texts), bool)
  for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
    wanted = reference_answer(reference, row, config)
    answers = committed(text, config)
    known = [settled(answer, wanted, config) for answer in answers]
    is_right[row] = bool(answers) and False not in known
    needed.append([])
    if is_right[row]:
      needed[row] = [
        json.dumps({"answer": answer.tree, "reference": wanted.tree})
        for answer, is_known in zip(answers, known, strict=True)
        if is_known is None
      ]
      found.update(dict.fromkeys(needed[row]))

  def compare(key: str) -> bool | None:
    request = {**json.loads(key), "tolerance": config.relative_tolerance}
    return formula_process.compare(request, config.seconds, config.memory_bytes)

  with ThreadPoolExecutor(config.workers) as pool:
    found = dict(zip(found, pool.map(compare, found), strict=True))
  timeouts = np.zeros(len(texts), np.float32)
  for row, keys in enumerate(needed):
    replies = [found[key] for key in keys]
    is_right[row] &= all(replies)
    timeouts[row] = None in replies
  return is_right.astype(np.float32), {"timeout": timeouts}
