"""Prompts in, judged samples out: what one step of policy training reads.

    prompts = next(loader);  samples = generate(policy);  judge(samples)

With `resample_rounds` (DAPO, Yu et al. 2025, section 3.2, arXiv:2503.14476)
more prompts are drawn until every group has answers of different scores:

    batch = first prompts
    while a group of the batch teaches nothing, at most resample_rounds times:
      draw a whole batch more; its informative groups take those places

Shapes never change, and every process takes the same decisions, from scores
that all of them hold. The prompts of a round differ from those before, and its
random keys too; the loader's position after the step is what a checkpoint
holds, so a run that goes on draws the same prompts. Places that stay
uninformative after the last round keep groups of equal scores, whose advantages
are 0, and are counted. Informative groups beyond the batch are not used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate, metrics
from rlhf_jax.algorithms.policy_gradient import (
  groups,
  groups_in_rows,
  packing,
  returns,
)
from rlhf_jax.data import batches, dataset, overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import build, offload
from rlhf_jax.programs.actors import Actors
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.rewards import texts
from rlhf_jax.rewards.reader import Readers
from rlhf_jax.types import (
  FINISH_LENGTH,
  Array,
  PromptBatch,
  PyTree,
  Rollout,
  Samples,
)


def prompt_loader(
  data: Data,
  sampling: generate.Config,
  batch_size: int,
  base: Base,
  seed: int,
  mesh: jax.sharding.Mesh,
) -> tuple[batches.Loader, int]:
  """Returns (iterator of PromptBatch, number of prompts).

  Args:
    data: the section `prompts`.
    sampling: how many tokens an answer may have.
    batch_size: prompts of a batch, all processes together.
    base: whose tokenizer.
    seed: of their order.
    mesh: whose processes share a batch.
  """
  room = data.max_length - sampling.max_new_tokens
  ids, dropped = dataset.prompts(data, base.tokenizer, room)
  lengths = {"prompt": [len(row) for row in ids]}
  dataset.report_dropped("policy", data.source, len(ids), dropped, lengths)
  overlap.say("policy", data, Data(), base.tokenizer)
  width = max(len(row) for row in ids)

  def collate(index: list[int]):
    return batches.collate_prompts(
      [ids[i] for i in index], base.tokenizer.pad_id, width, index=index
    )

  # What a verifier judges by counts too, but not the line it stands in.
  records, _ = dataset.records(data, base.tokenizer)
  fields = [{k: x for k, x in vars(r).items() if k != "where"} for r in records]
  loader = build.make_loader(
    mesh,
    np.arange(len(ids)),
    batch_size,
    seed=seed,
    content=[ids, fields],
    collate=collate,
  )
  return loader, len(ids)


def judge_texts(
  verifier: texts.Judge, name: str, rollout: Rollout, prompts: Any, mesh: Any
) -> tuple[Rollout, dict[str, np.ndarray]]:
  """Returns the rollout with a verifier's scores, and all scores [N] by name.

  Args:
    verifier: the judge.
    name: of its scores; those of its parts are named as in texts.Judge.
    rollout: the samples of a prompt in contiguous rows.
    prompts: their PromptBatch.
    mesh: where the scores go.
  """
  found, parts = verifier(rollout, prompts.index)
  return _scored(rollout, found, mesh), {name: found} | parts


def _scored(rollout: Rollout, scores: np.ndarray, mesh: Any) -> Rollout:
  placed = mesh_lib.spread_batch(mesh, {"score": scores})["score"]
  return rollout.replace(score=placed)


def with_read(
  rollout: Rollout, scores: dict, found: dict[str, np.ndarray], mesh: Any
) -> tuple[Rollout, dict]:
  """Returns the rollout and all scores with those `found` by reading text."""
  if "reward" in found:
    rollout = _scored(rollout, found["reward"], mesh)
  return rollout, scores | found


def samples_of(rollout: Rollout) -> Samples:
  """Returns the samples in a rollout that is not packed."""
  names = [field.name for field in dataclasses.fields(Samples)]
  return Samples(**{name: getattr(rollout, name) for name in names})


@flax.struct.dataclass
class Judged:
  """One batch of samples and everything that was made of it.

  rollout: [N, L], without rewards.
  scores: name of a reward model, a monitor or the verifier -> [N].
  further: name -> the judged further answers to each prompt.
  layout: how the samples are packed into rows, or None.
  """

  rollout: Rollout
  scores: dict[str, Array]
  further: dict[str, Rollout] = flax.struct.field(default_factory=dict)
  layout: packing.Packing | None = None

  @property
  def rows(self) -> int:
    """The rows that the samples are packed into, 0 where they are not."""
    return 0 if self.layout is None else self.layout.cell.shape[0]


@dataclasses.dataclass(frozen=True)
class Source:
  """An open source of judged samples.

  packing: how answers share rows.
  groups: which of them share a prompt there.
  unit: what the number of rows must be a multiple of.
  further: name -> how further answers to each prompt are sampled, where a
    method wants them.
  readers: the reward models that read text, or None.
  timer: takes the seconds of sampling ("rollout") and judging ("score").
  resting: the judge's weights where some are on the host between phases.
  """

  loader: batches.Loader
  sampler: Sampler
  judge: Callable[..., tuple[Rollout, dict[str, Array]]]  # rewards/judge.py
  actors: Actors
  verifier: texts.Judge | None
  name: str  # of the verifier
  mesh: jax.sharding.Mesh
  packing: packing.Config
  unit: int
  timer: metrics.Timer
  groups: groups_in_rows.Groups = groups_in_rows.ALONE
  further: dict[str, generate.Config] = dataclasses.field(default_factory=dict)
  readers: Readers | None = None
  resting: offload.Frozen | None = None

  def prompts(self) -> PromptBatch:
    """Returns the next prompts, on the mesh."""
    return mesh_lib.shard_batch(self.mesh, next(self.loader))

  def batch(
    self, policy: PyTree, critic: PyTree, key: Array, usual: int = 0
  ) -> Judged:
    """Returns the judged samples of the next prompts; see `answer`."""
    return self.answer(policy, critic, self.prompts(), key, usual=usual)

  def answer(
    self,
    policy: PyTree,
    critic: PyTree,
    prompts: PromptBatch,
    key: Array,
    how: generate.Config | None = None,
    usual: int = 0,
  ) -> Judged:
    """Returns the judged samples of prompts.

    Args:
      policy: trainable tree of the policy.
      critic: merged tree of the critic, {} without one.
      prompts: from `prompts`.
      key: random key of the samples.
      how: to sample; None for the settings of the run.
      usual: rows of the batch before, see packing.plan.
    """
    with self.timer("rollout"):
      if self.resting is not None:
        self.resting.begin()
      drawn = self.sampler.with_streams(policy, prompts, key, how)
      samples, streams = jax.block_until_ready(drawn)
      further = {
        name: self.sampler.with_streams(
          policy, prompts, jax.random.fold_in(key, i), other
        )
        for i, (name, other) in enumerate(self.further.items())
      }
    with self.timer("score"):
      layout = self.layout(samples, usual)
      rollout, scores = self._judged(critic, samples, prompts, layout, streams)
      others = {
        name: self._judged(critic, found, prompts, None, kept)[0]
        for name, (found, kept) in further.items()
      }
      if self.resting is not None:
        self.resting.drop()
    return Judged(rollout, scores, others, layout)

  def _judged(
    self,
    critic: PyTree,
    samples: Samples,
    prompts: PromptBatch,
    layout: packing.Packing | None,
    streams: dict[int, Array],
  ) -> tuple[Rollout, dict[str, Array]]:
    """Returns samples with their scores, and all scores by name."""
    weights = self.actors.weights
    if self.resting is not None:
      weights = self.resting.weights()
    rollout, scores = self.judge(weights, critic, samples, layout, streams)
    if self.readers is not None:
      found = self.readers(samples, prompts.index)
      rollout, scores = with_read(rollout, scores, found, self.mesh)
    if self.verifier is None:
      return rollout, scores
    rollout, found = judge_texts(
      self.verifier, self.name, rollout, prompts, self.mesh
    )
    return rollout, scores | found

  def layout(self, samples: Samples, usual: int) -> packing.Packing | None:
    """Returns how samples are packed into rows, None where they are not."""
    if self.packing.row_tokens == 0:
      return None
    new = self.sampler.config.max_new_tokens
    samples = distributed.fetch(samples)
    shape = packing.shape_of(
      self.packing, *samples.tokens.shape, new, self.unit, self.groups
    )
    return None if shape is None else packing.plan(samples, shape, usual)


@functools.partial(jax.jit, static_argnames=("group_size", "drops_truncated"))
def _informative(
  rollout: Rollout, *, group_size: int, drops_truncated: bool
) -> tuple[Array, Array]:
  """Returns [P] which groups teach something, and the mean score []."""
  exists = returns.exists(rollout)
  counts = exists
  if drops_truncated:
    counts = exists * (rollout.finish_reason != FINISH_LENGTH)
  found = groups.informative(rollout.score, counts, group_size)
  return found, jnp.mean(rollout.score)


@functools.partial(jax.jit, static_argnames="mesh")
def _put(
  kept: Judged, new: Judged, row: Array, is_new: Array, *, mesh: Any
) -> Judged:
  """Returns `kept` with rows of `new` where is_new [N]; row [N] says which."""

  def one(old: Array, other: Array) -> Array:
    choose = is_new.reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(choose, jnp.take(other, row, axis=0), old)

  return mesh_lib.constrain_rows(mesh, jax.tree.map(one, kept, new))


def places(
  is_good: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which groups of a batch are replaced, and by which new ones.

  Informative new groups take the uninformative places, both in order.

  Args:
    is_good: [P] bool, which groups of the batch are informative.
    found: [P] bool, which of the new ones are.

  Returns:
    is_new [P] bool and source [P] int32, its own number where nothing changes.
  """
  empty, ready = np.flatnonzero(~is_good), np.flatnonzero(found)
  count = min(len(empty), len(ready))
  is_new = np.zeros(len(is_good), bool)
  source = np.arange(len(is_good), dtype=np.int32)
  is_new[empty[:count]] = True
  source[empty[:count]] = ready[:count]
  return is_new, source


