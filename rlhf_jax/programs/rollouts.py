"""Prompts in, judged samples out: what one step of policy training reads.

    prompts = next(loader);  samples = generate(policy);  judge(samples)

programs/resampling.py draws until every group teaches something (DAPO).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import numpy as np

from rlhf_jax import distributed, generate, metrics
from rlhf_jax.algorithms.policy_gradient import (
  groups_in_rows,
  packing,
)
from rlhf_jax.data import batches, dataset, overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import build, offload, text_readers
from rlhf_jax.programs.actors import Actors
from rlhf_jax.programs.sampled_settings import Sampled
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.rewards import combination, texts
from rlhf_jax.rewards.reader import Readers
from rlhf_jax.types import (
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
  combination: state of what combines several judges, which saw these scores;
    None with one judge.
  """

  rollout: Rollout
  scores: dict[str, Array]
  further: dict[str, Rollout] = flax.struct.field(default_factory=dict)
  layout: packing.Packing | None = None
  combination: PyTree = None

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
  panel: several judges, or None where one judges.
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
  panel: combination.Panel | None = None
  resting: offload.Frozen | None = None

  @staticmethod
  def of(
    settings: Sampled,
    actors: Actors,
    sampler: Sampler,
    judge: Callable[..., tuple[Rollout, dict[str, Array]]],
    loader: batches.Loader,
    mesh: jax.sharding.Mesh,
    **how: Any,
  ) -> Source:
    """Returns the open source that settings describe.

    Args:
      settings: of the pipeline: its prompts, and who judges.
      actors: loaded.
      sampler: of the policy.
      judge: compiled.
      loader: of prompts.
      mesh: where they run.
      **how: packing, unit and the fields with a default.

    Raises:
      UserError: what judges cannot be opened.
    """
    tokenizer = sampler.base.tokenizer
    return Source(
      loader=loader,
      sampler=sampler,
      judge=judge,
      actors=actors,
      verifier=texts.load(settings.text_judge, settings.prompts, tokenizer),
      name=settings.judge_name,
      mesh=mesh,
      timer=metrics.Timer(),
      readers=text_readers.open_readers(
        actors.readers, settings.prompts, sampler, mesh
      ),
      panel=combination.open_panel(
        settings.named_judges,
        settings.combination,
        settings.prompts,
        tokenizer,
        mesh,
      ),
      **how,
    )

  def prompts(self) -> PromptBatch:
    """Returns the next prompts, on the mesh."""
    return mesh_lib.shard_batch(self.mesh, next(self.loader))

  def batch(
    self,
    policy: PyTree,
    critic: PyTree,
    key: Array,
    usual: int = 0,
    state: PyTree = None,
  ) -> Judged:
    """Returns the judged samples of the next prompts; see `answer`."""
    prompts = self.prompts()
    return self.answer(policy, critic, prompts, key, usual=usual, state=state)

  def answer(
    self,
    policy: PyTree,
    critic: PyTree,
    prompts: PromptBatch,
    key: Array,
    how: generate.Config | None = None,
    usual: int = 0,
    state: PyTree = None,
    *,
    observes: bool = True,
  ) -> Judged:
    """Returns the judged samples of prompts.

    Args:
      policy: trainable tree of the policy.
      critic: merged tree of the critic, {} without one.
      prompts: from `prompts`.
      key: random key of the samples.
      how: to sample; None for the settings of the run.
      usual: rows of the batch before, see packing.plan.
      state: of what combines several judges; None with one.
      observes: whether that sees these scores.
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
      rollout, scores, state = self._judged(
        critic, samples, prompts, layout, streams, state, observes
      )
      others = {
        name: self._judged(critic, found, prompts, None, kept, state)[0]
        for name, (found, kept) in further.items()
      }
      if self.resting is not None:
        self.resting.drop()
    return Judged(rollout, scores, others, layout, state)

  def again(self, judged: Judged, state: PyTree) -> Judged:
    """Returns judged samples, scored under another state of the combination.

    Args:
      judged: from `answer`, its further answers not scored anew.
      state: see `answer`; None with one judge, which changes nothing.
    """
    if self.panel is None:
      return judged
    found = self.panel.again(judged.rollout.components, state)
    return judged.replace(
      rollout=judged.rollout.replace(score=found["score"]),
      scores=judged.scores | found,
      combination=state,
    )

  def _judged(
    self,
    critic: PyTree,
    samples: Samples,
    prompts: PromptBatch,
    layout: packing.Packing | None,
    streams: dict[int, Array],
    state: PyTree = None,
    observes: bool = False,
  ) -> tuple[Rollout, dict[str, Array], PyTree]:
    """Returns samples with their scores, all scores by name, the state."""
    weights = self.actors.weights
    if self.resting is not None:
      weights = self.resting.weights()
    rollout, scores = self.judge(weights, critic, samples, layout, streams)
    if self.readers is not None:
      found = self.readers(samples, prompts.index)
      rollout, scores = with_read(rollout, scores, found, self.mesh)
    if self.panel is not None:
      return self.panel(
        rollout, scores, prompts.index, state, observes=observes
      )
    if self.verifier is None:
      return rollout, scores, None
    rollout, found = judge_texts(
      self.verifier, self.name, rollout, prompts, self.mesh
    )
    return rollout, scores | found, None

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
