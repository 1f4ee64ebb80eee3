"""Reward model: human comparisons in, a scalar that agrees with people out.

Bradley-Terry on pairs, or losses on rankings of K answers, choices and scores
(algorithms/reward_losses.py). The trunk may train fully, through LoRA, or stay
frozen ("head"): then its pooled features are computed once for each distinct
row and training is a matter of seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from rlhf_jax import optimizer, schema
from rlhf_jax.algorithms import ensemble, reward
from rlhf_jax.data import batches, comparison_rows, dataset, layout, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.models import heads, pretrained, roles, trees
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  abstract,
  build,
  ensemble_facts,
  features,
  floor,
  reward_data,
  reward_facts,
  reward_training,
  several_objectives,
  shared_rows,
  supervised,
)
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase, planned_steps
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree

NAME = "reward"
Rows = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Bradley-Terry reward model; one epoch (METHODS 2)."""

  seed: int = 0  # where all random numbers of the run start
  model: Model = Model()
  trainable: Trainable = Trainable()
  init_from: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run it starts from; "": the model itself
  continue_from: str = stage_field(
    stages.REWARD
  )  # folder of a finished reward run, trained as this one is, that trains on
  head: heads.Config = heads.Config()  # the scalar head on the trunk
  head_seed: int | None = (
    None  # of the head at its start; None: seed. Runs that
  )
  # are averaged (average_rewards) must begin with one head
  ensemble: ensemble.Config = ensemble.Config()  # several models in one
  objectives: tuple = ()  # names of those that each have an output of the head,
  # and comparisons or scores by them in the data; () for one judgement
  stop_layer: int = 0  # the trunk ends before it; 0: all layers
  data: Data = Data()  # comparisons to train on
  heldout: Data = Data()  # comparisons for the diagnosis, and every
  # schedule.eval_every steps
  heldout_fraction: float = 0.1  # of prompts held out where heldout is not set
  loss: reward.Config = reward.Config()  # on the scores of compared answers
  optimizer: optimizer.Config = optimizer.Config(
    learning_rate=9e-6, schedule="cosine"
  )
  schedule: Schedule = Schedule()
  mesh: mesh_lib.Config = mesh_lib.Config()
  reference_samples: str = ""  # samples.npz of the SFT run, to normalise on
  floor: floor.Config = floor.Config()  # what the start must have reached
  force: bool = False  # go on though the start is below its floor

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    schema.check_least(self, stop_layer=0)
    if self.head_seed is not None:
      schema.check_seed(self.head_seed, "head_seed")
    several_objectives.check(self)
    if self.ensemble.own_factors and self.trainable.mode != "lora":
      raise FieldError(
        f"ensemble.kind='adapters' with trainable.mode={self.trainable.mode!r}:"
        " members have LoRA factors of their own. Set trainable.mode='lora', "
        "or ensemble.kind='heads'."
      )
    build.check_trainable(
      self.model,
      self.trainable,
      has_head=True,
      start=self.init_from,
      samples=False,
    )
    build.check_fraction(self)
    if self.continue_from and self.init_from:
      raise FieldError(
        f"continue_from={self.continue_from!r} and init_from="
        f"{self.init_from!r}: it starts from one of them. Set the other to ''."
      )

  @property
  def outputs(self) -> int:
    """Scores of an answer: of each member, or of each objective."""
    return len(self.objectives) or self.ensemble.members


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  build.check_needed(settings.data, "data")
  use, packs = unread.COMPARISONS, settings.trainable.mode != "head"
  # Features are of rows.
  unread.check(settings.data, "data", use, packs=packs, trains=True)
  unread.check(settings.heldout, "heldout", use, packs=False)
  build.check_pairs(settings)
  reward_data.check(settings)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )


def _origins(settings: Settings) -> dict[str, str]:
  """Returns what a checkpoint must agree with about the runs it builds on."""
  found = stages.origins(init_from=settings.init_from)
  if settings.continue_from:  # older checkpoints do not say
    found |= stages.origins(continue_from=settings.continue_from)
  return found


