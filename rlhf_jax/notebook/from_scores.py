"""Learners from samples and scores: every policy-gradient method."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import generate, schema
from rlhf_jax.algorithms.policy_gradient import (
  importance,
  kl_control,
  objectives,
  registry,
  shaping,
  update,
)
from rlhf_jax.models import trees
from rlhf_jax.models.pretrained import Model
from rlhf_jax.models.roles import Trainable
from rlhf_jax.notebook import critics
from rlhf_jax.notebook.learner import (
  Learner,
  check_optimizer,
  check_parts,
  checked_scores,
  metrics_of,
  placed,
)
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import policy_step, rollouts, sampled_settings
from rlhf_jax.programs.policy_settings import Settings
from rlhf_jax.rewards import judge
from rlhf_jax.runs import stages
from rlhf_jax.schema import Method, UserError
from rlhf_jax.types import PyTree, Rollout

# The score is the reward: no KL, no clip. Say more with shaping=.
PLAIN = shaping.Config(kl_coefficient=0.0, kl_controller="fixed", clip=None)
ONE_STEP = update.Config(epochs=1, minibatches=1)  # of the optimizer a rollout
NO_WEIGHTS = importance.Config()


@dataclasses.dataclass(frozen=True)
class Told(Settings):
  """Settings of a run, with functions in the place of import paths."""

  own_objective: Callable[..., Any] | None = None
  own_advantages: Callable[..., Any] | None = None

  @property
  def objective(self) -> Callable[..., Any] | None:
    """The policy objective in place of the method's, or None."""
    return self.own_objective

  @property
  def advantages(self) -> Callable[..., Any]:
    """The method's advantages, or those in their place."""
    own = self.own_advantages
    return self.algorithm.module.advantages if own is None else own


def _listed(changes: Mapping[str, Any]) -> str:
  given = {name: x for name, x in changes.items() if x is not None}
  return ", ".join(f"{name}={x!r}" for name, x in given.items())


