"""A compiled function and what it is called with; a phase made of several.

A pipeline makes its programs once, for a run and for a plan. A run calls them
with its data. A plan calls `arguments` for abstract ones: what one program
returns is what the next one gets, so shardings follow the compiler's choice, as
in a run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rlhf_jax import decoding, generate
from rlhf_jax.data import stops, streams
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import lora, roles, transformer, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.programs import abstract
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import AnyMesh, World, whole_weights
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.types import Array, PyTree, Samples, TrainState

MANY = 2**31  # stands for a length that only the data can tell
Flow = dict[str, PyTree]  # results of the programs before, by name


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled function and one call of it.

  function: jitted.
  arguments: from earlier results to (args, kwargs), abstract.
  rows: rows of its batch.
  work: returns what it computes.
  result: name of its result for later programs, "" when none reads it.
  donates: place of the argument whose buffers the result takes, or None.
  known: returns its abstract result, where that needs no compiling.
  trips: of loops whose length only the data can tell, at most.
  calls: how often in a whole run; None where only the data can tell.
  """

  name: str
  function: Any
  arguments: Callable[[Flow], tuple[tuple, dict]]
  rows: int
  work: Callable[[], Work] = Work
  result: str = ""
  donates: int | None = None
  known: Callable[[], PyTree] | None = None
  trips: int = 1
  calls: float | None = None

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the function."""
    return self.function(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Phase:
  """A stage of training, wired: what is in memory, and what runs.

  world, base: where, and the model underneath.
  arrays: what steps change, by name; {"train": TrainState, ...}.
  frozen: what stays beside them; leaves that are one array in a run are one
    object.
  programs: by name, in the order of a step.
  step: names of those that make one training step; all of them if empty.
  role: of what is trained.
  """

  name: str
  world: World
  base: Base
  arrays: dict[str, PyTree]
  frozen: PyTree
  programs: tuple[Program, ...]
  step: tuple[str, ...]
  role: roles.Role | None = None

  def __getitem__(self, name: str) -> Program:
    """Returns a program by its name."""
    return next(p for p in self.programs if p.name == name)

  def __contains__(self, name: str) -> bool:
    """Says whether there is a program of this name."""
    return any(p.name == name for p in self.programs)

  @property
  def mesh(self) -> AnyMesh:
    """Where it runs."""
    return self.world.mesh

  @property
  def model(self) -> transformer.Config:
    """The architecture."""
    return self.base.config

  @property
  def trained(self) -> PyTree:
    """What steps change, but for the optimizer's arrays."""
    return [
      tree.params if isinstance(tree, TrainState) else tree
      for tree in self.arrays.values()
    ]

  @property
  def optimizer(self) -> PyTree:
    """The optimizer's arrays."""
    return [
      tree.opt_state
      for tree in self.arrays.values()
      if isinstance(tree, TrainState)
    ]

  @property
  def is_read_whole(self) -> bool:
    """Whether the model's file is read whole (GGUF) or by pieces."""
    source = self.base.source
    return source.startswith("asset:") or source.endswith(".gguf")

  @property
  def flops(self) -> float | None:
    """FLOPs of the whole run, None where only the data tell its length."""
    parts = [(program.calls, program) for program in self.programs]
    if any(calls is None for calls, _ in parts):
      return None
    return sum(calls * program.work().flops for calls, program in parts)


def planned_steps(schedule: Schedule) -> int:
  """Returns the steps of a schedule, MANY where the data decide."""
  return schedule.steps if schedule.steps else MANY


def known_steps(schedule: Schedule) -> float | None:
  """Returns the steps of a schedule, None where the data decide."""
  return schedule.steps if schedule.steps else None


