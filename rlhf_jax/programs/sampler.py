"""What samples a policy, and what that compiles.

A run calls a `Sampler`; a plan reads the programs that such a call runs, at
their largest: all answers of full length, so that no row leaves and the cache
has grown to its end.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import decoding, generate, slots
from rlhf_jax.data import stops
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import lora, roles, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import abstract
from rlhf_jax.programs.program import Flow, Program, prompt_width
from rlhf_jax.programs.work import Passes, Work
from rlhf_jax.programs.world import AnyMesh, whole_weights
from rlhf_jax.types import Array, PyTree, Samples


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Samples a policy: factors merged or not, prompts run, tokens drawn.

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
  def end(self) -> dict[str, Any]:
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
      **self.end,
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
    plan = _Plan(self, mesh, params, prompts, count, label, calls)
    return [*([plan.merge()] if plan.merges else []), *plan.passes()]


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What a call of a sampler runs; see `Sampler.programs`."""

  sampler: Sampler
  mesh: AnyMesh
  params: PyTree
  prompts: Data
  count: int
  label: str
  calls: float | None

  @functools.cached_property
  def config(self) -> generate.Config:
    """How it samples."""
    return self.sampler.config

  @functools.cached_property
  def samples(self) -> int:
    """Rows of one call."""
    return self.count * self.config.num_samples

  @functools.cached_property
  def rows(self) -> int:
    """Rows that are decoded together."""
    size = self.config.batch_size
    return self.samples if size is None else min(self.samples, size)

  @functools.cached_property
  def shared(self) -> int:
    """Rows that share the pass of their prompt."""
    return generate.rows_of_prompt(
      self.rows, self.config.num_samples, self.ways
    )

  @functools.cached_property
  def ways(self) -> int:
    """Shards of the rows."""
    count = mesh_lib.row_ways(self.mesh)
    return 1 if self.rows % count else count

  @functools.cached_property
  def is_refilled(self) -> bool:
    """Whether waiting prompts take the place of finished rows."""
    return self.config.refill is not False and self.rows < self.samples

  @functools.cached_property
  def room(self) -> int:
    """New tokens that the cache has room for at first."""
    is_compact = self.config.compact is not False
    return generate.first_room(self.config, is_compact=is_compact)

  @functools.cached_property
  def width(self) -> int:
    """Tokens of a prompt."""
    return prompt_width(self.prompts, self.config, self.sampler.base)

  @functools.cached_property
  def weights(self) -> PyTree:
    """The policy's, its factors merged or beside their kernels."""
    role = self.sampler.role
    if not role.model.lora_merge:
      variables = trees.merge(self.params, self.sampler.frozen)
      return lora.beside(variables["params"], variables.get("lora", {}))
    return whole_weights(role, self.params, self.sampler.frozen)

  @functools.cached_property
  def merges(self) -> PyTree:
    """The kernels that factors are added to; {} for none."""
    if not self.sampler.role.model.lora_merge:
      return {}
    variables = trees.merge(self.params, self.sampler.frozen)
    return lora.adapted(variables["params"], variables.get("lora", {}))

  @property
  def statics(self) -> dict[str, Any]:
    """What passes are told beside arrays."""
    return dict(model=self.sampler.role.model, config=self.config)

  def times(self, rows: int, of: int) -> float | None:
    """Returns how often `rows` rows out of `of` are taken in a run."""
    return None if self.calls is None else self.calls * of / rows

  def passes(self) -> list[Program]:
    """Returns what runs over prompts, tokens and caches.

    Every answer has its full length, so no row leaves before the last token.
    """
    full = self.width + self.config.max_new_tokens
    starts = self.rows if self.is_refilled else self.samples
    found = [self.prefill("prefill", self.rows, self.room, starts)]
    if self.room < self.config.max_new_tokens:
      found.append(self.grow(full))
    found.append(self.decode(full))
    if self.is_refilled:
      mine = self.rows // self.ways
      unit = generate.refill_rows(mine, self.shared) * self.ways
      waiting = self.samples - self.rows
      found.append(self.prefill("next prefill", unit, 0, waiting))
      found.append(self.refill(unit, waiting))
    return found

  def merge(self) -> Program:
    """Returns what adds factors to weights."""
    variables = trees.merge(self.params, self.sampler.frozen)
    kernels = self.merges
    scale = self.sampler.role.model.lora_scale
    return Program(
      name=f"{self.label}merge",
      function=lora.merged_kernels,
      arguments=lambda flow: (
        (kernels, variables["lora"]),
        {"scale": scale},
      ),
      rows=self.rows,
      work=lambda: Work(traffic=2.0 * abstract.bytes_of(kernels)),
      known=lambda: lora.adapted(self.weights, variables["lora"]),
      calls=self.calls,
    )

  def prefill(self, name: str, rows: int, room: int, of: int) -> Program:
    """Returns the pass over prompts.

    Args:
      name: of the program.
      rows: that it fills.
      room: slots for new tokens.
      of: rows that are filled so in a call.
    """
    model, count = self.sampler.role.model, rows // self.shared
    pad = self.sampler.base.tokenizer.pad_id
    work = functools.partial(Passes(self.mesh).prefill, model, count)
    return Program(
      name=f"{self.label}{name}",
      function=decoding.prefill,
      arguments=lambda flow: (
        (
          self.weights,
          abstract.prompt_batch(self.mesh, count, self.width),
          abstract.keys(self.mesh, rows),
          abstract.number(self.mesh, jnp.int32),
        ),
        dict(self.statics, pad_id=pad, room=room, taps=self.sampler.taps),
      ),
      rows=rows,
      work=lambda: work(self.width, room, self.shared, self.config.cache_dtype),
      result=f"{self.label}{name}ed",
      calls=self.times(rows, of),
    )

  def grow(self, full: int) -> Program:
    """Returns what gives the cache its last length, from half the room."""
    room, most = self.room, self.config.max_new_tokens
    while 2 * room < most:
      room *= 2
    cache = functools.partial(
      Passes(self.mesh).cache_bytes,
      self.sampler.role.model,
      self.rows,
      dtype=self.config.cache_dtype,
    )
    return Program(
      name=f"{self.label}grow",
      function=slots.grow,
      arguments=lambda flow: (
        (
          abstract.with_slots(
            flow[f"{self.label}prefilled"], self.width + room
          ),
        ),
        {"size": full},
      ),
      rows=self.rows,
      work=lambda: Work(traffic=2.0 * cache(full), cache=cache(full)),
      calls=self.times(self.rows, self.samples),
    )

  def decode(self, full: int) -> Program:
    """Returns the loop over tokens, in the longest cache."""
    model, config = self.sampler.role.model, self.config
    new = config.max_new_tokens
    work = functools.partial(Passes(self.mesh).decode, model, self.rows)
    return Program(
      name=f"{self.label}decode",
      function=decoding.decode,
      arguments=lambda flow: (
        (
          self.weights,
          abstract.with_slots(flow[f"{self.label}prefilled"], full),
          abstract.number(self.mesh, jnp.int32),
        ),
        dict(self.statics, **self.sampler.end),
      ),
      rows=self.rows,
      work=lambda: work(self.width, new, config.cache_dtype),
      result=f"{self.label}decoded",
      donates=1,
      trips=new,
      calls=self.times(self.rows, self.samples),
    )

  def refill(self, unit: int, waiting: int) -> Program:
    """Returns what puts new rows in the place of done ones.

    Args:
      unit: rows at a time.
      waiting: rows that come so in a call.
    """
    most = self.config.max_new_tokens

    def arguments(flow: Flow) -> tuple[tuple, dict]:
      state = flow[f"{self.label}decoded"]
      result = jax.tree.map(
        lambda x: abstract.spread(
          self.mesh, (self.samples, *x.shape[1:]), x.dtype
        ),
        state.answers,
      )
      new = flow[f"{self.label}next prefilled"]
      return (result, state, new), {"most": most}

    return Program(
      name=f"{self.label}refill",
      function=slots.refill,
      arguments=arguments,
      rows=self.rows,
      donates=1,
      calls=self.times(unit, waiting),
    )
