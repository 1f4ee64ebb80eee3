"""Comparisons as a policy learns from them: batches, log-probs, one update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed
from rlhf_jax.algorithms.preference import kto
from rlhf_jax.algorithms.preference import update as preference
from rlhf_jax.data import batches, dataset, layout
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import (
  build,
  by_value,
  features,
  language_model,
  shared_rows,
)
from rlhf_jax.programs.program import Phase
from rlhf_jax.schema import Method
from rlhf_jax.types import Array, PreferenceBatch, PyTree

_BALANCE = (1.0, 1.5)  # of desirable to undesirable weight, for KTO


def apply(
  params: PyTree,
  frozen: PyTree,
  batch: PreferenceBatch,
  *,
  role: roles.Role,
  targets: int | None = None,
) -> Array:
  """Returns log-probabilities [B, K, L] of the candidates' own tokens."""
  rows = shared_rows.tokens_of(batch)
  logprobs, _ = language_model.logprobs(
    params, frozen, rows, role=role, targets=targets
  )
  return shared_rows.spread(logprobs, batch)


def collate(
  pairs: list[int], *, data: dataset.Comparisons, width: int, pad_id: int
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


def collate_of(
  data: dataset.Comparisons, pad_id: int, shape: layout.Shape | None = None
) -> Callable[[list[int]], PreferenceBatch]:
  """Returns the collate function of a data set: numbers -> a batch.

  Args:
    data: comparisons.
    pad_id: fills tokens.
    shape: of rows that the candidates share, if they do.
  """
  width = batches.bucket_length(max(len(r["tokens"]) for r in data.rows))
  alone = functools.partial(collate, data=data, width=width, pad_id=pad_id)
  if shape is None:
    return alone
  return lambda numbers: shared_rows.placed(alone(numbers), shape)


def make_update(
  role: roles.Role,
  algorithm: Method,
  config: preference.Config,
  transform: Any,
  targets: int | None,
  *,
  mesh: Any = None,
  donates: bool = True,
) -> Callable[..., Any]:
  """Returns the compiled step: (state, frozen, PreferenceBatch, key) -> ...

  Args:
    role: what trains.
    algorithm: the method.
    config: microbatches.
    transform: an optax.GradientTransformation.
    targets: most targets of a row, or None.
    mesh: where it runs; None for where JAX computes by default.
    donates: whether the new state takes the memory of the old one.
  """
  update = functools.partial(
    preference.update,
    algorithm=algorithm.module,
    algorithm_config=algorithm.config,
    config=config,
    apply=functools.partial(apply, role=role, targets=targets),
    optimizer=transform,
  )
  return jax.jit(
    update,
    donate_argnums=0 if donates else (),
    compiler_options=build.compiler_options(role, mesh),
  )


def evaluator(
  algorithm: Method,
  batch_size: int,
  phase: Phase,
  frozen: PyTree,
  held: dataset.Comparisons,
) -> Callable[..., dict[str, float]]:
  """Returns trained tree -> the metrics of the loss on held-out rows.

  It takes the numbers of some of the comparisons, too.

  Args:
    algorithm: the method.
    batch_size: comparisons at a time.
    phase: whose role.
    frozen: what does not train.
    held: with reference log-probabilities where the method reads them.
  """
  measure = jax.jit(
    functools.partial(
      preference.measure,
      algorithm=algorithm.module,
      algorithm_config=algorithm.config,
      apply=functools.partial(apply, role=phase.role),
    )
  )
  size = batch_size
  to_batch = collate_of(held, phase.base.tokenizer.pad_id)

  def evaluate(
    params: PyTree, numbers: np.ndarray | None = None
  ) -> dict[str, float]:
    if numbers is None:
      numbers = np.arange(len(held.pairs))
    sums: dict[str, float] = {}
    count = len(numbers)
    for start in range(0, count, size):
      chosen = [min(start + i, count - 1) for i in range(size)]
      batch = to_batch([int(numbers[i]) for i in chosen])
      batch.weight[count - start :] = 0.0
      batch = mesh_lib.spread_batch(phase.mesh, batch)
      found = distributed.fetch(measure(params, frozen, batch))
      for name, x in found.items():
        sums[name] = sums.get(name, 0.0) + float(x)
    return {name: float(x) for name, x in preference.means(sums).items()}

  return evaluate


def values_of(held: dataset.Comparisons) -> list[str]:
  """Returns the values that held-out comparisons are told by; [] for none."""
  return [] if held.values is None else sorted(set(held.values))


def measure_by(
  evaluate: Callable[..., dict[str, float]],
  held: dataset.Comparisons,
  params: PyTree,
) -> dict[str, float]:
  """Returns the metrics of each value of data.by; {} without one.

  Metrics:
    validation/loss_VALUE, validation/accuracy_VALUE: of the comparisons with a
      value, such as a language. Loss above its start, accuracy below it: it is
      forgotten.
    validation/nll_chosen_VALUE: -log p of their preferred answers, nats an
      answer. Above its start is bad: the language itself is being forgotten.

  Args:
    evaluate: from `evaluator`.
    held: the comparisons.
    params: trained tree.
  """
  found = {}
  for value in values_of(held):
    own = evaluate(params, np.flatnonzero(held.values == value))
    told = {
      "loss": own["preference/loss"],
      "accuracy": own["preference/accuracy"],
      "nll_chosen": -own["preference/logprob_chosen"],
    }
    found |= {by_value.metric(name, value): x for name, x in told.items()}
  return found


def report_balance(algorithm: Method, labels: np.ndarray, name: str) -> None:
  """Prints when KTO's two kinds of answers are out of balance.

  Args:
    algorithm: the method; of others nothing is said.
    labels: of judged answers, [N].
    name: phase in the message.
  """
  if algorithm.module is not kto:
    return
  found = kto.balance(labels, algorithm.config)
  if not _BALANCE[0] <= found <= _BALANCE[1]:
    print(
      f"{name}: warn: desirable answers weigh {found:.2f} times the "
      f"undesirable ones, and {_BALANCE[0]:g} to {_BALANCE[1]:g} is usual. Set "
      "algorithm.desirable_weight or undesirable_weight."
    )
