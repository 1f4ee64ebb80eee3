"""Comparisons as the loss of a reward model reads them: margins and scores.

Words of strength become nats, scores a scale of mean 0 and deviation 1, grades
the thresholds around them; what a loss does not read is named.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rlhf_jax import schema
from rlhf_jax.algorithms import reward
from rlhf_jax.data import rankings, reading
from rlhf_jax.data.dataset import Comparisons, Data
from rlhf_jax.schema import FieldError, UserError

ASSUMED = 4  # answers of a ranking, where neither settings nor data tell


def check(settings: Any) -> None:
  """Checks that the loss reads rankings as the sections give them.

  Args:
    settings: with data, heldout and loss.

  Raises:
    FieldError: value, rule and remedy.
  """
  loss = settings.loss
  for key in ("data", "heldout"):
    data = getattr(settings, key)
    how = data.rankings
    if how == "whole" and data.ties != "drop":
      raise FieldError(
        f"{key}.ties={data.ties!r} with rankings='whole': a ranking keeps "
        "its ties, and loss.counts_ties says whether they are pairs. Set "
        f"{key}.ties='drop'."
      )
    if how == "whole" and loss.objective == "pairwise" and key == "data":
      raise FieldError(
        f"{key}.rankings='whole' with loss.objective='pairwise': it compares "
        "two answers. Set loss.objective='k-wise', or "
        f"{key}.rankings='pairs'."
      )
    if how in ("pairs", "ends") and loss.objective in reward.SCORED:
      raise FieldError(
        f"{key}.rankings={how!r} with loss.objective={loss.objective!r}: it "
        f"reads the score of each answer once. Set {key}.rankings='whole'."
      )


def reads(loss: reward.Config) -> set[str]:
  """Returns what of rankings.py's judgements a loss reads."""
  if loss.objective in reward.SCORED:
    return {rankings.TARGET, rankings.WEIGHT}
  found = {rankings.ORDER, rankings.WEIGHT}
  if loss.margins == reward.OF_SCORES:
    found |= {rankings.TARGET}
  elif loss.margins:
    found |= {rankings.STRENGTH, rankings.MARGIN}
  return found


def said(settings: Any) -> dict[str, int]:
  """Returns which further fields a batch has, and how many dimensions."""
  loss, found = settings.loss, {}
  if settings.data.rankings == "whole":
    found["rank"] = 2
  if loss.margins and loss.margins != reward.OF_SCORES:
    found["margin"] = 1
  if rankings.TARGET in reads(loss):
    found["target"] = 3 if loss.objective == "ordinal" else 2
  return found


def planned_candidates(data: Data) -> int:
  """Returns K, the answers of a comparison: as the section or the data say.

  Where whole rankings are not there yet, so many are assumed, and that is said.
  """
  if data.rankings != "whole" or data.answers:
    return data.answers if data.answers else 2
  try:
    parts = reading.read(data).parts
  except (UserError, OSError):
    print(
      f"plan: {ASSUMED} answers to a prompt are assumed, as data.source="
      f"{data.source!r} is not there. Set data.answers to those of the longest "
      "ranking."
    )
    return ASSUMED
  counts = [len(record.answers) for part in parts for record in part]
  return max([2, *counts])


def content(data: Comparisons) -> list[Any]:
  """Returns what a loader's position belongs to: rows and what was said."""
  further = (data.ranks, data.margins, data.targets, data.weights)
  found = [x for x in further if x is not None]
  return [data.rows, data.pairs, data.labels, *found]


def prepare(
  name: str, train: Comparisons, held: Comparisons, loss: reward.Config
) -> tuple[Comparisons, dict[str, float]]:
  """Returns training comparisons with margins and scores, and their scale.

  Args:
    name: of the run, for messages.
    train, held: as they were read.
    loss: settings.

  Returns:
    comparisons, and {"mean", "std"} of the scores that they were given, {} for
    a loss that reads none.

  Raises:
    FieldError: labels, strengths or scores that the loss cannot read.
  """
  by = f"loss.objective={loss.objective!r}"
  if loss.margins:
    by += f", margins={loss.margins!r}"
  say_unread(name, train, reads(loss), by)
  with schema.as_field("loss."):
    for data in (train, held):
      if loss.objective not in reward.SCORED:
        reward.check_labels(_decided(data), loss)
    if loss.margins and loss.margins != reward.OF_SCORES:
      train = _with_margins(name, train, loss.margins)
  if rankings.TARGET not in reads(loss):
    return dataclasses.replace(train, targets=None), {}
  if train.targets is None:
    raise FieldError(
      f"loss.{'margins' if loss.margins else 'objective'}="
      f"{(loss.margins or loss.objective)!r}: the records have no scores. Give "
      "a field 'scores', or choose another."
    )
  if loss.margins:
    return train, {}
  return _scaled(train, loss)


def _decided(data: Comparisons) -> np.ndarray:
  """Returns the labels that say who won; of rankings ties say it as ranks."""
  if data.ranks is None:
    return data.labels
  return data.labels[data.ranks[:, 0] < data.ranks[:, 1]]


def say_unread(name: str, data: Comparisons, read: set[str], by: str) -> None:
  """Prints which judgements of the records a method leaves aside.

  Args:
    name: of the run.
    data: comparisons.
    read: of rankings.py's names.
    by: the method, for the message.
  """
  counts = rankings.unread(data.judgements, read)
  if counts:
    listed = ", ".join(f"{field} ({n})" for field, n in counts.items())
    print(f"{name}: {by} does not read these judgements: {listed}")


def _with_margins(name: str, data: Comparisons, margins: str) -> Comparisons:
  """Returns comparisons with margins in nats."""
  if data.strengths is None:
    raise FieldError(
      f"margins={margins!r}: no record says how strong a preference is. Give a "
      "field 'strength' or 'margin', or set ''."
    )
  without = sum(strength is None for strength in data.strengths)
  if without:
    print(
      f"{name}: {without} of {len(data.pairs)} comparisons have no strength: "
      "their margin is 0"
    )
  found = reward.margins_of(data.strengths, margins)
  return dataclasses.replace(data, margins=found)


def _scaled(
  data: Comparisons, loss: reward.Config
) -> tuple[Comparisons, dict[str, float]]:
  """Returns comparisons with scores of mean 0 and deviation 1, or thresholds.

  Every later stage normalises the score anyway (METHODS 2.5), so its unit is
  free, and a head that starts at 0 need not climb to the mean.
  """
  known = data.targets[~np.isnan(data.targets)].astype(np.float64)
  mean, deviation = float(known.mean()), float(known.std())
  if not deviation > 0:
    raise FieldError(
      f"loss.objective={loss.objective!r}: every score of the data is "
      f"{mean:g}, so there is nothing to learn. Give scores that differ."
    )
  if loss.objective == "ordinal":
    with schema.as_field("loss."):
      found = reward.grade_bounds(data.targets)
  else:
    found = ((data.targets - mean) / deviation).astype(np.float32)
  scale = {"mean": mean, "std": deviation}
  return dataclasses.replace(data, targets=found), scale
