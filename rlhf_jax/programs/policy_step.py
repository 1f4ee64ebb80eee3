"""The programs of one step of policy training.

  sample   prompts -> samples, log-probabilities from the sampler
  judge    samples -> rollout with reference, values, scores
  prepare  rollout -> shaped rewards and the method's advantages, packed
  update   state, rollout -> state

`wire` makes them for a run, with loaded actors, and for a plan, with abstract
ones. pipelines/policy.py calls them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import generate, ops, optimizer
from rlhf_jax.algorithms.policy_gradient import (
  groups,
  importance,
  packing,
  registry,
  remax,
  shaping,
)
from rlhf_jax.algorithms.policy_gradient import update as pg
from rlhf_jax.models import roles, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import abstract, build, language_model, supervised
from rlhf_jax.programs.actors import Actors
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.programs.program import (
  Flow,
  Phase,
  Program,
  Sampler,
  known_steps,
  prompt_width,
)
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge, texts
from rlhf_jax.types import Array, Metrics, PyTree, Rollout


def ptx_apply(params: PyTree, frozen: PyTree, batch: Any, *, role: roles.Role):
  """Returns log-probabilities and entropies of pre-training text."""
  return language_model.logprobs(
    params["policy"], frozen["policy"], batch, role=role
  )


def prepare(
  rollout: Rollout,
  moments: shaping.Moments,
  beta: Array,
  layout: packing.Packing | None,
  further: dict[str, Rollout],
  *,
  settings: Settings,
) -> tuple[Rollout, shaping.Moments, Metrics]:
  """Returns the rollout with rewards, advantages and returns, packed.

  Args:
    rollout: judged.
    moments: of the scores of earlier rollouts.
    beta: KL coefficient.
    layout: how to pack, or None.
    further: name -> the judged further answers that the method wants.
    settings: of the reward and the method.
  """
  rollout, moments, row = shaping.shape_rewards(
    rollout, moments, beta, settings.shaping
  )
  if "greedy" in further:
    scores = shaping.shaped_scores(further["greedy"], moments, settings.shaping)
    rollout = remax.with_baseline(rollout, scores)
  rollout = settings.algorithm.module.advantages(rollout, settings.method)
  if settings.group_size is not None:
    row |= groups.metrics(
      rollout, settings.group_size, texts.correct_above(settings.text_judge)
    )
  row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  if layout is not None:
    rollout = packing.pack_rollout(rollout, layout)
    row["rollout/fill"] = jnp.mean(rollout.valid_mask)
  return rollout, moments, row


def recompute(
  params: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  *,
  apply: Callable[..., tuple[Array, Array, Array | None]],
  weights: importance.Config,
) -> tuple[Rollout, Metrics]:
  """Returns the rollout with behaviour log-probs of the training program.

  Below float32 the sampler, which decodes token by token, rounds otherwise
  than the trainer; the importance ratio and the KL would carry the difference
  (METHODS N3). rollout/sampler_gap: its mean size in nats a token. Up is bad.
  The samples stay the sampler's: `weights` makes up for that, where it is on.
  """
  logprobs, _, _ = apply(params, frozen, rollout)
  mask = rollout.response_mask
  gap = ops.masked_mean(jnp.abs(logprobs - rollout.behaviour_logprobs), mask)
  sampler_logprobs = rollout.behaviour_logprobs
  rollout = rollout.replace(
    behaviour_logprobs=jnp.where(mask > 0, logprobs, 0.0)
  )
  rollout, found = importance.weigh(rollout, sampler_logprobs, weights)
  return rollout, found | {"rollout/sampler_gap": gap}


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions of a step, compiled when they are first called."""

  judge: Callable[..., tuple[Rollout, dict[str, Array]]]
  prepare: Callable[..., tuple[Rollout, shaping.Moments, Metrics]]
  update: Callable[..., tuple[Any, Metrics]]
  value_update: Callable[..., tuple[Any, Metrics]] | None
  recompute: Callable[..., tuple[Rollout, Metrics]] | None


def make_functions(
  settings: Settings,
  plan: judge.Plan,
  transforms: dict[str, Any],
  mesh: jax.sharding.Mesh,
) -> Functions:
  """Returns the functions of a step; nothing compiles yet."""
  constrain = functools.partial(mesh_lib.constrain_rows, mesh)
  apply = functools.partial(
    judge.policy_and_value,
    plan=plan,
    frozen_unembedding=not roles.trains_unembedding(plan.policy)
    and settings.method.entropy_coefficient == 0.0,
  )
  update = functools.partial(
    pg.update,
    algorithm=settings.algorithm.module,
    algorithm_config=settings.method,
    config=settings.epochs,
    apply=apply,
    optimizer=transforms["both"],
    constrain=constrain,
    ptx_apply=functools.partial(ptx_apply, role=plan.policy)
    if settings.has_ptx
    else None,
  )
  value_update = None
  if settings.has_critic:
    value_update = functools.partial(
      pg.value_update,
      config=settings.epochs,
      apply=functools.partial(judge.value_only, plan=plan),
      optimizer=transforms["value"],
      constrain=constrain,
    )
    value_update = jax.jit(value_update, donate_argnums=0)
  again = functools.partial(recompute, apply=apply, weights=settings.importance)
  is_exact = plan.policy.model.dtype == "float32"
  return Functions(
    judge=judge.make_judge(plan),
    prepare=jax.jit(functools.partial(prepare, settings=settings)),
    update=jax.jit(update, donate_argnums=0),
    value_update=value_update,
    recompute=None if is_exact else jax.jit(again),
  )


