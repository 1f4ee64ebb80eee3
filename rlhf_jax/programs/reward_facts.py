"""What a reward run finds out about its model: diagnosis, scale.

Held-out accuracy and its kin (evaluation/reward_model.py), and mean and
deviation of the raw scores, by which later stages normalise (METHODS 2.5).
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf_jax import distributed, schema
from rlhf_jax.data import comparison_rows, dataset
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.models import roles
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import finite, stages
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import PyTree, Samples

PAIRS_KEPT = 2000  # held-out pairs kept for the report's pictures
REFERENCES = 512  # training rows that scores are normalised on, at most
T = TypeVar("T")


def _found(
  scores: np.ndarray, held: dataset.Comparisons, name: str
) -> tuple[dict[str, float], np.ndarray]:
  """Returns the diagnosis, and lengths [U] of held.rows in tokens.

  Args:
    scores: [U], raw, of held.rows.
    held: held-out comparisons.
    name: of the stage, for messages.
  """
  finite.check_facts(name, {"held-out scores": scores.tolist()})
  agreement = _target_agreement(scores, held)
  held = comparison_rows.as_pairs(held)
  lengths = np.asarray([np.sum(row["loss_mask"]) for row in held.rows])
  found = diagnostics.diagnose(
    scores[held.pairs], held.labels, lengths[held.pairs]
  )
  return found | agreement, lengths


def _target_agreement(
  scores: np.ndarray, held: dataset.Comparisons
) -> dict[str, float]:
  """Returns how scores follow those that people gave; {} where none did.

  Metrics:
    reward_model/target_correlation: Pearson's, of scored held-out answers.
      Down is bad.
  """
  if held.targets is None:
    return {}
  is_known = (held.pairs >= 0) & ~np.isnan(held.targets)
  rows, first = np.unique(held.pairs[is_known], return_index=True)
  given = held.targets[is_known][first].astype(np.float64)
  found = diagnostics.correlation(scores[rows].astype(np.float64), given)
  return {"reward_model/target_correlation": found}


def diagnosis_of(
  scores: np.ndarray, held: dataset.Comparisons, name: str
) -> dict[str, float]:
  """Returns what evaluation/reward_model.py says of raw scores [U]."""
  return _found(scores, held, name)[0]


def validate(scores: np.ndarray, held: dataset.Comparisons) -> dict[str, float]:
  """Returns metrics of held-out comparisons while the model trains.

  Metrics:
    validation/loss: -log P(the answer that people preferred wins). Up is bad.
    validation/accuracy: share ordered as people did. Down is bad.
    validation/target_correlation: with the scores that people gave, where there
      are some. Down is bad.

  Args:
    scores: [U], raw, of held.rows.
    held: held-out comparisons.
  """
  found, _ = _found(scores, held, "validation")
  names = ("loss", "accuracy", "target_correlation")
  return {
    f"validation/{name}": found[f"reward_model/{name}"]
    for name in names
    if f"reward_model/{name}" in found
  }


def diagnose(
  scores: Callable[..., np.ndarray],
  held: dataset.Comparisons,
  features: np.ndarray | None,
  name: str,
) -> dict:
  """Returns held-out accuracy, calibration, length bias and the raw arrays."""
  held = comparison_rows.as_pairs(held)
  found = scores(held.rows, features)
  diagnosis, lengths = _found(found, held, name)
  ceiling = (
    "" if held.ceiling is None else f", raters' ceiling {held.ceiling:.3f}"
  )
  print(
    f"{name}: held-out accuracy {diagnosis['reward_model/accuracy']:.3f} on "
    f"{len(held.pairs)} pairs{ceiling}"
  )
  first, second = held.pairs[:PAIRS_KEPT].T
  return {
    "diagnosis": diagnosis,
    "ceiling": held.ceiling,
    "heldout_pairs": {
      "score_difference": (found[first] - found[second]).tolist(),
      "length_difference": (lengths[first] - lengths[second]).tolist(),
      "label": held.labels[:PAIRS_KEPT].tolist(),
    },
  }


def read_samples(path: Path) -> Samples:
  """Returns the samples that an SFT run wrote."""
  what = "It is samples.npz of an SFT run with --config.samples=256."
  if not path.is_file():
    raise FieldError(
      f"reference_samples={str(path)!r}: {schema.absence(path)}. {what}"
    )
  try:
    with np.load(path) as stored:
      return Samples(**{k: stored[k] for k in stored.files})
  except (
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
  ) as error:
    raise FieldError(
      f"reference_samples={str(path)!r}: damaged, or another file ({error}). "
      f"{what}"
    ) from error


def check_tokens(source: str, tokenizer: Tokenizer) -> None:
  """Raises FieldError for samples whose tokens are another tokenizer's."""
  path = Path(source).expanduser()
  info = stages.read_stage(path.parent) if source else None
  if info and info["tokenizer_fingerprint"] != tokenizer.fingerprint:
    raise FieldError(
      f"reference_samples={str(path)!r}: their tokens are those of "
      f"{info['model_source']}, and {tokenizer.name} is another tokenizer. Set "
      "'' to normalise on the training rows."
    )