@dataclasses.dataclass(frozen=True, eq=False)
class FromScores(Learner):
  """Learns from samples and their scores: every policy-gradient method.

  critic: before training, or None.
  needs_reference: whether the KL to the start is computed.
  objective, advantages: in place of the method's, or None.
  made: compiled functions, by how samples are drawn.
  """

  shaping: shaping.Config
  epochs: update.Config
  importance: importance.Config
  critic: stages.Stage | None
  needs_reference: bool
  objective: Callable[..., Any] | None
  advantages: Callable[..., Any] | None
  made: dict = dataclasses.field(default_factory=dict)

  def __call__(
    self,
    policy: Any,
    samples: Any,
    scores: Any,
    *,
    further: Mapping[str, tuple[Any, Any]] | None = None,
  ) -> tuple[Any, dict[str, float]]:
    """Returns the policy after the updates of one rollout, and metrics.

    Args:
      policy: what trains; it drew the samples.
      samples: [N] from policy.sample.
      scores: [N] numbers, one for each text.
      further: name -> (samples, scores) of further answers to the prompts,
        where a method wants them: {"greedy": ...} for ReMax, from
        policy.sample(prompts, key, temperature=0.0).

    Raises:
      UserError: what does not go together; value, rule and remedy.
    """
    self.check(policy)
    rows = len(samples.tokens)
    how = self._how(samples)
    found = checked_scores(scores, rows, "scores")
    further = self._further(further, rows)
    with mesh_lib.current(policy.mesh):
      made, weights = self._functions(how)
      arrays = self._arrays(policy)
      state = arrays["train"]
      frozen, critic = {"policy": policy.frozen}, {}
      if self.critic is not None:
        frozen["value"] = self.critic.parts[1]
        critic = trees.merge(state.params["value"], frozen["value"])
      judged = functools.partial(self._judged, made, weights, critic)
      rollout, gap = judged(samples, found), {}
      others = {
        name: judged(more, given) for name, (more, given) in further.items()
      }
      if made.recompute is not None:
        rollout, gap = made.recompute(state.params, frozen, rollout)
      rollout, moments, row = made.prepare(
        rollout, arrays["moments"], arrays["beta"], None, others
      )
      state, learnt = made.update(state, frozen, rollout, self.key(policy))
      with schema.as_field("shaping."):
        beta = kl_control.update_kl_coefficient(
          arrays["beta"], row["rollout/kl_k1_sum"], rows, self.shaping
        )
    if not self.needs_reference:  # the policy's own stand in their place
      row = {k: x for k, x in row.items() if not k.startswith("rollout/kl_")}
    arrays = {"train": state, "moments": moments, "beta": beta}
    policy = self.after(policy, state.params["policy"], arrays)
    return policy, metrics_of(row | gap | learnt, state)

  def _how(self, samples: Any) -> generate.Config:
    """Returns how samples were drawn; checks them against the method."""
    how, rows = getattr(samples, "how", None), len(samples.tokens)
    if how is None:
      raise UserError(
        f"samples are a {type(samples).__name__}, which does not say how they "
        "were drawn. Take those of policy.sample, or lab.Sampled("
        "**vars(samples), how=generate.Config(...))."
      )
    sampled_settings.check_sampling(how)
    sampled_settings.check_cache(how, self.start.role.model.dtype)
    group = getattr(self.method.config, "group_size", None)
    if group is not None and group != how.num_samples:
      raise UserError(
        f"group_size={group}: the samples were drawn with num_samples="
        f"{how.num_samples}, and a group is all the answers to one prompt. "
        f"Sample with num_samples={group}, or set group_size="
        f"{how.num_samples}."
      )
    if rows % how.num_samples:
      raise UserError(
        f"{rows} samples: no multiple of num_samples={how.num_samples}. Keep "
        "all the answers to a prompt, beside each other."
      )
    parts = self.epochs.minibatches * self.epochs.microbatches
    check_parts(rows, parts, "epochs: minibatches x microbatches")
    return how

  def _further(self, given: Any, rows: int) -> dict[str, tuple[Any, Any]]:
    """Returns the further answers, checked against the method."""
    found = {} if given is None else dict(given)
    wanted = registry.further_of(self.method.module, self.method.config)
    if set(found) != set(wanted):
      told = [
        f"{name!r} (sampled with {_listed(changes)})"
        for name, changes in wanted.items()
      ]
      raise UserError(
        f"further={sorted(found)}: {self.method.name} reads "
        f"{', '.join(told) if told else 'none'}. Give further={{NAME: (samples,"
        " scores)} of what it reads and nothing else."
      )
    for name, (samples, scores) in found.items():
      count = len(samples.tokens)
      if rows % count:
        raise UserError(
          f"further {name}: {count} samples beside {rows}. Give as many to "
          "each prompt."
        )
      found[name] = samples, checked_scores(scores, count, f"further {name}")
    return found

  def _functions(
    self, how: generate.Config
  ) -> tuple[policy_step.Functions, judge.Weights]:
    """Returns the functions of a step for samples drawn so, and weights."""
    start = self.start
    reference = start.stage if self.needs_reference else None
    name = (how.temperature, how.max_new_tokens, how.num_samples)
    if name not in self.made:
      plan = judge.make_plan(
        start.base,
        start.stage,
        reference,
        self.critic,
        {},
        how.temperature,
        how.max_new_tokens,
      )
      made = policy_step.make_functions(
        self.settings(how),
        plan,
        {"both": self.optimizer},
        start.mesh,
        donates=self.donates,
      )
      weights = judge.Weights(
        base=start.base.params if plan.shared else {},
        reference={} if reference is None else reference.variables,
        scorers={},
      )
      self.made[name] = (made, weights)
    return self.made[name]

  def settings(self, how: generate.Config) -> Told:
    """Returns the same as a run's settings."""
    role = self.start.role
    return Told(
      model=Model(dtype=role.model.dtype, lora_rank=role.model.lora_rank),
      trainable=Trainable(role.trainable, role.first_layer),
      generate=how,
      algorithm=self.method,
      shaping=self.shaping,
      epochs=self.epochs,
      importance=self.importance,
      own_objective=self.objective,
      own_advantages=self.advantages,
    )

  def _arrays(self, policy: Any) -> PyTree:
    """Returns what travels with a policy, its own params among them."""
    arrays, params = self.carried(policy), {"policy": policy.params}
    if arrays is not None:
      state = arrays["train"]
      return arrays | {"train": state.replace(params=state.params | params)}
    if self.critic is not None:
      params["value"] = self.critic.parts[0]
    return {"train": self.first_state(params)} | placed(
      policy.mesh,
      {
        "moments": shaping.init_moments(),
        "beta": jnp.float32(self.shaping.kl_coefficient),
      },
    )

  def _judged(
    self,
    made: policy_step.Functions,
    weights: judge.Weights,
    critic: PyTree,
    samples: Any,
    scores: np.ndarray,
  ) -> Rollout:
    """Returns samples with everything that an update reads but advantages."""
    mesh = self.start.mesh
    plain = mesh_lib.spread_batch(mesh, rollouts.samples_of(samples))
    rollout, _ = made.judge(weights, critic, plain, None)
    placed = mesh_lib.spread_batch(mesh, {"score": scores})["score"]
    return rollout.replace(score=placed)


