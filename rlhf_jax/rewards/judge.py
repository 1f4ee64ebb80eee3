"""The score stage: samples in, a Rollout with everything an update reads out.

Reference log-probabilities, values, rewards, monitors and the frozen hidden
states, in one jitted pass. Roles whose lower layers are the base model's share
one forward pass over those layers; a role with weights of its own there runs
its own.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax

from rlhf_jax.algorithms.policy_gradient.packing import Packing, pack, unpack
from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import stages
from rlhf_jax.types import Array, PyTree, Rollout, Samples


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static part: roles, and which of them read the shared trunk.

  reference: None where nothing asks for a KL; the rollout then has the
    policy's own log-probabilities in the place of the reference's.
  value: critic, None without one.
  scorers: (name, Scorer) of the reward model, named "reward", and monitors.
  shared: names of roles whose entrance stream comes from the base model.
  """

  policy: roles.Role
  reference: roles.Role | None
  value: roles.Role | None
  scorers: tuple[tuple[str, reward_model.Scorer], ...]
  shared: frozenset[str]
  temperature: float
  row_targets: int  # response tokens of a (packed) row at most
  is_value_on_policy: bool = False  # the critic is a head on the policy

  @property
  def value_stream(self) -> str:
    """The role whose entrance stream the critic reads."""
    return "policy" if self.is_value_on_policy else "value"


@flax.struct.dataclass
class Weights:
  """The frozen arrays: base parameters, reference, reward models by name."""

  base: PyTree
  reference: PyTree
  scorers: dict[str, reward_model.Weights]


def reads_base(role: roles.Role, variables: PyTree, base: Base) -> bool:
  """Says whether the layers below a role's entrance are the base's own."""
  if role.entrance == 0 or role.model.scan_layers:
    return False
  lower = {"embedding", *(f"layer_{i}" for i in range(role.entrance))}
  adapted = set(variables.get("lora", {}))
  ours, theirs = variables["params"], base.params
  return not (lower & adapted) and all(
    a is b
    for name in lower
    for a, b in zip(
      jax.tree.leaves(ours[name]), jax.tree.leaves(theirs[name]), strict=True
    )
  )


def make_plan(
  base: Base,
  policy: stages.Stage,
  reference: stages.Stage | None,
  value: stages.Stage | None,
  scorers: dict[str, tuple[reward_model.Scorer, reward_model.Weights]],
  temperature: float,
  row_targets: int,
) -> Plan:
  """Returns the Plan of the given roles; their variables are only compared.

  A critic without "params" is a head on the policy's last hidden state.
  """
  on_policy = value is not None and "params" not in value.variables
  used = {"policy": policy, "reference": reference}
  if not on_policy:
    used["value"] = value
  shared = {
    name
    for name, stage in used.items()
    if stage is not None and reads_base(stage.role, stage.variables, base)
  } | {
    name
    for name, (scorer, weights) in scorers.items()
    if reads_base(scorer.role, weights.variables, base)
  }
  return Plan(
    policy=policy.role,
    reference=None if reference is None else reference.role,
    value=None if value is None else value.role,
    scorers=tuple((name, scorer) for name, (scorer, _) in scorers.items()),
    shared=frozenset(shared),
    temperature=temperature,
    row_targets=row_targets,
    is_value_on_policy=on_policy,
  )


def judge(
  weights: Weights,
  value: PyTree,
  samples: Samples,
  packing: Packing | None = None,
  *,
  plan: Plan,
) -> tuple[Rollout, dict[str, Array]]:
  """Returns the rollout and the scores [N] of every reward model by name.

  Args:
    weights: frozen arrays.
    value: merged variables of the critic, with those of the policy that it is
      a head on, or {} without one.
    samples: [N, L].
    packing: where their tokens stand when all roles read packed rows; what is
      returned is unpacked either way.
    plan: static part.
  """
  rows = roles.Rows.of(samples)
  targets, place, spread = samples.response_mask, None, lambda x: x
  if packing is not None:
    rows = roles.Rows(
      pack(samples.tokens, packing),
      pack(samples.valid_mask, packing),
      packing.positions,
      packing.segment_ids,
    )
    targets = pack(samples.response_mask, packing)
    place, spread = packing.place, functools.partial(unpack, packing=packing)
  entrances = {
    "policy": plan.policy.entrance,
    **{name: scorer.role.entrance for name, scorer in plan.scorers},
  }
  for name, role in (("reference", plan.reference), ("value", plan.value)):
    if role is not None:
      entrances[name] = role.entrance
  taps = tuple(sorted({entrances[name] for name in plan.shared}))
  streams = (
    roles.frozen_streams(plan.policy.model, weights.base, rows, taps)
    if taps
    else {}
  )
  hidden = {name: streams[entrances[name]] for name in plan.shared}
  reference_logprobs = samples.behaviour_logprobs
  if plan.reference is not None:
    found, _ = roles.logprobs(
      plan.reference,
      weights.reference,
      rows,
      targets,
      hidden=hidden.get("reference"),
      temperature=plan.temperature,
      targets=plan.row_targets,
    )
    reference_logprobs = spread(found)
  scores = {
    name: reward_model.score(
      scorer, weights.scorers[name], samples, hidden.get(name), rows, place
    )
    for name, scorer in plan.scorers
  }
  values = None
  if plan.value is not None:
    values = roles.values(
      plan.value, value, rows, hidden.get(plan.value_stream)
    )
    values = spread(values)
    values = jax.numpy.where(samples.response_mask > 0, values, 0.0)
  no_score = jax.numpy.zeros(samples.tokens.shape[:1])  # a verifier's comes
  rollout = Rollout(
    **vars(samples),
    reference_logprobs=reference_logprobs,
    score=scores["reward"] if "reward" in scores else no_score,
    values=values,
    hidden={
      name: spread(stream)
      for name, stream in hidden.items()
      if name in ("policy", "value")
    },
  )
  return rollout, scores


@functools.lru_cache(maxsize=16)
def make_judge(plan: Plan):
  """Returns `judge` compiled for a plan; the same for an equal plan."""
  return jax.jit(functools.partial(judge, plan=plan))
