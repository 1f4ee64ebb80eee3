"""Rejection sampling, online preference optimisation and BOND as phases.

Each maker takes the configuration, the devices (programs.Devices), the prefix
of the stage for messages, and the rlhf configuration it is part of, or None.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from rlhf_jax import generate
from rlhf_jax.data.batches import bucket_length
from rlhf_jax.pipelines import actors as actors_lib
from rlhf_jax.pipelines import (
  bond,
  judge,
  online_preference,
  rejection,
  sft,
  supervised,
)
from rlhf_jax.pipelines import build as build_lib
from rlhf_jax.pipelines.config import Data, Model, section
from rlhf_jax.planning import abstract, origins
from rlhf_jax.planning.ppo import actors_of
from rlhf_jax.planning.programs import (
  Devices,
  Flow,
  Phase,
  Program,
  is_read_whole,
  sampling,
)
from rlhf_jax.planning.supervised import make_transform
from rlhf_jax.planning.work import Passes, Work
from rlhf_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class _Opened:
  """The roles of a configuration on a mesh, all arrays abstract."""

  mesh: abstract.AnyMesh
  base: build_lib.Base
  actors: actors_lib.Actors
  notes: tuple[str, ...]
  sampling: generate.Config
  prompts: Data

  @property
  def frozen(self) -> PyTree:
    """What does not train of the policy."""
    return self.actors.frozen["policy"]

  @property
  def length(self) -> int:
    """Tokens of a prompt and its answer."""
    return self.prompts.max_length


def _open(
  config: Any,
  devices: Devices,
  prefix: str,
  before: Any,
  sampling_: generate.Config,
) -> _Opened:
  mesh = abstract.make_mesh(config, devices, prefix)
  base = abstract.base(
    section(Model, config.model, f"{prefix}model"), mesh, devices
  )
  actors_lib.check_sampling(sampling_, mesh.size)
  start, models, notes = origins.stages_of(config, base, mesh, prefix, before)
  actors = actors_of(
    base,
    mesh,
    start,
    models,
    sampling_.temperature,
    sampling_.max_new_tokens,
    None,
  )
  prompts = section(Data, config.prompts, f"{prefix}prompts")
  return _Opened(mesh, base, actors, notes, sampling_, prompts)


def _answers(
  opened: _Opened,
  params: PyTree,
  settings: generate.Config,
  count: int,
  label: str = "",
) -> list[Program]:
  """Returns the programs that sample and judge `count` prompts."""
  mesh, actors = opened.mesh, opened.actors
  rows = count * settings.num_samples

  def judged(flow: Flow) -> tuple[tuple, dict]:
    samples = abstract.samples_of(flow[f"{label}decoded"], mesh, rows)
    return (actors.weights, {}, samples, None), {}

  return [
    *sampling(
      mesh,
      actors.plan.policy,
      params,
      opened.frozen,
      settings,
      opened.prompts,
      count,
      label,
    ),
    Program(
      name=f"{label}judge",
      function=judge.make_judge(actors.plan),
      arguments=judged,
      rows=rows,
      work=Passes(mesh).judge(
        actors.plan, rows, opened.length, settings.max_new_tokens
      ),
      result=f"{label}judged",
    ),
  ]


def _training(opened: _Opened, rows: int, length: int, parts: int) -> Work:
  """Returns the work of an update of the policy on so many rows."""
  role = opened.actors.plan.policy
  return Passes(opened.mesh).training(
    role,
    abstract.bytes_of(opened.actors.params["policy"]),
    rows,
    length,
    opened.sampling.max_new_tokens,
    parts=parts,
  )


def _phase(
  opened: _Opened,
  name: str,
  arrays: PyTree,
  programs: list[Program],
  step: tuple[str, ...] = (),
) -> Phase:
  """Returns a phase; `arrays` holds "train" and further trees of weights."""
  others = [tree for key, tree in arrays.items() if key != "train"]
  return Phase(
    name=name,
    mesh=opened.mesh,
    model=opened.base.config,
    trained=(arrays["train"].params, others),
    # The weights it starts from stay beside the ones that train.
    frozen=(
      opened.base.params,
      opened.actors.weights,
      opened.actors.params,
      opened.frozen,
    ),
    optimizer=arrays["train"].opt_state,
    programs=tuple(programs),
    step=step if step else tuple(p.name for p in programs),
    is_read_whole=is_read_whole(opened.base),
    notes=opened.notes,
  )


def rejection_phase(
  config: Any, devices: Devices, prefix: str = "", before: Any = None
) -> Phase:
  """Returns the phase of a rejection-sampling configuration; see report.py.

  Its step is that of fine-tuning; sampling comes before the round's steps.
  """
  settings = rejection.read_settings(config, prefix)
  opened = _open(config, devices, prefix, before, settings.generate)
  mesh, plan = opened.mesh, opened.actors.plan
  tx = make_transform(config, prefix, settings.schedule)
  prompts = settings.rounds.batch_size
  abstract.check_rows(mesh, prompts, f"config.{prefix}rounds.batch_size")
  state = abstract.state(
    mesh,
    functools.partial(supervised.initial_state, optimizer_=tx),
    opened.actors.params["policy"],
  )
  rows, parts = settings.schedule.batch_size, settings.loss.microbatches
  length = bucket_length(opened.length)
  abstract.check_rows(mesh, rows, f"config.{prefix}schedule.batch_size", parts)
  batch = abstract.token_batch(mesh, rows, length, False)
  update = Program(
    name="update",
    function=sft.make_update(
      plan.policy, settings.loss, tx, settings.generate.max_new_tokens
    ),
    arguments=lambda flow: (
      (state, opened.frozen, batch, abstract.key(mesh)),
      {},
    ),
    rows=rows,
    work=_training(opened, rows, length, parts),
    donates=0,
  )
  answers = _answers(opened, state.params, settings.generate, prompts)
  return _phase(
    opened, "rejection", {"train": state}, [*answers, update], ("update",)
  )


def online_preference_phase(
  config: Any, devices: Devices, prefix: str = "", before: Any = None
) -> Phase:
  """Returns the phase of an online preference configuration."""
  settings = online_preference.read_settings(config, prefix)
  opened = _open(config, devices, prefix, before, settings.generate)
  mesh = opened.mesh
  tx = make_transform(config, prefix, settings.schedule)
  arrays = abstract.state(
    mesh,
    functools.partial(
      online_preference.initial_arrays,
      transform=tx,
      moves=settings.pairing.reference_every > 0,
    ),
    opened.actors.params["policy"],
  )
  state, count = arrays["train"], settings.schedule.batch_size
  parts, key = settings.update.microbatches, abstract.key(mesh)
  abstract.check_rows(mesh, count, f"config.{prefix}schedule.batch_size", parts)
  made = online_preference.make_programs(settings, opened.actors.plan, tx)
  pairs = Program(
    name="pairs",
    function=made.pairs,
    arguments=lambda flow: ((flow["judged"][0], key), {}),
    rows=count,
    work=Work(),
    result="pairs",
  )
  passes = Passes(mesh)
  refer = Program(
    name="refer",
    function=made.refer,
    arguments=lambda flow: (
      (arrays["reference"], opened.frozen, flow["pairs"][0]),
      {},
    ),
    rows=count,
    work=passes.forward(
      [opened.actors.plan.policy],
      2 * count,
      opened.length,
      settings.generate.max_new_tokens,
    ),
  )
  update = Program(
    name="update",
    function=made.update,
    arguments=lambda flow: (
      (state, opened.frozen, flow["pairs"][0], key),
      {},
    ),
    rows=count,
    work=_training(opened, 2 * count, opened.length, parts),
    donates=0,
  )
  return _phase(
    opened,
    "online_preference",
    arrays,
    [
      *_answers(opened, state.params, settings.generate, count),
      pairs,
      *([refer] if "reference" in arrays else []),
      update,
    ],
  )


def bond_phase(
  config: Any, devices: Devices, prefix: str = "", before: Any = None
) -> Phase:
  """Returns the phase of a BOND configuration: two policies sample."""
  settings = bond.read_settings(config, prefix)
  opened = _open(config, devices, prefix, before, settings.generate)
  mesh = opened.mesh
  tx = make_transform(config, prefix, settings.schedule)
  arrays = abstract.state(
    mesh,
    functools.partial(bond.initial_arrays, transform=tx),
    opened.actors.params["policy"],
  )
  state, anchor = arrays["train"], arrays["anchor"]
  count = settings.schedule.batch_size
  abstract.check_rows(mesh, count, f"config.{prefix}schedule.batch_size")
  once = dataclasses.replace(settings.generate, num_samples=1, batch_size=None)
  update = Program(
    name="update",
    function=bond.make_update(settings, opened.actors.plan, tx),
    arguments=lambda flow: (
      (
        state,
        opened.frozen,
        anchor,
        flow["anchor judged"][0],
        flow["own judged"][0],
      ),
      {},
    ),
    rows=count,
    work=_training(opened, 2 * count, opened.length, 1)
    + Passes(mesh).forward(
      [opened.actors.plan.policy],
      count,
      opened.length,
      settings.generate.max_new_tokens,
    ),
    donates=0,
  )
  return _phase(
    opened,
    "bond",
    arrays,
    [
      *_answers(opened, anchor, settings.generate, count, "anchor "),
      *_answers(opened, state.params, once, count, "own "),
      update,
    ],
  )
