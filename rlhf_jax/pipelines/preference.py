"""Direct preference optimisation: comparisons in, an aligned policy out.

    reference = policy before training       # log-probabilities, once
    state = update(state, comparisons)       # one loss, one optimizer

No reward model and no sampling. config.algorithm.name chooses the method
(algorithms/preference/registry.py). The result stands wherever an SFT run
does: as a start, as a reference, and as the policy that is evaluated.

online_preference.py compares the policy's own answers, new ones in each step.
Left out: sampling between the rounds of SPIN, each of which is a run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, optimizer
from rlhf_jax.algorithms.preference import kto, registry
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.data import batches
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import (
  actors,
  build,
  features,
  inputs,
  method_sections,
  reference,
  reward,
  sft,
  stages,
  supervised,
  unpaired,
)
from rlhf_jax.pipelines.config import (
  ConfigError,
  Data,
  Model,
  Schedule,
  check_sections,
  optimizer_section,
  section,
)
from rlhf_jax.types import Array, PreferenceBatch, PyTree, TokenBatch

SECTIONS = frozenset(
  "pipeline seed model trainable init_from algorithm accumulation data heldout "
  "heldout_fraction optimizer schedule mesh".split()
)
_BALANCE = (1.0, 1.5)  # of desirable to undesirable weight, for KTO


@dataclasses.dataclass(frozen=True)
class Settings:
  """The sections of a preference configuration, checked."""

  method: method_sections.Method
  update: preference.Config
  schedule: Schedule
  data: Data
  heldout: Data


def read_settings(config: Any) -> Settings:
  """Returns the checked sections; raises ConfigError."""
  check_sections(config, SECTIONS, "")
  return Settings(
    method=method_sections.read(config.algorithm, registry.ALGORITHMS),
    update=section(preference.Config, config.accumulation, "accumulation"),
    schedule=section(Schedule, config.schedule, "schedule"),
    data=section(Data, config.data, "data"),
    heldout=section(Data, config.heldout, "heldout"),
  )


def apply(
  params: PyTree,
  frozen: PyTree,
  batch: PreferenceBatch,
  *,
  role: roles.Role,
  targets: int | None = None,
) -> Array:
  """Returns log-probabilities [B, K, L] of the candidates' own tokens."""
  shape = batch.tokens.shape
  flat = lambda x: x.reshape(-1, shape[-1])  # noqa: E731
  rows = TokenBatch(
    tokens=flat(batch.tokens),
    valid_mask=flat(batch.valid_mask),
    loss_mask=flat(batch.loss_mask),
  )
  logprobs, _ = sft.apply(params, frozen, rows, role=role, targets=targets)
  return logprobs.reshape(shape)


def load_data(
  config: Any, settings: Settings, base: build.Base
) -> tuple[inputs.Comparisons, inputs.Comparisons]:
  """Returns (training, held-out) comparisons, or judged answers for KTO.

  Raises:
    ConfigError: labels that the method cannot express.
  """
  name, data = settings.method.name, settings.data
  if name not in registry.UNPAIRED:
    parts = reward.load_comparisons(
      config, data, settings.heldout, base.tokenizer, "preference"
    )
  else:
    parts = _load_judged(config, settings, base)
  try:
    for labels in (np.concatenate([p.labels for p in parts]), parts[0].labels):
      registry.check_labels(name, labels)
  except ValueError as error:
    raise ConfigError(f"config.algorithm.{error}") from error
  train, held = (unpaired.compact(part) for part in parts)
  longest = max(len(r["tokens"]) for r in (*train.rows, *held.rows))
  build.check_context(base, longest, "data")
  return train, held


def _load_judged(config, settings, base):
  data, heldout = settings.data, settings.heldout
  train = unpaired.load(data, base.tokenizer, config.seed)
  build.report_dropped(
    "preference", data.source, len(train.pairs), train.dropped
  )
  if heldout.source:
    held = unpaired.load(heldout, base.tokenizer, config.seed + 1)
  else:
    train, held = features.split_heldout(
      train, config.heldout_fraction, config.seed
    )
  return tuple(
    unpaired.with_mismatched(
      part, source.max_length, config.seed, source.source
    )
    for part, source in (
      (train, data),
      (held, heldout if heldout.source else data),
    )
  )


