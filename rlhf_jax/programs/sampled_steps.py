"""What a step on own samples does with them: metrics, penalties, texts.

Rejection sampling, online preferences and BOND call these; own_samples.py has
who takes part, and the loop.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, metrics, ops
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.programs import offload, rollouts, watch
from rlhf_jax.programs.sampled_settings import Sampled
from rlhf_jax.rewards import combination, texts
from rlhf_jax.types import FINISH_LENGTH, Array, PyTree, Rollout


def parked(settings: Sampled, arrays: PyTree, timer: Any) -> PyTree:
  """Returns a step's arrays before it samples, the moments perhaps away.

  Args:
    settings: of the pipeline.
    arrays: of the step.
    timer: of the source, which takes the seconds.
  """
  if "optimizer" not in settings.offload.trees:
    return arrays
  with timer("offload"):
    return offload.park(settings.offload, arrays)


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


def penalised(batch: rollouts.Judged, guards: watch.Guards) -> Rollout:
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


def moved(
  source: rollouts.Source, batch: rollouts.Judged
) -> tuple[dict, dict[str, float]]:
  """Returns {"combination": its state after a rollout}, and metrics.

  {} and {} where one judges.

  Args:
    source: of the batch.
    batch: judged; its state saw the scores.
  """
  if source.panel is None:
    return {}, {}
  state, row = source.panel.update(batch.combination, batch.rollout)
  row = {name: float(x) for name, x in distributed.fetch(row).items()}
  return {"combination": state}, row


def report(
  batch: rollouts.Judged,
  monitors: Any,
  panel: combination.Panel | None,
  group: int,
) -> dict[str, float]:
  """Returns shaping.rollout_metrics, eval/NAME of monitors, verifiers' parts.

  Args:
    batch: judged.
    monitors: names of reward models that only watch.
    panel: several judges, or None.
    group: answers to a prompt.
  """
  found = _rollout_metrics(batch.rollout.replace(hidden={}))
  found |= {f"eval/{name}": jnp.mean(batch.scores[name]) for name in monitors}
  means = {name: float(x) for name, x in distributed.fetch(found).items()}
  if panel is not None:
    return means | panel.means(batch.scores, group)
  return means | texts.component_means(batch.scores)


_rollout_metrics = jax.jit(shaping.rollout_metrics)


def write_texts(
  tokenizer: Tokenizer,
  timer: metrics.Timer,
  batch: rollouts.Judged,
  writer: metrics.MetricsWriter,
  step: int,
  phase: str,
) -> dict[str, float]:
  """Writes a few samples; returns metrics of the texts and of the clock.

  Args:
    tokenizer: of the policy.
    timer: of the source.
    batch: judged samples of this step.
    writer: of samples.jsonl.
    step: steps before this one.
    phase: name in logs.
  """
  samples = distributed.fetch(rollouts.samples_of(batch.rollout))
  writer.write_samples(
    step + 1, watch.shown(tokenizer, samples, batch.scores), phase
  )
  return watch.text_metrics(tokenizer, samples) | timer.pop()