def some_of(rows: Sequence[T], seed: int) -> list[T]:
  """Returns REFERENCES of the training rows, all where there are no more.

  Mean and deviation of scores are known to 5 % of the deviation from so many; a
  whole model would read all data a second time for no more than that.

  Args:
    rows: of a model that is trained beside its head.
    seed: of the draw.
  """
  chosen = range(len(rows))
  if len(rows) > REFERENCES:
    drawn = np.random.default_rng(seed).choice(len(rows), REFERENCES, False)
    chosen = np.sort(drawn).tolist()
  print(f"scores of {len(chosen)} of {len(rows)} training rows, to normalise")
  return [rows[i] for i in chosen]


def normalise(
  settings: Any,
  role: roles.Role,
  variables: PyTree,
  training_scores: Callable[[], np.ndarray],
  row_scores: Callable[[list], np.ndarray] | None = None,
) -> dict:
  """Returns mean and deviation of raw scores on reference samples.

  Args:
    settings: of the pipeline.
    role: of the reward model.
    variables: merged.
    training_scores: returns those of the training rows.
    row_scores: of token rows, where features of a frozen trunk are read.
  """
  scores, facts = reference_scores(
    settings, role, variables, training_scores, row_scores
  )
  mean, std = scale_of(scores, "the reward model")
  return {"mean": mean, "std": std} | facts


def reference_scores(
  settings: Any,
  role: roles.Role,
  variables: PyTree,
  training_scores: Callable[[], np.ndarray],
  row_scores: Callable[[list], np.ndarray] | None = None,
  make_score: Callable[..., Any] | None = None,
) -> tuple[np.ndarray, dict]:
  """Returns raw scores of reference samples [N, ...], and what they are of.

  Args:
    settings, role, variables, training_scores, row_scores: see `normalise`.
    make_score: scorer -> (weights, samples) -> scores; None for
      reward_model.make_score.
  """
  make_score = reward_model.make_score if make_score is None else make_score
  if not settings.reference_samples:
    scores, source, digest = training_scores(), "training rows", None
  else:
    path = Path(settings.reference_samples).expanduser()
    samples = read_samples(path)
    print(f"scores of {len(samples.tokens)} reference samples, to normalise")
    scorer = reward_model.Scorer(role, settings.data.end_token)
    if row_scores is not None:
      scores = row_scores(reward_model.judged_rows(scorer, samples))
    else:
      zero, one = np.float32(0.0), np.float32(1.0)
      weights = reward_model.Weights(variables, zero, one)
      score = make_score(scorer)
      scores = distributed.fetch(score(weights, samples))
    source = "samples of the SFT policy"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  finite.check_facts(f"normalised on {source}", {"score": scores.tolist()})
  facts = {"count": len(scores), "source": source, "sha256": digest}
  if digest is not None:  # of runs that are one ensemble, to compare them by
    facts["scores"] = np.reshape(scores, (len(scores), -1)).tolist()
  return scores, facts


def scale_of(scores: np.ndarray, who: str) -> tuple[float, float]:
  """Returns mean and deviation of raw scores [N] on reference samples.

  Args:
    scores: of one output.
    who: gave them, for the message.

  Raises:
    UserError: all are the same.
  """
  scores = np.asarray(scores, np.float64)  # large equal ones deviate by 0
  deviation = float(np.std(scores))
  if not deviation > 1e-6:
    raise UserError(
      f"{who} gives every reference sample the same score "
      f"(deviation {deviation:.2g}): it has learned nothing to optimise. Look "
      "at its accuracy and its data."
    )
  return float(np.mean(scores)), deviation
