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

Left out: a temperature of its own for each round (start a run a round), and
PPO afterwards (init_from of configs/ppo.py takes this run).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import checkpoint, distributed, generate, metrics
from rlhf_jax.algorithms import best_of_n
from rlhf_jax.algorithms import sft as sft_algorithm
from rlhf_jax.models import roles
from rlhf_jax.pipelines import (
  build,
  rejection_samples,
  sampled,
  sft,
  stages,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Schedule,
  check_sections,
  section,
)
from rlhf_jax.types import PyTree

PHASE = "rejection"
SECTIONS = sampled.SECTIONS | {"rounds", "selection", "loss"}
KEPT_FILE = "kept.jsonl"
Rounds = rejection_samples.Rounds


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a rejection-sampling configuration, checked."""

  rounds: Rounds
  selection: best_of_n.Config
  generate: generate.Config
  loss: sft_algorithm.Config
  schedule: Schedule


def read_settings(config: Any, prefix: str = "") -> Settings:
  """Returns the checked sections.

  Args:
    config: of the pipeline.
    prefix: where it stands in a whole run ("policy."), for messages.

  Raises:
    ConfigError: a value that cannot be right.
  """
  check_sections(config, SECTIONS, prefix)
  settings = Settings(
    rounds=section(Rounds, config.rounds, f"{prefix}rounds"),
    selection=section(best_of_n.Config, config.selection, f"{prefix}selection"),
    generate=section(generate.Config, config.generate, f"{prefix}generate"),
    loss=section(sft_algorithm.Config, config.loss, f"{prefix}loss"),
    schedule=section(Schedule, config.schedule, f"{prefix}schedule"),
  )
  rule = settings.selection.rule
  if rule == "pooled":
    raise ConfigError(
      f"config.{prefix}selection.rule='pooled': rounds of a run have other "
      "prompts, so winners are pooled by file. Set rule='per_prompt' and "
      "rounds.pool=True."
    )
  if settings.rounds.pool and settings.rounds.start == "previous":
    raise ConfigError(
      f"config.{prefix}rounds.pool=True: with rounds.start='previous' old "
      "samples would be trained on again in each round. Set start='base'."
    )
  least = 1 if rule == "all" else 2
  sampled.check_answers(config, settings.generate, least, prefix)
  return settings


def folder_of(workdir: Path, number: int) -> Path:
  """Returns the folder of a round, counted from 1."""
  return workdir / f"round_{number}"


def _files(workdir: Path, rounds: Rounds, number: int) -> list[Path]:
  """Returns what a round trains on, the file of its own samples last."""
  first = 1 if rounds.pool else number
  return [folder_of(workdir, n) / KEPT_FILE for n in range(first, number + 1)]


def _check_enough(count: int, schedule: Schedule, number: int) -> None:
  if count < schedule.batch_size:
    raise ConfigError(
      f"config.schedule.batch_size={schedule.batch_size}: round {number} keeps "
      f"{count} samples, which do not fill a batch. Lower it or selection."
      "minimum_score, or raise rounds.prompts or generate.num_samples; the "
      "same command goes on with this round."
    )


def sample_round(
  settings: Settings,
  opened: sampled.Opened,
  params: PyTree,
  number: int,
  key: jax.Array,
  workdir: Path,
  writer: metrics.MetricsWriter,
) -> None:
  """Samples, judges and selects; writes kept.jsonl and a row of metrics.

  Args:
    settings: of the run.
    opened: roles and source, at the prompts of this round.
    params: trainable tree of the policy so far.
    number: of the round.
    key: of the run.
    workdir: of the run.
    writer: of the run's metrics.

  Raises:
    ConfigError: fewer samples are kept than fill a batch.
  """
  rounds = settings.rounds
  pool = rejection_samples.collect(
    opened.source,
    params,
    jax.random.fold_in(key, number),
    rounds.prompts // rounds.batch_size,
    settings.generate.num_samples,
    opened.monitors,
  )
  kept, row = rejection_samples.select(pool, rounds, settings.selection)
  row |= rejection_samples.report(pool, kept)
  writer.truncate_after(number - 1, PHASE)
  writer.write(number, row, PHASE)
  rows = rejection_samples.kept_rows(pool, kept, opened.base.tokenizer, number)
  earlier, _ = rejection_samples.read_kept(_files(workdir, rounds, number)[:-1])
  _check_enough(len(earlier) + len(rows), settings.schedule, number)
  rejection_samples.write_kept(folder_of(workdir, number) / KEPT_FILE, rows)
  print(
    f"rejection: round {number} of {rounds.count}: best of "
    f"{settings.generate.num_samples} {row['rejection/score_max']:+.3f}, "
    f"median {row['rejection/score_median']:+.3f}, {len(rows)} samples kept"
  )


def train_round(
  config: Any,
  settings: Settings,
  opened: sampled.Opened,
  previous: PyTree,
  number: int,
  workdir: Path,
) -> PyTree:
  """Returns the policy of a round: fine-tuned on what was kept.

  Args:
    config: of the run.
    settings: its sections.
    opened: roles; the policy's start.
    previous: trainable tree of the round before.
    number: of the round.
    workdir: of the run.
  """
  rounds, actors = settings.rounds, opened.actors
  rows, digest = rejection_samples.read_kept(_files(workdir, rounds, number))
  start = actors.params["policy"] if rounds.start == "base" else previous
  params, steps = sft.fit(
    rows,
    start,
    actors.frozen["policy"],
    role=actors.plan.policy,
    loss=settings.loss,
    schedule=settings.schedule,
    optimizer_values=config.optimizer,
    seed=config.seed + number,
    pad_id=opened.base.tokenizer.pad_id,
    mesh=opened.mesh,
    workdir=folder_of(workdir, number),
    identity=sampled.identity(config, opened.base)
    | {"round": number, "kept_sha256": digest},
    phase=f"round {number}",
    targets=settings.generate.max_new_tokens,
  )
  stages.write_stage(
    folder_of(workdir, number),
    PHASE,
    opened.base,
    actors.plan.policy,
    steps=steps,
    examples=len(rows),
    init_from=config.init_from,
    merged_from=actors.merged_from,
  )
  return params


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Runs all rounds; returns stage.json. A finished run is not repeated."""
  settings = read_settings(config)
  rounds = settings.rounds
  mesh, base = sampled.load_base(config)
  info = stages.finished(workdir, PHASE, base)
  if info is not None:
    return info
  opened = sampled.open_source(
    config, mesh, base, settings.generate, rounds.batch_size
  )
  key = jax.random.key(config.seed)
  params = opened.actors.params["policy"]
  with metrics.MetricsWriter(workdir, enabled=distributed.is_first()) as writer:
    for number in range(1, rounds.count + 1):
      folder = folder_of(workdir, number)
      is_sampled = (folder / KEPT_FILE).is_file()
      distributed.barrier("rejection/round")  # all have looked
      if is_sampled:
        for _ in range(rounds.prompts // rounds.batch_size):
          next(opened.source.loader)
      else:
        sample_round(settings, opened, params, number, key, workdir, writer)
      if stages.read_stage(folder) is None:
        params = train_round(config, settings, opened, params, number, workdir)
      else:
        stage = stages.load_stage(folder, PHASE, base, mesh)
        params, _ = roles.split(stage.role, stage.variables)
  return _finish(config, settings, opened, params, workdir)


def _finish(
  config: Any,
  settings: Settings,
  opened: sampled.Opened,
  params: PyTree,
  workdir: Path,
) -> dict:
  """Saves the policy of the last round as that of the run."""
  number = settings.rounds.count
  with checkpoint.Checkpoints(str(workdir / "checkpoints")) as saved:
    if saved.latest() != number:
      saved.save(
        number,
        {"train": {"params": params}},
        sampled.identity(config, opened.base),
        final=True,
      )
  reports = []
  if distributed.is_first():
    reports = [
      {k: v for k, v in row.items() if k.startswith("rejection/")}
      for row in metrics.read_metrics(workdir / "metrics.jsonl")
      if row["phase"] == PHASE
    ]
  stages.write_stage(
    workdir,
    PHASE,
    opened.base,
    opened.actors.plan.policy,
    steps=number,
    rounds=reports,
    init_from=config.init_from,
    merged_from=opened.actors.merged_from,
  )
  return stages.read_stage(workdir)
