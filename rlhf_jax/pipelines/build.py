"""Config -> mesh, models, roles, checkpoints: what every pipeline starts with.

A stage is a directory that one pipeline filled. Its stage.json says what was
trained (role, model, tokenizer, normalisation) and its last checkpoint holds
the trainable tree; `load_stage` puts the two on top of a base model again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import checkpoint, distributed
from rlhf_jax.data import batches
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models import heads, transformer, trees
from rlhf_jax.models.roles import (
  Role,
  fresh_lora,
  sampling_params,
  split,
)
from rlhf_jax.models.stored import StackedWeight
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.pipelines import pretrained
from rlhf_jax.pipelines.config import ConfigError, Model, Trainable, section
from rlhf_jax.types import PyTree, Samples

STAGE_FILE = "stage.json"
PATHS = ("init_from", "merged_from")  # in stage.json, relative to its folder
_POLICIES = ("preference", "rejection", "online_preference", "bond")
STANDS_FOR = {  # what else does where a run of a pipeline is wanted
  "sft": _POLICIES,
  "policy": _POLICIES,
}


@dataclasses.dataclass(frozen=True)
class Base:
  """A pretrained decoder, its tokenizer and what identifies both."""

  config: transformer.Config
  params: PyTree
  tokenizer: Tokenizer
  fingerprint: str
  source: str


@functools.lru_cache(maxsize=2)
def _load(model: Model, mesh: jax.sharding.Mesh) -> Base:
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


def load_base(model: Model, mesh: jax.sharding.Mesh) -> Base:
  """Returns the base model on the mesh; a second call returns the same.

  The mesh becomes JAX's current one where the attention has to know it.
  """
  base = _load(model, mesh)
  if base.config.attention == "splash":
    jax.set_mesh(mesh)
  return base


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


@dataclasses.dataclass(frozen=True)
class Stage:
  """A trained role, ready to be used or trained further."""

  role: Role
  variables: PyTree  # {"params", "lora"?, "head"?}, complete
  info: dict  # stage.json


def _role_facts(role: Role) -> dict:
  return {
    "trainable": role.trainable,
    "first_layer": role.first_layer,
    "stop_layer": role.stop_layer,
    "lora_rank": role.model.lora_rank,
    "lora_scale": role.model.lora_scale,
    "head": None if role.head is None else dataclasses.asdict(role.head),
  }


def identity(base: Base) -> dict:
  """Returns what a checkpoint must agree with: model and tokenizer."""
  return {
    "model_fingerprint": base.fingerprint,
    "tokenizer_fingerprint": base.tokenizer.fingerprint,
  }


def make_loader(
  mesh: jax.sharding.Mesh, examples: Any, batch_size: int, **settings: Any
) -> batches.Loader:
  """Returns batches.make_loader of this process's part of each batch."""
  index, count = mesh_lib.host_part(mesh)
  return batches.make_loader(
    examples, batch_size, shard_index=index, shard_count=count, **settings
  )


def origins(**folders: str | Path) -> dict[str, str]:
  """Returns what a checkpoint must agree with about the runs it builds on.

  Args:
    folders: name -> directory of a finished stage, or "" for none.
  """
  return {
    f"{name}_fingerprint": stage_fingerprint(folder)
    for name, folder in folders.items()
  }


def stage_fingerprint(workdir: str | Path) -> str:
  """Returns a digest of what a finished stage holds; "" of no directory.

  It covers stage.json but for its paths, and the sha256 of all arrays, which
  the newest manifest lists.
  """
  if not workdir:
    return ""
  folder = Path(workdir)
  info = {k: v for k, v in read_stage(folder).items() if k not in PATHS}
  steps = [
    int(p.parent.name) for p in folder.glob("checkpoints/*/manifest.json")
  ]
  newest = folder / "checkpoints" / str(max(steps)) / "manifest.json"
  digest = hashlib.sha256(newest.read_bytes()).hexdigest()
  return checkpoint.fingerprint({"stage": info, "manifest": digest})


def write_stage(
  workdir: Path, pipeline: str, base: Base, role: Role, **facts: Any
) -> None:
  """Writes stage.json, which marks the stage as finished."""
  info = {
    "pipeline": pipeline,
    "model_source": base.source,
    **identity(base),
    "role": _role_facts(role),
    **facts,
  }
  for name in PATHS:
    if info.get(name):  # found again wherever both folders are moved to
      info[name] = os.path.relpath(info[name], workdir)
  if info.get("merged_from"):
    merged = Path(workdir) / info["merged_from"]
    info["merged_from_fingerprint"] = stage_fingerprint(merged)
  path = Path(workdir) / STAGE_FILE
  if distributed.is_first():
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(info, indent=2) + "\n")
    os.replace(temporary, path)
  distributed.barrier(STAGE_FILE)


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


def read_stage(workdir: str | Path) -> dict | None:
  """Returns stage.json of a finished stage, or None.

  Raises:
    ConfigError: the file is damaged.
  """
  path = Path(workdir) / STAGE_FILE
  if not path.is_file():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(
      f"{path}: damaged ({error}). Delete it and run the stage again; it goes "
      "on from its last checkpoint."
    ) from error


