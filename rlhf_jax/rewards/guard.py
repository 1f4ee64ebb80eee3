"""No answer stops a run: what a judge raises on one is a score of 0, counted.

A batch on which a judge raises is halved until the answers are found that it
raises on; the others keep their scores. The first is shown with its answer and
traceback. A judge that raises on every answer of the first batch is wrong
itself, and is refused by texts.Judge, which sees the batch of all processes. A
judge elsewhere that nobody reaches any more does stop the run.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import numpy as np

from rlhf_jax.rewards.ai.voices import JudgeGone
from rlhf_jax.rewards.functions import Bound, Parts
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import UserError

RAISED = "raised"  # [N] 0 or 1, logged beside what the judge logs
SHOWN_CHARACTERS = 2000


class Guard:
  """A judge that does not raise.

  first_error: the first that it met, as text; "" before.
  has_judged: an answer was judged, of this process or another; texts.Judge
    says so.
  """

  def __init__(self, judge: Bound, logged: tuple[str, ...]):
    """Args: judge; logged: the names that it logs in every call."""
    self._judge, self._logged = judge, logged
    self.first_error, self.has_judged = "", False

  def __call__(self, answers: Answers) -> Parts:
    """Returns [N] scores, 0 where the judge raises, and what is logged."""
    scores, logged, raised = self._judged(answers)
    return scores, {**logged, RAISED: raised}

  def _judged(
    self, answers: Answers
  ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Returns scores, what is logged, and [N] 1.0 where the judge raised."""
    count = len(answers)
    try:
      scores, logged = self._judge(answers)
      check_logged(logged, self._logged)
    except JudgeGone:
      raise
    except (Exception, SystemExit) as error:
      raised = error
    else:
      return scores, logged, np.zeros(count, np.float32)
    if count <= 1:
      text = "".join(answers.texts)[:SHOWN_CHARACTERS]
      self._show(raised, f"an answer, which scores 0: {text!r}")
      zeros = np.zeros(count, np.float32)
      return zeros, dict.fromkeys(self._logged, zeros), zeros + 1.0
    found = self._halves(answers)
    if not found[2].any():
      self._show(raised, f"a batch of {count}, not on its halves, which count")
    return found

  def _halves(self, answers: Answers) -> tuple[Any, Any, np.ndarray]:
    middle = len(answers) // 2
    scores, logged, raised = zip(
      self._judged(answers.take(range(middle))),
      self._judged(answers.take(range(middle, len(answers)))),
      strict=True,
    )
    together = {
      name: np.concatenate([part[name] for part in logged])
      for name in self._logged
    }
    return np.concatenate(scores), together, np.concatenate(raised)

  def _show(self, error: BaseException, where: str) -> None:
    """Prints the first error, whatever characters are in it."""
    if self.first_error:
      return
    is_ours = isinstance(error, UserError)  # its text is safe to make
    self.first_error = str(error) if is_ours else type(error).__name__
    cause = error.__cause__ if is_ours else None
    trace = "".join(traceback.format_exception(cause or error))
    text = (
      f"\nverifier: raised on {where}\n{trace}No other is shown; "
      f"reward/component/{RAISED} counts the answers.\n"
    )
    encoding = sys.stdout.encoding or "utf-8"
    safe = text.encode(encoding, "backslashreplace").decode(encoding)
    print(safe, flush=True)


def check_logged(
  logged: dict[str, np.ndarray], expected: tuple[str, ...]
) -> None:
  """Raises UserError unless what is logged has the names it always has."""
  if set(logged) != set(expected):
    raise UserError(
      f"the verifier logs {sorted(logged)}, and for an empty answer, before "
      f"the run, {sorted(expected)}. Log the same names in every call."
    )
