"""Comparisons as the methods of algorithms/preference read them.

Pairs, or single judged answers for KTO; labels that a method cannot express
are refused, and judgements that it does not read are named.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax import schema
from rlhf_jax.algorithms.preference import registry
from rlhf_jax.data import dataset, judged, rankings
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import features, reward_data
from rlhf_jax.schema import FieldError


def check_rankings(settings: Any) -> None:
  """Raises FieldError for a reading of rankings that the method cannot use."""
  for key in ("data", "heldout"):
    data, name = getattr(settings, key), settings.algorithm.name
    if data.rankings == "whole":
      raise FieldError(
        f"{key}.rankings='whole': {name!r} compares two answers. Set 'pairs' "
        "(each answer against each below it) or 'ends' (best against worst)."
      )
    if data.rankings == "pairs" and settings.is_unpaired:
      raise FieldError(
        f"{key}.rankings='pairs': {name!r} reads single answers, and one in "
        "the middle of a ranking would be desirable and undesirable. Set "
        "'ends' (the best is, the worst is not)."
      )


def load(
  settings: Any, base: Base, name: str
) -> tuple[dataset.Comparisons, dataset.Comparisons]:
  """Returns (training, held-out) comparisons, or judged answers for KTO.

  Args:
    settings: with algorithm, data, heldout, heldout_fraction and seed.
    base: the model, whose tokenizer encodes them.
    name: of the run, for messages.

  Raises:
    FieldError: labels that the method cannot express.
  """
  if settings.is_unpaired:
    parts = _load_judged(settings, base, name)
  else:
    parts = features.load_comparisons(settings, base.tokenizer, name)
  by = f"algorithm.name={settings.algorithm.name!r}"
  read = {rankings.ORDER, rankings.WEIGHT}
  reward_data.say_unread(name, parts[0], read, by)
  with schema.as_field("algorithm."):
    for labels in (np.concatenate([p.labels for p in parts]), parts[0].labels):
      registry.check_labels(settings.algorithm.module, labels)
  train, held = (judged.compact(part) for part in parts)
  longest = max(len(r["tokens"]) for r in (*train.rows, *held.rows))
  pretrained.check_context(base, longest, "data")
  return train, held


def _load_judged(
  settings: Any, base: Base, name: str
) -> list[dataset.Comparisons]:
  data, heldout = settings.data, settings.heldout
  parts = features.load_comparisons(settings, base.tokenizer, name, judged.load)
  return [
    judged.with_mismatched(part, of.max_length, settings.seed, of.source)
    for part, of in zip(
      parts, (data, heldout if heldout.source else data), strict=True
    )
  ]
