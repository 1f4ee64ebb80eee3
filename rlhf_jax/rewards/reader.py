"""Reward models that read text: their tokenizer is not the policy's.

InstructGPT scored every policy with one 6B model (Ouyang et al. 2022,
arXiv:2203.02155). Answers are told again on the host (data/retold.py says what
becomes of templates, special and end tokens) and read in passes of their own,
of fixed numbers of rows and fixed widths, so that answers of any length find a
program that is compiled. A reward model with the policy's tokenizer reads the
policy's own tokens in the judge's one pass instead (judge.py), whatever model
it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.algorithms import ensemble, process
from rlhf_jax.data import batches, retold
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import outputs
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.rewards import ensembles
from rlhf_jax.rewards.ensembles import Joined
from rlhf_jax.rewards.model import Scorer, Weights, normalised
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, Array, Samples, TokenBatch

COMPONENT = "component/"  # of logged scores, as in texts.py
ROWS = (1, 4, 16)  # of one pass, on each shard of the rows
LEAST_WIDTH = 16
STEPS_TO = 128  # widths below it come in half steps too


def widths(most: int) -> tuple[int, ...]:
  """Returns the widths of rows, in tokens: 16, 24, 32, 48, ... 128, 256, most.

  Args:
    most: of a row.
  """
  found, width = [], LEAST_WIDTH
  while width < most:
    found.append(width)
    if width < STEPS_TO and width * 3 // 2 < most:
      found.append(width * 3 // 2)
    width *= 2
  return (*found, most)


def rows_of_pass(count: int, ways: int) -> int:
  """Returns the rows of a pass that so many are read in.

  Args:
    count: rows, at least 1.
    ways: shards of the rows.
  """
  return ways * next((n for n in ROWS if count <= n * ways), ROWS[-1])


def score(scorer: Scorer, weights: Weights, batch: TokenBatch) -> Array:
  """Returns [B, M] scores of rows, in units of the reference's deviation.

  Args:
    scorer: static part.
    weights: arrays.
    batch: [B, L], padded right; each is read at its last token, or at the ends
      of the steps that loss_mask covers.
  """
  rows = Rows.of(batch)
  if scorer.score_of_steps:
    read = outputs.prefix_scores(scorer.role, weights.variables, rows)[..., 0]
    mask = process.step_ends(batch.tokens, batch.loss_mask, weights.delimiter)
    found = process.answer_score(read, mask, scorer.score_of_steps)
    return normalised(scorer, weights, found[:, None])
  raw = outputs.score(scorer.role, weights.variables, rows, batch.valid_mask)
  return normalised(scorer, weights, raw)


@functools.lru_cache(maxsize=16)
def make_score(scorer: Scorer) -> Callable[[Weights, TokenBatch], Array]:
  """Returns `score` compiled; the same for equal scorers."""
  return jax.jit(functools.partial(score, scorer))


@dataclasses.dataclass(frozen=True)
class Reader:
  """A reward model with its own tokenizer.

  name: for messages and metrics.
  scorer, weights: see model.py.
  tokenizer: its own.
  group: of the ensemble of several runs that it is a part of, or None.
  deviation: [] of the members of its judge on the reference's samples, or None.
  """

  name: str
  scorer: Scorer
  weights: Weights
  tokenizer: Tokenizer
  group: Joined | None = None
  deviation: Array | None = None

  @property
  def most(self) -> int:
    """Tokens that it reads."""
    return self.scorer.role.model.max_length

  def told(self, prompt: retold.Asked, answer: retold.Said) -> retold.Told:
    """Returns a prompt and its answer as this model reads them."""
    return retold.told(
      prompt,
      answer,
      self.tokenizer,
      self.most,
      end_token=self.scorer.reads_end_token,
    )

  def scores(
    self,
    rows: Sequence[Sequence[int]],
    mesh: jax.sharding.Mesh,
    answers: Sequence[int] | None = None,
  ) -> np.ndarray:
    """Returns [N] float32 scores of token rows; see `member_scores`."""
    found = self.member_scores(rows, mesh, answers)
    return ensemble.combined(found, self.scorer.combination)

  def member_scores(
    self,
    rows: Sequence[Sequence[int]],
    mesh: jax.sharding.Mesh,
    answers: Sequence[int] | None = None,
  ) -> np.ndarray:
    """Returns [N, M] float32 scores of token rows, each of 1 to `most` ids.

    Args:
      rows: the same on every process.
      mesh: where the weights are.
      answers: how many ids at the end of each row are the answer's, in which
        steps are looked for; None for all.
    """
    answers = [len(row) for row in rows] if answers is None else answers
    size = rows_of_pass(len(rows), mesh_lib.row_ways(mesh))
    lengths = np.asarray([len(row) for row in rows])
    order = np.argsort(lengths, kind="stable")
    forward = make_score(self.scorer)
    shape = (len(rows), self.scorer.role.members)
    result = np.zeros(shape, np.float32)
    for first in range(0, len(rows), size):
      part = order[first : first + size]
      longest = int(lengths[part[-1]])
      width = next(w for w in widths(self.most) if w >= longest)
      batch = batches.collate_tokens(
        [_row(rows[i], answers[i]) for i in part],
        width,
        self.tokenizer.pad_id,
        rows=size,
      )
      with mesh_lib.current(mesh):
        found = forward(self.weights, mesh_lib.spread_batch(mesh, batch))
      result[part] = distributed.fetch(found)[: len(part)]
    return result


def _row(ids: Sequence[int], answer: int) -> dict[str, np.ndarray]:
  tokens = np.asarray(ids, np.int32)
  mask = np.arange(len(tokens)) >= len(tokens) - answer
  return {"tokens": tokens, "loss_mask": mask.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Readers:
  """The reward models of a run that read text; what the policy samples.

  readers: those models.
  prompts: of each reader, by its name: the prompts of the data.
  tokenizer, ends: of the policy, and the ids that end its answers.
  mesh: where everything is.
  """

  readers: tuple[Reader, ...]
  prompts: dict[str, list[retold.Asked]]
  tokenizer: Tokenizer
  ends: tuple[int, ...]
  mesh: jax.sharding.Mesh

  def __call__(self, samples: Samples, index: Any) -> dict[str, np.ndarray]:
    """Returns name -> [N] scores, and what of them is counted.

    Of ensembles there is more, see ensembles.scored.

    COMPONENT + NAME_cut: 1.0 where not all fits into the reader's context;
    COMPONENT + NAME_unspelled: 1.0 where it has no token for a character. Up is
    bad: it judges another text.

    Args:
      samples: [N, L], the samples of a prompt in contiguous rows.
      index: [P] number of each prompt in the data.
    """
    samples, numbers = distributed.fetch((samples, index))
    of_row = np.repeat(numbers, len(samples.tokens) // len(numbers))
    answers, found, members = self._said(samples, of_row), {}, {}
    for reader in self.readers:
      prompts = self.prompts[reader.name]
      told = [
        reader.told(prompts[i], answer)
        for i, answer in zip(of_row, answers, strict=True)
      ]
      members[reader.name] = reader.member_scores(
        [row.ids for row in told], self.mesh, [row.answer for row in told]
      )
      found |= {
        f"{COMPONENT}{reader.name}_cut": _share(told, "is_cut"),
        f"{COMPONENT}{reader.name}_unspelled": _share(told, "is_unspelled"),
      }
    return found | self._judged(members)

  def _judged(self, members: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns name of a judge -> [N] scores of the members' [N, M]."""
    known = {
      x.name if x.group is None else x.group.name: x.deviation
      for x in self.readers
      if x.deviation is not None
    }
    groups = tuple({x.group: None for x in self.readers if x.group is not None})
    scorers = [(x.name, x.scorer) for x in self.readers]
    found = ensembles.scores_of(scorers, members, groups, known)
    return distributed.fetch(found)

  def _said(self, samples: Samples, of_row: np.ndarray) -> list[retold.Said]:
    """Returns sampled answers as text.

    Args:
      samples: [N, L], on the host.
      of_row: [N] numbers of their prompts.
    """
    prompts = self.prompts[self.readers[0].name]
    return [
      retold.said(
        tokens[(valid > 0) & (response == 0)],
        tokens[response > 0],
        self.tokenizer,
        self.ends,
        has_ended=bool(reason == FINISH_EOS),
        chat=prompts[number].chat,
      )
      for tokens, valid, response, reason, number in zip(
        samples.tokens,
        samples.valid_mask,
        samples.response_mask,
        samples.finish_reason,
        of_row,
        strict=True,
      )
    ]