def wire(
  settings: Settings,
  world: World,
  base: Base,
  total: int,
  length: int,
  candidates: int = 2,
) -> tuple[Phase, PyTree, PyTree, str]:
  """Returns the phase, the weights it starts from, what of them an update
  reads and does not train, and "merged_from".

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    total: optimizer steps.
    length: tokens of a row.
    candidates: K, answers of a comparison at most.
  """
  rows = settings.schedule.batch_size
  return reward_training.wire(
    NAME,
    settings,
    world,
    base,
    total,
    make_update=features.make_update,
    batch=lambda role, width: abstract.preference_batch(
      world.mesh,
      rows,
      length,
      width,
      candidates=candidates,
      said=reward_data.said(settings),
      members=role.members,
    ),
    rows=rows,
    read=candidates * rows,
    length=length,
  )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )
  base = world.base(settings.model)
  total = planned_steps(settings.schedule)
  length = settings.data.row_length
  candidates = reward_data.planned_candidates(settings.data)
  phase, _, _, merged_from = wire(
    settings, world, base, total, length, candidates
  )
  world.leave(world.workdir, phase.role, merged_from)
  return [phase]


def run(settings: Settings, world: World) -> dict:
  """Trains and diagnoses a reward model; returns stage.json."""
  name, schedule = world.workdir.name, settings.schedule
  base = world.base(settings.model)
  info = stages.finished(
    world.workdir, NAME, base, stages.REWARD, schedule.asked
  )
  if info is not None:
    return info
  floor.check_start(settings.floor, settings.init_from, world, settings.force)
  reward_facts.check_tokens(settings.reference_samples, base.tokenizer)
  train, held, scale = _load(settings, base, name)
  total = build.announced(
    schedule, len(train.pairs), name, {"optimizer": settings.optimizer}
  )
  width = batches.bucket_length(max(len(r["tokens"]) for r in train.rows))
  phase, variables, used, merged_from = wire(
    settings, world, base, total, width, train.pairs.shape[1]
  )
  phase = dataclasses.replace(phase, name=name)
  _, frozen = roles.split(phase.role, variables)
  pooled = _features(phase, variables["params"], train.rows)
  held_pooled = pooled
  if held.rows is not train.rows:
    held_pooled = _features(phase, variables["params"], held.rows)
  score = functools.partial(
    features.row_scores,
    base,
    phase.role,
    frozen=frozen,
    batch_size=schedule.batch_size,
    mesh=world.mesh,
  )
  told: dict = {}
  params = supervised.fit(
    phase,
    _loader(settings, phase, train, pooled, width),
    used,
    seed=settings.seed,
    schedule=schedule,
    total_steps=total,
    identity=base.identity | _origins(settings),
    show=(
      ("reward_model/loss", "loss"),
      ("reward_model/accuracy", "accuracy"),
      ("validation/accuracy", "validation"),
    ),
    measure=lambda params: reward_facts.validate(
      ensemble_facts.together(
        score(params, rows=held.rows, features=held_pooled), held
      ),
      held,
    ),
    told=told,
  )
  facts = told | _facts(
    settings,
    phase,
    (train, held),
    (pooled, held_pooled),
    trees.merge(params, frozen),
    lambda rows, pooled: score(params, rows=rows, features=pooled),
  )
  facts["epochs"] = told["steps"] * schedule.batch_size / len(train.pairs)
  return reward_training.finish(
    NAME,
    settings,
    phase,
    diagnostics.guard(facts["diagnosis"], facts["pairs"], facts["epochs"]),
    continue_from=settings.continue_from,
    merged_from=merged_from,
    **({"target": scale} if scale else {}),
    **facts,
  )