def collate(
  pairs: list[int], *, data: inputs.Comparisons, width: int, pad_id: int
) -> PreferenceBatch:
  """Returns the PreferenceBatch of the comparisons with these numbers."""
  batch = features.collate(
    pairs, data=data, features=None, width=width, pad_id=pad_id
  )
  if "reference_logprobs" not in data.rows[0]:
    return batch
  stored = np.zeros(batch.tokens.shape, np.float32)
  for n, pair in enumerate(data.pairs[np.asarray(pairs)]):
    for k, row in enumerate(pair):
      values = data.rows[row]["reference_logprobs"]
      stored[n, k, : len(values)] = values
  return batch.replace(reference_logprobs=stored)


def make_reference(
  role: roles.Role, targets: int
) -> Callable[[PyTree, PyTree, TokenBatch], Array]:
  """Returns the compiled (params, frozen, batch) -> log-probs [B, L].

  Args:
    role: of the policy before training.
    targets: most targets of a row.
  """
  return jax.jit(
    lambda params, frozen, batch: sft.apply(
      params, frozen, batch, role=role, targets=targets
    )[0]
  )


def add_reference(
  config: Any,
  settings: Settings,
  base: build.Base,
  stage: stages.Stage,
  parts: dict[str, inputs.Comparisons],
  targets: int,
  workdir: Path,
  mesh: jax.sharding.Mesh,
) -> str:
  """Gives all rows their reference log-probabilities; returns their digest.

  Args:
    config: of the run.
    settings: its method and batch size.
    base: the base model.
    stage: the policy before training, which is the reference.
    parts: name -> comparisons, whose rows are changed.
    targets: most targets of a row.
    workdir: where they are kept.
    mesh: where they are computed.
  """
  if settings.method.name in registry.REFERENCE_FREE:
    return ""
  rows = {name: part.rows for name, part in parts.items()}
  digest = reference.fingerprint(base, config.init_from, rows)
  params, frozen = roles.split(stage.role, stage.variables)
  program = make_reference(stage.role, targets)
  reference.load_or_compute(
    workdir,
    digest,
    rows,
    functools.partial(
      reference.compute,
      functools.partial(program, params, frozen),
      batch_size=settings.schedule.batch_size,
      pad_id=base.tokenizer.pad_id,
      mesh=mesh,
    ),
  )
  return digest


