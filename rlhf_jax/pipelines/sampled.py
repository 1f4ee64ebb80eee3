"""What pipelines that learn from their own samples share, but for the loss.

Rejection sampling, online preference optimisation and BOND: a policy, its
start as the reference, something that judges, prompts. There is no critic and
no reward per token; policy.py is the pipeline that has them.

Left out: log-probabilities of the trainer where they serve metrics alone. Below
float32 the KL that is reported is the sampler's, whose rounding differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate, metrics, ops
from rlhf_jax.algorithms.policy_gradient import packing, shaping
from rlhf_jax.pipelines import (
  actors as actors_lib,
)
from rlhf_jax.pipelines import (
  build,
  judge,
  loop,
  methods,
  policy_step,
  rollouts,
  stages,
  verify,
  watch,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  section,
)
from rlhf_jax.types import FINISH_LENGTH, Array, PyTree, Rollout, Samples

SECTIONS = frozenset(
  "pipeline seed model trainable init_from reward verifier monitors prompts "
  "generate mesh force schedule optimizer".split()
)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The compiled functions that rollouts.Source calls."""

  sample: Callable[..., Samples]
  judge: Callable[..., tuple[Rollout, dict[str, Array]]]
  greedy: None = None


@dataclasses.dataclass(frozen=True)
class Opened:
  """Everyone loaded, and an open source of judged samples."""

  base: build.Base
  mesh: jax.sharding.Mesh
  actors: actors_lib.Actors
  source: rollouts.Source
  prompts: int  # in the data
  monitors: tuple[str, ...]  # reward models that only watch


def check_answers(
  config: Any, sampling: generate.Config, least: int, prefix: str
) -> None:
  """Checks the verifier, and how many answers to a prompt there are.

  Args:
    config: of the pipeline.
    sampling: its section `generate`.
    least: answers that a comparison needs.
    prefix: where the pipeline stands, for messages.

  Raises:
    ConfigError: too few answers, or a wrong verifier.
  """
  verify.read(config.verifier, prefix)
  if sampling.num_samples < least:
    raise ConfigError(
      f"config.{prefix}generate.num_samples={sampling.num_samples}: answers to "
      f"one prompt are compared. Set >= {least}."
    )


def open_source(
  config: Any,
  mesh: jax.sharding.Mesh,
  base: build.Base,
  sampling: generate.Config,
  batch_size: int,
) -> Opened:
  """Returns the roles of a configuration and their source of samples.

  Args:
    config: with the sections of SECTIONS.
    mesh: where everything lives.
    base: the base model.
    sampling: its section `generate`.
    batch_size: prompts of a batch.

  Raises:
    ConfigError: nothing judges, or two things do, a stage is missing, or
      sampling that has no log-probabilities.
  """
  methods.check_judge(config)
  actors_lib.check_sampling(sampling, mesh.size)
  data = section(Data, config.prompts, "prompts")
  actors = actors_lib.load(
    config,
    base,
    mesh,
    actors_lib.Value(),
    sampling.temperature,
    sampling.max_new_tokens,
    has_critic=False,
  )
  loader, count = rollouts.prompt_loader(
    data, sampling, batch_size, base, config.seed, mesh
  )
  source = rollouts.Source(
    loader=loader,
    programs=Programs(
      sample=policy_step.make_sample(
        actors.plan, actors.frozen, base, sampling
      ),
      judge=judge.make_judge(actors.plan),
    ),
    actors=actors,
    verifier=verify.load(config, data, base.tokenizer),
    name=config.verifier.name,
    mesh=mesh,
    packing=packing.Config(),
    timer=metrics.Timer(),
  )
  return Opened(base, mesh, actors, source, count, tuple(config.monitors))


def load_base(config: Any) -> tuple[jax.sharding.Mesh, build.Base]:
  """Returns the mesh and the base model of a configuration."""
  mesh = build.make_mesh(config)
  return mesh, build.load_base(section(Model, config.model, "model"), mesh)


def identity(config: Any, base: build.Base) -> dict:
  """Returns what a checkpoint of the run must agree with."""
  return stages.identity(base) | stages.origins(
    init_from=config.init_from, reward=config.reward
  )


def kl_to_reference(rollout: Rollout) -> Array:
  """Returns [N] k1 estimates in nats an answer: log policy - log reference."""
  mask = rollout.response_mask
  behaviour = ops.neutral(rollout.behaviour_logprobs, mask)
  return jnp.sum(
    behaviour - ops.neutral(rollout.reference_logprobs, mask), axis=-1
  )


def by_prompt(x: np.ndarray, num_samples: int) -> np.ndarray:
  """Returns [P, G, ...] of rows [N, ...], on the host."""
  return np.asarray(x).reshape(-1, num_samples, *np.shape(x)[1:])


@dataclasses.dataclass(frozen=True)
class Guards:
  """Where the KL to the start of the run is an alarm (METHODS 19)."""

  warn_nats: float = 15.0  # an answer; said once
  halt_nats: float = 20.0  # and at which the run stops
  # Taken off the score of an answer without an end, in units of the score,
  # before answers are compared: a judge that likes length teaches not to end.
  missing_eos_penalty: float = 0.0

  def __post_init__(self) -> None:
    self.limits()
    if not 0.0 <= self.missing_eos_penalty < math.inf:
      raise ValueError(
        f"missing_eos_penalty={self.missing_eos_penalty}: is taken off. Set it "
        ">= 0 and finite."
      )

  def limits(self) -> shaping.Config:
    """Returns what shaping.check_kl reads."""
    return shaping.Config(warn_nats=self.warn_nats, halt_nats=self.halt_nats)