def _share(told: Sequence[retold.Told], name: str) -> np.ndarray:
  return np.asarray([getattr(row, name) for row in told], np.float32)


def readers_of(
  readers: Sequence[Reader],
  records: Sequence[Any],
  texts: Sequence[str],
  tokenizer: Tokenizer,
  ends: Sequence[int],
  mesh: jax.sharding.Mesh,
  *,
  chat: bool,
) -> Readers | None:
  """Returns what scores samples by their text, None without readers.

  Args:
    readers: reward models.
    records: of all prompts of the data.
    texts: the prompts as the policy reads them, for rated texts.
    tokenizer, ends: of the policy, and the ids that end its answers.
    mesh: where everything is.
    chat: prompts are rendered with chat templates.

  Raises:
    UserError: a prompt that a reader cannot be asked.
  """
  if not readers:
    return None
  prompts = {}
  for reader in readers:
    if chat:
      retold.check(records, reader.tokenizer, reader.name)
    prompts[reader.name] = [
      _of_record(reader, record, chat=chat, text=text)
      for record, text in zip(records, texts, strict=True)
    ]
  return Readers(tuple(readers), prompts, tokenizer, tuple(ends), mesh)


def _of_record(
  reader: Reader, record: Any, *, chat: bool, text: str
) -> retold.Asked:
  try:
    found = retold.of_record(record, reader.tokenizer, chat=chat, text=text)
    found.shortened(0)
    return found
  except ValueError as error:
    message = str(error).removeprefix(f"{record.where}: ")
    raise UserError(
      f"{record.where}: {reader.name} cannot read this prompt: {message}"
    ) from error
