"""Scores of a reward model on dialogues with answers, outside of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_jax import terminal
from rlhf_jax.data import retold, transcripts
from rlhf_jax.exports import opened
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.rewards.ai import local
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stages

CHUNK = 256  # texts between two lines of progress


class Texts:
  """A finished reward model that reads dialogues and answers as texts."""

  def __init__(self, folder: str, world: World, source: str = ""):
    """Loads it.

    Args:
      folder: of a finished reward run.
      world: where it lives.
      source: of the model under it; "": what its stage.json says.
    """
    info = stages.need_stage(folder, stages.REWARD, "config.reward")
    base = world.base(opened.model_of(folder, info, source))
    scorer, weights, _ = reward_model.load(folder, base, world)
    self._reader = Reader(folder, scorer, weights, base.tokenizer)
    self._mesh = world.mesh
    self._is_chat = local.has_template(base.tokenizer)

  def scores(
    self, dialogues: Sequence[list[dict[str, str]]], answers: Sequence[str]
  ) -> np.ndarray:
    """Returns [N] float64 scores, in deviations of the model's reference.

    A dialogue is rendered with its tokenizer's chat template, or written as a
    transcript where there is none.

    Args:
      dialogues: the last message of each is the user's.
      answers: to them.
    """
    rows = [self._told(*x) for x in zip(dialogues, answers, strict=True)]
    cut = sum(row.is_cut for row in rows)
    if cut:
      print(
        f"{self._reader.name}: {cut} of {len(rows)} texts do not fit into its "
        "context; the rest is not read"
      )
    parts = []
    with terminal.Progress("score", len(rows), unit="text") as progress:
      for first in range(0, len(rows), CHUNK):
        part = rows[first : first + CHUNK]
        ids = [row.ids for row in part]
        lengths = [row.answer for row in part]
        parts.append(self._reader.scores(ids, self._mesh, lengths))
        progress.update(first + len(part))
    return np.concatenate(parts).astype(np.float64)

  def _told(self, messages: list[dict[str, str]], text: str) -> retold.Told:
    reader = self._reader
    if self._is_chat:
      asked = retold.asked(messages, reader.tokenizer)
    else:
      written = transcripts.write(messages).lstrip()
      asked, text = retold.asked(written, reader.tokenizer), f" {text}"
    return reader.told(asked, retold.Said(text, has_end=True))