def make_transforms(settings: Settings, total: int) -> dict[str, Any]:
  """Returns optimizers: "both" of PPO and "value" of critic pre-training.

  Each schedule runs over the updates of its own part: `total` rollouts, of
  which the first value.pretrain_steps are for the critic alone.
  """
  pretrain, each = settings.value.pretrain_steps, settings.updates
  fit = functools.partial(
    build.optimizer_of_run, settings.value_optimizer, "value_optimizer"
  )
  policy = build.optimizer_of_run(
    settings.policy_optimizer, "policy_optimizer", (total - pretrain) * each
  )
  if not settings.has_critic:
    return {"both": optimizer.make_labelled({"policy": policy})}
  both = {"policy": policy, "value": fit((total - pretrain) * each)}
  alone = fit((pretrain if pretrain else total) * each)
  return {
    "both": optimizer.make_labelled(both),
    "value": optimizer.make_optimizer(alone),
  }


def further(settings: Settings) -> dict[str, generate.Config]:
  """Returns how further answers to each prompt are sampled, by their name."""
  if settings.algorithm.name not in registry.NEEDS_GREEDY:
    return {}
  greedy = dataclasses.replace(
    settings.generate, temperature=0.0, num_samples=1, batch_size=None
  )
  return {"greedy": greedy}


def initial_arrays(
  params: PyTree,
  *,
  transforms: dict[str, Any],
  beta: float,
  has_pretraining: bool,
) -> PyTree:
  """Returns what a run carries from step to step, before the first."""
  arrays = {
    "train": supervised.initial_state(params, transforms["both"]),
    "moments": shaping.init_moments(),
    "beta": jnp.float32(beta),
  }
  if has_pretraining:
    arrays["critic"] = supervised.initial_state(
      params["value"], transforms["value"]
    )
  return arrays


def wire(
  settings: Settings, world: World, base: Base, actors: Actors, total: int
) -> tuple[Phase, Sampler]:
  """Returns the phase of policy training, and what samples its policy.

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    actors: loaded, or abstract.
    total: rollouts, those for the critic alone included.
  """
  transforms = make_transforms(settings, total)
  arrays = world.state(
    functools.partial(
      initial_arrays,
      transforms=transforms,
      beta=settings.shaping.kl_coefficient,
      has_pretraining=settings.value.pretrain_steps > 0,
    ),
    actors.params,
  )
  made = make_functions(settings, actors.plan, transforms, world.mesh)
  sampler = Sampler(
    actors.plan.policy, actors.frozen["policy"], base, settings.generate
  )
  calls = known_steps(settings.schedule)
  if calls is not None:
    calls += settings.value.pretrain_steps
  programs = sampler.programs(
    world.mesh,
    arrays["train"].params["policy"],
    settings.prompts,
    settings.schedule.batch_size,
    calls=calls,
  )
  wired = _Wired(settings, world, base, actors, arrays, made, calls)
  programs += [*wired.judging(), *wired.updates()]
  phase = Phase(
    name="policy",
    world=world,
    base=base,
    arrays=arrays,
    frozen=(base.params, actors.weights, actors.frozen),
    programs=tuple(programs),
    step=tuple(p.name for p in programs if p.name != "value update"),
    role=actors.plan.policy,
  )
  return phase, sampler


