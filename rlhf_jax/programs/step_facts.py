"""What a process reward run finds out about its model: diagnosis, scale.

Held-out steps (evaluation/step_model.py), and mean and deviation of the scores
of answers, by which later stages normalise (METHODS 2.5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import distributed
from rlhf_jax.algorithms import process
from rlhf_jax.data import steps
from rlhf_jax.evaluation import step_model
from rlhf_jax.models import roles
from rlhf_jax.programs import reward_facts
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import finite
from rlhf_jax.types import PyTree


def labels(data: steps.Judged) -> list[np.ndarray]:
  """Returns the labels of each answer's judged steps."""
  return [row["labels"][row["loss_mask"] > 0] for row in data.rows]


def answer_scores(logits: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """Returns name -> [N], each score of answers from logits at their steps."""
  most = max(len(x) for x in logits)
  table, mask = np.zeros((2, len(logits), most), np.float32)
  for line, kept, own in zip(table, mask, logits, strict=True):
    line[: len(own)], kept[: len(own)] = own, 1.0
  return {
    name: np.asarray(process.answer_score(table, mask, name))
    for name in process.SCORES
  }


def validate(logits: list[np.ndarray], held: steps.Judged) -> dict[str, float]:
  """Returns metrics of held-out answers while the model trains.

  Metrics:
    validation/loss: nats a step. Up is bad.
    validation/auc: P(a right step is above a wrong one). Down is bad.
  """
  finite.check_facts("validation", {"logits": np.concatenate(logits).tolist()})
  found = step_model.diagnose(logits, labels(held), {})
  return {
    "validation/loss": found["process/heldout_loss"],
    "validation/auc": found["process/auc"],
  }


def diagnose(
  logits: list[np.ndarray], held: steps.Judged, name: str
) -> dict[str, float]:
  """Returns what the model is worth on held-out answers, and says it."""
  finite.check_facts(name, {"held-out": np.concatenate(logits).tolist()})
  found = step_model.diagnose(logits, labels(held), answer_scores(logits))
  print(
    f"{name}: held-out accuracy {found['process/heldout_accuracy']:.3f} on "
    f"{found['process/steps']:.0f} steps (always right: "
    f"{found['process/always_right']:.3f}), area {found['process/auc']:.3f}"
  )
  return found


def normalise(
  settings: Any,
  role: roles.Role,
  variables: PyTree,
  table: np.ndarray,
  training: Callable[[], list[np.ndarray]],
) -> dict:
  """Returns mean and deviation of the scores of reference answers.

  Args:
    settings: of the pipeline.
    role: of the reward model.
    variables: merged.
    table: of the delimiter.
    training: returns the logits of the training rows.
  """
  how, digest = settings.steps.score, None
  if not settings.reference_samples:
    scores, source = answer_scores(training())[how], "training rows"
  else:
    path = Path(settings.reference_samples).expanduser()
    samples = reward_facts.read_samples(path)
    print(f"scores of {len(samples.tokens)} reference samples, to normalise")
    scorer = reward_model.Scorer(
      role, settings.data.end_token, score_of_steps=how
    )
    zero, one = np.float32(0.0), np.float32(1.0)
    weights = reward_model.Weights(variables, zero, one, delimiter=table)
    scores = distributed.fetch(
      reward_model.make_score(scorer)(weights, samples)
    )
    source = "samples of the SFT policy"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  finite.check_facts(f"normalised on {source}", {"score": scores.tolist()})
  mean, deviation = reward_facts.scale_of(scores, "the process reward model")
  return {
    "mean": mean,
    "std": deviation,
    "count": len(scores),
    "source": source,
    "sha256": digest,
  }
