"""Comparisons by several objectives, for a reward model with an output each.

The records of each objective are read as those of a run of its own would be,
and stand behind each other in one Comparisons: `members` says which output each
comparison is of, `row_members` which each row. An output learns from its own
comparisons; the trunk, where it trains, from all (Wang et al. 2024,
arXiv:2406.12845, learn one output an objective on a shared trunk).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.algorithms import reward
from rlhf_jax.data import dataset, rankings
from rlhf_jax.data.dataset import Comparisons, Data
from rlhf_jax.programs import reward_data
from rlhf_jax.schema import FieldError


def check(settings: Any) -> None:
  """Checks the objectives of a reward run.

  Args:
    settings: with objectives, ensemble, data and heldout.

  Raises:
    FieldError: value, rule and remedy.
  """
  names = settings.objectives
  if not names:
    return
  if len(names) == 1 or len(set(names)) < len(names) or not all(names):
    raise FieldError(
      f"objectives={names}: are two or more, each once. For one set "
      "data.objective, and leave this empty."
    )
  if settings.ensemble.members > 1:
    raise FieldError(
      f"ensemble.members={settings.ensemble.members} with objectives={names}: "
      "an output is of a member or of an objective. Set 1, or train an "
      "ensemble of each objective."
    )
  for key in ("data", "heldout"):
    found = getattr(settings, key).objective
    if found:
      raise FieldError(
        f"{key}.objective={found!r} with objectives={names}: each output reads "
        "its own. Set ''."
      )


def load(
  names: Sequence[str],
) -> Callable[[Data, Any, int], Comparisons]:
  """Returns (data, tokenizer, seed) -> the comparisons by all objectives.

  Args:
    names: of the objectives; () for those of the section.
  """
  if not names:
    return dataset.comparisons

  def loaded(data: Data, tokenizer: Any, seed: int) -> Comparisons:
    return joined(
      [
        dataset.comparisons(
          dataclasses.replace(data, objective=name), tokenizer, seed
        )
        for name in names
      ]
    )

  return loaded


def joined(parts: Sequence[Comparisons]) -> Comparisons:
  """Returns the comparisons of each objective behind each other.

  Args:
    parts: of each, with keys.
  """
  width = max(part.pairs.shape[1] for part in parts)
  firsts = np.cumsum([0, *(len(part.rows) for part in parts)])
  numbers: dict[str, int] = {}
  groups = []
  for part in parts:
    table = {
      old: numbers.setdefault(key, len(numbers))
      for old, key in part.keys.items()
    }
    groups.append(
      np.vectorize(table.__getitem__, otypes=[np.int32])(part.groups)
    )

  def wide(found: np.ndarray, fill: float) -> np.ndarray:
    short = ((0, 0), (0, width - found.shape[1]))
    return np.pad(found, short, constant_values=fill)

  def column(name: str, fill: float, is_wide: bool) -> np.ndarray | None:
    """Returns what some of the parts may not have, filled there."""
    found = [getattr(part, name) for part in parts]
    if all(x is None for x in found):
      return None
    each = [
      np.full((len(part.pairs), *((width,) if is_wide else ())), fill)
      if x is None
      else wide(x, fill)
      if is_wide
      else x
      for part, x in zip(parts, found, strict=True)
    ]
    kind = object if name in ("strengths", "values") else np.float32
    return np.concatenate([np.asarray(x, kind) for x in each])

  dropped: Counter = Counter()
  for part in parts:
    dropped.update(part.dropped)
  return Comparisons(
    rows=[row for part in parts for row in part.rows],
    pairs=np.concatenate(
      [
        np.where(pairs >= 0, pairs + first, -1)
        for pairs, first in zip(
          (wide(part.pairs, -1) for part in parts), firsts[:-1], strict=True
        )
      ]
    ).astype(np.int32),
    labels=np.concatenate([part.labels for part in parts]),
    groups=np.concatenate(groups),
    dropped=dropped,
    ceiling=None,
    ranks=column("ranks", np.nan, True),
    targets=column("targets", np.nan, True),
    strengths=column("strengths", None, False),
    weights=column("weights", 1.0, False),
    values=column("values", "", False),
    judgements=tuple(x for part in parts for x in part.judgements),
    members=np.concatenate(
      [np.full(len(part.pairs), n, np.int32) for n, part in enumerate(parts)]
    ),
    row_members=np.repeat(np.arange(len(parts)), np.diff(firsts)),
    keys={number: key for key, number in numbers.items()},
  )


def prepare(
  name: str,
  train: Comparisons,
  held: Comparisons,
  loss: reward.Config,
  names: Sequence[str],
) -> tuple[Comparisons, dict[str, Any]]:
  """Returns reward_data.prepare of each objective's comparisons.

  Args:
    name: of the run, for messages.
    train, held: as they were read.
    loss: settings.
    names: of the objectives; () for one.

  Returns:
    comparisons, by objective one after the other; and objective -> the scale of
    its scores, {} for a loss that reads none.
  """
  if not names:
    return reward_data.prepare(name, train, held, loss)
  reads = reward_data.reads(loss)
  read = set().union(*(rankings.known(x, reads) for x in set(train.judgements)))
  said = Counter(train.judgements)  # a record once for each objective
  left = [x._replace(carried=x.carried - read) for x in said.elements()]
  about = dataclasses.replace(train, judgements=tuple(left[:: len(names)]))
  by = f"loss.objective={loss.objective!r}"
  reward_data.say_unread(name, about, reads, by)
  train = dataclasses.replace(train, judgements=())
  parts, scales = [], {}
  for number, objective in enumerate(names):
    part, scale = reward_data.prepare(
      f"{name}, {objective}",
      train.take(train.members == number),
      held.take(held.members == number),
      loss,
    )
    parts.append(part)
    scales |= {objective: scale} if scale else {}
  fields = ("pairs", "labels", "groups", "members")
  further = (
    *("ranks", "targets", "strengths", "margins", "weights", "values"),
  )
  found = {
    field: np.concatenate([getattr(part, field) for part in parts])
    for field in (*fields, *further)
    if getattr(parts[0], field) is not None
  }
  absent = {field: None for field in further if field not in found}
  return dataclasses.replace(parts[0], **found, **absent), scales


def weights(data: Comparisons, count: int) -> np.ndarray:
  """Returns [P, M] float32, 1 for the output that each comparison is of."""
  return (data.members[:, None] == np.arange(count)).astype(np.float32)


def own_scores(scores: np.ndarray, data: Comparisons) -> np.ndarray:
  """Returns [U], of scores [U, M] of data.rows that of each row's objective."""
  return np.take_along_axis(scores, data.row_members[:, None], axis=1)[:, 0]


def distinct(rows: Sequence[dict]) -> tuple[list[dict], np.ndarray]:
  """Returns each row once, and the place of every row among them [U]."""
  places: dict[bytes, int] = {}
  kept, found = [], np.zeros(len(rows), np.int64)
  for n, row in enumerate(rows):
    key = row["tokens"].tobytes()
    if key not in places:
      places[key] = len(kept)
      kept.append(row)
    found[n] = places[key]
  return kept, found
