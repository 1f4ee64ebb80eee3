"""People compare segments: drawn on the page, and back as labels.

The pairs of a turn are kept in a file before anybody is asked, and what people
say is kept in labelling/ of the run, so a run that was stopped asks nobody
again. A skipped pair is one that could not be compared; equal is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import interrupt
from rlhf_jax.environments import drawing
from rlhf_jax.environments.environment import Environment
from rlhf_jax.labelling import loop
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task
from rlhf_jax.programs.segments.settings import Labels

FOLDER = "labelling"  # of a run
LETTERS = "ab"


def items(
  environment: Environment, state: np.ndarray, action: np.ndarray, turn: int
) -> list[dict[str, Any]]:
  """Returns the pairs of a turn as items of the page.

  Args:
    environment: that draws them.
    state: [Q, 2, T, S].
    action: [Q, 2, T, A].
    turn: number, in their names.
  """
  found = []
  for number, (states, actions) in enumerate(zip(state, action, strict=True)):
    name = f"segments {turn}-{number}"
    found.append(
      {
        "item": name,
        "prompt": environment.task,
        "answers": [f"{name}{letter}" for letter in LETTERS],
        "pictures": [
          drawing.segment(environment, s.tolist(), a.tolist())
          for s, a in zip(states, actions, strict=True)
        ],
      }
    )
  return found


def labels(
  records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what people said of pairs: labels, and which could be compared.

  Several people count evenly: 3 of 4 for the first make 0.75.

  Args:
    records: of the format "ranking", without skips.
    names: Q, of the items.

  Returns:
    label [Q] float32 in [0, 1], probability that the first is better;
    is_comparable [Q] bool, False where everybody skipped.
  """
  said: dict[str, list[float]] = {name: [] for name in names}
  for record in records:
    first, second = record["ranks"]
    said[record["item"]].append(0.5 + 0.5 * np.sign(second - first))
  label = [np.mean(said[name]) if said[name] else 0.5 for name in names]
  is_comparable = [bool(said[name]) for name in names]
  return np.array(label, np.float32), np.array(is_comparable)


def ask(
  folder: Path,
  environment: Environment,
  state: np.ndarray,
  action: np.ndarray,
  turn: int,
  settings: Labels,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Serves the page until people judged the pairs of a turn; see `labels`.

  Args:
    folder: of the run.
    environment: that draws them.
    state: [Q, 2, T, S].
    action: [Q, 2, T, A].
    turn: number, from 0.
    settings: names of people, port.
    seed: of orders.
  """
  rows, batch = items(environment, state, action, turn), f"turn {turn}"
  task = Task(
    title="Which segment is better?",
    both_bad=False,
    gold_share=0.0,
    check_share=0.0,
    order="given",
    seed=seed,
  )
  with Store(folder / FOLDER, task) as store:
    for name in settings.names:
      store.add_annotator(name)
    store.add_items(rows, batch=batch)
    progress = store.progress(batch)
    if progress["closed"] < progress["items"]:
      with loop.serve(store, settings.port) as page:
        print(
          f"{batch}: {len(rows)} pairs of segments wait for people. Open one "
          f"of\n{page.links()}\nCtrl-C stops; the same command goes on.",
          flush=True,
        )
        with interrupt.at_once():
          loop.wait_for(store, batch)
    return labels(store.records(batch), [row["item"] for row in rows])
