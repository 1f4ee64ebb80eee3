"""Signs of reward hacking in the rounds of rejection sampling.

A round is one look at hundreds of answers, so its prompts are cut into as many
parts as evaluation/monitors.py compares steps: the first round is the start of
the run, and each later one is held against it. A round of fewer prompts than
that is too short to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import strict_json
from rlhf_jax.evaluation import monitors
from rlhf_jax.programs import rejection_samples, watch
from rlhf_jax.programs.rejection_samples import Pool
from rlhf_jax.rewards import texts


def signs(pool: Pool, tokenizer: Any) -> list[dict[str, float]]:
  """Returns what monitors.py watches in a round: its prompts in a few parts.

  A part counts as a step there, so that round is compared with round; a round
  of fewer prompts than parts has none.

  Args:
    pool: samples of a round.
    tokenizer: for the texts.
  """
  count = len(pool.score)
  found: list[dict[str, float]] = []
  if count < monitors.WINDOW:
    return found
  for part in np.array_split(np.arange(count), monitors.WINDOW):
    lengths = pool.response_mask[part].sum(axis=-1).astype(np.float64)
    score = np.asarray(pool.score[part], np.float64)
    row = watch.sign_metrics(
      [
        rejection_samples.texts_of(pool, prompt, sample, tokenizer)
        for prompt in part
        for sample in range(pool.score.shape[1])
      ]
    )
    row[monitors.PROXY] = float(score.mean())
    row[monitors.LENGTH] = float(lengths.mean())
    if score.std() > 0 and lengths.std() > 0:
      both = np.corrcoef(score.ravel(), lengths.ravel())
      row[monitors.CORRELATION] = float(both[0, 1])
    for name, x in pool.monitors.items():
      row[f"eval/{name}"] = float(x[part].mean())
    for name, x in pool.parts.items():
      if name.startswith(texts.COMPONENT) and not np.isnan(x[part]).any():
        row[f"reward/{name}"] = float(x[part].mean())
    found.append(row)
  return found


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
  """Returns the shares of a round, means over its parts; {} without any."""
  if not rows:
    return {}
  return {
    name: sum(row[name] for row in rows) / len(rows)
    for name in rows[0]
    if name.endswith("_share") and all(name in row for row in rows)
  }


def alarms(paths: list[Path], names: tuple[str, ...]) -> list[list]:
  """Returns [round, sentence] of what monitors.py makes of all rounds.

  Args:
    paths: of the rounds' signs, in their order; those of older runs may lack.
    names: see watch.watched.
  """
  remedy = "Delete the round's folder."
  rows = [
    row | {"step": number}
    for number, path in enumerate(paths, 1)
    if path.is_file()
    for row in strict_json.read_rows(path, {}, remedy)
  ]
  return [[step, rang.text] for step, rang in monitors.replay(rows, names)]
