"""Reward model: human comparisons in, a scalar that agrees with people out.

Bradley-Terry on pairs. The trunk may train fully, through LoRA, or stay
frozen ("head"): then its pooled features are computed once for each distinct
row and training is a matter of seconds.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, optimizer
from rlhf_jax.algorithms import reward
from rlhf_jax.data import batches
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.pipelines import build, inputs, stages, supervised
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
from rlhf_jax.pipelines.features import (
  apply,
  collate,
  row_features,
  row_scores,
  split_heldout,
)
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.types import PyTree, Samples

PAIRS_KEPT = 2000  # held-out pairs kept for the report's pictures

SECTIONS = frozenset(
  "pipeline seed model trainable init_from head stop_layer data heldout "
  "heldout_fraction loss optimizer schedule mesh reference_samples".split()
)


def start_variables(
  config: Any,
  base: build.Base,
  trainable: Trainable,
  head: heads.Config,
  mesh: jax.sharding.Mesh,
  key: jax.Array,
) -> tuple[roles.Role, PyTree]:
  """Returns the reward role and its variables, from the SFT model if named."""
  params = stages.start_params(base, mesh, config.init_from)
  variables = {"params": params}
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


def load_comparisons(
  config: Any, data: Data, heldout: Data, tokenizer: Any, name: str
) -> tuple[inputs.Comparisons, inputs.Comparisons]:
  """Returns (training, held-out) comparisons of a reward configuration."""
  train = inputs.comparisons(data, tokenizer, config.seed)
  build.report_dropped(name, data.source, len(train.pairs), train.dropped)
  if heldout.source:
    return train, inputs.comparisons(heldout, tokenizer, config.seed + 1)
  return split_heldout(train, config.heldout_fraction, config.seed)


def check_labels(
  train: inputs.Comparisons,
  held: inputs.Comparisons,
  loss: reward.Config,
  name: str,
) -> None:
  """Raises ConfigError for labels that the objective cannot express."""
  for data in (train, held):
    try:
      reward.check_labels(data.labels, loss)
    except ValueError as error:
      raise ConfigError(f"{name}: config.loss.{error}") from error


def compute_features(
  base: build.Base,
  role: roles.Role,
  trunk: PyTree,
  train: inputs.Comparisons,
  held: inputs.Comparisons,
  mesh: jax.sharding.Mesh,
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Returns features of both sets of rows, None where the trunk trains."""
  if role.trainable != "head":
    return None, None
  features = row_features(base, trunk, role, train.rows, mesh)
  if held.rows is train.rows:
    return features, features
  return features, row_features(base, trunk, role, held.rows, mesh)


def make_update(
  role: roles.Role, loss: reward.Config, optimizer_: Any
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, PreferenceBatch, key) -> ...

  Args:
    role: what trains.
    loss: settings of the loss.
    optimizer_: an optax.GradientTransformation.
  """
  update = functools.partial(
    reward.update,
    config=loss,
    apply=functools.partial(apply, role=role),
    optimizer=optimizer_,
  )
  return jax.jit(update, donate_argnums=0)


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Trains and diagnoses a reward model; returns stage.json."""
  check_sections(config, SECTIONS, "")
  name = workdir.name
  schedule = section(Schedule, config.schedule, "schedule")
  data = section(Data, config.data, "data")
  heldout = section(Data, config.heldout, "heldout")
  loss = section(reward.Config, config.loss, "loss")
  trainable = section(Trainable, config.trainable, "trainable")
  head = section(heads.Config, config.head, "head")
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = stages.finished(workdir, "reward", base)
  if info is not None:
    return info
  key = jax.random.key(config.seed)
  role, variables = start_variables(config, base, trainable, head, mesh, key)
  train, held = load_comparisons(config, data, heldout, base.tokenizer, name)
  check_labels(train, held, loss, name)
  longest = max(len(r["tokens"]) for r in (*train.rows, *held.rows))
  build.check_context(base, longest, "data")
  total = schedule.total_steps(len(train.pairs))
  tx = optimizer.make_optimizer(
    optimizer_section(config.optimizer, "optimizer", total)
  )
  features, held_features = compute_features(
    base, role, variables["params"], train, held, mesh
  )
  loader = build.make_loader(
    mesh,
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
  params, frozen = roles.split(role, variables)
  params = supervised.fit(
    make_update(role, loss, tx),
    loader,
    params,
    frozen if features is None else {},
    optimizer_=tx,
    mesh=mesh,
    seed=config.seed,
    phase=name,
    workdir=workdir,
    schedule=schedule,
    total_steps=total,
    identity=stages.identity(base),
    show=(("rm/loss", "loss"), ("rm/acc", "accuracy")),
  )
  scores = functools.partial(
    row_scores,
    base,
    role,
    params,
    frozen,
    batch_size=schedule.batch_size,
    mesh=mesh,
  )
  facts = {
    "steps": total,
    "comparisons": len(train.pairs),
    "epochs": total * schedule.batch_size / len(train.pairs),
    "reads_end_token": data.end_token,
    **_diagnose(scores, held, held_features, name),
    "normalisation": _normalise(
      config,
      role,
      trees.merge(params, frozen),
      functools.partial(scores, train.rows, features),
    ),
  }
  facts["guards"] = diagnostics.guard(
    facts["diagnosis"], facts["comparisons"], facts["epochs"]
  )
  for level, message in facts["guards"]:
    print(f"{name}: {level}: {message}")
  stages.write_stage(
    workdir, "reward", base, role, merged_from=config.init_from, **facts
  )
  return stages.read_stage(workdir)


def _diagnose(
  scores: Callable[..., np.ndarray],
  held: inputs.Comparisons,
  features: np.ndarray | None,
  name: str,
) -> dict:
  """Returns held-out accuracy, calibration, length bias and the raw arrays."""
  found = scores(held.rows, features)
  lengths = np.asarray([np.sum(row["loss_mask"]) for row in held.rows])
  diagnosis = diagnostics.diagnose(
    found[held.pairs], held.labels, lengths[held.pairs]
  )
  ceiling = (
    "" if held.ceiling is None else f", raters' ceiling {held.ceiling:.3f}"
  )
  print(
    f"{name}: held-out accuracy {diagnosis['rm/accuracy']:.3f} on "
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


def _normalise(
  config: Any,
  role: roles.Role,
  variables: PyTree,
  training_scores: Callable[[], np.ndarray],
) -> dict:
  """Returns mean and deviation of raw scores on reference samples."""
  if not config.reference_samples:
    scores, source, digest = training_scores(), "training rows", None
  else:
    path = Path(config.reference_samples)
    if not path.is_file():
      raise ConfigError(
        f"reference_samples={str(path)!r}: no such file. It is samples.npz "
        "of an SFT run with --config.samples=256."
      )
    with np.load(path) as stored:
      samples = Samples(**{k: stored[k] for k in stored.files})
    scorer = reward_model.Scorer(role, config.data.end_token)
    weights = reward_model.Weights(
      variables, jnp.float32(0.0), jnp.float32(1.0)
    )
    score = jax.jit(functools.partial(reward_model.score, scorer))
    scores = distributed.fetch(score(weights, samples))
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
  stage = stages.load_stage(workdir, "reward", base, mesh)
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