def _load(
  settings: Settings, base: Base, name: str
) -> tuple[dataset.Comparisons, dataset.Comparisons, dict | None]:
  """Returns comparisons to train on and held out, and the scale of scores."""
  objectives = settings.objectives
  train, held = features.load_comparisons(
    settings, base.tokenizer, name, several_objectives.load(objectives)
  )
  train, scale = several_objectives.prepare(
    name, train, held, settings.loss, objectives
  )
  longest = max(len(r["tokens"]) for r in (*train.rows, *held.rows))
  pretrained.check_context(base, longest, "data")
  return train, held, scale


def _loader(
  settings: Settings,
  phase: Phase,
  train: dataset.Comparisons,
  pooled: np.ndarray | None,
  width: int,
) -> batches.Loader:
  """Returns the stream of this host's part of each batch."""
  shape = layout.Shape.of(train.rows)
  if pooled is None:  # else features of whole rows are there
    shape = shared_rows.choose(
      phase.name,
      train,
      settings.schedule.batch_size,
      phase.world.ways,
      settings.loss.microbatches,
      prompts=settings.data.share_prompts,
      attention=phase.base.config.attention,
    )
  collate = functools.partial(
    features.collate,
    data=train,
    features=pooled,
    width=width,
    pad_id=phase.base.tokenizer.pad_id,
    members=_member_weights(settings, train),
  )
  return build.make_loader(
    phase.mesh,
    np.arange(len(train.pairs)),
    settings.schedule.batch_size,
    seed=settings.seed,
    content=reward_data.content(train),
    collate=lambda numbers: shared_rows.placed(collate(numbers), shape),
    shares_rows=bool(shape.counts),
  )


def _facts(
  settings: Settings,
  phase: Phase,
  data: tuple[dataset.Comparisons, dataset.Comparisons],
  found: tuple[np.ndarray | None, np.ndarray | None],
  variables: PyTree,
  scores: Callable[[Rows, np.ndarray | None], np.ndarray],
) -> dict:
  """Returns what stage.json says of a trained reward model.

  Args:
    settings: of the pipeline.
    phase: of the run.
    data: comparisons trained on, and held out.
    found: features of their rows, None where the trunk trains.
    variables: trained, whole.
    scores: (rows, their features) -> [N, outputs].
  """
  (train, held), (pooled, held_pooled) = data, found
  objectives, seed = settings.objectives, settings.head_seed

  def of_rows(rows: Rows) -> np.ndarray:
    return scores(rows, _features(phase, variables["params"], rows))

  def of_training() -> np.ndarray:
    if pooled is not None:
      return scores(train.rows, pooled)
    return scores(reward_facts.some_of(train.rows, settings.seed), None)

  return {
    "comparisons": len(train.pairs),
    "pairs": len(comparison_rows.as_pairs(train).pairs),
    "reads_end_token": settings.data.end_token,
    **({"objectives": list(objectives)} if objectives else {}),
    "head_seed": settings.seed if seed is None else seed,
    **ensemble_facts.diagnose(
      scores, held, held_pooled, phase.name, objectives
    ),
    **ensemble_facts.normalise(
      settings,
      phase.role,
      variables,
      of_training,
      None if pooled is None else of_rows,
    ),
  }


def _member_weights(
  settings: Settings, train: dataset.Comparisons
) -> np.ndarray | None:
  """Returns [P, M] how often comparisons count for members, None for one."""
  several = settings.ensemble
  if settings.objectives:
    return several_objectives.weights(train, settings.outputs)
  if several.members == 1:
    return None
  share = 1.0 if several.share is None else several.share
  return ensemble.member_weights(
    train.groups, several.members, several.subsets, settings.seed, share
  )


def _features(phase: Phase, trunk: PyTree, rows: Rows) -> np.ndarray | None:
  """Returns features of rows, None where the trunk trains."""
  if phase.role.trainable != "head":
    return None
  distinct, places = several_objectives.distinct(rows)
  return features.row_features(phase, trunk, distinct)[places]


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.REWARD,
  describe=lambda settings: f"{settings.schedule.describe()} comparisons",
)
