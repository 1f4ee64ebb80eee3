"""What a policy starts from, and what its KL is measured to.

The model itself, a finished stage or a PEFT folder. Factors train on where they
are as the settings want them; else they are merged and fresh ones train. All
roles with factors share one base, and so does a reference whose factors are 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from rlhf_jax.algorithms import ensemble
from rlhf_jax.models import lora, roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import build, features
from rlhf_jax.programs.world import World
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, as_field
from rlhf_jax.types import PyTree


def starting_policy(
  settings: Any, base: Base, world: World, key: jax.Array | None = None
) -> stages.Stage:
  """Returns the policy before training, with the role it trains in.

  A LoRA run on a LoRA start goes on with its factors where they are as the
  settings say, or these say nothing (lora_rank=0); otherwise the start is
  merged into whole weights first. Which of the two is said.

  Args:
    settings: with init_from, trainable and seed.
    base: the model underneath.
    world: where it lives.
    key: of fresh factors; None for that of the seed.
  """
  key = jax.random.key(settings.seed) if key is None else key
  if goes_on(settings, base):
    return going_on(settings, base, world)
  role = build.make_role(base, settings.trainable)
  world.assume(stages.POLICY, role, "trainable.mode")
  folder = world.named(settings.init_from)
  if not folder:
    return untrained_policy(role, base.params, world, key)
  start = stages.load(folder, stages.POLICY, base, world)
  if start.role == role:
    return _with_factors_of(folder, start, world)
  if {start.role.trainable, role.trainable} == {"lora"}:
    _say(
      world,
      f"{folder}: its factors ({_factors(start.role)}) are merged into the "
      f"weights, and fresh ones train ({_factors(role)}). To train on those "
      "of before set model.lora_rank=0",
    )
  found = untrained_policy(role, world.merged(start), world, key)
  return dataclasses.replace(
    found, info=found.info | {"merged_from": settings.init_from}
  )


def untrained_policy(
  role: roles.Role, params: PyTree, world: World, key: jax.Array
) -> stages.Stage:
  """Returns whole weights as a policy, with fresh factors in mode "lora".

  Args:
    role: that trains.
    params: the weights.
    world: where they live.
    key: of the factors.
  """
  variables, info = {"params": params}, {}
  if role.trainable == "lora":
    variables |= world.compute(
      lambda k: {"lora": roles.fresh_lora(role, k)}, key
    )
    info = {"has_fresh_factors": True}
  return stages.Stage(role, variables, info)


def goes_on(settings: Any, base: Base) -> bool:
  """Says whether the factors of init_from train on, whatever they are."""
  is_free = settings.trainable.mode == "lora" and not base.config.lora_rank
  return is_free and bool(settings.init_from)


def going_on(settings: Any, base: Base, world: World) -> stages.Stage:
  """Returns a start whose factors train on, whatever they are.

  Raises:
    FieldError: it has none, or they begin at another layer than is set.
  """
  folder, first = settings.init_from, settings.trainable.first_layer
  start = stages.load(folder, stages.POLICY, base, world)
  role = start.role
  if role.trainable != "lora":
    raise FieldError(
      f"model.lora_rank=0: {folder} was trained as {role.trainable!r} and has "
      "no factors to go on with. Set model.lora_rank=16 for fresh ones."
    )
  if first not in (0, role.first_layer):
    raise FieldError(
      f"trainable.first_layer={first}: the factors of {folder} begin at layer "
      f"{role.first_layer}. Set {role.first_layer}, or model.lora_rank=16 for "
      "fresh ones."
    )
  return _with_factors_of(folder, start, world)


def _with_factors_of(
  folder: str, start: stages.Stage, world: World
) -> stages.Stage:
  """Returns a start that trains on as it is."""
  merged = stages.merged_folder(folder, start.info)
  if start.role.trainable == "lora":
    _say(world, f"{folder}: goes on with its factors ({_factors(start.role)})")
  return stages.Stage(start.role, start.variables, {"merged_from": str(merged)})


def _say(world: World, text: str) -> None:
  if not world.is_planned:
    print(text)


def _factors(role: roles.Role) -> str:
  """Returns what is special of a role's factors, for people."""
  model = role.model
  where = ", ".join(model.lora_targets[:7]) or "all linear maps"
  if len(model.lora_targets) > 7:
    where += f" and {len(model.lora_targets) - 7} more"
  return (
    f"rank {model.lora_rank}, scale {model.lora_scale:g}, on {where} from "
    f"layer {role.first_layer}"
  )


