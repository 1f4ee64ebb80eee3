"""What pipelines that learn from their own samples share, but for the loss.

Rejection sampling, online preference optimisation and BOND: a policy, its
start as the reference, something that judges, prompts. There is no critic and
no reward per token; policy.py is the pipeline that has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate, metrics, ops
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.pipelines import (
  actors as actors_lib,
)
from rlhf_jax.pipelines import (
  build,
  judge,
  methods,
  policy_step,
  rollouts,
  verify,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  section,
)
from rlhf_jax.types import Array, Metrics, Rollout, Samples

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


def read_judge(config: Any, sampling: generate.Config, least: int) -> None:
  """Checks what judges, and how many answers to a prompt there are.

  Args:
    config: of the pipeline.
    sampling: its section `generate`.
    least: answers that a comparison needs.

  Raises:
    ConfigError: too few answers, no judge or two, or a wrong verifier.
  """
  methods.check_judge(config)
  verify.read(config.verifier)
  if sampling.num_samples < least:
    raise ConfigError(
      f"config.generate.num_samples={sampling.num_samples}: answers to one "
      f"prompt are compared. Set >= {least}."
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
    ConfigError: a stage is missing, or sampling that has no log-probabilities.
  """
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
  return Opened(base, mesh, actors, source, count)


def load_base(config: Any) -> tuple[jax.sharding.Mesh, build.Base]:
  """Returns the mesh and the base model of a configuration."""
  mesh = build.make_mesh(config)
  return mesh, build.load_base(section(Model, config.model, "model"), mesh)


def identity(config: Any, base: build.Base) -> dict:
  """Returns what a checkpoint of the run must agree with."""
  return build.identity(base) | build.origins(
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


def report(
  batch: rollouts.Judged, monitors: Any, tokens_per_second: float | None = None
) -> Metrics:
  """Returns what to watch in judged samples, whatever is learnt from them.

  Metrics: rollout/score_mean, score_std, kl_k1_sum, len_mean, eos_share with
  the meanings of shaping.rollout_metrics, and eval/NAME of each monitor.

  Args:
    batch: judged.
    monitors: names of reward models that only watch.
    tokens_per_second: rollout/tok_per_s, where it was measured.
  """
  rollout = batch.rollout
  lengths = jnp.sum(rollout.response_mask, axis=-1)
  found = {
    "rollout/score_mean": jnp.mean(rollout.score),
    "rollout/score_std": jnp.std(rollout.score),
    "rollout/kl_k1_sum": jnp.mean(kl_to_reference(rollout)),
    "rollout/len_mean": jnp.mean(lengths),
    "rollout/eos_share": jnp.mean(rollout.finish_reason == 0),
  }
  found |= {f"eval/{name}": jnp.mean(batch.scores[name]) for name in monitors}
  found = {name: float(x) for name, x in distributed.fetch(found).items()}
  if tokens_per_second is not None:
    found["rollout/tok_per_s"] = tokens_per_second
  return found