def penalised(batch: rollouts.Judged, guards: Guards) -> Rollout:
  """Returns the rollout with the score of answers without an end lowered.

  Args:
    batch: judged; its scores by name, and what `report` says, stay raw.
    guards: the penalty.
  """
  if not guards.missing_eos_penalty:
    return batch.rollout
  return _without_end(batch.rollout, guards.missing_eos_penalty)


@jax.jit
def _without_end(rollout: Rollout, penalty: float) -> Rollout:
  is_cut = rollout.finish_reason == FINISH_LENGTH
  return rollout.replace(score=rollout.score - penalty * is_cut)


def guard(
  facts: dict, row: dict, step: int, guards: Guards, phase: str
) -> dict:
  """Returns facts with an alarm, and "halt" when the KL is out of hand.

  Args:
    facts: of the run, with "alarms".
    row: metrics of this step, from `report`.
    step: steps before this one.
    guards: limits.
    phase: name in messages.
  """
  kl = row["rollout/kl_k1_sum"]
  error = 2 * row["rollout/kl_k1_standard_error"] + watch.ROUNDING_NATS
  state = shaping.check_kl(kl, guards.limits(), error)
  if state == "halt":
    sentence = (
      f"stopped at step {step + 1}: KL to the start {kl:.1f} nats is above "
      f"guards.halt_nats={guards.halt_nats:g}"
    )
    print(f"\n{phase}: {sentence}")
    return facts | {"halt": sentence}
  if state == "warn" and not facts["alarms"]:
    sentence = (
      f"KL to the start is {kl:.1f} nats, above {guards.warn_nats:g}: lower "
      "the learning rate, or stop here."
    )
    if kl < 0:
      sentence = watch.negative_kl(kl)
    print(f"\n{phase}: warning at step {step + 1}: {sentence}")
    return facts | {"alarms": [[step + 1, sentence]]}
  return facts


def report(batch: rollouts.Judged, monitors: Any) -> dict[str, float]:
  """Returns shaping.rollout_metrics, eval/NAME of monitors, verifiers' parts.

  Args:
    batch: judged.
    monitors: names of reward models that only watch.
  """
  found = _rollout_metrics(batch.rollout.replace(hidden={}))
  found |= {f"eval/{name}": jnp.mean(batch.scores[name]) for name in monitors}
  means = {name: float(x) for name, x in distributed.fetch(found).items()}
  return means | verify.component_means(batch.scores)


_rollout_metrics = jax.jit(shaping.rollout_metrics)


def texts(
  opened: Opened,
  batch: rollouts.Judged,
  writer: metrics.MetricsWriter,
  step: int,
  phase: str,
) -> dict[str, float]:
  """Writes a few samples; returns metrics of the texts and of the clock.

  Args:
    opened: whose tokenizer and timer.
    batch: judged samples of this step.
    writer: of samples.jsonl.
    step: steps before this one.
    phase: name in logs.
  """
  tokenizer = opened.base.tokenizer
  samples = distributed.fetch(rollouts.samples_of(batch.rollout))
  writer.write_samples(
    step + 1, watch.shown(tokenizer, samples, batch.scores), phase
  )
  return watch.text_metrics(tokenizer, samples) | opened.source.timer.pop()


def train(
  opened: Opened,
  config: Any,
  workdir: Path,
  one_step: loop.OneStep,
  initial: Callable[[PyTree], PyTree],
  *,
  phase: str,
  schedule: Schedule,
  total: int,
  same: dict,
  show: tuple[tuple[str, str], ...],
  **facts: Any,
) -> dict:
  """Runs the steps of a pipeline; returns stage.json.

  Args:
    opened: roles and source.
    config: of the run.
    workdir: of the run.
    one_step: see loop.run_steps; it gets facts with "alarms".
    initial: trainable tree of the policy -> arrays, with "train".
    phase: name of the pipeline.
    schedule: how often to save and log.
    total: steps.
    same: what a checkpoint must agree with, beside model and runs.
    show: of the progress line.
    facts: for stage.json.
  """
  arrays, found = loop.run_steps(
    one_step,
    phase=phase,
    workdir=workdir,
    schedule=schedule,
    total_steps=total,
    arrays=build.sharded_state(
      opened.mesh, initial, opened.actors.params["policy"]
    ),
    facts={"alarms": []},
    identity=identity(config, opened.base) | same,
    iterators={"prompts": opened.source.loader},
    show=(
      ("rollout/score_mean", "score"),
      ("rollout/kl_k1_sum", "kl"),
      *show,
    ),
  )
  stages.write_stage(
    workdir,
    phase,
    opened.base,
    opened.actors.plan.policy,
    steps=int(np.asarray(arrays["train"].step)),
    init_from=config.init_from,
    merged_from=opened.actors.merged_from,
    alarms=found["alarms"],
    halted=found.get("halt"),
    **facts,
  )
  return stages.read_stage(workdir)
