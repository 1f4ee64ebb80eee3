"""What policies answer to the same prompts, judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate, terminal
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import token_ratios
from rlhf_jax.programs.answer_parts import Parts
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import texts as texts_lib
from rlhf_jax.rewards.reader import Readers
from rlhf_jax.rewards.texts import sample_texts
from rlhf_jax.schema import FieldError
from rlhf_jax.types import (
  FINISH_EOS,
  Array,
  PromptBatch,
  PyTree,
  Rollout,
  Samples,
)


def check_sampling(how: generate.Config) -> None:
  """Raises FieldError for sampling of which no KL or error can be told."""
  if how.min_new_tokens:
    raise FieldError(
      f"generate.min_new_tokens={how.min_new_tokens}: the KL compares full "
      "distributions. Set 0."
    )
  if how.temperature == 0.0 or how.is_truncated:
    raise FieldError(
      f"generate: temperature={how.temperature}, top_k={how.top_k}, "
      f"top_p={how.top_p}, min_p={how.min_p}: the KL compares full "
      "distributions, and "
      "greedy or truncated ones have none to the reference. Set a "
      "temperature > 0, top_k=0, top_p=1.0 and min_p=0.0."
    )
  if how.cache_dtype is not None:
    raise FieldError(
      f"generate.cache_dtype={how.cache_dtype!r}: the KL would carry what the "
      "cache rounds. Set None."
    )
  if how.num_samples > 1:
    raise FieldError(
      f"generate.num_samples={how.num_samples}: answers to one prompt are "
      "not independent, and the standard errors assume that they are. Set 1 "
      "and a larger count."
    )


def has_kl(how: generate.Config) -> bool:
  """Says whether the KL of answers that are sampled so can be told.

  Of greedy, truncated and forced answers and of a cache that rounds it cannot.
  """
  is_full = how.temperature > 0.0 and not how.is_truncated
  return is_full and not how.min_new_tokens and how.cache_dtype is None


@dataclasses.dataclass(frozen=True)
class Answers:
  """What one policy said to every prompt, n = prompts x group answers.

  scores: scorer name -> [n], in units of that reward model's own reference.
  kl: [n] nats, sum over the response of log policy - log reference; None where
    it cannot be told.
  group: answers to a prompt, which stand together.
  pieces: of each answer, its tokens with their part of the KL; None for those
    beyond token_ratios.MOST_TOKENS, and where there is no KL.
  """

  prompts: list[str]
  texts: list[str]
  scores: dict[str, np.ndarray]
  kl: np.ndarray | None
  lengths: np.ndarray
  ended: np.ndarray
  group: int = 1
  pieces: Sequence[token_ratios.Pieces | None] = ()

  def first(self, count: int) -> Answers:
    """Returns the answers to the first `count` prompts."""
    return self.of(np.arange(count))

  def of(self, numbers: np.ndarray) -> Answers:
    """Returns the answers to some of the prompts.

    Args:
      numbers: [P] int, of the prompts.
    """
    each = np.arange(self.group)
    kept = (np.asarray(numbers)[:, None] * self.group + each).reshape(-1)
    return self._kept(kept)

  def _kept(self, kept: np.ndarray) -> Answers:
    """Returns some of the answers, by their numbers."""
    return dataclasses.replace(
      self,
      prompts=[self.prompts[i] for i in kept],
      texts=[self.texts[i] for i in kept],
      scores={name: x[kept] for name, x in self.scores.items()},
      kl=None if self.kl is None else self.kl[kept],
      lengths=self.lengths[kept],
      ended=self.ended[kept],
      pieces=[self.pieces[i] for i in kept] if self.pieces else (),
    )

  def best(self, judge: str) -> Answers:
    """Returns the best answer to each prompt, the first of equals.

    Its KL is None: the log-ratio of what was chosen is not that of choosing.

    Args:
      judge: a name in `scores`.
    """
    scores = self.by_prompt(self.scores[judge])
    kept = np.arange(len(scores)) * self.group + np.argmax(scores, axis=1)
    return dataclasses.replace(
      self._kept(kept), kl=None, group=1, pieces=[None] * len(kept)
    )

  def by_prompt(self, values: np.ndarray) -> np.ndarray:
    """Returns [P, G] float64 of values [n]."""
    return np.asarray(values, np.float64).reshape(-1, self.group)


def answer(
  sampler: Sampler,
  params: PyTree,
  judge_samples: Callable[..., tuple[Rollout, dict[str, Array]]],
  weights: judge.Weights,
  prompt_batches: list[PromptBatch],
  key: jax.Array,
  *,
  name: str,
  mesh: jax.sharding.Mesh,
  packed: packing.Config,
  verifier: texts_lib.Judge | None = None,
  readers: Readers | None = None,
  tells_kl: bool = True,
  parts: Parts | None = None,
) -> Answers:
  """Samples and judges the answers of one policy to batches of prompts.

  Batches that are done already are not answered again.

  Args:
    sampler: of the policy.
    params: its trainable tree.
    judge_samples: from judge.make_judge; its reference is what the KL is to,
      and without one the KL is 0.
    weights: of the judge.
    prompt_batches: on the host.
    key: of the samples.
    name: for the progress line.
    mesh: where it runs.
    packed: of the rows that are judged.
    verifier: what judges texts, as scores "verifier"; None for nothing.
    readers: the reward models that read text, or None.
    tells_kl: whether log-probabilities of sampler and reference compare.
    parts: where each batch is kept when it is done, or None.
  """
  asked = _Asked(
    sampler,
    params,
    judge_samples,
    weights,
    key,
    mesh,
    packed,
    verifier,
    readers,
  )
  said: dict[str, list] = {"prompts": [], "texts": [], "pieces": []}
  columns: dict[str, list] = {}
  usual, group, done = 0, 1, 0
  room = token_ratios.MOST_TOKENS
  total = sum(len(batch.tokens) for batch in prompt_batches)
  with terminal.Progress(f"evaluate {name}", total, unit="prompt") as progress:
    for number, batch in enumerate(prompt_batches):
      found = None if parts is None else parts.read(name, number)
      if found is None:
        *found, usual = asked.answers(batch, usual, room)
        if parts is not None:
          parts.write(name, number, *found)
      rows, told = found
      for column, values in rows.items():
        columns.setdefault(column, []).append(values)
      for column, its in said.items():
        its += told[column]
      room -= int(np.sum(rows["length"]))
      group = len(told["texts"]) // len(batch.tokens)
      done += len(batch.tokens)
      progress.update(done)
  joined = {name: np.concatenate(parts) for name, parts in columns.items()}
  return Answers(
    **said,
    scores={
      name.removeprefix("score/"): values
      for name, values in joined.items()
      if name.startswith("score/")
    },
    kl=joined["kl"] if tells_kl else None,
    lengths=joined["length"],
    ended=joined["ended"],
    group=group,
  )


@dataclasses.dataclass(frozen=True)
class _Asked:
  """Who answers and who judges; fields as in `answer`."""

  sampler: Sampler
  params: PyTree
  judge_samples: Callable[..., tuple[Rollout, dict[str, Array]]]
  weights: judge.Weights
  key: jax.Array
  mesh: jax.sharding.Mesh
  packed: packing.Config
  verifier: texts_lib.Judge | None
  readers: Readers | None

  def answers(
    self, batch: PromptBatch, usual: int, room: int
  ) -> tuple[dict[str, np.ndarray], dict[str, list], int]:
    """Returns columns [n] of a batch's answers, their texts, and new `usual`.

    Args:
      batch: of prompts, on the host.
      usual: rows of the batch before, see packing.plan.
      room: tokens whose part of the KL may still be kept.
    """
    placed = mesh_lib.spread_batch(self.mesh, batch)
    samples, streams = self.sampler.with_streams(self.params, placed, self.key)
    on_host: Samples = distributed.fetch(samples)
    layout = _layout(on_host, self.packed, self.sampler, self.mesh, usual)
    usual = usual if layout is None else layout.cell.shape[0]
    rollout, scores = self.judge_samples(
      self.weights, {}, samples, layout, streams
    )
    if self.readers is not None:
      scores = scores | self.readers(samples, batch.index)
    if self.verifier is not None:
      found, _ = self.verifier(samples, batch.index)
      scores = scores | {"verifier": found}
    tokenizer = self.sampler.base.tokenizer
    found = sample_texts(tokenizer, on_host)
    scores, *logprobs = distributed.fetch(
      (scores, rollout.behaviour_logprobs, rollout.reference_logprobs)
    )
    ratios = np.subtract(*logprobs)
    pieces = token_ratios.of_samples(
      tokenizer, on_host, ratios, room if ratios.any() else 0
    )
    rows = {f"score/{k}": v for k, v in scores.items()} | {
      "kl": np.sum(ratios, axis=1),
      "length": np.sum(on_host.response_mask, axis=1),
      "ended": on_host.finish_reason == FINISH_EOS,
    }
    asked, answered = ([row[i] for row in found] for i in (0, 1))
    return rows, {"prompts": asked, "texts": answered, "pieces": pieces}, usual


def _layout(
  samples: Samples,
  packed: packing.Config,
  sampler: Sampler,
  mesh: Any,
  usual: int,
) -> packing.Packing | None:
  """Returns how answers share rows, None where each has its own."""
  if packed.row_tokens == 0:
    return None
  new, ways = sampler.config.max_new_tokens, mesh_lib.row_ways(mesh)
  shape = packing.shape_of(packed, *samples.tokens.shape, new, ways)
  return None if shape is None else packing.plan(samples, shape, usual)
