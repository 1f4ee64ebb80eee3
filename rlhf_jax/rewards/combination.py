"""What several judges say together: their scores become one.

named_judges.py says who they are, algorithms/combination what becomes of their
scores; docs/objectives.md.

reward/component/NAME is the mean of what a judge says, on its own scale, over
the answers that it judges, and is so before any condition.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, schema
from rlhf_jax.algorithms.combination import components, registry
from rlhf_jax.algorithms.policy_gradient import returns
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.rewards import named_judges, texts
from rlhf_jax.rewards.named_judges import Named
from rlhf_jax.rewards.texts import COMPONENT
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, Components, Metrics, PyTree, Rollout

COMBINATION = "combination/"  # before what a combination logs of each answer


@functools.lru_cache(maxsize=16)
def _program(module: Any, config: Any, judges: components.Judges) -> Any:
  """Returns the compiled (state, values, mask, tagged, rollout) -> scores."""

  def run(state, columns, mask, tagged, rollout, *, observes):
    raw = jnp.stack([columns[j.name] for j in judges], axis=1)
    raw = raw.astype(jnp.float32)
    values = components.conditioned(raw, mask, judges)
    found = Components(values=values, mask=mask, tagged=tagged)
    if observes:
      counts = returns.exists(rollout)
      state = module.observe(state, found, counts, judges, config)
    score = module.combine(found, state, judges, config)
    details = module.details(found, state, judges, config)
    shown = jnp.where(mask > 0, raw, jnp.nan)
    return found, score, state, details, shown

  return jax.jit(run, static_argnames="observes")


@functools.lru_cache(maxsize=16)
def _again(module: Any, config: Any, judges: components.Judges) -> Any:
  return jax.jit(
    lambda found, state: (
      module.combine(found, state, judges, config),
      module.details(found, state, judges, config),
    )
  )


@functools.lru_cache(maxsize=16)
def _update(module: Any, config: Any, judges: components.Judges) -> Any:
  def run(state, rollout):
    counts = returns.exists(rollout)
    return module.update(state, rollout.components, counts, judges, config)

  return jax.jit(run)


@dataclasses.dataclass(frozen=True)
class Panel:
  """The judges of a run, and the prompts that they judge.

  judges: their static part.
  method: the combination.
  readers: name -> what judges texts, of those that are no reward models.
  judged: [prompts, K] and tagged: [prompts], of the prompts of the data.
  mesh: where scores go.
  """

  judges: components.Judges
  method: schema.Method
  readers: dict[str, texts.Judge]
  judged: np.ndarray
  tagged: np.ndarray
  mesh: Any

  @property
  def components(self) -> tuple[str, ...]:
    """Names of the judges' scores among all that are logged."""
    return tuple(f"{COMPONENT}{judge.name}" for judge in self.judges)

  @property
  def _how(self) -> tuple[Any, Any, components.Judges]:
    return self.method.module, self.method.config, self.judges

  def __call__(
    self,
    rollout: Rollout,
    scores: dict[str, Any],
    index: Any,
    state: PyTree,
    *,
    observes: bool = True,
  ) -> tuple[Rollout, dict[str, Any], PyTree]:
    """Returns the rollout with score and components, all scores, the state.

    combination/by_safety: share of answers whose reward is the safety score
      (switch). Up is bad: more answers are unsafe, or their prompts are.
    combination/multiplier: lambda as used (lagrangian). Up without end is bad:
      the constraint cannot hold.

    Args:
      rollout: the samples of a prompt in contiguous rows.
      scores: of reward models, by name; those of the judges are in what is
        returned under COMPONENT + name, NaN where they do not judge.
      index: [P] number of each prompt in the data.
      state: of the combination.
      observes: whether the state sees these scores.
    """
    numbers = distributed.fetch(index)
    rows = np.repeat(numbers, rollout.tokens.shape[0] // len(numbers))
    found, logged = {}, {}
    for name, reader in self.readers.items():
      found[name], parts = reader(rollout, index)
      self._check_range(name, found[name])
      logged |= {
        f"{COMPONENT}{name}_{part.removeprefix(COMPONENT)}": x
        for part, x in parts.items()
      }
    own = {judge.name for judge in self.judges} - found.keys()
    found |= {name: scores[name] for name in own}
    on_host = {k: x for k, x in found.items() if isinstance(x, np.ndarray)}
    placed = mesh_lib.spread_batch(
      self.mesh,
      {
        "scores": on_host,
        "mask": self.judged[rows],
        "tagged": self.tagged[rows],
      },
    )
    parts, score, state, details, shown = _program(*self._how)(
      state,
      found | placed["scores"],
      placed["mask"],
      placed["tagged"],
      rollout,
      observes=observes,
    )
    scores = {name: x for name, x in scores.items() if name not in own}
    scores |= logged | self._named(details) | {"score": score}
    scores |= {name: shown[:, k] for k, name in enumerate(self.components)}
    return rollout.replace(score=score, components=parts), scores, state

  def _check_range(self, name: str, values: np.ndarray) -> None:
    """Checks that what is read as a probability is one."""
    if self.method.name != "switch":
      return
    if np.any((values < 0.0) | (values > 1.0)):
      wrong = values[(values < 0.0) | (values > 1.0)][0]
      raise UserError(
        f"config.judges.{name}: gave {wrong:g}; for combination.name='switch' "
        "a verifier or function gives a probability. Return numbers in [0, 1]."
      )

  def _named(self, details: dict[str, Array]) -> dict[str, Array]:
    return {f"{COMBINATION}{name}": x for name, x in details.items()}

  def again(self, found: Components, state: PyTree) -> dict[str, Array]:
    """Returns the scores [N] of components under another state, by name.

    Args:
      found: of a rollout.
      state: of the combination.

    Returns:
      "score", and what the combination logs.
    """
    score, details = _again(*self._how)(found, state)
    return {"score": score} | self._named(details)

  def update(self, state: PyTree, rollout: Rollout) -> tuple[PyTree, Metrics]:
    """Returns the state after a rollout, once each, and metrics.

    Args:
      state: that saw it.
      rollout: with components, all its answers.
    """
    if not registry.moves(self.method.module):
      return state, {}
    return _update(*self._how)(state, rollout)

  def means(self, scores: Mapping[str, Any], group: int) -> dict[str, float]:
    """Returns the means of what judges said, with standard errors.

    Metrics:
      reward/component/NAME: mean score of a judge over the answers that it
        judges, on its own scale. Falling of one while others rise is bad: the
        policy trades it away.
      reward/component/NAME_standard_error: over prompts, of whose answers the
        mean is taken first; absent with one prompt.

    Args:
      scores: name -> [N]; NaN where a judge does not judge.
      group: answers to a prompt, which are contiguous rows.
    """
    kept = (COMPONENT, COMBINATION)
    scores = {k: x for k, x in scores.items() if k.startswith(kept)}
    found = {}
    for name, values in distributed.fetch(scores).items():
      full = name if name.startswith(COMBINATION) else f"reward/{name}"
      mean, error = mean_and_error(np.asarray(values).reshape(-1, group))
      if mean is not None:  # some answer is judged
        found[full] = mean
      if error is not None and name in self.components:
        found[f"{full}_standard_error"] = error
    return found


def open_panel(
  named: Mapping[str, Named],
  method: schema.Method,
  data: Data,
  tokenizer: Tokenizer,
  mesh: Any,
  *,
  is_whole: bool = True,
) -> Panel | None:
  """Returns the judges of answers to these prompts, None without any.

  Args:
    named: from `read`; {} for none.
    method: the combination.
    data: the section of the prompts.
    tokenizer: of the policy.
    mesh: where everything is.
    is_whole: every kind that a judge names must be among the prompts; held-out
      ones may be fewer.

  Raises:
    UserError: a prompt that nobody can judge, or that a judge cannot.
  """
  if not named:
    return None
  judges = named_judges.judges_of(named, method)
  found, _ = dataset.records(data, tokenizer)
  by = getattr(method.config, "by", "")
  judged = named_judges.prompts_judged(found, named, by, is_whole=is_whole)
  readers = {}
  for k, (name, judge) in enumerate(named.items()):
    parts = judge.bound(f"judges.{name}.reward_fn")
    if parts is not None:
      rows = judged[:, k] > 0
      readers[name] = texts.load(parts, data, tokenizer, rows)
  names = [judge.name for judge in judges]
  names += [f"{n}_{part}" for n, x in readers.items() for part in x.logged]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise UserError(
      f"config.judges: {twice[0]!r} is a judge, and what another one logs. "
      "Call the judge otherwise."
    )
  field = getattr(method.config, "tagged_by", "")
  return Panel(
    judges=judges,
    method=method,
    readers=readers,
    judged=judged,
    tagged=named_judges.prompts_tagged(found, field),
    mesh=mesh,
  )


def init_state(named: Mapping[str, Named], method: schema.Method) -> PyTree:
  """Returns the state of a combination before the first rollout."""
  return method.module.init(
    named_judges.judges_of(named, method), method.config
  )


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
  """Returns the mean of [P, G] and its standard error over prompts.

  Args:
    values: NaN where nobody judges; a prompt is judged whole or not at all.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values).any(axis=1)]
  if not values.size:
    return None, None
  mean = float(np.mean(values))
  if len(values) == 1:
    return mean, None
  return mean, float(values.mean(axis=1).std(ddof=1) / np.sqrt(len(values)))