def make_update(
  role: roles.Role, settings: Settings, optimizer_: Any, targets: int | None
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, PreferenceBatch, key) -> ...

  Args:
    role: what trains.
    settings: method and microbatches.
    optimizer_: an optax.GradientTransformation.
    targets: most targets of a row, or None.
  """
  update = functools.partial(
    preference.update,
    algorithm=settings.method.module,
    algorithm_config=settings.method.config,
    config=settings.update,
    apply=functools.partial(apply, role=role, targets=targets),
    optimizer=optimizer_,
  )
  return jax.jit(update, donate_argnums=0)


@build.on_mesh
def run(config: Any, workdir: Path) -> dict:
  """Trains a policy on preferences; returns the numbers of stage.json.

  A finished run is not repeated: its stage.json is returned.
  """
  settings = read_settings(config)
  schedule = settings.schedule
  mesh = build.make_mesh(config)
  base = build.load_base(section(Model, config.model, "model"), mesh)
  info = stages.finished(workdir, "preference", base)
  if info is not None:
    return info
  stage = actors.starting_policy(config, base, mesh)
  train, held = load_data(config, settings, base)
  _report_balance(settings, train)
  rows = (*train.rows, *held.rows)
  targets = int(max(np.sum(row["loss_mask"]) for row in rows))
  digest = add_reference(
    config,
    settings,
    base,
    stage,
    {"train": train, "heldout": held},
    targets,
    workdir,
    mesh,
  )
  total = schedule.total_steps(len(train.pairs))
  tx = optimizer.make_optimizer(
    optimizer_section(config.optimizer, "optimizer", total)
  )
  loader = build.make_loader(
    mesh,
    np.arange(len(train.pairs)),
    schedule.batch_size,
    seed=config.seed,
    collate=_collate_of(train, base),
  )
  params, frozen = roles.split(stage.role, stage.variables)
  params = supervised.fit(
    make_update(stage.role, settings, tx, targets),
    loader,
    params,
    frozen,
    optimizer_=tx,
    mesh=mesh,
    seed=config.seed,
    phase="preference",
    workdir=workdir,
    schedule=schedule,
    total_steps=total,
    identity=stages.identity(base)
    | stages.origins(init_from=config.init_from)
    | {"algorithm": settings.method.name, "reference_fingerprint": digest},
    show=(
      ("pref/loss", "loss"),
      ("pref/acc", "accuracy"),
      ("pref/margin", "margin"),
    ),
  )
  found = evaluate(settings, base, stage.role, params, frozen, held, mesh)
  print(
    f"preference: held-out accuracy {found['pref/acc']:.3f}, margin "
    f"{found['pref/margin']:.3f} on {len(held.pairs)} rows"
  )
  stages.write_stage(
    workdir,
    "preference",
    base,
    stage.role,
    steps=total,
    examples=len(train.pairs),
    epochs=total * schedule.batch_size / len(train.pairs),
    algorithm={"name": settings.method.name}
    | dataclasses.asdict(settings.method.config),
    heldout=found,
    heldout_examples=len(held.pairs),
    reference_fingerprint=digest,
    init_from=config.init_from,
    merged_from=stage.info.get("merged_from", ""),
  )
  return stages.read_stage(workdir)


def _collate_of(data: inputs.Comparisons, base: build.Base):
  width = batches.bucket_length(max(len(r["tokens"]) for r in data.rows))
  return functools.partial(
    collate, data=data, width=width, pad_id=base.tokenizer.pad_id
  )


def _report_balance(settings: Settings, train: inputs.Comparisons) -> None:
  """Prints when KTO's two kinds of answers are out of balance."""
  if settings.method.module is not kto:
    return
  found = kto.balance(train.labels, settings.method.config)
  if not _BALANCE[0] <= found <= _BALANCE[1]:
    print(
      f"preference: warn: desirable answers weigh {found:.2f} times the "
      f"undesirable ones, and {_BALANCE[0]:g} to {_BALANCE[1]:g} is usual. Set "
      "algorithm.desirable_weight or undesirable_weight."
    )


def evaluate(
  settings: Settings,
  base: build.Base,
  role: roles.Role,
  params: PyTree,
  frozen: PyTree,
  held: inputs.Comparisons,
  mesh: jax.sharding.Mesh,
) -> dict[str, float]:
  """Returns the metrics of the loss on held-out rows.

  Args:
    settings: method and batch size.
    base: the base model.
    role: of the policy.
    params: trained tree.
    frozen: the rest.
    held: with reference log-probabilities where the method reads them.
    mesh: where it runs.
  """
  measure = jax.jit(
    functools.partial(
      preference.measure,
      algorithm=settings.method.module,
      algorithm_config=settings.method.config,
      apply=functools.partial(apply, role=role),
    )
  )
  size, count = settings.schedule.batch_size, len(held.pairs)
  to_batch = _collate_of(held, base)
  sums: dict[str, float] = {}
  for start in range(0, count, size):
    batch = to_batch([min(start + i, count - 1) for i in range(size)])
    batch.weight[count - start :] = 0.0
    batch = mesh_lib.spread_batch(mesh, batch)
    for name, x in distributed.fetch(measure(params, frozen, batch)).items():
      sums[name] = sums.get(name, 0.0) + float(x)
  return {name: float(x) for name, x in preference.means(sums).items()}
