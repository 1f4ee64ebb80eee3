"""Rejection-sampling fine-tuning: keep the best samples, fine-tune on them.

    each round:  sample K answers to each prompt from the policy so far
                 score them; keep some (`selection`); fine-tune on what is kept

  RAFT      rule "per_prompt" or "global", rounds.start "previous"
            (Dong et al. 2023, arXiv:2304.06767)
  Llama 2   rule "per_prompt", start "base", pool: winners of all rounds so far
            (Touvron et al. 2023, section 3.2.3, arXiv:2307.09288)
  ReST-EM, STaR   rule "all" with minimum_score, start "base"
            (Singh et al. 2023, arXiv:2312.06585; Zelikman et al. 2022)

Each round is a folder: kept.jsonl (text, score, and the sampled tokens, which
are what is trained on: nothing is tokenised again), and an SFT run of sft.fit.
A finished round is not repeated; the same command goes on with the one that
was interrupted. kept.jsonl is written when a round's samples are complete.

Held-out prompts are answered every schedule.eval_every steps of a round, and at
its end (round_N/metrics.jsonl, and its last numbers in the run's own);
round_N@best is the best step of a round, and FOLDER@best that of all rounds,
where schedule.keep_best is of held-out prompts.

Left out: a temperature of its own for each round (start a run a round), and
PPO afterwards (init_from of configs/ppo.py takes this run).
"""

from __future__ import annotations

import dataclasses

from rlhf_jax import distributed, integrity, metrics, optimizer
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.algorithms.combination import registry
from rlhf_jax.data import batches, layout
from rlhf_jax.models import roles
from rlhf_jax.programs import (
  build,
  heldout,
  language_model,
  own_samples,
  rejection_rounds,
  rejection_samples,
  round_results,
  sampled_settings,
  tax,
)
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase, planned_steps
from rlhf_jax.programs.rejection_rounds import KEPT_FILE, folder_of
from rlhf_jax.programs.rejection_samples import Rounds
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.runs.loop import Measure
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree

NAME = "rejection"


@dataclasses.dataclass(frozen=True)
class Settings(sampled_settings.Sampled):
  """Rejection-sampling fine-tuning: a few rounds of sample, select, SFT."""

  rounds: Rounds = Rounds()
  selection: best_of_n.Config = best_of_n.Config()
  loss: sft_algorithm.Config = sft_algorithm.Config()  # on what is kept
  optimizer: optimizer.Config = optimizer.Config(
    learning_rate=2e-5, schedule="cosine", weight_decay=0.1
  )

  @property
  def prompts_together(self) -> int:
    return self.rounds.batch_size

  @property
  def asked(self) -> dict[str, float]:
    """What stage.json keeps of the length, see stages.asks_for_more."""
    return {"rounds": self.rounds.count}

  def __post_init__(self) -> None:
    super().__post_init__()
    if registry.moves(self.combination.module) and self.named_judges:
      raise FieldError(
        f"combination.name={self.combination.name!r}: it moves once a rollout, "
        "and a round of rejection sampling has a single one. Take a policy "
        "gradient (configs/ppo.py) or online preferences, or 'sum' here."
      )
    if self.selection.rule == "pooled":
      raise FieldError(
        "selection.rule='pooled': rounds of a run have other "
        "prompts, so winners are pooled by file. Set rule='per_prompt' and "
        "rounds.pool=True."
      )
    if "optimizer" in self.offload.trees:
      raise FieldError(
        "offload.trees: 'optimizer': the moments of a round begin when it "
        "trains and are gone when the next one samples. Leave it out."
      )
    if self.rounds.pool and self.rounds.start == "previous":
      raise FieldError(
        "rounds.pool=True: with rounds.start='previous' old "
        "samples would be trained on again in each round. Set start='base'."
      )


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  sampled_settings.check_sampled(settings, world)
  least = 1 if settings.selection.rule == "all" else 2
  own_samples.check_answers(settings, least)
  build.check_length(settings.schedule, {"optimizer": settings.optimizer})
  _check_rows(settings, world)
  build.check_portions(
    settings.rounds.batch_size, settings.generate, "rounds.batch_size"
  )


def _check_rows(settings: Settings, world: World) -> None:
  build.check_rows(
    world, settings.schedule.batch_size, parts=settings.loss.microbatches
  )
  build.check_rows(world, settings.rounds.batch_size, "rounds.batch_size")


def wire(
  settings: Settings,
  opened: own_samples.Opened,
  params: PyTree,
  total: int,
  shape: layout.Shape,
) -> Phase:
  """Returns the phase of a round: sample, judge, then fine-tune.

  Args:
    settings: of the pipeline.
    opened: roles, loaded or planned.
    params: trainable tree that the round starts from.
    total: optimizer steps of a round.
    shape: of the rows that are kept.
  """
  rounds, steps = settings.rounds, settings.schedule.steps
  if settings.schedule.epochs:  # on one sample of each prompt
    steps = settings.schedule.total_steps(rounds.prompts)
  state, update = language_model.wire(
    opened.world,
    opened.actors.plan.policy,
    params,
    opened.frozen,
    loss=settings.loss,
    transform=build.make_optimizer(settings.optimizer, total),
    rows=settings.schedule.batch_size,
    shape=shape,
    calls=steps * rounds.count,
  )
  answers = opened.answers(
    state.params,
    settings.generate,
    rounds.batch_size,
    calls=rounds.count * rounds.prompts / rounds.batch_size,
  )
  measured = opened.heldout(state.params, steps)
  measured = [
    dataclasses.replace(p, calls=p.calls and p.calls * rounds.count)
    for p in measured
  ]
  return opened.phase(
    NAME,
    {"train": state},
    [*answers, update, *measured],
    ("update",),
    also=_read_later(opened),
  )


