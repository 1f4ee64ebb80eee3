"""What is asked in a turn: pairs of segments, and what was said of them.

Pairs that people are asked about are kept in a file, so that a run that goes on
asks about the same ones.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.programs.segments import agent, people, queries, turns
from rlhf_jax.programs.segments import settings as sections
from rlhf_jax.types import Array, Metrics

FOLDER = "queries"  # of the pairs that people are asked about
_propose = jax.jit(turns.propose, static_argnames=("lab", "most", "is_active"))
_add = jax.jit(turns.add)
_simulated = jax.jit(queries.simulated, static_argnames="settings")


def ask(
  lab: turns.Lab,
  due: np.ndarray,
  seed: int,
  folder: Path,
  step: int,
  state: turns.State,
  episodes: agent.Episodes,
  keys: Array,
) -> tuple[turns.State, Metrics]:
  """Returns the state with the labels of a turn, and what to log of them.

  Args:
    lab: settings.
    due: int [steps], labels that are due after each rollout.
    seed: of the run, for the page.
    folder: of the run.
    step: of the turn, from 0.
    state: before it.
    episodes: that were played in it.
    keys: [3], of the pairs, of their labels, and of what members draw of them.
  """
  # Two sizes of programs: of the first turn, and of all others.
  most = max(1, int(due[0] if step == 0 else due[1:].max()))
  pairs = _propose(
    state,
    episodes,
    keys[0],
    lab=lab,
    most=most,
    is_active=lab.queries.choose == sections.VARIANCE,
  )
  wanted = int(due[step])
  if lab.labels.by == sections.PAGE and wanted:
    pairs = _kept(folder / FOLDER / f"turn_{step:04d}.npz", pairs)
    label, is_comparable = _by_people(lab, pairs, wanted, step, folder, seed)
  else:
    label, is_comparable = _simulated(pairs, keys[1], settings=lab.labels)
  return _add(state, pairs, label, is_comparable, wanted, keys[2])


def _kept(path: Path, pairs: queries.Pairs) -> queries.Pairs:
  """Returns the pairs of a turn as they were first asked about."""
  names = [field.name for field in dataclasses.fields(pairs)]
  if not path.is_file():
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **{k: np.asarray(getattr(pairs, k)) for k in names})
    os.replace(temporary, path)
  with np.load(path) as found:
    return queries.Pairs(**{k: jnp.asarray(found[k]) for k in names})


def _by_people(
  lab: turns.Lab,
  pairs: queries.Pairs,
  due: int,
  step: int,
  folder: Path,
  seed: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what people said of the pairs that are due; the rest is filled."""
  label, is_comparable = people.ask(
    folder,
    lab.environment,
    np.asarray(pairs.state[:due]),
    np.asarray(pairs.action[:due]),
    step,
    lab.labels,
    seed,
  )
  rest = len(pairs.truth) - due
  return (
    np.pad(label, (0, rest), constant_values=0.5),
    np.pad(is_comparable, (0, rest)),
  )