def informative_batch(
  source: Source,
  policy: PyTree,
  critic: PyTree,
  key: Array,
  usual: int = 0,
  *,
  group_size: int,
  rounds: int,
  drops_truncated: bool,
) -> tuple[Judged, dict[str, float]]:
  """Returns a batch of informative groups, as far as `rounds` batches give.

  Metrics:
    group/accepted_share: informative groups over groups drawn. Down is bad:
      samples are thrown away, and easy and hard prompts leave the training.
    group/rounds: batches of prompts drawn. Up is bad: time.
    group/unfilled_share: groups of the batch that still teach nothing. Above 0
      is bad: raise resample_rounds or change the prompts.
    group/drawn_score: mean score of all that was drawn; rollout/score_mean is
      that of the batch. Falling is bad.

  Args:
    source: of judged samples.
    policy, critic: see Source.batch.
    key: random key of the step; the first round uses it as it is.
    usual: rows of the batch before, see packing.plan.
    group_size: answers to a prompt.
    rounds: batches of prompts at most; 1 takes the first as it is.
    drops_truncated: answers without an end leave the loss (shaping.missing_eos
      is "mask"), so they do not make a group informative.
  """
  drawn, accepted, scores = 0, 0, []
  batch, is_good = None, None
  for number in range(rounds):
    step_key = key if number == 0 else jax.random.fold_in(key, number)
    new = source.batch(policy, critic, step_key, usual)
    found, score = distributed.fetch(
      _informative(
        new.rollout, group_size=group_size, drops_truncated=drops_truncated
      )
    )
    drawn += len(found)
    accepted += int(np.sum(found))
    scores.append(float(score))
    if batch is None:
      batch, is_good = new, found
    else:
      is_new, origin = places(is_good, found)
      first = np.repeat(origin, group_size) * group_size
      row = first + np.tile(np.arange(group_size), len(origin))
      batch = _put(
        batch.replace(layout=None),
        new.replace(layout=None),
        row.astype(np.int32),
        np.repeat(is_new, group_size),
        mesh=source.mesh,
      )
      is_good = is_good | is_new
    if is_good.all():
      break
  if len(scores) > 1:
    layout = source.layout(samples_of(batch.rollout), usual)
    batch = batch.replace(layout=layout)
  return batch, {
    "group/accepted_share": accepted / drawn,
    "group/rounds": float(len(scores)),
    "group/unfilled_share": float(np.mean(~is_good)),
    "group/drawn_score": float(np.mean(scores)),
  }


def drawer(
  source: Source, rounds: int, group_size: int | None, drops_truncated: bool
) -> Callable[[PyTree, PyTree, Array, int], tuple[Judged, dict[str, float]]]:
  """Returns (policy, critic, key, usual) -> a batch and metrics.

  Args:
    source: of judged samples.
    rounds: batches of prompts at most; 1 does not resample.
    group_size: answers to a prompt that are compared.
    drops_truncated: see `informative_batch`.
  """
  if rounds == 1:
    return lambda *arguments: (source.batch(*arguments), {})
  return functools.partial(
    informative_batch,
    source,
    group_size=group_size,
    rounds=rounds,
    drops_truncated=drops_truncated,
  )