def _read_later(opened: own_samples.Opened) -> PyTree:
  """Returns what a round starts from, and what finished rounds stand on."""
  return opened.base.params, opened.actors.params


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data.

  Its step is that of fine-tuning; sampling comes before the round's steps.
  """
  sampled_settings.check_sampling(settings.generate)
  _check_rows(settings, world)
  opened = own_samples.Opened.of(settings, world, world.base(settings.model))
  length = batches.bucket_length(opened.length)
  shape = layout.Shape(length, settings.generate.max_new_tokens, False)
  total = planned_steps(settings.schedule)
  params = opened.actors.params["policy"]
  phase = wire(settings, opened, params, total, shape)
  world.leave(world.workdir, phase.role, opened.actors.merged_from)
  return [phase]


def train_round(
  settings: Settings,
  opened: own_samples.Opened,
  previous: PyTree,
  number: int,
  origins: dict[str, str],
  measure: Measure | None = None,
) -> PyTree:
  """Returns the policy of a round: fine-tuned on what was kept.

  Args:
    settings: of the run.
    opened: roles; the policy's start.
    previous: trainable tree of the round before.
    number: of the round.
    origins: fingerprints of what all rounds are made of.
    measure: trained tree -> metrics of held-out prompts; None for none.
  """
  rounds, actors_, world = settings.rounds, opened.actors, opened.world
  rows, digest = rejection_samples.read_kept(
    rejection_rounds.files(world.workdir, rounds, number)
  )
  start = actors_.params["policy"] if rounds.start == "base" else previous
  steps = build.announced(
    settings.schedule,
    len(rows),
    f"round {number}",
    {"optimizer": settings.optimizer},
  )
  unit = world.ways * settings.loss.microbatches
  shape = layout.choose(rows, settings.schedule.batch_size, unit)
  if not shape.counts:  # the same program in every round
    new = settings.generate.max_new_tokens
    shape = dataclasses.replace(shape, targets=new)
  folder = folder_of(world.workdir, number)
  phase = dataclasses.replace(
    wire(settings, opened, start, steps, shape),
    name=f"round {number}",
    world=world.at(folder),
  )
  told: dict = {}
  params = language_model.fit(
    phase,
    rows,
    opened.frozen,
    shape=shape,
    schedule=settings.schedule,
    total_steps=steps,
    seed=settings.seed + number,
    identity=opened.identity | {"round": number, "kept_sha256": digest},
    measure=measure,
    told=told,
  )
  stages.write_stage(
    folder,
    NAME,
    opened.base,
    actors_.plan.policy,
    best=settings.schedule.best_of,
    examples=len(rows),
    origins=origins,
    init_from=settings.init_from,
    merged_from=actors_.merged_from,
    **told,
  )
  return params


def run(settings: Settings, world: World) -> dict:
  """Runs all rounds; returns stage.json. A finished run is not repeated."""
  rounds, workdir = settings.rounds, world.workdir
  base = world.base(settings.model)
  info = stages.finished(workdir, NAME, base, asked=settings.asked)
  if info is not None:
    return info
  opened = own_samples.Opened.of(settings, world, base)
  source, _ = opened.source(rounds.batch_size)
  source = opened.resting(source, NAME, _read_later(opened))
  measure = heldout.Heldout.of(settings, source, NAME)
  watching = tax.Tax.of(settings.tax, source.sampler, world.mesh, workdir, NAME)
  params, told = opened.actors.params["policy"], tax.Rounds.of(watching)
  told.begin(params)
  origins = opened.identity | {
    "prompts_fingerprint": source.loader.get_state()["data"]
  }
  with metrics.MetricsWriter(
    workdir, is_enabled=distributed.is_first()
  ) as writer:
    for number in range(1, rounds.count + 1):
      if told.ends_before(number):
        number -= 1
        break
      folder = folder_of(workdir, number)
      is_sampled = (folder / KEPT_FILE).is_file()
      distributed.barrier("rejection/round")  # all have looked
      if is_sampled:
        for _ in range(rounds.prompts // rounds.batch_size):
          next(source.loader)
      else:
        rejection_rounds.sample(
          settings, opened, source, params, number, writer, NAME
        )
      done = stages.read_stage(folder)
      if done is None:
        score = rejection_rounds.measure_of(settings, measure, folder)
        params = train_round(settings, opened, params, number, origins, score)
      else:
        if "origins" in done:  # older runs do not say
          integrity.check_meta(done["origins"], origins)
        stage = stages.load(folder, stages.POLICY, base, world)
        params, _ = roles.split(stage.role, stage.variables)
      if distributed.is_first():
        round_results.tell(writer, number, folder, NAME)
      row = told.after(params, number, rounds.count)
      if row:
        writer.write(number, row, tax.FOLDER)
  folders = [folder_of(workdir, n) for n in range(1, number + 1)]
  rang = rejection_rounds.alarms(settings, workdir, number)
  return round_results.finish(
    settings, opened, params, folders, NAME, **told.finish(params, rang)
  )


def _describe(settings: Settings) -> str:
  rounds = settings.rounds
  return f"{rounds.count} rounds of {rounds.prompts} prompts (best of n)"


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.POLICY,
  describe=_describe,
  label=lambda settings: "rejection sampling",
)
