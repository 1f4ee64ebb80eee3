"""Policies that are compared, as programs: one list for a run and a plan.

pipelines/evaluate.py calls them for two, evaluate_many.py for any number, and
generate.py for one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.models import heads, roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import abstract, answers, scorers, text_readers
from rlhf_jax.programs.program import Flow, Phase, Program, prompt_width
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.runs import answerers, stages
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Compared:
  """What compares policies.

  phase: its programs.
  samplers: of each policy, with its trained tree, by name.
  weights: of the judge.
  readers: reward models that read text.
  draws: of each policy, answers of which it says the best.
  tells_kl: whether the KL is to a policy that it means something to.
  """

  phase: Phase
  samplers: dict[str, tuple[Sampler, PyTree]]
  weights: judge.Weights
  readers: tuple[Reader, ...]
  draws: dict[str, int] = dataclasses.field(default_factory=dict)
  tells_kl: bool = True


def load_policies(
  settings: Any, world: World, base: Base
) -> dict[str, stages.Stage]:
  """Returns the policy "before" training and "after" it.

  Without init_from it is what the policy's run started from, or the base model.

  Args:
    settings: of the pipeline.
    world: where they live.
    base: the model underneath.
  """
  world.assume(stages.POLICY, roles.Role(model=base.config))
  folder, _ = answerers.split(world.named(settings.policy))
  after = stages.load(folder, stages.POLICY, base, world)
  start, _ = answerers.split(settings.init_from)
  if not start and after.info.get("init_from"):
    start = str(stages.place(folder)[0] / after.info["init_from"])
  if start:
    before = stages.load(start, stages.POLICY, base, world)
  else:
    role = dataclasses.replace(after.role, trainable="full")
    before = dataclasses.replace(model_policy(base), role=role)
  return {"before": before, "after": after}


def _load_scorers(
  settings: Any, world: World, base: Base, after: stages.Stage
) -> dict[str, scorers.Loaded]:
  """Returns the reward models by name, "reward" and "gold"."""
  head = dataclasses.replace(after.role, trainable="full", head=heads.Config())
  world.assume(stages.REWARD, head)
  # A plan assumes a reward model where nothing says what judges.
  has_judge = settings.text_judge is not None
  reward = settings.reward if has_judge else world.named(settings.reward)
  folders = {"reward": reward, "gold": settings.gold}
  return {
    name: scorers.load(folder, name, settings, base, world)
    for name, folder in folders.items()
    if folder
  }


def model_policy(base: Base) -> stages.Stage:
  """Returns the model itself as a policy."""
  role = roles.Role(model=base.config, trainable="full")
  return stages.Stage(role, {"params": base.params}, {})


def wire(
  settings: Any,
  world: World,
  base: Base,
  policies: dict[str, stages.Stage],
  draws: Mapping[str, int] | None = None,
  *,
  tells_kl: bool = True,
  name: str = "evaluation",
) -> Compared:
  """Returns what samples policies, and what judges them.

  Args:
    settings: of the pipeline.
    world: where it runs, or is planned.
    base: the model underneath.
    policies: by name; the KL is to the first.
    draws: of each policy, answers of which it says the best; None for one.
    tells_kl: False where they are compared with a policy on another model.
    name: of the phase.
  """
  draws = dict.fromkeys(policies, 1) if draws is None else dict(draws)
  first, *others = policies
  judged = policies[others[0] if others else first]
  loaded = _load_scorers(settings, world, base, judged)
  tokens, readers = scorers.parted(loaded)
  how = settings.generate
  plan_of = functools.partial(
    judge.make_plan,
    base,
    value=None,
    judges=tokens,
    temperature=how.temperature,
  )

  has_kl = tells_kl and bool(others) and answers.has_kl(how)
  reference = policies[first] if has_kl else None
  rows = settings.batch_size * how.num_samples
  targets = {
    who: settings.packing.targets(rows * count, world.ways, how.max_new_tokens)
    for who, count in draws.items()
  }
  plans = _plans(plan_of, policies, targets, reference)
  shares = any(plan.shared for plan, _ in plans.values())
  weights = judge.Weights(
    base=base.params if shares else {},
    reference=reference.variables if reference else {},
    **judge.scorer_weights(tokens),
  )
  samplers, programs = {}, []
  for who, (plan, taps) in plans.items():
    params, frozen = policies[who].parts
    several = dataclasses.replace(how, num_samples=how.num_samples * draws[who])
    sampler = Sampler(policies[who].role, frozen, base, several, taps)
    samplers[who] = (sampler, params)
    programs += _programs(
      settings, world, who, sampler, params, plan, weights, readers
    )
  phase = Phase(
    name=name,
    world=world,
    base=base,
    arrays={},
    frozen=(
      base.params,
      [stage.variables for stage in policies.values()],
      weights,
      [reader.weights for reader in readers],
      scorers.bases(loaded, base),
    ),
    programs=tuple(programs),
    step=(),
  )
  return Compared(phase, samplers, weights, readers, draws, tells_kl)


def _plans(
  plan_of: Callable[..., judge.Plan],
  policies: Mapping[str, stages.Stage],
  targets: Mapping[str, int],
  reference: stages.Stage | None,
) -> dict[str, tuple[judge.Plan, tuple[int, ...]]]:
  """Returns who judges each policy's answers, and what its sampler keeps.

  Args:
    plan_of: judge.make_plan of what all have in common.
    policies: by name; of the first no KL is wanted.
    targets: of each, response tokens of a row at most.
    reference: the first, where there is a KL to it.
  """
  first, *others = policies
  found = {}
  for who in others:
    plan = plan_of(policies[who], reference=reference, row_targets=targets[who])
    found[who] = plan, plan.taps()
  if reference is None:
    alone = plan_of(policies[first], reference=None, row_targets=targets[first])
    return {first: (alone, alone.taps())} | found
  plan, _ = found[others[0]]
  alone = dataclasses.replace(
    plan,
    reference=None,
    shared=plan.shared - {"reference"},
    row_targets=targets[first],
  )
  return {first: (alone, plan.taps("reference"))} | found


def _programs(
  settings: Any,
  world: World,
  name: str,
  sampler: Sampler,
  params: PyTree,
  plan: judge.Plan,
  weights: judge.Weights,
  readers: tuple[Reader, ...],
) -> list[Program]:
  """Returns what samples and judges one of the policies.

  Args:
    settings, world: see `wire`.
    name: of the policy.
    sampler, params: of the policy.
    plan, weights: of the judge of its answers.
    readers: reward models that read text.
  """
  prompts, new = settings.batch_size, settings.generate.max_new_tokens
  rows = prompts * sampler.config.num_samples
  calls = math.ceil(settings.count / prompts) if settings.count else None
  length = prompt_width(settings.prompts, settings.generate, sampler.base) + new

  def judged(flow: Flow) -> tuple[tuple, dict]:
    drawn = flow[f"{name} decoded"], world.mesh, rows
    shape = packing.shape_of(settings.packing, rows, length, new, world.ways)
    layout = None
    if shape is not None:  # at worst every answer has its full length
      cells = shape.most, shape.tokens
      layout = abstract.packed_layout(world.mesh, (rows, length), cells)
    samples, streams = abstract.samples_of(*drawn), abstract.streams_of(*drawn)
    return (weights, {}, samples, layout, streams), {}

  return [
    *sampler.programs(
      world.mesh, params, settings.prompts, prompts, f"{name} ", calls
    ),
    Program(
      name=f"{name} judge",
      function=judge.make_judge(plan),
      arguments=judged,
      rows=rows,
      work=functools.partial(
        Passes(world.mesh).judge, plan, rows, length, new, sampler.taps
      ),
      calls=calls,
    ),
    *text_readers.programs(readers, world, rows, length, f"{name} ", calls),
  ]
