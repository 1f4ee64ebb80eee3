"""Probes of a report card: answers made worse, encoded, scored, compared."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data import encode
from rlhf_jax.data.examples import Comparison, Ranking
from rlhf_jax.data.tokenizer_backends import EncodingError
from rlhf_jax.evaluation import probes
from rlhf_jax.evaluation.card_items import Item
from rlhf_jax.pipelines.card_rows import Judged, Row
from rlhf_jax.schema import UserError

# What is raised of an answer that is too long, or cannot be spelled.
UNFIT = (encode.DroppedExample, EncodingError, UserError)
RowsOf = Callable[[Any, Sequence[str]], list[Row]]  # of a record, of answers


@dataclasses.dataclass(frozen=True)
class _Asked:
  """Where the rows of an item stand.

  first: row of its best answer; the worse one is next, then the changed ones.
  names: of the probes.
  has_opinion: two rows more: both answers, to a user who likes the worse one.
  """

  first: int
  names: Sequence[str]
  has_opinion: bool


def run(
  judged: Judged,
  rows_of: RowsOf,
  scores_of: Callable[[Sequence[Row]], np.ndarray],
  *,
  count: int,
  seed: int,
  chat: bool,
) -> tuple[dict[str, probes.Probe], int]:
  """Returns probe -> what it found, and how many items did not fit.

  Args:
    judged: what people compared.
    rows_of: (record, answers) -> token rows.
    scores_of: rows -> [N].
    count: items at most, drawn at random.
    seed: of what is drawn.
    chat: whether prompts that are texts are told as a user's.
  """
  chosen = _drawn(judged.items, count, seed)
  pairs = []
  for n, (better, worse) in chosen:
    answers = judged.items[n].answers
    pairs.append((answers[better], answers[worse]))
  prompts = [judged.items[n].prompt for n, _ in chosen]
  made = probes.variants([best for best, _ in pairs], seed, prompts)
  asked: list[_Asked] = []
  rows: list[Row] = []
  for (n, _), pair, changed in zip(chosen, pairs, made, strict=True):
    record, first = judged.records[n], len(rows)
    try:
      found = rows_of(record, [*pair, *changed.values()])
    except UNFIT:
      continue  # counted below
    told = _told(record, pair, rows_of, chat=chat)
    rows += found + told
    asked.append(_Asked(first, list(changed), bool(told)))
  lost = len(chosen) - len(asked)
  return (_compared(asked, scores_of(rows), seed) if rows else {}), lost


def _drawn(
  items: Sequence[Item], count: int, seed: int
) -> list[tuple[int, tuple[int, int]]]:
  """Returns (number, (best, worst answer)) of items, in their order."""
  found = [(n, item.ends()) for n, item in enumerate(items)]
  decided = [(n, ends) for n, ends in found if ends is not None]
  order = np.random.default_rng(seed).permutation(len(decided))
  return [decided[i] for i in sorted(order[:count])]


def _told(
  record: Any, pair: tuple[str, str], rows_of: RowsOf, *, chat: bool
) -> list[Row]:
  """Returns rows of both answers to a user who says that the worse is right.

  Args:
    record: of the item; a plain text that is no chat has no user.
    pair: the best answer and the worse one.
    rows_of, chat: see `run`.
  """
  if not isinstance(record, Comparison | Ranking):
    return []
  prompt = record.prompt
  if isinstance(prompt, str):
    prompt = [{"role": "user", "content": prompt}] if chat else []
  changed = probes.with_opinion(prompt, pair[1])
  if changed is None:
    return []
  try:
    return rows_of(dataclasses.replace(record, prompt=changed), pair)
  except UNFIT:
    return []


def _compared(
  asked: Sequence[_Asked], scores: np.ndarray, seed: int
) -> dict[str, probes.Probe]:
  """Returns what each probe found.

  An opinion is asked of items whose answers stand in the right order without
  it; its gain is how much it moves the worse answer above the better one.
  """
  columns: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
  for item in asked:
    best, worst = scores[item.first : item.first + 2]
    for place, name in enumerate(item.names, item.first + 2):
      columns[name].append((scores[place], best, worst))
    if item.has_opinion and best > worst:
      place = item.first + 2 + len(item.names)
      good, bad = scores[place : place + 2]
      columns[probes.OPINION].append((bad, good, worst))
  return {
    name: probes.measured(*np.asarray(rows, np.float64).T, seed)
    for name, rows in columns.items()
  }
