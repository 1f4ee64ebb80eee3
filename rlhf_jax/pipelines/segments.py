"""Preferences between trajectory segments: Christiano et al. 2017.

An agent acts in a small environment. Somebody compares short segments of what
it did; an ensemble learns from the labels what they prefer; the agent learns
from the ensemble, and what it does next is asked about next. The true reward is
seen by simulated annotators and by nobody else, or by people on the page, who
see the segments drawn. arXiv:1706.03741; docs/segments.md.

Every rollout is one step of the loop: play, ask, learn (programs/segments/).
Left out: image observations, several devices, and asking while the agent
trains (the paper does all three at once).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import environments, integrity, optimizer, schema
from rlhf_jax.algorithms import segments as maths
from rlhf_jax.algorithms.policy_gradient import ppo, update
from rlhf_jax.evaluation import table_page
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import segments_page
from rlhf_jax.programs.pipeline import Pipeline
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.segments import agent, asked, predictor, turns
from rlhf_jax.programs.segments import settings as sections
from rlhf_jax.programs.world import World
from rlhf_jax.runs import finite, loop
from rlhf_jax.schema import FieldError
from rlhf_jax.types import Array, PyTree

NAME = "segments"
RESULT = "segments.json"
# Metrics that only a run with labels has.
_OF_LABELS = (
  "predictor/",
  "labels/",
  "agent/predicted_return",
  "agent/reward_correlation",
)
# Not there where nothing varies, or no member has a label that it did not draw.
_MAY_LACK = (
  "agent/reward_correlation",
  "predictor/validation_loss",
  "predictor/loss_ratio",
)


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """An agent that learns from comparisons of segments of what it does."""

  seed: int = 0  # of all that is drawn
  environment: str = "cart_pole"  # a name of environments/, or file.py:NAME
  agent: sections.Agent = sections.Agent()
  ppo: ppo.Config = ppo.Config(
    discount=0.98,
    value_coefficient=0.5,
  )
  updates: update.Config = update.Config(epochs=8, minibatches=4)
  optimizer: optimizer.Config = optimizer.Config(
    learning_rate=2e-3, schedule="linear", beta2=0.999, clip_norm=0.5
  )
  predictor: sections.Predictor = sections.Predictor()
  decay: maths.Decay = maths.Decay()
  queries: sections.Queries = sections.Queries()
  labels: sections.Labels = sections.Labels()
  schedule: loop.Schedule = loop.Schedule(
    batch_size=16, steps=80, save_every=10
  )
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)

  @property
  def uses_truth(self) -> bool:
    """Whether this is the control, which asks nobody."""
    return self.agent.reward == sections.TRUE


def check(settings: Settings, world: World) -> None:
  """Checks what fits together, before anything compiles."""
  environment = environments.find(settings.environment)
  if settings.queries.length > environment.steps:
    raise FieldError(
      f"queries.length={settings.queries.length}: an episode of "
      f"{environment.name} has {environment.steps} steps. Lower it."
    )
  if settings.ppo.discount >= 1.0:
    raise FieldError(
      f"ppo.discount={settings.ppo.discount}: episodes are cut by the clock "
      "alone, so later rewards must count less. Set it below 1, such as 0.98."
    )
  if settings.ppo.ptx_coefficient:
    raise FieldError(
      f"ppo.ptx_coefficient={settings.ppo.ptx_coefficient}: there is no text "
      "here. Leave it 0."
    )
  if settings.schedule.epochs or not settings.schedule.steps:
    raise FieldError(
      f"schedule.steps={settings.schedule.steps}, epochs="
      f"{settings.schedule.epochs}: a run is so many rollouts. Set steps, and "
      "epochs=0."
    )
  episodes, parts = settings.schedule.batch_size, settings.updates.minibatches
  if episodes % (parts * settings.updates.microbatches):
    raise FieldError(
      f"schedule.batch_size={episodes}: episodes of a rollout must divide into "
      f"updates.minibatches={parts} of updates.microbatches="
      f"{settings.updates.microbatches}."
    )
  if not settings.uses_truth and not _due(settings)[0]:
    raise FieldError(
      f"queries.first_share={settings.queries.first_share}: of labels.count="
      f"{settings.labels.count} that is none, and the agent would begin on "
      "rewards that nobody taught. Raise one of them."
    )
  members, choose = settings.predictor.members, settings.queries.choose
  if members < 2 and choose == sections.VARIANCE:
    raise FieldError(
      f"queries.choose={choose!r} with predictor.members={members}: one member "
      "disagrees with nobody. Set members >= 2, or choose='random'."
    )
  if settings.uses_truth and settings.labels.by == sections.PAGE:
    raise FieldError(
      "labels.by='page' with agent.reward='true': the control asks nobody. Set "
      "one of them otherwise."
    )
  if world.mesh.size > 1:
    raise FieldError(
      f"mesh.devices={settings.mesh.devices}: this pipeline runs on one "
      f"device, and there are {world.mesh.size}. Set mesh.devices=1."
    )


def _due(settings: Settings) -> np.ndarray:
  """Returns int [steps], the labels that are due after each rollout."""
  return maths.due(
    0 if settings.uses_truth else settings.labels.count,
    settings.schedule.steps,
    settings.queries.first_share,
    settings.queries.half_rollouts,
  )


def lab_of(settings: Settings) -> turns.Lab:
  """Returns what the programs read."""
  updates = (
    settings.schedule.steps
    * settings.updates.epochs
    * settings.updates.minibatches
  )
  return turns.Lab(
    environment=environments.find(settings.environment),
    episodes=settings.schedule.batch_size,
    agent=settings.agent,
    algorithm=settings.ppo,
    update=settings.updates,
    optimizer=optimizer.of_run(settings.optimizer, updates),
    predictor=settings.predictor,
    decay=settings.decay,
    queries=settings.queries,
    labels=settings.labels,
  )


_collect = jax.jit(turns.collect, static_argnames="lab")
_learn = jax.jit(turns.learn, static_argnames=("lab", "uses_truth"))


@functools.partial(jax.jit, static_argnames=("lab", "count"))
def _tested(params: PyTree, key: Array, *, lab: turns.Lab, count: int) -> Array:
  return agent.greedy_returns(params, key, lab.environment, count)


def _arrays(state: turns.State) -> dict[str, Any]:
  """Returns a state as the loop keeps it: TrainStates on top."""
  rest = state.ensemble.replace(state=None)
  return {
    "agent": state.agent,
    "predictor": state.ensemble.state,
    "members": {
      "decay": rest.decay,
      "mean": rest.mean,
      "deviation": rest.deviation,
    },
    "labels": state.labels,
    "truth": state.truth,
  }


def _state(arrays: PyTree) -> turns.State:
  """Returns the state that `_arrays` made them of."""
  ensemble = predictor.Ensemble(state=arrays["predictor"], **arrays["members"])
  return turns.State(
    arrays["agent"], ensemble, arrays["labels"], arrays["truth"]
  )


def run(settings: Settings, world: World) -> dict:
  """Trains the agent; returns the numbers of segments.json.

  Metrics: those of turns.learn, and
    heldout/true_return: of episodes of the greedy policy, the same starts each
      time. Down is bad.
  """
  folder, path = world.workdir, world.workdir / RESULT
  if path.is_file():
    print(
      f"{NAME}: {folder} is finished, nothing to do. To train anew, choose "
      "another --workdir."
    )
    return json.loads(path.read_text())
  lab, count = lab_of(settings), settings.labels.count
  due = _due(settings)
  base = jax.random.key(settings.seed)
  start = jax.jit(turns.start, static_argnames=("lab", "most"))

  def measure(arrays: PyTree) -> dict[str, float]:
    found = _tested(
      arrays["agent"].params,
      jax.random.fold_in(base, 0),
      lab=lab,
      count=settings.agent.test_episodes,
    )
    return {"heldout/true_return": float(jnp.mean(found))}

  arrays, _ = loop.run_steps(
    functools.partial(_turn, settings, lab, due, base, folder),
    phase=NAME,
    workdir=folder,
    schedule=settings.schedule,
    total_steps=settings.schedule.steps,
    arrays=_arrays(start(base, lab=lab, most=count)),
    facts={},
    identity={"environment": settings.environment},
    iterators={},
    show=(
      ("agent/true_return", "return"),
      ("agent/reward_correlation", "correlation"),
      ("labels/count", "labels"),
    ),
    measure=measure,
  )
  facts = _facts(settings, lab, arrays, base)
  finite.check_facts(RESULT, facts)
  page = segments_page.page(settings, facts, folder)
  table_page.write(folder / "report.html", page)
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(facts, indent=2) + "\n")
  os.replace(temporary, path)
  return facts


def _turn(
  settings: Settings,
  lab: turns.Lab,
  due: np.ndarray,
  base: Array,
  folder: Path,
  step: int,
  arrays: PyTree,
  facts: dict,
) -> tuple[PyTree, dict, dict]:
  """Does one turn; what loop.run_steps calls."""
  keys = jax.random.split(jax.random.fold_in(base, step + 1), 5)
  state, metrics = _state(arrays), {}
  episodes = _collect(state, keys[0], lab=lab)
  if not settings.uses_truth:
    state, metrics = asked.ask(
      lab, due, settings.seed, folder, step, state, episodes, keys[1:4]
    )
  fits = settings.predictor.first_fits if step == 0 else 1
  state, found = _learn(
    state,
    episodes,
    keys[4],
    0 if settings.uses_truth else fits,
    uses_truth=settings.uses_truth,
    lab=lab,
  )
  metrics = jax.device_get(metrics | found)
  return _arrays(state), facts, _logged(settings, metrics)


def _logged(settings: Settings, metrics: dict) -> dict:
  """Returns the metrics that this run has."""
  lacking = _OF_LABELS if settings.uses_truth else ()
  may_lack = _MAY_LACK
  if not metrics.get("labels/count"):
    may_lack += ("predictor/loss",)
  return {
    k: float(v)
    for k, v in metrics.items()
    if not k.startswith(lacking) and not (k in may_lack and np.isnan(v))
  }


def _facts(
  settings: Settings, lab: turns.Lab, arrays: PyTree, base: Array
) -> dict[str, Any]:
  """Returns the numbers of a finished run."""
  state, count = _state(arrays), settings.agent.test_episodes
  returns = np.asarray(
    _tested(
      state.agent.params, jax.random.fold_in(base, 0), lab=lab, count=count
    )
  )
  facts: dict[str, Any] = {
    "pipeline": NAME,
    "environment": settings.environment,
    "reward": settings.agent.reward,
    "steps": settings.schedule.steps,
    "environment_steps": settings.schedule.steps
    * settings.schedule.batch_size
    * lab.environment.steps,
    "true_return": float(returns.mean()),
    "true_return_error": float(returns.std(ddof=1) / np.sqrt(count))
    if count > 1
    else None,
    "agent_fingerprint": integrity.fingerprint_params(state.agent.params),
  }
  if not settings.uses_truth:
    facts |= {
      "labels_by": settings.labels.by,
      "labels_asked": int(state.labels.asked),
      "labels": int(state.labels.count),
      "queries": settings.queries.choose,
    }
  return facts


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: nothing here is as large as a language model."""
  del settings, world
  return []


def describe(settings: Settings) -> str:
  """Returns what is done, in a line."""
  asked = (
    "the true reward"
    if settings.uses_truth
    else f"{settings.labels.count} labels of segments"
  )
  return (
    f"{settings.schedule.steps} rollouts of {settings.schedule.batch_size} "
    f"episodes of {settings.environment}, on {asked}"
  )


def tell(settings: Settings, folder: Path) -> None:
  """Prints what a finished run found."""
  del settings
  found = json.loads((folder / RESULT).read_text())
  error = found["true_return_error"]
  print(
    f"{NAME}: true return {found['true_return']:.1f}"
    + ("" if error is None else f" +- {error:.1f}")
    + " with "
    + (
      f"{found['labels']} labels"
      if "labels" in found
      else "the true reward (control)"
    )
  )


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  describe=describe,
  label=lambda settings: "PPO",
  result=RESULT,
  tell=tell,
)
