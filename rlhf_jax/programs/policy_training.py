"""One step of policy training: sample, judge, shape, learn, tell.

The pipeline (pipelines/policy.py) runs it step after step; what it calls on the
devices is in policy_step.py, how samples are drawn and judged in rollouts.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, metrics
from rlhf_jax.algorithms.policy_gradient import kl_control, shaping
from rlhf_jax.data import stops
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import trees
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import actors as actors_lib
from rlhf_jax.programs import (
  critic,
  offload,
  policy_step,
  replay,
  resampling,
  rollouts,
)
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.watch import shown, text_metrics, unended, watch
from rlhf_jax.rewards import combination
from rlhf_jax.rewards import texts as texts_lib
from rlhf_jax.types import Array, PyTree, Rollout, Samples


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of policy training: (step, arrays, facts) -> the same, row.

  draw: see resampling.drawer.
  text: iterator of text mixed into the updates (PPO-ptx), or None.
  key: every step's keys are folded out of it.
  monitors: names of further scores that are logged.
  resting: the judge's weights where some are on the host between phases.
  panel: several judges, or None where one judges.
  store: of rollouts that are learned from again, or None.
  """

  settings: Settings
  phase: Phase
  actors: actors_lib.Actors
  draw: Callable[..., tuple[rollouts.Judged, dict]]
  text: Any
  tokenizer: Tokenizer
  key: Array
  timer: metrics.Timer
  monitors: tuple[str, ...]
  writer: metrics.MetricsWriter
  resting: offload.Frozen | None = None
  panel: combination.Panel | None = None
  store: replay.Store | None = None

  @staticmethod
  def of(
    settings: Settings,
    phase: Phase,
    source: rollouts.Source,
    text: Any,
    writer: metrics.MetricsWriter,
    store: replay.Store | None,
  ) -> Step:
    """Returns the step of a run on a source of judged samples."""
    return Step(
      settings=settings,
      phase=phase,
      actors=source.actors,
      draw=resampling.drawer(
        source,
        getattr(settings.method, "resample_rounds", 1),
        settings.group_size,
        settings.shaping.missing_eos == "mask",
      ),
      text=text,
      tokenizer=phase.base.tokenizer,
      key=jax.random.key(settings.seed),
      timer=source.timer,
      monitors=tuple(settings.monitors),
      writer=writer,
      resting=source.resting,
      panel=source.panel,
      store=store,
    )

  def __call__(
    self, step: int, arrays: PyTree, facts: dict
  ) -> tuple[PyTree, dict, dict]:
    """Returns the arrays and facts after a step, and its row of metrics."""
    arrays = arrays | {"beta": self._beta(arrays["beta"])}
    if self.store is not None and not self.store.config.fresh:
      return self._offline(step, arrays, facts)
    keys, resting = _step_keys(self.key, step), self.settings.offload
    if "optimizer" in resting.trees:
      with self.timer("offload"):
        arrays = offload.park(resting, arrays)
    is_pretraining = step < self.settings.value.pretrain_steps
    usual = facts.get("rows", 0)
    params = arrays["train"].params
    if is_pretraining:
      params = params | {"value": arrays["critic"].params}
    state = arrays.get("combination")
    judged, drawn = self._sample(params, keys[0], usual, state)
    facts = facts | {"rows": judged.rows}
    if resting.prefetch:
      arrays = offload.fetch(resting, arrays)
    if self.store is not None:
      self.store.keep(step, judged.rollout)
    rollout, moments, row = self._prepare(params, arrays, judged)
    arrays = offload.fetch(resting, arrays)
    arrays, found = self._learn(arrays, rollout, keys[1], step)
    if self.store is not None:
      arrays, again = self._replay(arrays, keys[1], step, facts["rows"])
      found = found | again
    beta = arrays["beta"]
    if not is_pretraining:
      beta = kl_control.update_kl_coefficient(
        beta,
        row["rollout/kl_k1_sum"],
        judged.rollout.tokens.shape[0],
        self.settings.shaping,
      )
    arrays = arrays | {"moments": moments, "beta": beta}
    moved, combined = self._move(judged, is_still=is_pretraining)
    arrays, row = arrays | moved, row | combined
    row = jax.device_get(row | drawn | found)
    row = {name: float(value) for name, value in row.items()}
    samples = distributed.fetch(rollouts.samples_of(judged.rollout))
    row |= self._describe(step, judged, samples)
    ends = stops.end_ids(self.tokenizer, self.settings.generate.stop_tokens)
    remedy = functools.partial(unended, self.tokenizer, samples, ends)
    shape = self.settings.shaping
    return arrays, watch(facts, row, step, shape, remedy), row

  def _beta(self, beta: Array) -> Array:
    """Returns the KL coefficient of a step: a fixed one is what settings say.

    The checkpoint of a run that goes on has what they said before. One that was
    0 is no start for a controller, which multiplies.
    """
    shape, now = self.settings.shaping, float(beta)
    said = np.float32(shape.kl_coefficient)
    follows = shape.kl_controller == "adaptive" and now > 0.0
    if follows or now == said:
      return beta
    return 0.0 * beta + said  # where beta is

  def _replay(
    self, arrays: PyTree, key: Array, step: int, usual: int
  ) -> tuple[PyTree, dict]:
    """Returns the arrays after the stored rollouts of a step, and metrics."""
    rows = []
    for number, judged in enumerate(self.store.draw(step, usual)):
      params = arrays["train"].params
      rollout, _, row = self._prepare(params, arrays, judged, "reweigh")
      turn = jax.random.fold_in(key, number + 1)
      arrays, found = self._learn(arrays, rollout, turn, step)
      rows.append(row | found)
    return arrays, self.store.summary(rows)

  def _offline(
    self, step: int, arrays: PyTree, facts: dict
  ) -> tuple[PyTree, dict, dict]:
    """Returns what a step without samples of its own does.

    rollout/* is of the last stored rollout under the policy as it is now: its
    samples are another policy's, so no alarm looks at it.
    """
    _, key = _step_keys(self.key, step)
    arrays, row = self._replay(arrays, key, step, facts.get("rows", 0))
    row = {k: float(x) for k, x in jax.device_get(row).items()}
    return arrays, facts, row | self.timer.pop()

  def _move(
    self, judged: rollouts.Judged, *, is_still: bool
  ) -> tuple[dict, dict]:
    """Returns the state of several judges after a rollout, and metrics.

    A multiplier is still while only the critic learns.
    """
    if self.panel is None:
      return {}, {}
    state, row = judged.combination, {}
    if not is_still:
      state, row = self.panel.update(state, judged.rollout)
    return {"combination": state}, row

  def _sample(
    self, params: PyTree, key: Array, usual: int, state: PyTree
  ) -> tuple[rollouts.Judged, dict]:
    value: PyTree = {}
    if "value" in params:
      value = trees.merge(params["value"], self._beside_value(params))
    several = () if state is None else (state,)
    return self.draw(params["policy"], value, key, usual, *several)

  def _beside_value(self, params: PyTree) -> PyTree:
    """Returns what the critic reads and does not train alone."""
    return critic.frozen_of(self.actors.plan, params, self.actors.frozen)

  def _prepare(
    self,
    params: PyTree,
    arrays: PyTree,
    judged: rollouts.Judged,
    again: str = "recompute",
  ) -> tuple[Rollout, shaping.Moments, dict]:
    """Returns the rollout with rewards and advantages, moments, metrics.

    `again` names the program that computes log-probabilities again.
    """
    rollout, gap = judged.rollout, {}
    with self.timer("score"):
      if again in self.phase:
        rollout, gap = self.phase[again](
          params, self.actors.frozen, rollout, judged.layout
        )
      if self.store is not None:
        rollout = replay.weighed_alike(rollout)
      rollout, moments, row = jax.block_until_ready(
        self.phase["prepare"](
          rollout,
          arrays["moments"],
          arrays["beta"],
          judged.layout,
          judged.further,
        )
      )
    return rollout, moments, row | gap

  def _learn(
    self, arrays: PyTree, rollout: Rollout, key: Array, step: int
  ) -> tuple[PyTree, dict]:
    pretrain = self.settings.value.pretrain_steps
    extra, frozen = (), self.actors.frozen
    if step < pretrain:
      beside = self._beside_value(arrays["train"].params)
      frozen = frozen | {"value": beside}
    with self.timer("update"):
      if self.text is not None and step >= pretrain:
        extra = (mesh_lib.shard_batch(self.phase.mesh, next(self.text)),)
      return jax.block_until_ready(
        policy_step.learn(
          self.phase,
          arrays,
          frozen,
          rollout,
          key,
          extra,
          is_pretraining=step < pretrain,
          is_last_pretraining=step + 1 == pretrain,
        )
      )

  def _describe(
    self, step: int, judged: rollouts.Judged, samples: Samples
  ) -> dict:
    """Returns metrics of texts, times and monitors; writes some samples.

    rollout/tokens_per_second: sampled tokens of the batch over the time of all
      its sampling, prompts and groups that were thrown away included.
    time/rollout_seconds: of sampling, in a step.
    """
    row = {
      f"eval/{name}": float(jnp.mean(judged.scores[name]))
      for name in self.monitors
    }
    if self.panel is None:
      row |= texts_lib.component_means(judged.scores)
    else:
      group = self.settings.generate.num_samples
      row |= self.panel.means(judged.scores, group)
    row |= self.timer.pop()
    row |= text_metrics(self.tokenizer, samples)
    sampled = float(np.sum(samples.response_mask))
    row["rollout/tokens_per_second"] = sampled / row["time/rollout_seconds"]
    texts = shown(self.tokenizer, samples, judged.scores)
    self.writer.write_samples(step + 1, texts, "policy")
    return row


@jax.jit
def _step_keys(key: Array, step: Array) -> tuple[Array, Array]:
  """Returns the keys of a step: of its samples, and of its updates."""
  sampling, learning = jax.random.split(jax.random.fold_in(key, step))
  return sampling, learning