def reference_policy(
  settings: Any, base: Base, world: World, start: stages.Stage
) -> stages.Stage:
  """Returns the policy that the KL is measured to, frozen.

  Args:
    settings: with reference.
    base: the model underneath.
    world: where it lives.
    start: the policy before training, which it is unless another is named.
  """
  if not settings.reference:
    if not start.info.get("has_fresh_factors"):
      return start
    # Factors that are 0 change nothing: the reference is the base without.
    whole = {"params": start.variables["params"]}
    return stages.Stage(start.role, whole, start.info)
  return stages.load(settings.reference, stages.POLICY, base, world)


def say_reference(settings: Any, phase: str) -> None:
  """Prints which policy the KL is measured to.

  In a second round it may be the start of this round or of the first one: what
  it is must not have to be guessed.

  Args:
    settings: with reference and init_from.
    phase: name in the message.
  """
  folder = settings.reference if settings.reference else settings.init_from
  if not folder:
    print(f"{phase}: the reference is the model itself")
    return
  info = stages.need_stage(folder, stages.POLICY)
  which = "" if settings.reference else ", the start"
  print(f"{phase}: the reference is {folder}{which} ({info['pipeline']} run)")


def _continued_reward(
  settings: Any, base: Base, world: World
) -> tuple[roles.Role, PyTree, str]:
  """Returns a finished reward model that trains on.

  Raises:
    FieldError: it was trained otherwise than the settings say.
  """
  folder = settings.continue_from
  start = stages.load(folder, stages.REWARD, base, world)
  fields = {
    "trainable.mode": (start.role.trainable, settings.trainable.mode),
    "head": (start.role.head, settings.head),
    "stop_layer": (
      start.role.stop_layer,
      settings.stop_layer if settings.stop_layer else None,
    ),
    "ensemble": (
      1 if "objectives" in start.info else start.role.members,
      settings.ensemble.members,
    ),
    "objectives": (
      tuple(start.info.get("objectives", ())),
      tuple(settings.objectives),
    ),
  }
  for field, (before, now) in fields.items():
    if before != now:
      raise FieldError(
        f"continue_from={folder!r}: was trained with {field}={before!r}, and "
        f"this run has {now!r}. Set what it had, or start anew."
      )
  merged = stages.merged_folder(folder, start.info)
  _say(world, f"{folder}: this reward model trains on")
  return start.role, start.variables, str(merged)


def starting_reward(
  settings: Any, base: Base, world: World
) -> tuple[roles.Role, PyTree, str]:
  """Returns the reward role, its variables, and "merged_from" of stage.json.

  From the SFT model if one is named: merged, or with model.lora_rank=0 its
  factors train on, beside the same base.

  Args:
    settings: with init_from, trainable, stop_layer, head and seed, and perhaps
      ensemble and head_seed.
    base: the model underneath.
    world: where it lives.
  """
  stop = settings.stop_layer if settings.stop_layer else None
  if getattr(settings, "continue_from", ""):
    return _continued_reward(settings, base, world)
  several = getattr(settings, "ensemble", ensemble.Config())
  outputs = getattr(settings, "outputs", several.members)
  head_seed = getattr(settings, "head_seed", None)
  if goes_on(settings, base):
    if several.own_factors:
      raise FieldError(
        "model.lora_rank=0 with ensemble.kind='adapters': members have factors "
        "of their own, and those of init_from are one for all. Set "
        "model.lora_rank=16, or ensemble.kind='heads'."
      )
    start = going_on(settings, base, world)
    with as_field():
      role = dataclasses.replace(
        start.role,
        stop_layer=stop,
        head=settings.head,
        members=outputs,
      )
    factors = lora.chosen(
      start.variables["lora"], role.model.lora_targets, role.stop
    )
    head = features.fresh(
      dataclasses.replace(role, trainable="head"),
      settings.seed,
      world,
      head_seed,
    )
    variables = start.variables | {"lora": factors} | head
    return role, variables, start.info["merged_from"]
  role = build.make_role(
    base, settings.trainable, stop_layer=stop, head=settings.head
  )
  role = dataclasses.replace(
    role, members=outputs, own_factors=several.own_factors
  )
  plain = roles.Role(dataclasses.replace(base.config, lora_rank=0))
  world.assume(stages.POLICY, plain)
  params = stages.start_params(settings.init_from, base, world)
  fresh = features.fresh(role, settings.seed, world, head_seed)
  return role, {"params": params} | fresh, settings.init_from
