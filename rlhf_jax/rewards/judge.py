"""The score stage: samples in, a Rollout with everything an update reads out.

Reference log-probabilities, values, rewards, monitors and the frozen hidden
states, in one jitted pass. Roles whose lower layers are the base model's share
one forward pass over those layers, and so do roles that stand on the lower
layers of a policy which are not the base's; any other role runs its own.
The sampler has been through these layers: what it kept is not computed again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax

from rlhf_jax.algorithms.policy_gradient.packing import Packing, pack, unpack
from rlhf_jax.models import outputs, roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.rows import Rows
from rlhf_jax.rewards import ensembles
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
  groups: which scorers make one judge together.
  shared: names of roles whose entrance stream comes from the base model.
  own: names of those whose stream comes from the policy's weights, where they
    are others below its entrance: after whole fine-tuning, for example.
  """

  policy: roles.Role
  reference: roles.Role | None
  value: roles.Role | None
  scorers: tuple[tuple[str, reward_model.Scorer], ...]
  shared: frozenset[str]
  temperature: float
  row_targets: int  # response tokens of a (packed) row at most
  own: frozenset[str] = frozenset()
  is_value_on_policy: bool = False  # the critic is a head on the policy
  groups: tuple[ensembles.Joined, ...] = ()
  reads_prefixes: bool = False  # the reward model's value of each beginning of
  # an answer is wanted

  @property
  def value_stream(self) -> str:
    """The role whose entrance stream the critic reads."""
    return "policy" if self.is_value_on_policy else "value"

  @property
  def known(self) -> frozenset[str]:
    """Names of roles whose entrance stream is computed once."""
    return self.shared | self.own

  def entrance(self, name: str) -> int:
    """Returns the layer whose incoming stream a role starts from."""
    used = {"policy": self.policy, "reference": self.reference}
    used |= {scorer: found.role for scorer, found in self.scorers}
    return (used | {"value": self.value})[name].entrance

  def taps(self, sampled: str = "policy") -> tuple[int, ...]:
    """Returns the layers whose streams a sampler should keep for the judge.

    Those that it runs with the weights that the judge would. None below
    float32, where decoding rounds otherwise than training does, and only the
    latter's streams should meet the layers that train (METHODS N3).

    Args:
      sampled: the role that samples, "policy" or "reference".
    """
    if sampled not in self.known or self.policy.model.dtype != "float32":
      return ()
    names = self.shared if sampled in self.shared else self.own
    if "policy" not in names:
      return ()
    found = {self.entrance(name) for name in names}
    return tuple(sorted(x for x in found if x <= self.entrance(sampled)))


@flax.struct.dataclass
class Weights:
  """The frozen arrays: base parameters, reference, reward models by name.

  own: of the policy, below its entrance, where plan.own names someone.
  deviations: name of a judge -> [] deviation of its members on the reference's
    samples, where that is known.
  """

  base: PyTree
  reference: PyTree
  scorers: dict[str, reward_model.Weights]
  own: PyTree = flax.struct.field(default_factory=dict)
  deviations: dict[str, Array] = flax.struct.field(default_factory=dict)


def scorer_weights(judges: ensembles.Judges) -> dict[str, dict[str, Any]]:
  """Returns the fields of Weights that reward models fill."""
  flat = ensembles.flat(judges)
  return {
    "scorers": {name: weights for name, (_, weights) in flat.items()},
    "deviations": ensembles.deviations(judges),
  }


def _below(entrance: int) -> set[str]:
  """Returns the names of what computes the stream into a layer."""
  return {"embedding", *(f"layer_{i}" for i in range(entrance))}


def reads(role: roles.Role, variables: PyTree, theirs: PyTree) -> bool:
  """Says whether the layers below a role's entrance are those of `theirs`."""
  if role.entrance == 0 or role.model.scan_layers:
    return False
  lower = _below(role.entrance)
  adapted = set(variables.get("lora", {}))
  ours = variables["params"]
  if not lower <= set(theirs):
    return False
  if lower & adapted:
    return False
  ours, theirs = (
    {name: tree[name] for name in lower} for tree in (ours, theirs)
  )
  return jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
    a is b
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
  )


def make_plan(
  base: Base,
  policy: stages.Stage,
  reference: stages.Stage | None,
  value: stages.Stage | None,
  judges: ensembles.Judges,
  temperature: float,
  row_targets: int,
) -> Plan:
  """Returns the Plan of the given roles; their variables are only compared.

  A critic without "params" is a head on the policy's last hidden state.
  """
  scorers = ensembles.flat(judges)
  on_policy = value is not None and "params" not in value.variables
  used = {"policy": policy, "reference": reference}
  if not on_policy:
    used["value"] = value
  shared = {
    name
    for name, stage in used.items()
    if stage is not None and reads(stage.role, stage.variables, base.params)
  } | {
    name
    for name, (scorer, weights) in scorers.items()
    if reads(scorer.role, weights.variables, base.params)
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
    groups=ensembles.joined(judges),
  )


