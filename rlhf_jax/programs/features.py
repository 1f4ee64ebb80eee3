"""Rows and comparisons as a reward model reads them.

Batches of comparisons, scores of rows, and the pooled features of a frozen
trunk, which are computed once for each distinct row when only a head trains.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, terminal
from rlhf_jax.algorithms import ensemble, reward
from rlhf_jax.data import (
  batches,
  branches,
  comparison_rows,
  dataset,
  layout,
  overlap,
  statistics,
)
from rlhf_jax.models import outputs, roles, transformer, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.rows import Rows
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import abstract, build, shared_rows
from rlhf_jax.programs.program import Phase, Program
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PreferenceBatch, PyTree, TokenBatch

FEATURE_ROWS = 64  # rows in one forward pass of a frozen trunk


def apply(
  params: PyTree, frozen: PyTree, batch: PreferenceBatch, *, role: roles.Role
) -> Array:
  """Returns scores [B, K] of the candidates of a batch; of M members with M."""
  variables = trees.merge(params, frozen)
  if batch.features is not None:
    scores = outputs.head_scores(role, variables["head"], batch.features)
  else:
    scores = shared_rows.scores(role, variables, batch)
  first = scores[..., :: role.head.outputs]
  return first if role.members > 1 else first[..., 0]


def fresh(
  role: roles.Role, seed: int, world: World, head_seed: int | None = None
) -> PyTree:
  """Returns what a reward model has beside a trunk: head, factors if any.

  Args:
    role: with a head.
    seed: of what is drawn.
    world: where it lives.
    head_seed: of the head, if it is another.
  """
  head_seed = seed if head_seed is None else head_seed

  def make(key: jax.Array, head_key: jax.Array) -> PyTree:
    made = {"head": roles.fresh_head(role, jax.random.fold_in(head_key, 2))}
    if role.trainable == "lora":
      made["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
    return made

  keys = jax.random.key(seed), jax.random.key(head_seed)
  return world.compute(make, *keys)


def make_update(
  role: roles.Role,
  loss: reward.Config,
  transform: Any,
  *,
  mesh: Any = None,
  donates: bool = True,
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, PreferenceBatch, key) -> ...

  Args:
    role: what trains.
    loss: settings of the loss.
    transform: an optax.GradientTransformation.
    mesh: where it runs; None for where JAX computes by default.
    donates: whether the new state takes the memory of the old one.
  """
  take_step = reward.update
  if role.members > 1:
    is_shared = not (role.own_factors or role.trainable == "head")
    take_step = functools.partial(ensemble.update, is_shared=is_shared)
  update = functools.partial(
    take_step,
    config=loss,
    apply=functools.partial(apply, role=role),
    optimizer=transform,
  )
  return jax.jit(
    update,
    donate_argnums=0 if donates else (),
    compiler_options=build.compiler_options(role, mesh),
  )


@functools.lru_cache(maxsize=16)
def make_scores(role: roles.Role) -> Callable[..., Array]:
  """Returns the compiled (params, frozen, PreferenceBatch) -> `apply`."""
  return jax.jit(functools.partial(apply, role=role))


@functools.lru_cache(maxsize=16)
def make_features(
  model: transformer.Config, role: roles.Role
) -> Callable[..., Array]:
  """Returns the compiled (params, TokenBatch, cells [K]) -> features [K, F].

  Cells are the last tokens of examples, of B * L.

  Args:
    model: architecture of the frozen trunk.
    role: which layers and what pooling.
  """

  @jax.jit
  def forward(params: PyTree, batch: TokenBatch, cells: Array) -> Array:
    rows = Rows.of(batch)
    x = outputs.frozen_streams(model, params, rows, (role.stop,))[role.stop]
    found = rows.pooled(x, role.head.pooling)
    return found.reshape(-1, found.shape[-1])[cells]

  return forward