def prompt_width(prompts: Data, sampling: generate.Config, base: Base) -> int:
  """Returns the tokens of a prompt at most, as far as the section says.

  Args:
    prompts: the Data section.
    sampling: how many tokens are left for the answer.
    base: whose tokenizer.
  """
  room = prompts.max_length - sampling.max_new_tokens
  if not prompts.prefix_tokens:
    return room
  before = streams.text_prompt(prompts.prompt, base.tokenizer)
  text = len(before) + prompts.prefix_tokens
  return min(room, text)


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples a policy: factors merged, prompts run, tokens drawn.

  role: the policy's.
  frozen: what does not train of it.
  base: whose tokenizer.
  config: how to sample.
  taps: layers whose incoming streams are kept, see judge.Plan.taps.
  """

  role: roles.Role
  frozen: PyTree
  base: Base
  config: generate.Config
  taps: tuple[int, ...] = ()

  @functools.cached_property
  def _end(self) -> dict[str, Any]:
    """What ends an answer; strings only where there are any."""
    tokenizer, config = self.base.tokenizer, self.config
    how = {"eos_ids": stops.end_ids(tokenizer, config.stop_tokens)}
    if config.stop_strings:
      rows = self.role.model.vocab_size
      how["stops"] = stops.string_table(tokenizer, config.stop_strings, rows)
    return how

  def __call__(
    self,
    params: PyTree,
    prompts: Any,
    key: Array,
    how: generate.Config | None = None,
  ) -> Samples:
    """Returns samples alone; see `with_streams`."""
    alone = dataclasses.replace(self, taps=())
    return alone.with_streams(params, prompts, key, how)[0]

  def with_streams(
    self,
    params: PyTree,
    prompts: Any,
    key: Array,
    how: generate.Config | None = None,
  ) -> tuple[Samples, dict[int, Array]]:
    """Returns samples, and the streams of `taps`.

    Args:
      params: trainable tree of the policy.
      prompts: PromptBatch.
      key: random key of this step.
      how: to sample; None for the usual way.
    """
    return generate.with_streams(
      roles.sampling_params(self.role, params, self.frozen),
      prompts,
      key,
      model=self.role.model,
      config=self.config if how is None else how,
      pad_id=self.base.tokenizer.pad_id,
      taps=self.taps,
      **self._end,
    )

  def programs(
    self,
    mesh: AnyMesh,
    params: PyTree,
    prompts: Data,
    count: int,
    label: str = "",
    calls: float | None = None,
  ) -> list[Program]:
    """Returns what a call runs, as programs of a plan.

    Args:
      mesh: where.
      params: the policy's trained tree, as it is in the train state.
      prompts: their Data section.
      count: prompts at a time.
      label: before the names of programs and results.
      calls: how often so many prompts are sampled in a run.
    """
    config, model = self.config, self.role.model
    everything = count * config.num_samples
    rows = everything
    if config.batch_size is not None:
      rows = min(rows, config.batch_size)
    # Samples of a prompt share its pass where they are decoded together.
    shared = 1 if rows % config.num_samples else config.num_samples
    parts = None if calls is None else calls * everything / rows
    new = config.max_new_tokens
    width = prompt_width(prompts, config, self.base)
    passes, pad = Passes(mesh), self.base.tokenizer.pad_id
    statics = dict(model=model, config=config)
    planned = functools.partial(Program, rows=rows, calls=parts)

    @functools.cache
    def weights() -> PyTree:
      return whole_weights(params, self.frozen)

    def merging(flow: Flow) -> tuple[tuple, dict]:
      variables = trees.merge(params, self.frozen)
      kernels = lora.adapted(variables["params"], variables["lora"])
      return (kernels, variables["lora"]), {"scale": model.lora_scale}

    merge = Program(
      name=f"{label}merge",
      function=lora.merged_kernels,
      arguments=merging,
      rows=rows,
      work=lambda: Work(traffic=2.0 * abstract.bytes_of(merging({})[0][0])),
      known=lambda: lora.adapted(weights(), trees.merge(params, {})["lora"]),
      calls=calls,
    )
    prefill = planned(
      name=f"{label}prefill",
      function=decoding.prefill,
      arguments=lambda flow: (
        (
          weights(),
          abstract.prompt_batch(mesh, rows // shared, width),
          abstract.keys(mesh, rows),
        ),
        dict(statics, pad_id=pad, taps=self.taps),
      ),
      work=lambda: passes.prefill(model, rows // shared, width, new, shared),
      result=f"{label}prefilled",
    )
    decode = planned(
      name=f"{label}decode",
      function=decoding.decode,
      arguments=lambda flow: (
        (
          weights(),
          flow[f"{label}prefilled"],
          abstract.number(mesh, jnp.int32),
        ),
        dict(statics, **self._end),
      ),
      work=lambda: passes.decode(model, rows, width, new),
      result=f"{label}decoded",
      donates=1,
      trips=new - 1,
    )
    has_factors = self.role.trainable == "lora"
    return [*([merge] if has_factors else []), prefill, decode]