def with_own_trunk(
  plan: Plan, used: dict[str, stages.Stage | None]
) -> tuple[Plan, PyTree]:
  """Returns the Plan whose policy has lower layers of its own, and these.

  Their stream is computed once for the policy in all epochs of a rollout, and
  for others that stand on the same arrays. Nothing changes where the policy
  reads the base or trains from layer 0.

  Args:
    plan: see `make_plan`.
    used: "policy", "reference" and "value", before training.
  """
  policy = used["policy"]
  params = policy.variables["params"]
  if "policy" in plan.shared or not reads(
    policy.role, policy.variables, params
  ):
    return plan, {}
  lower = _below(policy.role.entrance) | {"position_embedding"}
  kept = {name: tree for name, tree in params.items() if name in lower}
  own = frozenset(
    name
    for name, stage in used.items()
    if stage is not None
    and "params" in stage.variables  # no head on the policy
    and name not in plan.shared
    and reads(stage.role, stage.variables, kept)
  )
  return dataclasses.replace(plan, own=own), kept


def judge(
  weights: Weights,
  value: PyTree,
  samples: Samples,
  packing: Packing | None = None,
  streams: dict[int, Array] | None = None,
  *,
  plan: Plan,
) -> tuple[Rollout, dict[str, Array]]:
  """Returns the rollout and the scores [N] of every reward model by name.

  Of ensembles there is more in them, see ensembles.scores_of.

  Args:
    weights: frozen arrays.
    value: merged variables of the critic, with those of the policy that it is
      a head on, or {} without one.
    samples: [N, L].
    packing: where their tokens stand when all roles read packed rows; what is
      returned is unpacked either way.
    streams: {layer: [N, L, D]} that the sampler kept, see Plan.taps.
    plan: static part.
  """
  rows = Rows.of(samples)
  targets, place, spread = samples.response_mask, None, lambda x: x
  streams = {} if streams is None else streams
  if packing is not None:
    rows = _packed(samples, packing)
    targets = pack(samples.response_mask, packing)
    place, spread = packing.place, functools.partial(unpack, packing=packing)
    streams = {layer: pack(x, packing) for layer, x in streams.items()}
  hidden = _entrance_streams(plan, weights, rows, streams)
  reference_logprobs = samples.behaviour_logprobs
  if plan.reference is not None:
    found, _ = outputs.logprobs(
      plan.reference,
      weights.reference,
      rows,
      targets,
      hidden=hidden.get("reference"),
      temperature=plan.temperature,
      targets=plan.row_targets,
    )
    reference_logprobs = spread(found)
  scores, prefixes = _scores(plan, weights, samples, hidden, rows, place)
  values = None
  if plan.value is not None:
    values = outputs.values(
      plan.value,
      value,
      rows,
      hidden.get(plan.value_stream),
      targets,
      plan.row_targets,
    )
    values = spread(values)
    values = jax.numpy.where(samples.response_mask > 0, values, 0.0)
  no_score = jax.numpy.zeros(samples.tokens.shape[:1])  # a verifier's comes
  rollout = Rollout(
    **vars(samples),
    reference_logprobs=reference_logprobs,
    score=scores["reward"] if "reward" in scores else no_score,
    values=values,
    **prefixes,
    hidden={
      name: spread(stream)
      for name, stream in hidden.items()
      if name in ("policy", "value")
    },
  )
  return rollout, scores


def _packed(samples: Samples, packing: Packing) -> Rows:
  """Returns the rows in which the tokens of all samples stand."""
  return Rows(
    pack(samples.tokens, packing),
    pack(samples.valid_mask, packing),
    packing.positions,
    packing.segment_ids,
    packing.branch_ids,
  )


def _entrance_streams(
  plan: Plan, weights: Weights, rows: Rows, streams: dict[int, Array]
) -> dict[str, Array]:
  """Returns role -> the stream that enters it, of roles that share a trunk."""
  hidden = {}
  for trunk, names in ((weights.base, plan.shared), (weights.own, plan.own)):
    if names:
      taps = tuple(sorted({plan.entrance(name) for name in names}))
      known = streams if "policy" in names else {}
      found = outputs.frozen_streams(
        plan.policy.model, trunk, rows, taps, known
      )
      hidden |= {name: found[plan.entrance(name)] for name in names}
  return hidden


def _scores(
  plan: Plan,
  weights: Weights,
  samples: Samples,
  hidden: dict[str, Array],
  rows: Rows,
  place: Array | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
  """Returns what reward models say, and of each beginning where it is read."""
  members = {
    name: reward_model.member_scores(
      scorer, weights.scorers[name], samples, hidden.get(name), rows, place
    )
    for name, scorer in plan.scorers
  }
  scores = ensembles.scores_of(
    plan.scorers, members, plan.groups, weights.deviations
  )
  if not plan.reads_prefixes:
    return scores, {}
  return scores, reward_model.prefixes(
    dict(plan.scorers)["reward"],
    weights.scorers["reward"],
    samples,
    hidden.get("reward"),
    rows,
    place,
  )


@functools.lru_cache(maxsize=16)
def make_judge(plan: Plan):
  """Returns `judge` compiled for a plan; the same for an equal plan."""
  return jax.jit(functools.partial(judge, plan=plan))
