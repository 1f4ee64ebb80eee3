"""Who takes part where a policy samples: policy, reference, critic, judges.

Loads the stages before, decides what trains, and refuses a reward model that
is no better than chance. With a planned world all arrays are abstract.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax.models import heads, roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import floor, scorers, starts
from rlhf_jax.programs.critic import Value, start_critic
from rlhf_jax.programs.sampled_settings import Sampled
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import ensembles, judge
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree


def check_reward(info: dict, force: bool, name: str = "reward model") -> None:
  """Refuses a reward model that is no better than chance (METHODS 19).

  Args:
    info: its stage.json.
    force: go on all the same.
    name: in messages.
  """
  for level, message in info["guards"]:
    if level == "refuse" and not force:
      raise FieldError(
        f"force=False: {name}: {message} Pass --config.force=True to go "
        "on anyway."
      )
    by = "force=True goes on past " if level == "refuse" else ""
    print(f"policy: {name}: {by}{level}: {message}")


@dataclasses.dataclass(frozen=True)
class Actors:
  """Everyone, loaded. Trees are split into trainable and frozen."""

  plan: judge.Plan
  weights: judge.Weights  # frozen: base, reference, reward models
  params: PyTree  # {"policy", "value"?}, trainable
  frozen: PyTree  # {"policy", "value"?}, the rest of the same roles
  merged_from: str  # SFT stage whose whole weights the policy started from
  readers: tuple[Reader, ...] = ()  # reward models that read text
  beside: PyTree = ()  # weights under reward models on other models

  @property
  def held(self) -> PyTree:
    """All frozen arrays but the policy's own."""
    return (self.weights, [x.weights for x in self.readers], self.beside)


def load(
  settings: Sampled,
  base: Base,
  world: World,
  row_targets: int,
  value: Value | None = None,
) -> Actors:
  """Returns the actors that settings name; abstract ones in a planned world.

  Args:
    settings: of a pipeline that samples.
    base: the model under all of them.
    world: where they live.
    row_targets: response tokens of a row at most.
    value: of the critic; None without one.

  Raises:
    UserError: a stage is missing, or a setting cannot work.
    CheckpointError: a stage was trained on another model or tokenizer.
  """
  floor.check_start(settings.floor, settings.init_from, world, settings.force)
  policy = starts.starting_policy(settings, base, world)
  reference = starts.reference_policy(settings, base, world, policy)
  has_own_critic = value is not None and not value.is_shared
  mode = value.mode if has_own_critic else policy.role.trainable
  guess = dataclasses.replace(policy.role, trainable=mode, head=heads.Config())
  field = "value.mode" if has_own_critic else "trainable.mode"
  world.assume(stages.REWARD, guess, field)
  folders = {
    name: world.named(path) for name, path in settings.judge_folders.items()
  }
  if settings.has_one_model:
    folder = world.named(settings.reward)
    folders = {"reward": folder} if folder else {}
  judging = tuple(folders)
  folders |= settings.monitors
  found = {
    name: scorers.load(path, name, settings, base, world)
    for name, path in folders.items()
  }
  for name in judging:
    said = "reward model" if name == "reward" else f"judges.{name}"
    for part in found[name].alone:
      check_reward(part.info, settings.force, said)
  critic = None
  if value is not None:
    judging = found.get(value.judge or "reward")
    critic = start_critic(value, settings, base, world, policy, judging)
  tokens, readers = scorers.parted(found)
  made = assemble(
    base,
    policy,
    critic,
    tokens,
    settings.generate.temperature,
    row_targets,
    reference,
  )
  beside = scorers.bases(found, base)
  return dataclasses.replace(made, readers=readers, beside=beside)


def assemble(
  base: Base,
  policy: stages.Stage,
  critic: stages.Stage | None,
  judges: ensembles.Judges,
  temperature: float,
  row_targets: int,
  reference: stages.Stage | None = None,
) -> Actors:
  """Returns the actors of loaded stages; arrays may be abstract.

  Args:
    base: the model under all of them.
    policy: before training.
    critic: before training, or None without one; without "params" it is a head
      on the policy.
    judges: the reward model, named "reward" (absent with a verifier), or those
      of several judges by their names, and monitors.
    temperature: of sampling.
    row_targets: response tokens of a row at most.
    reference: what the KL is measured to; None for the policy before training.
  """
  reference = policy if reference is None else reference
  plan = judge.make_plan(
    base, policy, reference, critic, judges, temperature, row_targets
  )
  plan, own = judge.with_own_trunk(
    plan, {"policy": policy, "reference": reference, "value": critic}
  )
  policy_params, policy_frozen = roles.split(policy.role, policy.variables)
  params, frozen = {"policy": policy_params}, {"policy": policy_frozen}
  if critic is not None:
    params["value"], frozen["value"] = roles.split(
      critic.role, critic.variables
    )
  return Actors(
    plan=plan,
    weights=judge.Weights(
      base=base.params if plan.shared else {},
      reference=reference.variables,
      own=own,
      **judge.scorer_weights(judges),
    ),
    params=params,
    frozen=frozen,
    merged_from=policy.info.get("merged_from", ""),
  )
