"""What a program computes, moves and keeps, counted from the model.

FLOPs are those of the matrix products and of attention as it is written
(every query meets every key of its row, masked or not), recomputation
included. `cost_analysis()` of a compiled program is no substitute: it counts
the body of a scan once.

Temporary bytes, HBM traffic and bytes sent are estimates by formula, used
where nothing was compiled (temporaries, bytes sent) or where the compiler
does not say (traffic):

  temporaries  one layer's activations, those kept for the backward pass, the
               gradients, gathered weights, one chunk of logits
  traffic      weights read in every pass, the optimizer's seven arrays, the
               key-value cache once a token
  sent         "fsdp" gathers weights in every pass and scatters gradients,
               "data" reduces gradients, "tensor" reduces two streams a layer
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from rlhf_jax import likelihood
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import roles, transformer
from rlhf_jax.programs.layer_work import (
  FEW,
  FLOAT,
  attention_flops,
  forward_flops,
  layer_bytes,
  layer_weights,
  reads_last,
  unread_flops,
)
from rlhf_jax.programs.world import AnyMesh
from rlhf_jax.rewards import judge


@dataclasses.dataclass(frozen=True)
class Work:
  """Of one call; FLOPs of all chips together, everything else one chip's."""

  flops: float = 0.0
  traffic: float = 0.0  # HBM bytes
  sent: float = 0.0  # bytes over the interconnect
  temporaries: float = 0.0  # bytes
  cache: float = 0.0  # bytes of keys and values

  def __add__(self, other: Work) -> Work:
    """Returns both, one after the other."""
    return Work(
      flops=self.flops + other.flops,
      traffic=self.traffic + other.traffic,
      sent=self.sent + other.sent,
      temporaries=max(self.temporaries, other.temporaries),
      cache=max(self.cache, other.cache),
    )


