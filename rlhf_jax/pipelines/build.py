"""Config -> mesh, base model, roles, loaders: what pipelines start with."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import checkpoint, distributed
from rlhf_jax.data import batches
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import heads, transformer
from rlhf_jax.models.roles import (
  Role,
  fresh_lora,
)
from rlhf_jax.models.stored import StackedWeight
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.pipelines import pretrained
from rlhf_jax.pipelines.config import ConfigError, Model, Trainable, section
from rlhf_jax.types import PyTree, Samples


@dataclasses.dataclass(frozen=True)
class Base:
  """A pretrained decoder, its tokenizer and what identifies both."""

  config: transformer.Config
  params: PyTree
  tokenizer: Tokenizer
  fingerprint: str
  source: str


@functools.lru_cache(maxsize=2)
def load_base(model: Model, mesh: jax.sharding.Mesh) -> Base:
  """Returns the base model on the mesh; a second call returns the same."""
  path = pretrained.locate(model.source)
  tokenizer = pretrained.read_tokenizer(model, path)
  read_config, params = pretrained.read_weights(path)
  platform = mesh.devices.flat[0].platform
  config = pretrained.as_run(read_config, model, platform)
  if tokenizer.vocab_size > config.vocab_size:
    raise ConfigError(
      f"config.model.tokenizer: {tokenizer.name} has {tokenizer.vocab_size} "
      f"tokens and the model {model.source} {config.vocab_size}: they do not "
      "belong together. Set model.tokenizer to the model's own."
    )
  if config.scan_layers:
    params = stack_layers(params, config.n_layers)
  tree = {"params": params}
  params = mesh_lib.place(tree, rules.sharding_tree(mesh, tree))["params"]
  return Base(
    config=config,
    params=params,
    tokenizer=tokenizer,
    fingerprint=checkpoint.fingerprint_params(params),
    source=model.source,
  )


def stack_layers(params: PyTree, n_layers: int) -> PyTree:
  """Returns the tree with layer_0..layer_{n-1} stacked under "layers"."""
  layers = [params[f"layer_{i}"] for i in range(n_layers)]
  rest = {k: v for k, v in params.items() if not k.startswith("layer_")}
  return rest | {"layers": jax.tree.map(lambda *x: StackedWeight(x), *layers)}


def check_context(base: Base, longest: int, name: str) -> None:
  """Raises ConfigError for rows longer than the model's context.

  Args:
    base: the model.
    longest: tokens of the longest row.
    name: of the Data section, for the message.
  """
  if longest > base.config.max_length:
    raise ConfigError(
      f"config.{name}.max_length: a row has {longest} tokens and the context "
      f"of {base.source} is {base.config.max_length}. Set {name}.max_length <= "
      f"{base.config.max_length}."
    )


def make_mesh(config: Any, prefix: str = "") -> jax.sharding.Mesh:
  """Returns the mesh of a config's `mesh` section; prefix is its stage."""
  settings = section(mesh_lib.Config, config.mesh, prefix + "mesh")
  try:
    return mesh_lib.make_mesh(settings)
  except ValueError as error:
    raise ConfigError(f"config.{prefix}{error}") from error


def on_mesh(
  run: Callable[[Any, Path], dict],
) -> Callable[[Any, Path], dict]:
  """Returns a pipeline's `run`, with the mesh of its config the current one."""

  @functools.wraps(run)
  def inside(config: Any, workdir: Path) -> dict:
    with mesh_lib.current(make_mesh(config)):
      return run(config, workdir)

  return inside


def make_role(
  base: Base,
  trainable: Trainable,
  *,
  stop_layer: int | None = None,
  head: heads.Config | None = None,
) -> Role:
  """Returns the Role of a config's trainable section on a base model."""
  try:
    return Role(
      model=base.config,
      trainable=trainable.mode,
      first_layer=trainable.first_layer,
      stop_layer=stop_layer,
      head=head,
    )
  except ValueError as error:
    raise ConfigError(f"config.trainable: {error}") from error


def make_loader(
  mesh: jax.sharding.Mesh, examples: Any, batch_size: int, **settings: Any
) -> batches.Loader:
  """Returns batches.make_loader of this process's part of each batch."""
  index, count = mesh_lib.host_part(mesh)
  return batches.make_loader(
    examples, batch_size, shard_index=index, shard_count=count, **settings
  )


def report_dropped(
  phase: str, source: str, kept: int, dropped: Counter
) -> None:
  """Prints how many records were read and what was left out, and why."""
  lost = ", ".join(f"{n} {why}" for why, n in sorted(dropped.items()))
  print(
    f"{phase}: {kept} examples from {source}" + (f"; {lost}" if lost else "")
  )


def sharded_state(
  mesh: jax.sharding.Mesh, make: Callable[..., PyTree], *args: PyTree
) -> PyTree:
  """Returns make(*args), a train state, each array made where it lives."""
  return rules.init_sharded(mesh, make, *args)


def sample_texts(
  tokenizer: Tokenizer, samples: Samples
) -> list[tuple[str, str]]:
  """Returns (prompt, response) texts of samples, end tokens left out.

  A model's vocabulary may be padded beyond its tokenizer's; such tokens have
  no text and are left out.
  """
  tokens, response, valid = distributed.fetch(
    (samples.tokens, samples.response_mask, samples.valid_mask)
  )
  response = response > 0
  prompt = (valid > 0) & ~response
  has_text = tokens < tokenizer.vocab_size

  def text(row: np.ndarray, mask: np.ndarray) -> str:
    return tokenizer.decode(row[mask].tolist())

  return [
    (text(row, p & known), text(row, r & known))
    for row, p, r, known in zip(tokens, prompt, response, has_text, strict=True)
  ]


@functools.lru_cache(maxsize=16)
def variable_shapes(role: Role) -> PyTree:
  """Returns abstract {"params", "lora"?, "head"?} of a role."""
  key = jax.random.key(0)
  plain = dataclasses.replace(role.model, lora_rank=0)
  shapes = jax.eval_shape(lambda k: transformer.init(plain, k), key)
  variables = {"params": shapes["params"]}
  if role.trainable == "lora":
    variables["lora"] = jax.eval_shape(lambda k: fresh_lora(role, k), key)
  if role.head is not None:
    variables["head"] = jax.eval_shape(
      lambda k: heads.init(role.head, role.model.width, k), key
    )
  return variables


def with_shardings(shapes: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """Returns ShapeDtypeStructs that carry the rules' shardings."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    rules.sharding_tree(mesh, shapes),
  )