def program(
  world: World,
  role: roles.Role,
  params: PyTree,
  length: int,
  count: int,
) -> Program:
  """Returns the pass over rows whose trunk is frozen, done once for all.

  Args:
    world: where it runs, or is planned.
    role: which layers and what pooling.
    params: of the trunk.
    length: tokens of a row.
    count: rows of the data, 0 where only the data tell.
  """
  model = dataclasses.replace(role.model, lora_rank=0)

  def arguments(flow: dict) -> tuple[tuple, dict]:
    del flow
    text = abstract.token_batch(world.mesh, FEATURE_ROWS, length, True)
    cells = abstract.spread(world.mesh, (FEATURE_ROWS,), jnp.int32)
    return (params, text, cells), {}

  return Program(
    name="features",
    function=make_features(model, role),
    arguments=arguments,
    rows=FEATURE_ROWS,
    work=lambda: Passes(world.mesh).forward([role], FEATURE_ROWS, length, 0),
    calls=-(-count // FEATURE_ROWS) if count else None,
  )


def row_features(phase: Phase, trunk: PyTree, rows: list[dict]) -> np.ndarray:
  """Returns [U, F] pooled features of a frozen trunk, one pass over all rows.

  They share rows, and what neighbours begin with stands once.

  Args:
    phase: with a program "features".
    trunk: its weights.
    rows: token rows.
  """
  pad, forward = phase.base.tokenizer.pad_id, phase["features"]
  shape, size = shared_rows.whole(
    rows,
    FEATURE_ROWS,
    phase.world.ways,
    prompts="auto",
    attention=phase.base.config.attention,
  )
  shape = dataclasses.replace(shape, targets=shape.length)  # no logits
  parts = [
    (batch, *_last_cells(chosen, batch))
    for chosen, batch in layout.in_order(rows, shape, size, pad)
  ]
  most = max(len(numbers) for _, numbers, _ in parts)
  result, done = np.zeros((0, 0), np.float32), 0
  with terminal.Progress("features", len(rows), unit="row") as progress:
    for batch, numbers, cells in parts:
      read = np.pad(cells, (0, most - len(cells)))
      batch, read = mesh_lib.spread_batch(phase.mesh, (batch, read))
      found = distributed.fetch(forward(trunk, batch, read))
      if not done:
        result = np.zeros((len(rows), found.shape[1]), np.float32)
      result[numbers] = found[: len(numbers)]
      done += len(numbers)
      progress.update(done)
  return result


def _last_cells(
  chosen: list[list[branches.Group]], batch: TokenBatch
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the numbers of the examples of a batch, and their last cells.

  Args:
    chosen, batch: of layout.in_order.
  """
  cells = np.arange(batch.tokens.size, dtype=np.int32)
  cells = cells.reshape(batch.tokens.shape)
  everywhere = batch.replace(loss_mask=batch.valid_mask)
  found = list(layout.by_example(chosen, everywhere, cells))
  return (
    np.asarray([number for number, _ in found]),
    np.asarray([own[-1] for _, own in found], np.int32),
  )


def _weights(data: dataset.Comparisons, chosen: np.ndarray) -> np.ndarray:
  """Returns what the chosen comparisons count in the loss [B]."""
  if data.weights is None:
    return np.ones(len(chosen), np.float32)
  return data.weights[chosen]


def collate(
  pairs: list[int],
  *,
  data: dataset.Comparisons,
  features: np.ndarray | None,
  width: int,
  pad_id: int,
  members: np.ndarray | None = None,
) -> PreferenceBatch:
  """Returns the PreferenceBatch of the comparisons with these numbers.

  Args:
    pairs: numbers.
    data: all comparisons.
    features: of data.rows, where the trunk is frozen.
    width: tokens of a row.
    pad_id: of the tokenizer.
    members: [P, M] how often each counts for the members of an ensemble.
  """
  chosen = np.asarray(pairs)
  index = data.pairs[chosen]
  said = {
    "label": data.labels[chosen],
    "weight": _weights(data, chosen),
    "rank": None if data.ranks is None else data.ranks[chosen],
    "margin": None if data.margins is None else data.margins[chosen],
    "target": None if data.targets is None else data.targets[chosen],
    "member_weight": None if members is None else members[chosen],
  }
  if features is not None:
    nothing = np.zeros((*index.shape, 1), np.int32)
    exists = np.float32(index >= 0)[..., None]
    return PreferenceBatch(
      tokens=nothing,
      valid_mask=exists,
      loss_mask=exists,
      features=features[index],  # of one that is not there: of any other
      **said,
    )
  absent = {name: x[:0] for name, x in data.rows[0].items()}
  flat = batches.collate_tokens(
    [data.rows[i] if i >= 0 else absent for i in index.reshape(-1)],
    length=width,
    pad_id=pad_id,
  )

  def fold(x: np.ndarray) -> np.ndarray:
    return x.reshape(*index.shape, -1)

  return PreferenceBatch(
    tokens=fold(flat.tokens),
    valid_mask=fold(flat.valid_mask),
    loss_mask=fold(flat.loss_mask),
    **said,
  )


def row_scores(
  base: Base,
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  rows: list[dict],
  features: np.ndarray | None,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Returns [U], or [U, M], raw scores of rows.

  From features where they are given.
  """
  if features is not None:
    head_scores = jax.jit(functools.partial(outputs.head_scores, role))
    scores = distributed.fetch(head_scores(params["head"], features))
    first = scores[:, :: role.head.outputs]
    return first if role.members > 1 else first[:, 0]
  forward = make_scores(role)
  everything = dataset.Comparisons(
    rows=rows,
    pairs=np.arange(len(rows))[:, None],
    labels=np.ones(len(rows), np.float32),
    groups=np.arange(len(rows))[:, None],
    dropped=None,
    ceiling=None,
  )
  several = (role.members,) if role.members > 1 else ()
  scores = np.zeros((len(rows), *several), np.float32)
  lengths = [len(row["tokens"]) for row in rows]
  done = 0
  with terminal.Progress("scores", len(rows), unit="row") as progress:
    for part, width in layout.by_length(lengths, batch_size):
      filler = [int(part[-1])] * (batch_size - len(part))
      batch = collate(
        [*part, *filler],
        data=everything,
        features=None,
        width=width,
        pad_id=base.tokenizer.pad_id,
      )
      batch = mesh_lib.spread_batch(mesh, batch)
      found = distributed.fetch(forward(params, frozen, batch))[:, 0]
      scores[part] = found[: len(part)]
      done += len(part)
      progress.update(done)
  return scores


def held_groups(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Returns which of the groups are held out.

  Args:
    groups: sorted, each once.
    fraction: of them.
    seed: of the run.
  """
  count = int(round(fraction * len(groups)))
  return np.random.default_rng(seed).permutation(groups)[:count]


def split_heldout(
  data: dataset.Comparisons, fraction: float, seed: int
) -> tuple[dataset.Comparisons, dataset.Comparisons]:
  """Returns (training, held-out) comparisons, split by prompt (METHODS 2.8).

  Pairs of rated sentences are split by sentence: those of one held-out and one
  training sentence would leak and are left out of both sides.

  Raises:
    FieldError: a fraction that leaves one side empty.
  """
  groups = np.unique(data.groups)
  is_held = np.isin(data.groups, held_groups(groups, fraction, seed))
  train, held = ~is_held.any(axis=1), is_held.all(axis=1)
  if not train.any() or not held.any():
    raise FieldError(
      f"heldout_fraction={fraction} of {len(groups)} prompts or sentences "
      f"leaves {train.sum()} comparisons to train on and {held.sum()} held "
      "out: name a heldout.source or change the fraction."
    )
  lost = len(data.pairs) - train.sum() - held.sum()
  if lost:
    print(f"held out: {lost} comparisons across the split are left out")

  return data.take(train), data.take(held)


def _report(name: str, source: str, found: dataset.Comparisons) -> None:
  """Prints and records what was read of a source."""
  lengths = statistics.of_pairs(found.rows, found.pairs)
  dataset.report_dropped(name, source, len(found.pairs), found.dropped, lengths)


def load_comparisons(
  settings: Any,
  tokenizer: Any,
  name: str,
  load: Callable[..., dataset.Comparisons] = dataset.comparisons,
) -> tuple[dataset.Comparisons, dataset.Comparisons]:
  """Returns (training, held-out) comparisons, or judged answers.

  Args:
    settings: with data, heldout, heldout_fraction and seed.
    tokenizer: of the model.
    name: of the run, for messages.
    load: (data, tokenizer, seed) -> one of them; judged.load for the latter.
  """
  data, heldout, seed = settings.data, settings.heldout, settings.seed
  train = load(data, tokenizer, seed)
  _report(name, data.source, train)
  overlap.say(name, data, heldout, tokenizer)
  if heldout.source:
    held = load(heldout, tokenizer, seed + 1)
    _report(f"{name}, held out", heldout.source, held)
  else:
    train, held = split_heldout(train, settings.heldout_fraction, seed)
  if data.flips:
    train, count = comparison_rows.flipped(train, data.flips, seed)
    print(
      f"{name}: data.flips={data.flips:g}: {count} of {len(train.pairs)} "
      "comparisons that train have the wrong label"
    )
  return train, held