def need_stage(
  workdir: str | Path, pipeline: str, field: str = "", *, exactly: bool = False
) -> dict:
  """Returns stage.json of a finished stage of a pipeline.

  Args:
    workdir: the stage's directory.
    pipeline: what filled it, "sft", "reward", "preference" or "policy".
    field: where the directory was named, for the message.
    exactly: refuse what else does (STANDS_FOR).

  Raises:
    ConfigError: when the directory holds no finished stage of that pipeline.
  """
  info = read_stage(workdir)
  fitting = (pipeline, *(() if exactly else STANDS_FOR.get(pipeline, ())))
  if info is not None and info["pipeline"] in fitting:
    return info
  remedy = f"Finish it first, with --workdir={workdir}."
  if info is not None:
    found, remedy = f"a {info['pipeline']} run", "Name another folder."
  elif (Path(workdir) / "checkpoints").is_dir():
    found = "one that is not finished"
  elif Path(workdir).is_dir():
    found = "no run in it"
  else:
    found = "no such folder"
  where = f"{field}={str(workdir)!r}" if field else str(workdir)
  raise ConfigError(
    f"{where}: wanted a finished {pipeline} run, found {found}. {remedy}"
  )


def check_same_base(info: dict, base: Base, workdir: str | Path) -> None:
  """Checks that a stage was trained on this model and this tokenizer.

  Raises:
    CheckpointError: naming what differs.
  """
  for field, value in identity(base).items():
    if info[field] != value:
      what = field.removesuffix("_fingerprint")
      raise checkpoint.CheckpointError(
        f"{workdir} was trained with another {what} (fingerprint "
        f"{info[field][:16]}, of {info['model_source']}) than this run "
        f"({value[:16]}, of {base.source}). Set model.source, model.tokenizer "
        "and model.scan_layers as they were there, or name another folder."
      )


def finished(workdir: Path, pipeline: str, base: Base) -> dict | None:
  """Returns stage.json if the stage of this run is finished, else None.

  Raises:
    ConfigError, CheckpointError: finished by another pipeline, or on another
      model or tokenizer.
  """
  if read_stage(workdir) is None:
    return None
  info = need_stage(workdir, pipeline, "--workdir", exactly=True)
  check_same_base(info, base, workdir)
  print(
    f"{pipeline}: {workdir} is finished, nothing to do. To train anew, choose "
    "another --workdir."
  )
  return info


def load_stage(
  workdir: str | Path,
  pipeline: str,
  base: Base,
  mesh: jax.sharding.Mesh,
  suffix: str = "",
) -> Stage:
  """Returns the trained role of a finished stage.

  Args:
    workdir: the stage's directory.
    pipeline: what filled it, "sft", "reward", "preference" or "policy"; see
      STANDS_FOR.
    base: the model it was trained on.
    mesh: where the weights go.
    suffix: "/policy" for the policy of a policy run, else ""; of no effect
      on a run of another pipeline that stands for it.

  Raises:
    ConfigError: when the directory holds no finished stage of that pipeline.
    CheckpointError: when it was trained on another model or tokenizer.
  """
  info = need_stage(workdir, pipeline)
  check_same_base(info, base, workdir)
  facts = dict(info["role"])
  head = facts.pop("head")
  rank, scale = facts.pop("lora_rank"), facts.pop("lora_scale")
  role = Role(
    model=dataclasses.replace(base.config, lora_rank=rank, lora_scale=scale),
    head=None if head is None else heads.Config(**head),
    **facts,
  )
  shapes = variable_shapes(role)
  wanted, _ = split(role, shapes)
  template = with_shardings(wanted, mesh)
  trained = checkpoint.restore_params(
    Path(workdir) / "checkpoints",
    template,
    prefix="train/params" + (suffix if info["pipeline"] == pipeline else ""),
  )
  params = start_params(base, mesh, merged_folder(workdir, info))
  flat = trees.flatten({"params": params}) | trees.flatten(trained)
  return Stage(role=role, variables=trees.unflatten(flat), info=info)


def merged_folder(workdir: str | Path, info: dict) -> Path | str:
  """Returns the SFT stage whose weights a stage was built on, or "".

  Raises:
    CheckpointError: another run is there now.
  """
  if not info.get("merged_from"):
    return ""
  folder = Path(workdir) / info["merged_from"]
  need_stage(folder, "sft", f"{Path(workdir) / STAGE_FILE}: merged_from")
  if stage_fingerprint(folder) != info["merged_from_fingerprint"]:
    raise checkpoint.CheckpointError(
      f"{workdir} was trained on the weights of {folder}, and another run is "
      "there now. Bring the old one back, or train this stage anew."
    )
  return folder


def start_params(
  base: Base, mesh: jax.sharding.Mesh, merged_from: str | Path
) -> PyTree:
  """Returns the whole weights a stage starts from.

  Those of the base model, or of a finished SFT stage with its LoRA factors
  merged. Frozen weights are in no checkpoint, so a stage records this as
  `merged_from` and finds them here again.
  """
  if not merged_from:
    return base.params
  stage = load_stage(merged_from, "sft", base, mesh)
  return sampling_params(stage.role, *split(stage.role, stage.variables))


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
