"""Reward model: human comparisons in, a scalar that agrees with people out.

Bradley-Terry on pairs. The trunk may train fully, through LoRA, or stay
frozen ("head"): then its pooled features are computed once for each distinct
row and training is a matter of seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import metrics, ops, optimizer
from rlhf_jax.algorithms import reward
from rlhf_jax.data import batches
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import build, inputs, loop, sft
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  Trainable,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import Array, PreferenceBatch, PyTree, Samples

SECTIONS = frozenset(
  "pipeline seed model trainable init_from head stop_layer data heldout "
  "heldout_fraction loss optimizer schedule mesh reference_samples".split()
)
FEATURE_ROWS = 64  # rows in one forward pass of a frozen trunk


def apply(
  params: PyTree, frozen: PyTree, batch: PreferenceBatch, *, role: roles.Role
) -> Array:
  """Returns scores [B, K] of the candidates of a batch."""
  variables = trees.merge(params, frozen)
  if batch.features is not None:
    scores = heads.ScalarHead(role.head).apply(
      {"params": variables["head"]}, batch.features
    )
    return scores[..., 0]
  rows, candidates, length = batch.tokens.shape
  flat = lambda x: x.reshape(rows * candidates, length)  # noqa: E731
  valid = flat(batch.valid_mask)
  row = roles.Rows(flat(batch.tokens), valid, ops.positions_from_mask(valid))
  scores = roles.score(role, variables, row, valid)
  return scores[:, 0].reshape(rows, candidates)


def row_features(
  base: build.Base, trunk: PyTree, role: roles.Role, rows: list[dict]
) -> np.ndarray:
  """Returns [U, F] pooled features of a frozen trunk, one pass for each row.

  Rows are batched by length, so that little padding is computed.
  """
  pad = base.tokenizer.pad_id

  @jax.jit
  def forward(params: PyTree, tokens: Array, mask: Array) -> Array:
    row = roles.Rows(tokens, mask, ops.positions_from_mask(mask))
    x = roles.frozen_streams(base.config, params, row, (role.stop,))
    return roles.score_features(role, x[role.stop], mask)

  lengths = np.asarray([len(row["tokens"]) for row in rows])
  order = np.argsort(lengths, kind="stable")
  # Two widths, so that two programs compile: the median, and the longest.
  middle = len(rows) // 2 // FEATURE_ROWS * FEATURE_ROWS
  widths = (int(lengths[order[max(middle - 1, 0)]]), int(lengths.max()))
  result: np.ndarray | None = None
  with metrics.Progress("features", len(rows)) as progress:
    for start in range(0, len(rows), FEATURE_ROWS):
      index = order[start : start + FEATURE_ROWS]
      part = [rows[i] for i in index]
      part += part[-1:] * (FEATURE_ROWS - len(part))
      width = widths[0] if start < middle else widths[1]
      batch = batches.collate_tokens(part, length=width, pad_id=pad)
      found = np.asarray(forward(trunk, batch.tokens, batch.valid_mask))
      if result is None:
        result = np.zeros((len(rows), found.shape[1]), np.float32)
      result[index] = found[: len(index)]
      progress.update(start + len(index))
  return result


def collate(
  pairs: list[int],
  *,
  data: inputs.Comparisons,
  features: np.ndarray | None,
  width: int,
  pad_id: int,
) -> PreferenceBatch:
  """Returns the PreferenceBatch of the comparisons with these numbers."""
  chosen = np.asarray(pairs)
  index = data.pairs[chosen]
  labels = data.labels[chosen]
  weight = np.ones(len(chosen), np.float32)
  if features is not None:
    nothing = np.zeros((*index.shape, 1), np.int32)
    return PreferenceBatch(
      tokens=nothing,
      valid_mask=nothing.astype(np.float32) + 1.0,
      loss_mask=nothing.astype(np.float32),
      label=labels,
      weight=weight,
      features=features[index],
    )
  flat = batches.collate_tokens(
    [data.rows[i] for i in index.reshape(-1)], length=width, pad_id=pad_id
  )
  fold = lambda x: x.reshape(*index.shape, -1)  # noqa: E731
  return PreferenceBatch(
    tokens=fold(flat.tokens),
    valid_mask=fold(flat.valid_mask),
    loss_mask=fold(flat.loss_mask),
    label=labels,
    weight=weight,
  )


def row_scores(
  base: build.Base,
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  rows: list[dict],
  features: np.ndarray | None,
  batch_size: int,
) -> np.ndarray:
  """Returns [U] raw scores of rows, from features where they are given."""
  if features is not None:
    head = heads.ScalarHead(role.head)
    return np.asarray(head.apply({"params": params["head"]}, features))[:, 0]
  forward = jax.jit(functools.partial(apply, role=role))
  width = batches.bucket_length(max(len(r["tokens"]) for r in rows))
  everything = inputs.Comparisons(
    rows=rows,
    pairs=np.arange(len(rows))[:, None],
    labels=np.ones(len(rows), np.float32),
    groups=np.arange(len(rows)),
    dropped=None,
    ceiling=None,
  )
  scores = []
  for start in range(0, len(rows), batch_size):
    index = [min(start + i, len(rows) - 1) for i in range(batch_size)]
    batch = collate(
      index,
      data=everything,
      features=None,
      width=width,
      pad_id=base.tokenizer.pad_id,
    )
    scores.append(np.asarray(forward(params, frozen, batch))[:, 0])
  return np.concatenate(scores)[: len(rows)]


def split_heldout(
  data: inputs.Comparisons, fraction: float, seed: int
) -> tuple[inputs.Comparisons, inputs.Comparisons]:
  """Returns (training, held-out) comparisons, split by prompt (METHODS 2.8).

  Raises:
    ConfigError: a fraction that leaves one side empty.
  """
  groups = np.unique(data.groups)
  count = int(round(fraction * len(groups)))
  if not 0 < count < len(groups):
    raise ConfigError(
      f"heldout_fraction={fraction} of {len(groups)} prompts leaves "
      f"{count} held out: name a heldout.source or change the fraction."
    )
  chosen = np.random.default_rng(seed).permutation(groups)[:count]
  is_held = np.isin(data.groups, chosen)

  def part(keep: np.ndarray) -> inputs.Comparisons:
    return dataclasses.replace(
      data,
      pairs=data.pairs[keep],
      labels=data.labels[keep],
      groups=data.groups[keep],
    )

  return part(~is_held), part(is_held)


def start_variables(
  config: Any,
  base: build.Base,
  trainable: Trainable,
  head: heads.Config,
  mesh: jax.sharding.Mesh,
  key: Array,
) -> tuple[roles.Role, PyTree]:
  """Returns the reward role and its variables, from the SFT model if named."""
  variables = {"params": base.params}
  if config.init_from:
    stage = build.load_stage(config.init_from, "sft", base, mesh)
    trained = roles.split(stage.role, stage.variables)
    variables = {"params": roles.sampling_params(stage.role, *trained)}
  role = build.make_role(
    base,
    trainable,
    stop_layer=config.stop_layer if config.stop_layer else None,
    head=head,
  )
  if role.trainable == "lora":
    variables["lora"] = roles.fresh_lora(role, jax.random.fold_in(key, 1))
  variables["head"] = heads.init(
    head, base.config.width, jax.random.fold_in(key, 2)
  )
  return role, variables


def run(config: Any, workdir: Path) -> dict:
  """Trains and diagnoses a reward model; returns stage.json."""
  check_sections(config, SECTIONS, "")
  schedule = section(Schedule, config.schedule, "schedule")
  data = section(Data, config.data, "data")
  loss = section(reward.Config, config.loss, "loss")
  trainable = section(Trainable, config.trainable, "trainable")
  head = section(heads.Config, config.head, "head")
  heldout_data = section(Data, config.heldout, "heldout")
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = build.read_stage(workdir)
  if info is not None:
    return info
  key = jax.random.key(config.seed)
  role, variables = start_variables(config, base, trainable, head, mesh, key)

  train = inputs.comparisons(data, base.tokenizer, config.seed)
  build.report_dropped(
    workdir.name, data.source, len(train.pairs), train.dropped
  )
  if heldout_data.source:
    held = inputs.comparisons(heldout_data, base.tokenizer, config.seed + 1)
  else:
    train, held = split_heldout(train, config.heldout_fraction, config.seed)
  total = schedule.total_steps(len(train.pairs))
  epochs = total * schedule.batch_size / len(train.pairs)

  features = held_features = None
  if role.trainable == "head":
    trunk = variables["params"]
    features = row_features(base, trunk, role, train.rows)
    held_features = (
      features
      if held.rows is train.rows
      else row_features(base, trunk, role, held.rows)
    )
  loader = batches.make_loader(
    np.arange(len(train.pairs)),
    schedule.batch_size,
    seed=config.seed,
    collate=functools.partial(
      collate,
      data=train,
      features=features,
      width=batches.bucket_length(max(len(r["tokens"]) for r in train.rows)),
      pad_id=base.tokenizer.pad_id,
    ),
  )
  tx = optimizer.make_optimizer(
    optimizer_section(config.optimizer, "optimizer", total)
  )
  params, frozen = roles.split(role, variables)
  state = build.sharded_state(mesh, sft.initial_state(params, tx))
  used = {} if features is not None else frozen
  update = jax.jit(
    functools.partial(
      reward.update,
      config=loss,
      apply=functools.partial(apply, role=role),
      optimizer=tx,
    ),
    donate_argnums=0,
  )

  def one_step(step: int, arrays: PyTree, facts: dict):
    batch = mesh_lib.shard_batch(mesh, next(loader))
    state, row = update(
      arrays["train"], used, batch, jax.random.fold_in(key, step)
    )
    return {"train": state}, facts, row

  arrays, _ = loop.run_steps(
    one_step,
    phase=workdir.name,
    workdir=workdir,
    schedule=schedule,
    total_steps=total,
    arrays={"train": state},
    facts={},
    identity=build.identity(base),
    iterators={"data": loader},
    show=(("rm/loss", "loss"), ("rm/acc", "accuracy")),
  )
  params = arrays["train"].params
  facts = _diagnose(
    base, role, params, frozen, held, held_features, schedule.batch_size
  )
  facts |= {
    "steps": total,
    "comparisons": len(train.pairs),
    "epochs": epochs,
    "reads_end_token": data.end_token,
    "normalisation": _normalise(
      config, base, role, params, frozen, train, features, schedule.batch_size
    ),
  }
  facts["guards"] = [
    list(guard)
    for guard in diagnostics.guard(
      facts["diagnosis"], comparisons=len(train.pairs), epochs=epochs
    )
  ]
  for level, message in facts["guards"]:
    print(f"{workdir.name}: {level}: {message}")
  build.write_stage(workdir, "reward", base, role, **facts)
  return build.read_stage(workdir)


def _diagnose(base, role, params, frozen, held, features, batch_size) -> dict:
  """Returns held-out accuracy, calibration, length bias and the raw arrays."""
  scores = row_scores(
    base, role, params, frozen, held.rows, features, batch_size
  )
  lengths = np.asarray([np.sum(row["loss_mask"]) for row in held.rows])
  diagnosis = diagnostics.diagnose(
    scores[held.pairs], held.labels, lengths[held.pairs]
  )
  accuracy = diagnosis["rm/accuracy"]
  ceiling = (
    "" if held.ceiling is None else f", raters' ceiling {held.ceiling:.3f}"
  )
  print(f"held-out accuracy {accuracy:.3f} on {len(held.pairs)} pairs{ceiling}")
  shown = min(len(held.pairs), 2000)
  return {
    "diagnosis": diagnosis,
    "ceiling": held.ceiling,
    "heldout_pairs": {
      "score_difference": np.diff(-scores[held.pairs])[:shown, 0].tolist(),
      "length_difference": np.diff(-lengths[held.pairs])[:shown, 0].tolist(),
      "label": held.labels[:shown].tolist(),
    },
  }


def _normalise(
  config, base, role, params, frozen, train, features, batch_size
) -> dict:
  """Returns mean and deviation of raw scores on reference samples."""
  if not config.reference_samples:
    scores = row_scores(
      base, role, params, frozen, train.rows, features, batch_size
    )
    source, digest = "training rows", None
  else:
    path = Path(config.reference_samples)
    if not path.is_file():
      raise ConfigError(
        f"reference_samples={str(path)!r}: no such file. It is samples.npz "
        "of an SFT run with --config.samples=256."
      )
    with np.load(path) as stored:
      samples = Samples(**{k: jnp.asarray(stored[k]) for k in stored.files})
    scorer = reward_model.Scorer(role, config.data.end_token)
    weights = reward_model.Weights(
      trees.merge(params, frozen), jnp.float32(0.0), jnp.float32(1.0)
    )
    scores = np.asarray(
      jax.jit(functools.partial(reward_model.score, scorer))(weights, samples)
    )
    source = "samples of the SFT policy"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  deviation = float(np.std(scores))
  if not deviation > 1e-6:
    raise ValueError(
      f"the reward model gives every reference sample the same score "
      f"(deviation {deviation:.2g}): it has learned nothing to optimise. Look "
      "at its accuracy and its data."
    )
  return {
    "mean": float(np.mean(scores)),
    "std": deviation,
    "count": len(scores),
    "source": source,
    "sha256": digest,
  }


def load(
  workdir: str | Path, base: build.Base, mesh: jax.sharding.Mesh
) -> tuple[reward_model.Scorer, reward_model.Weights, dict]:
  """Returns a finished reward stage, ready to score, and its stage.json."""
  stage = build.load_stage(workdir, "reward", base, mesh)
  normalisation = stage.info["normalisation"]
  return (
    reward_model.Scorer(stage.role, stage.info["reads_end_token"]),
    reward_model.Weights(
      stage.variables,
      jnp.float32(normalisation["mean"]),
      jnp.float32(normalisation["std"]),
    ),
    stage.info,
  )