@dataclasses.dataclass(frozen=True)
class Passes:
  """Counts passes over a model on a mesh."""

  mesh: AnyMesh

  @property
  def ways(self) -> int:
    """Returns the parts that the rows of a batch are split into."""
    return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  def weights(self, model: transformer.Config, layers: int) -> float:
    """Returns weights of so many layers and of one unembedding, a chip's.

    "fsdp" gathers what it splits, so only "tensor" divides.
    """
    count = layers * layer_weights(model)
    count += model.width * model.vocab_size
    return count / self.mesh.shape["tensor"]

  def at_rest(self, model: transformer.Config, layers: int) -> float:
    """Returns the bytes of `weights`, as they rest."""
    wide = jnp.dtype(model.weights).itemsize
    return FEW.get(model.quantize, wide) * self.weights(model, layers)

  def _gather(self, model: transformer.Config, layers: int) -> float:
    fsdp = self.mesh.shape["fsdp"]
    return self.at_rest(model, layers) * (fsdp - 1) / fsdp

  def _reduce(
    self, model: transformer.Config, tokens: float, layers: int
  ) -> float:
    """Returns bytes sent for the two all-reduces of each layer's stream."""
    tensor = self.mesh.shape["tensor"]
    size = jnp.dtype(model.dtype).itemsize
    stream = tokens / self.ways * model.width * size
    return 2 * layers * 2 * stream * (tensor - 1) / tensor

  def _logits(self, model: transformer.Config, rows: float) -> float:
    return 3.0 * FLOAT * rows * model.vocab_size / self.mesh.shape["tensor"]

  def _chunk(self, model: transformer.Config, rows: float) -> float:
    """Returns bytes of one chunk of logits and what is computed from them."""
    rows = min(
      rows, likelihood.chunk_rows(likelihood.CHUNK_BYTES, model.vocab_size)
    )
    return self._logits(model, rows)

  def _gathered(self, model: transformer.Config) -> float:
    """Returns bytes of weights whole on a chip while a layer runs."""
    size = jnp.dtype(model.dtype).itemsize
    largest = model.width * model.vocab_size
    two = 2 * layer_weights(model)
    return size * max(largest, two) / self.mesh.shape["tensor"]

  def forward(
    self, used: list[roles.Role], rows: int, length: int, targets: int
  ) -> Work:
    """Returns forward passes of roles, each over all of its own layers.

    Args:
      used: roles; those without a head also read the unembedding.
      rows: of the batch.
      length: tokens of a row.
      targets: tokens of a row whose logits are wanted.
    """
    total = Work()
    for role in used:
      total += self._forward(role, role.stop, rows, length, targets)
    return total

  def _forward(
    self,
    role: roles.Role,
    layers: int,
    rows: int,
    length: int,
    targets: int,
    *,
    is_critic: bool = False,
  ) -> Work:
    model = role.model
    if role.own_factors:  # they run once for each member
      own = min(layers, role.stop - role.entrance)
      layers += (role.members - 1) * own
    tokens = rows * length
    logits = rows * targets if role.head is None else 0
    reads = targets if logits or is_critic else length
    live = layer_bytes(
      model, rows / self.ways, length, length, self.mesh.shape["tensor"]
    )
    return Work(
      flops=forward_flops(model, tokens, layers, logits)
      + layers * attention_flops(model, rows, length, length)
      - (unread_flops(model, rows, length, reads) if layers else 0.0),
      traffic=self.at_rest(model, layers) + 2.0 * layers * live,
      sent=self._gather(model, layers) + self._reduce(model, tokens, layers),
      temporaries=live
      + self._gathered(model)
      + (self._chunk(model, logits / self.ways) if logits else 0.0),
    )

  def policy_and_value(
    self, plan: judge.Plan, rows: int, length: int, targets: int
  ) -> Work:
    """Returns a forward pass of policy and critic, if any, from entrances."""
    total = Work()
    used = {"policy": plan.policy}
    if plan.value is not None and not plan.is_value_on_policy:
      used["value"] = plan.value
    for name, role in used.items():
      below = role.entrance if name in plan.known else 0
      total += self._forward(
        role,
        role.stop - below,
        rows,
        length,
        targets,
        is_critic=name == "value" and reads_last(role),
      )
    return total

  def judge(
    self,
    plan: judge.Plan,
    rows: int,
    length: int,
    targets: int,
    kept: tuple[int, ...] = (),
  ) -> Work:
    """Returns the score stage; shared lower layers run once.

    Args:
      plan: of the judge.
      rows, length, targets: see `forward`.
      kept: layers whose incoming stream the sampler kept.
    """
    used = {name: scorer.role for name, scorer in plan.scorers}
    for name, role in (("reference", plan.reference), ("value", plan.value)):
      if role is not None:
        used[name] = role
    tapped = used | {"policy": plan.policy}
    total = Work()
    for names in (plan.shared, plan.own):
      below = kept if "policy" in names else ()
      taps = {tapped[name].entrance for name in names} - set(below)
      if taps:
        start = max((n for n in below if n <= min(taps)), default=0)
        trunk = dataclasses.replace(plan.policy, head=None)
        total += self._forward(trunk, max(taps) - start, rows, length, 0)
    for name, role in used.items():
      stream = plan.value_stream if name == "value" else name
      below = role.entrance if stream in plan.known else 0
      total += self._forward(
        role,
        role.stop - below,
        rows,
        length,
        targets,
        is_critic=name == "value" and reads_last(role),
      )
    return total

  def training(
    self,
    role: roles.Role,
    trainable_bytes: float,
    rows: int,
    length: int,
    targets: int,
    *,
    parts: int = 1,
    steps: int = 1,
    repeats: int = 1,
    is_lower_known: bool = False,
    is_critic: bool = False,
  ) -> Work:
    """Returns forward and backward passes and the optimizer's steps.

    Args:
      role: what trains.
      trainable_bytes: of its trained weights, on one chip.
      rows: of the batch.
      length: tokens of a row.
      targets: tokens of a row whose logits are wanted.
      parts: passes that the rows are cut into.
      steps: optimizer steps among them.
      repeats: how often all of it is done.
      is_lower_known: the stream into the first trained layer is an input.
      is_critic: of a role with a head, whether it is read at targets only.
    """
    model, tensor = role.model, self.mesh.shape["tensor"]
    layers = role.stop - role.entrance
    layers *= role.members if role.own_factors else 1
    again = 1.0 if model.remat else 0.0
    passes = (3.0 if role.trainable == "full" else 2.0) + again
    logits = rows * targets if role.head is None else 0
    reads = targets if logits or is_critic else length
    tokens = rows * length
    live = gathered = 0.0  # of a head on features
    if layers:
      split = rows / parts / self.ways
      live = layer_bytes(model, split, length, length, tensor)
      gathered = self._gathered(model)
    size = jnp.dtype(model.dtype).itemsize
    stream = tokens / parts / self.ways * model.width * size
    kept = layers * (stream if model.remat else live)
    gradients = trainable_bytes * (2.0 if parts > steps else 1.0)
    data = self.mesh.shape["data"]
    work = Work(
      flops=passes
      * (
        forward_flops(model, tokens, layers, logits)
        + layers * attention_flops(model, rows, length, length)
        - (unread_flops(model, rows, length, reads) if layers else 0.0)
      ),
      traffic=parts * passes * self.at_rest(model, layers)
      + steps * 7.0 * trainable_bytes
      + parts * 4.0 * layers * live,
      sent=parts * 2.0 * self._gather(model, layers)
      + parts * 2.0 * trainable_bytes * (data - 1) / data
      + parts * self._scatter(trainable_bytes)
      + passes * self._reduce(model, tokens, layers),
      temporaries=kept
      + 2.0 * live
      + gradients
      + gathered
      + (self._chunk(model, logits / parts / self.ways) if logits else 0.0),
    )
    if role.entrance and not is_lower_known:
      below = role.alone  # once for all members
      work += self._forward(below, role.entrance, rows, length, 0)
    return Work(
      flops=repeats * work.flops,
      traffic=repeats * work.traffic,
      sent=repeats * work.sent,
      temporaries=work.temporaries,
    )

  def _scatter(self, trainable_bytes: float) -> float:
    """Returns bytes sent to sum gradients onto the chips that own them."""
    return trainable_bytes * (self.mesh.shape["fsdp"] - 1)

  def cache_bytes(
    self,
    model: transformer.Config,
    rows: int,
    slots: int,
    dtype: str | None = None,
  ) -> float:
    """Returns bytes of keys and values on one chip, see cache.make_cache."""
    tensor = self.mesh.shape["tensor"]
    split = tensor if model.n_kv_heads % tensor == 0 else 1
    row = slots * cache_lib.token_bytes(model, dtype)
    return rows / self.ways * row / split

  def prefill(
    self,
    model: transformer.Config,
    rows: int,
    width: int,
    new: int,
    times: int = 1,
    dtype: str | None = None,
  ) -> Work:
    """Returns the pass over the prompts that fills the cache.

    Args:
      model: architecture.
      rows: of the batch.
      width: tokens of a prompt.
      new: tokens to be sampled: the cache has slots for them.
      times: rows of the cache for each row that runs.
      dtype: of the cache, see cache.make_cache.
    """
    role = roles.Role(model=dataclasses.replace(model, lora_rank=0))
    work = self._forward(role, model.n_layers, rows, width, 1)
    tensor = self.mesh.shape["tensor"]
    live = layer_bytes(model, rows / self.ways, width, width, tensor)
    cache = self.cache_bytes(model, rows * times, width + new, dtype)
    return dataclasses.replace(
      work,
      temporaries=live
      + self._gathered(model)
      + self._logits(model, rows / self.ways),
      cache=cache,
    )

  def decode(
    self,
    model: transformer.Config,
    rows: int,
    width: int,
    new: int,
    dtype: str | None = None,
  ) -> Work:
    """Returns all steps of one token a row; see `prefill`.

    Weights are cast to the compute dtype, and gathered, once before the loop;
    those of few bits are widened one at a time, in it.
    """
    slots, tensor = width + new, self.mesh.shape["tensor"]
    steps, layers = new, model.n_layers
    cache = self.cache_bytes(model, rows, slots, dtype)
    size = jnp.dtype(model.dtype).itemsize
    whole = self.weights(model, layers)
    is_as_it_is = model.weights == model.dtype and self.mesh.shape["fsdp"] == 1
    made = 0.0 if is_as_it_is else size * whole
    live = layer_bytes(model, rows / self.ways, 1, slots, tensor)
    read = size * whole
    if model.quantize != "none":
      read = self.at_rest(model, layers)
      made = size * model.width * model.vocab_size / tensor
      made += read if self.mesh.shape["fsdp"] > 1 else 0.0
    return Work(
      flops=steps
      * (
        forward_flops(model, rows, layers, rows)
        + layers * attention_flops(model, rows, 1, slots)
      ),
      traffic=steps * (read + cache),
      sent=self._gather(model, layers)
      + steps * self._reduce(model, rows, layers),
      temporaries=live + made + self._logits(model, rows / self.ways),
      cache=cache,
    )
