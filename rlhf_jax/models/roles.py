"""The four roles over one decoder: what trains, and where it starts.

A role (policy, reference, reward, value) is a decoder, the range of layers it
uses and what of it is trainable:

  full  every weight from `first_layer` up (0: the embedding too)
  lora  low-rank factors from `first_layer` up; the base stays frozen
  head  only the scalar head on a frozen trunk

Its variables are one dict {"params", "lora", "head"}, split into a trainable
and a frozen tree with disjoint leaves; `trees.merge` of the two is what the
module is applied to. Frozen trees are arguments of an update, never closed
over. With `lora` all roles share one base, and the reference is the base with
the factors that the policy started from.

What a role computes of rows is in outputs.py.
"""

from __future__ import annotations

import dataclasses
import functools

import jax

from rlhf_jax.models import heads, lora, quantised, transformer, trees
from rlhf_jax.models import members as members_lib
from rlhf_jax.schema import UserError, check_choice, check_least
from rlhf_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What trains of a model."""

  mode: str = "full"  # all weights, LoRA factors, or a head on frozen layers
  first_layer: int = 0  # layers below are frozen, their output computed once

  def __post_init__(self) -> None:
    check_choice("mode", self.mode, ("full", "lora", "head"))
    check_least(self, first_layer=0)


@dataclasses.dataclass(frozen=True)
class Role:
  """One use of a decoder."""

  model: transformer.Config
  trainable: str = "full"  # "full", "lora" or "head"
  first_layer: int = 0  # lowest layer that trains
  stop_layer: int | None = None  # the trunk ends before it; None: all layers
  head: heads.Config | None = None  # scalar head of reward and value roles
  members: int = 1  # reward models in one: heads, stacked on their first axis
  own_factors: bool = False  # each member has LoRA factors of its own too

  def __post_init__(self) -> None:
    layers = self.model.n_layers
    self._check_members()
    if self.trainable not in ("full", "lora", "head"):
      raise UserError(
        f"trainable={self.trainable!r}: must be 'full', 'lora' or 'head'."
      )
    if self.trainable == "head" and self.head is None:
      raise UserError(
        "trainable='head': this role has no scalar head; use 'full' or 'lora'."
      )
    if not 0 <= self.first_layer < layers:
      raise UserError(
        f"first_layer={self.first_layer}: must be in 0..{layers - 1}, the "
        f"model has {layers} layers."
      )
    if self.stop_layer is not None and not 0 < self.stop_layer <= layers:
      raise UserError(
        f"stop_layer={self.stop_layer}: must be in 1..{layers}, the model has "
        f"{layers} layers."
      )
    if self.trainable != "head" and self.first_layer >= self.stop:
      raise UserError(
        f"first_layer={self.first_layer} >= stop_layer={self.stop}: no layer "
        "would train. Lower first_layer or set trainable='head'."
      )
    if self.model.scan_layers and (self.first_layer or self.stop != layers):
      raise UserError(
        f"first_layer={self.first_layer}, stop_layer={self.stop} with "
        "scan_layers: scanned layers run as a whole. Set model.scan_layers="
        "False to train or read a part of the layers."
      )
    if self.trainable == "lora" and not self.model.lora_rank:
      raise UserError(
        "trainable='lora' with lora_rank=0: set lora_rank, for example 16."
      )

  def _check_members(self) -> None:
    if self.members < 1 or (self.members > 1 and self.head is None):
      raise UserError(
        f"members={self.members}: must be >= 1, and 1 without a head."
      )
    if self.own_factors and (self.members == 1 or self.trainable != "lora"):
      raise UserError(
        f"own_factors=True with members={self.members} and trainable="
        f"{self.trainable!r}: members have LoRA factors of their own. Set "
        "trainable='lora' and two members at least."
      )

  @property
  def alone(self) -> Role:
    """The role of one member."""
    return dataclasses.replace(self, members=1, own_factors=False)

  @property
  def stop(self) -> int:
    """The layer before which the trunk ends."""
    return self.model.n_layers if self.stop_layer is None else self.stop_layer

  @property
  def entrance(self) -> int:
    """The layer whose incoming stream is frozen; 0 when nothing below is."""
    return self.stop if self.trainable == "head" else self.first_layer

  @property
  def network(self) -> transformer.Transformer:
    """The Linen module."""
    return transformer.Transformer(self.model)


def is_trainable(role: Role, path: str) -> bool:
  """Says whether a leaf of {"params", "lora", "head"} trains in this role."""
  collection, _, rest = path.partition("/")
  if collection == "head":
    return True
  if role.trainable == "head":
    return False
  if collection == "lora":
    return role.trainable == "lora"
  if role.trainable == "lora":
    return False
  part = rest.split("/")[0]
  if part.startswith("layer_"):
    return role.first_layer <= int(part.removeprefix("layer_")) < role.stop
  if part in ("final_norm", "lm_head"):
    return role.head is None
  return role.first_layer == 0  # embeddings, scanned layers


def split(role: Role, variables: dict) -> tuple[PyTree, PyTree]:
  """Returns (trainable, frozen) trees of a role's variables.

  Raises:
    UserError: a weight of few bits would train.
  """
  parts = trees.split(variables, lambda path: is_trainable(role, path))
  quantised.check_none_trains(parts[0], role.trainable)
  return parts


def fresh_head(role: Role, key: Array) -> dict:
  """Returns the parameters of a head; those of members are stacked."""

  def make(key: Array) -> dict:
    return heads.init(role.head, role.model.width, key)

  if role.members == 1:
    return make(key)
  return members_lib.each(role.members, key, make)


def fresh_lora(role: Role, key: Array) -> dict:
  """Returns LoRA factors for the layers from first_layer to stop, B = 0.

  Those of members that have their own are stacked, as in `fresh_head`.
  """
  if role.own_factors:
    alone = functools.partial(fresh_lora, role.alone)
    return members_lib.each(role.members, key, alone)
  config = dataclasses.replace(role.model, lora_first_layer=role.first_layer)
  shapes = jax.eval_shape(lambda k: transformer.init(config, k), key)["lora"]
  return lora.init(lora.chosen(shapes, config.lora_targets, role.stop), key)


def sampling_params(role: Role, trainable: PyTree, frozen: PyTree) -> PyTree:
  """Returns the complete parameter tree that the sampler reads.

  With model.lora_merge=False factors stand beside their kernels in it.
  """
  variables = trees.merge(trainable, frozen)
  if "lora" not in variables:
    return variables["params"]
  if not role.model.lora_merge:
    return lora.beside(variables["params"], variables["lora"])
  return lora.merge(
    variables["params"], variables["lora"], role.model.lora_scale
  )


def trains_unembedding(role: Role) -> bool:
  """Says whether the (possibly tied) unembedding of a policy role trains."""
  name = "embedding/embedding" if role.model.tie_embeddings else "lm_head"
  return is_trainable(role, f"params/{name}")
