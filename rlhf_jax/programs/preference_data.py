"""Comparisons as the methods of algorithms/preference read them.

Pairs, or single judged answers for KTO; labels that a method cannot express
are refused, and judgements that it does not read are named. Then the rows of a
batch, and the stream of batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax import schema
from rlhf_jax.algorithms.preference import registry
from rlhf_jax.data import batches, dataset, judged, layout, rankings
from rlhf_jax.models import pretrained
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import build, features, pairs, reward_data, shared_rows
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
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


def choose_rows(
  settings: Any, world: World, base: Base, train: dataset.Comparisons, name: str
) -> layout.Shape:
  """Returns the shape of the rows that an update reads.

  Args:
    settings: of the pipeline.
    world: where it runs.
    base: the model underneath.
    train: comparisons.
    name: of the run, for messages.
  """
  return shared_rows.choose(
    name,
    train,
    settings.schedule.batch_size,
    world.ways,
    # KTO reads its two candidates apart.
    0 if settings.is_unpaired else settings.accumulation.microbatches,
    prompts=settings.data.share_prompts,
    attention=base.config.attention,
  )


def make_loader(
  settings: Any,
  phase: Phase,
  train: dataset.Comparisons,
  shared: layout.Shape,
) -> batches.Loader:
  """Returns the stream of this host's part of each batch.

  Args:
    settings: of the pipeline.
    phase: wired.
    train: comparisons.
    shared: of `choose_rows`.
  """
  return build.make_loader(
    phase.mesh,
    np.arange(len(train.pairs)),
    settings.schedule.batch_size,
    seed=settings.seed,
    content=[
      [[row["tokens"], row["loss_mask"]] for row in train.rows],
      train.pairs,
      train.labels,
    ],
    collate=pairs.collate_of(train, phase.base.tokenizer.pad_id, shared),
    shares_rows=bool(shared.counts),
  )
