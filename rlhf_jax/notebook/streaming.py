"""Answers token by token, as they are drawn: what a person talks to.

The passes are those of sampling (decoding.py), one row, one token a call; the
same key gives the tokens that generate.generate gives. Prompts have one of a
few widths and the cache its whole length from the start, so that turns of any
length find programs that are compiled.

Left out: keys and values of the turns before; each turn reads the whole
dialogue again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import decoding, distributed, generate
from rlhf_jax.data import batches
from rlhf_jax.models import roles
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PyTree

LEAST_WIDTH = 64  # columns of a prompt; each further width is twice that


def widths(room: int) -> tuple[int, ...]:
  """Returns the widths of prompts: 64, 128, ... and `room`, the largest."""
  found, width = [], LEAST_WIDTH
  while width < room:
    found.append(width)
    width *= 2
  return (*found, room)


@dataclasses.dataclass(frozen=True, eq=False)
class Streamer:
  """Draws one answer at a time.

  policy: a Policy (notebook/models.py).
  config: how to sample; one sample of a prompt.
  """

  policy: Any
  config: generate.Config

  def __post_init__(self) -> None:
    if self.config.num_samples != 1:
      raise UserError(
        f"num_samples={self.config.num_samples}: one answer is drawn at a "
        "time. Set 1."
      )
    if self.room < 1:
      raise UserError(
        f"max_new_tokens={self.config.max_new_tokens}: the context of "
        f"{self.policy.base.source} is {self.policy.base.config.max_length} "
        "tokens, prompt included. Lower it."
      )

  @property
  def room(self) -> int:
    """Tokens of a prompt at most."""
    return self.policy.base.config.max_length - self.config.max_new_tokens

  @functools.cached_property
  def end(self) -> dict[str, Any]:
    """What ends an answer, see Sampler.end."""
    policy = self.policy
    return Sampler(policy.role, policy.frozen, policy.base, self.config).end

  @functools.cached_property
  def params(self) -> PyTree:
    """The policy's weights, factors merged."""
    policy = self.policy
    return roles.sampling_params(policy.role, policy.params, policy.frozen)

  def tokens(
    self, prompt: Sequence[int], key: Array
  ) -> Iterator[tuple[int, bool]]:
    """Yields the tokens of an answer, and whether each ended it.

    The end token belongs to it, as the one that completes a stop string.

    Args:
      prompt: ids, 1 to `room`.
      key: random key; generate.generate draws the same with it.
    """
    pad, config = self.policy.base.tokenizer.pad_id, self.config
    width = next(w for w in widths(self.room) if w >= len(prompt))
    batch = batches.collate_prompts([prompt], pad, width, index=[0])
    statics = {"model": self.policy.role.model, "config": config}
    mesh, most = self.policy.mesh, config.max_new_tokens
    with mesh_lib.current(mesh):
      batch = mesh_lib.spread_batch(mesh, batch)
      keys = generate.sample_keys(key, batch.index, 1)
      state = decoding.prefill(
        self.params,
        batch,
        keys,
        jnp.int32(0),
        pad_id=pad,
        room=most,
        **statics,
      )
    for step in range(most):
      with mesh_lib.current(mesh):
        state = decoding.decode(
          self.params,
          state,
          jnp.int32(0),
          until=jnp.int32(width + step + 1),
          **statics,
          **self.end,
        )
      answers = state.answers
      row, is_done = distributed.fetch((answers.tokens, answers.done))
      yield int(row[0, width + step]), bool(is_done[0])
      if is_done[0]:
        return


def key_of(seed: int, turn: int) -> Array:
  """Returns the key of a turn, from 0, of a dialogue with a seed."""
  return jax.random.fold_in(jax.random.key(seed), turn)