@dataclasses.dataclass(frozen=True)
class _Wired:
  """What the programs after sampling share."""

  settings: Settings
  world: World
  base: Base
  actors: Actors
  arrays: PyTree
  made: Functions
  calls: float | None

  @property
  def shape(self) -> tuple[int, int, int]:
    """Rows of a rollout, tokens of a row, response tokens of a row."""
    settings = self.settings
    new = settings.generate.max_new_tokens
    width = prompt_width(settings.prompts, settings.generate, self.base)
    return settings.answers, width + new, new

  def packed(self) -> tuple[packing.Packing | None, int, int]:
    """Returns the layout of packed rows, their number and their length.

    At worst every sample has its full length.
    """
    rows, length, new = self.shape
    packed = self.settings.packing
    if not packed.row_tokens:
      return None, rows, length
    in_a_row = min(packed.row_tokens // length, packed.targets // new)
    count = -(-rows // max(in_a_row, 1))
    count = -(-count // packed.row_multiple) * packed.row_multiple
    layout = abstract.packed_layout(
      self.world.mesh, (rows, length), (count, packed.row_tokens)
    )
    return layout, count, packed.row_tokens

  def judging(self) -> list[Program]:
    """Returns the programs between sampling and learning."""
    actors, arrays = self.actors, self.arrays
    rows, length, new = self.shape
    passes = Passes(self.world.mesh)

    def judged(flow: Flow) -> tuple[tuple, dict]:
      value: PyTree = {}
      if actors.plan.value is not None:
        trained = arrays["train"].params["value"]
        value = trees.merge(trained, actors.frozen["value"])
      samples = abstract.samples_of(flow["decoded"], self.world.mesh, rows)
      return (actors.weights, value, samples, self.packed()[0]), {}

    def recomputed(flow: Flow) -> tuple[tuple, dict]:
      rollout, _ = flow["judged"]
      return (arrays["train"].params, actors.frozen, rollout), {}

    def prepared(flow: Flow) -> tuple[tuple, dict]:
      rollout, _ = flow.get("recomputed", flow["judged"])
      layout, _, _ = self.packed()
      return (rollout, arrays["moments"], arrays["beta"], layout, {}), {}

    make = functools.partial(Program, rows=rows, calls=self.calls)
    judge_ = make(
      name="judge",
      function=self.made.judge,
      arguments=judged,
      work=lambda: passes.judge(actors.plan, rows, length, new),
      result="judged",
    )
    again = make(
      name="recompute",
      function=self.made.recompute,
      arguments=recomputed,
      work=lambda: passes.policy_and_value(actors.plan, rows, length, new),
      result="recomputed",
    )
    prepare_ = make(
      name="prepare",
      function=self.made.prepare,
      arguments=prepared,
      result="prepared",
    )
    return [
      judge_,
      *([again] if self.made.recompute is not None else []),
      prepare_,
    ]

  def updates(self) -> list[Program]:
    """Returns the update, and the critic's alone where there is one."""
    settings, actors, arrays = self.settings, self.actors, self.arrays
    key = functools.partial(abstract.key, self.world.mesh)
    _, rows, _ = self.packed()
    pretrain = settings.value.pretrain_steps
    calls = None if self.calls is None else self.calls - pretrain

    def extra() -> tuple:
      if not settings.has_ptx:
        return ()
      length, count = settings.ptx.row_length, settings.ptx_batch_size
      return (abstract.token_batch(self.world.mesh, count, length, False),)

    update = Program(
      name="update",
      function=self.made.update,
      arguments=lambda flow: (
        (arrays["train"], actors.frozen, flow["prepared"][0], key(), *extra()),
        {},
      ),
      rows=rows,
      work=self._update_work,
      donates=0,
      calls=calls,
    )
    if "critic" not in arrays:
      return [update]
    alone = Program(
      name="value update",
      function=self.made.value_update,
      arguments=lambda flow: (
        (
          arrays["critic"],
          actors.frozen["value"],
          flow["prepared"][0],
          key(),
        ),
        {},
      ),
      rows=rows,
      work=lambda: self._role_work("value"),
      donates=0,
      calls=pretrain,
    )
    return [update, alone]

  def _role_work(self, name: str) -> Work:
    """Returns what training a role on one rollout computes."""
    plan, epochs = self.actors.plan, self.settings.epochs
    _, rows, width = self.packed()
    return Passes(self.world.mesh).training(
      getattr(plan, name),
      abstract.bytes_of(self.arrays["train"].params[name]),
      rows,
      width,
      plan.row_targets,
      parts=epochs.minibatches * epochs.microbatches,
      steps=epochs.minibatches,
      repeats=epochs.epochs,
      is_lower_known=name in plan.shared,
    )

  def _update_work(self) -> Work:
    settings, plan = self.settings, self.actors.plan
    total = self._role_work("policy")
    if plan.value is not None:
      total += self._role_work("value")
    if settings.has_ptx:
      length, epochs = settings.ptx.row_length, settings.epochs
      total += Passes(self.world.mesh).training(
        plan.policy,
        abstract.bytes_of(self.arrays["train"].params["policy"]),
        settings.ptx_batch_size,
        length,
        length,
        parts=epochs.minibatches * epochs.microbatches,
        repeats=epochs.epochs,
      )
    return total


def learn(
  phase: Phase,
  arrays: PyTree,
  frozen: PyTree,
  rollout: Rollout,
  key: Array,
  extra: tuple,
  *,
  is_pretraining: bool,
  is_last_pretraining: bool,
) -> tuple[PyTree, Metrics]:
  """Returns the arrays after the updates of one rollout, and metrics."""
  state = arrays["train"]
  if not is_pretraining:
    state, found = phase["update"](state, frozen, rollout, key, *extra)
    return arrays | {"train": state}, found
  critic, found = phase["value update"](
    arrays["critic"], frozen["value"], rollout, key
  )
  arrays = arrays | {"critic": critic}
  if is_last_pretraining:
    trained = jax.tree.map(jnp.copy, critic.params)
    arrays["train"] = state.replace(params=state.params | {"value": trained})
    # A refused last step must not count against the policy for ever.
    arrays["critic"] = critic.replace(skipped=jnp.zeros_like(critic.skipped))
  return arrays, found