def _by_part(optimizer: Any, parts: tuple[str, ...]) -> Any:
  """Returns one transformation for params {"policy", "value"?}."""
  given = optimizer
  if not isinstance(given, dict):
    given = dict.fromkeys(parts, optimizer)
  if set(given) != set(parts):
    raise UserError(
      f"optimizer for {sorted(given)}: trained are {sorted(parts)}. Give one "
      "for each, or one for all."
    )
  return optax.multi_transform(
    {name: check_optimizer(each) for name, each in given.items()},
    lambda params: {name: name for name in params},
  )


def from_scores(
  policy: Any,
  method: Method,
  optimizer: Any,
  *,
  shaping: shaping.Config = PLAIN,
  epochs: update.Config = ONE_STEP,
  importance: importance.Config = NO_WEIGHTS,
  critic: Any = None,
  has_reference: bool | None = None,
  objective: Callable[..., Any] | None = None,
  advantages: Callable[..., Any] | None = None,
  seed: int = 0,
  donates: bool = False,
) -> FromScores:
  """Returns the learner of a policy-gradient method.

  Args:
    policy: before training; the reference.
    method: with its Config.
    optimizer: optax transformation, or {"policy": ..., "value": ...}.
    shaping: from scores to rewards; PLAIN where it is not given.
    epochs: how often a rollout is used; one step where it is not given.
    importance: weights of trainer against sampler, below float32.
    critic: a RewardModel to start as, or critic.Value(init="random", mode=...)
      for one that starts at 0 on the policy's weights; for PPO only.
    has_reference: whether the KL to `policy` is computed; None where shaping or
      the loss reads it.
    objective: S(log_ratio, advantages, config) in place of the method's
      (algorithms/policy_gradient/objectives.py).
    advantages: (rollout, config) -> rollout in place of the method's.
    seed: of the order of rows and of a critic's head.
    donates: whether a policy's memory goes to the one that `learn` returns,
      and the old one is used up.
  """
  config, has_critic = method.config, registry.has_critic(method.module)
  if has_critic != (critic is not None):
    raise UserError(
      f"critic={critic!r:.60}: {method.name} "
      + (
        "trains a critic. Give a reward model, or critic.Value(init='random', "
        "mode='head')."
        if has_critic
        else "trains no critic. Leave it out."
      )
    )
  _check_left_out(config)
  if has_reference is None:
    in_loss = getattr(config, "kl_loss_coefficient", 0.0)
    has_reference = shaping.kl_coefficient > 0.0 or in_loss > 0.0
  stage = None if critic is None else critics.start(policy, critic, seed)
  made = FromScores(
    policy,
    method,
    _by_part(optimizer, ("policy", "value") if has_critic else ("policy",)),
    seed,
    donates,
    shaping,
    epochs,
    importance,
    stage,
    has_reference,
    objective,
    advantages,
  )
  group = getattr(config, "group_size", None)
  with schema.as_field():
    if objective is not None:
      objectives.checked(objective)
    if advantages is not None:
      registry.check_advantages(advantages)
  # What is wrong whatever the samples is said here.
  made.settings(generate.Config(num_samples=1 if group is None else group))
  return made


def _check_left_out(config: Any) -> None:
  """Raises UserError for what only the pipelines do."""
  if getattr(config, "ptx_coefficient", 0.0) > 0.0:
    raise UserError(
      f"ptx_coefficient={config.ptx_coefficient}: text is mixed into updates "
      "by the policy pipeline only. Set 0.0."
    )
  if getattr(config, "resample_rounds", 1) > 1:
    raise UserError(
      f"resample_rounds={config.resample_rounds}: prompts are drawn again by "
      "the policy pipeline only; here you draw them. Set 1."
    )
