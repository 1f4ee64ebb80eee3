"""A policy that answers with the best of several answers: FOLDER@best_of=16.

It draws so many answers to a prompt and says the one that a judge prefers, the
first of equals. Against the policy that draws, its KL is log n - (n - 1) / n at
most (METHODS 7.1), and nothing was trained. FOLDER may be FOLDER@best or
FOLDER@120. Only who answers understands it, not who trains: a start of a
run is a policy's weights.
"""

from __future__ import annotations

import math

from rlhf_jax.schema import FieldError

MARK = "@best_of="


def split(text: str, field: str = "policy") -> tuple[str, int]:
  """Returns (FOLDER, n) of FOLDER@best_of=n, (text, 1) of anything else.

  Args:
    text: as it was written.
    field: where, for the message.

  Raises:
    FieldError: n is no whole number from 2 on.
  """
  folder, mark, number = str(text).rpartition(MARK)
  if not mark:
    return str(text), 1
  if not (number.isascii() and number.isdigit() and int(number) >= 2):
    raise FieldError(
      f"{field}={text!r}: best_of={number!r} must be a whole number from 2 on, "
      "such as runs/sft@best_of=16."
    )
  return folder, int(number)


def kl_bound(n: int) -> float:
  """Returns log n - (n - 1) / n, nats: the KL of the best of n at most."""
  return math.log(n) - (n - 1) / n
