"""Where a pipeline runs, and where it is only planned.

Both have one interface, so that a pipeline is wired once: it asks its world for
the base model, for finished stages, and for the arrays it starts with. World
loads and computes them. Planned gives jax.ShapeDtypeStructs with the sharding
that the table gives them; nothing is read but a model's architecture. Two uses
of one array are one object in both, so bytes are counted once by identity, and
what is decided by identity (which roles share the frozen trunk) comes out as in
a run.

Assumed where a run would look: rows have the length their Data section allows
(text shorter than that pads less and costs less); a stage that is named but
was not planned before was trained in the mode of the stage that names it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from rlhf_jax.data import tokenizers
from rlhf_jax.models import (
  adapters,
  lora,
  model_sources,
  pretrained,
  quantised,
  roles,
  trees,
)
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Role
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.runs import checkpoint, stage_file, stages
from rlhf_jax.schema import FieldError, as_field
from rlhf_jax.types import PyTree

AnyMesh = Mesh | AbstractMesh
ASSUMED = "?"  # the folder of a stage that nobody named


class World:
  """The devices, the folder and the finished stages of a run; a Shelf.

  mesh: where everything lives.
  workdir: of the run.
  """

  is_planned = False

  def __init__(self, mesh: AnyMesh, workdir: Path) -> None:
    self.mesh = mesh
    self.workdir = Path(workdir)

  @staticmethod
  def open(settings: mesh_lib.Config, workdir: Path) -> World:
    """Returns a world on this machine's devices.

    Raises:
      FieldError: the sizes do not multiply to the number of devices.
    """
    with as_field():
      return World(mesh_lib.make_mesh(settings), workdir)

  def beside(self, settings: mesh_lib.Config, workdir: Path) -> World:
    """Returns the world of another stage of the same run."""
    return type(self).open(settings, workdir)

  def at(self, workdir: Path) -> World:
    """Returns this world with another folder."""
    return World(self.mesh, workdir)

  @property
  def ways(self) -> int:
    """The parts that the rows of a batch are split into."""
    return mesh_lib.row_ways(self.mesh)

  def base(self, model: Model) -> Base:
    """Returns the base model of a Model section."""
    return pretrained.load_base(model, self.mesh)

  def named(self, folder: str) -> str:
    """Returns the folder of a stage; when planning one nobody named too."""
    return folder

  def assume(self, kind: str, role: Role, field: str = "") -> None:
    """Says how a stage was trained that no plan knows, and what says so."""

  def leave(self, folder: Path, role: Role, merged_from: str) -> None:
    """Says what a planned stage leaves in its folder."""

  def info(self, folder: str | Path, kind: str) -> dict:
    """Returns stage.json of a finished stage that leaves a `kind`.

    Says so where numbers in it are not of the step that is named.
    """
    info = stages.need_stage(folder, kind)
    step = stages.step_of(folder)
    if kind == stages.REWARD and step not in (None, info["steps"]):
      print(
        f"{folder}: warning: mean and deviation of its scores, its diagnosis "
        f"and its guards were measured at step {info['steps']}, the last, and "
        f"not at step {step}."
      )
    return info

  def restore(self, folder: str | Path, info: dict, template: PyTree) -> PyTree:
    """Returns the trained tree of a stage."""
    path, _ = stages.place(folder)
    return checkpoint.restore_params(
      path / "checkpoints",
      template,
      prefix=stages.trained_prefix(path, info),
      step=stages.step_of(folder),
    )

  def merged(self, stage: stages.Stage) -> PyTree:
    """Returns the whole weights of a stage, LoRA factors merged."""
    model = dataclasses.replace(stage.role.model, lora_merge=True)
    role = dataclasses.replace(stage.role, model=model)
    return roles.sampling_params(role, *stage.parts)

  def placed(self, tree: PyTree) -> PyTree:
    """Returns weights that are read when they are indexed, as arrays."""
    return mesh_lib.place(tree, rules.sharding_tree(self.mesh, tree))

  def number(self, value: float | list[float]) -> Any:
    """Returns a float32 array [], or [M] of a list."""
    return jnp.asarray(value, jnp.float32)

  def compute(self, make: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns make(*args), small new arrays: heads, factors; one program."""
    return jax.jit(make)(*args)

  def state(self, make: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns make(*args), a train state, each array made where it lives."""
    return rules.init_sharded(self.mesh, make, *args)


@dataclasses.dataclass(frozen=True)
class Ids:
  """What programs need of a tokenizer: which ids is of no consequence."""

  eos_id: int = 2
  pad_id: int = 2
  vocab_size: int = 2**31
  fingerprint: str = ""

  def encode(self, text: str) -> list[int]:
    """Returns an id for every four characters, as in English text."""
    return [self.eos_id] * -(-len(text) // 4)


class Planned(World):
  """A world without weights and without data; a Shelf of planned stages.

  devices: those to compile for, or only how many there are, of a TPU.
  left: folder -> what stage.json will say.
  tokenizer: of the base models.
  assumed: kind -> what stage.json is taken to say of a stage not planned.
  notes: what was assumed, in words.
  """

  is_planned = True

  def __init__(
    self, mesh: AnyMesh, devices: int | list[Any], planned: Planned | None
  ) -> None:
    super().__init__(mesh, Path())
    self.devices = devices
    self.left: dict[str, dict] = {} if planned is None else planned.left
    self.tokenizer: Any = Ids() if planned is None else planned.tokenizer
    self.assumed: dict[str, dict] = {}
    self.notes: list[str] = []

  @staticmethod
  def on(
    settings: mesh_lib.Config,
    devices: int | list[Any],
    planned: Planned | None = None,
  ) -> Planned:
    """Returns a planned world on so many devices, or on these.

    Args:
      settings: the section `mesh`.
      devices: a list to compile for, or how many there are.
      planned: another one of the same run, which knows the stages before.

    Raises:
      FieldError: the sizes do not multiply to the number of devices.
    """
    return Planned(_mesh(settings, devices), devices, planned)

  def beside(self, settings: mesh_lib.Config, workdir: Path) -> Planned:
    """Returns the world of another stage of the same run."""
    other = Planned.on(settings, self.devices, self)
    other.workdir = workdir
    return other

  def base(self, model: Model) -> Base:
    """Returns the base model of a Model section without its weights."""
    is_listed = isinstance(self.devices, list)
    platform = self.devices[0].platform if is_listed else "tpu"
    architecture = model_sources.read_architecture(model.source)
    config = pretrained.as_run(architecture, model, platform)
    rows = tokenizers.empty_rows(self.tokenizer, config.vocab_size)
    config = dataclasses.replace(config, empty_rows=rows)
    plain = Role(model=dataclasses.replace(config, lora_rank=0))
    found = jax.eval_shape(
      functools.partial(quantised.quantise_tree, kind=model.quantize),
      pretrained.variable_shapes(plain)["params"],
    )
    found = pretrained.with_shardings({"params": found}, self.mesh)
    return Base(
      config=config,
      params=found["params"],
      tokenizer=self.tokenizer,
      fingerprint="",
      source=model.source,
    )

  def named(self, folder: str) -> str:
    """Returns the folder of a stage, ASSUMED for one that nobody named."""
    return folder if folder else ASSUMED

  def assume(self, kind: str, role: Role, field: str = "") -> None:
    """Says how a stage was trained that no plan knows, and what says so."""
    self.assumed[kind] = self._facts(role, "") | {"assumed_from": field}

  def leave(self, folder: Path, role: Role, merged_from: str) -> None:
    """Says what a planned stage leaves in its folder."""
    origin = os.path.relpath(merged_from, folder) if merged_from else ""
    self.left[os.path.normpath(folder)] = self._facts(role, origin)

  def _facts(self, role: Role, merged_from: str) -> dict:
    return {
      "pipeline": "planned",
      "role": stage_file.role_facts(role),
      "merged_from": str(merged_from),
      "model_fingerprint": "",
      "tokenizer_fingerprint": self.tokenizer.fingerprint,
      "model_source": "",
      "reads_end_token": True,
      "normalisation": {"mean": 0.0, "std": 1.0, "deviation": 1.0},
      "outputs": [
        {"name": str(i), "mean": 0.0, "std": 1.0} for i in range(role.members)
      ],
      "guards": [],
    }

  def info(self, folder: str | Path, kind: str) -> dict:
    """Returns what stage.json of a planned, or of an assumed stage says."""
    path, _ = stages.place(folder)
    if os.path.normpath(path) in self.left:
      return self.left[os.path.normpath(path)]
    if adapters.is_adapter(path) or kind not in self.assumed:
      return stages.need_stage(folder, kind)
    found = self.assumed[kind]
    mode = found["role"]["trainable"]
    what = "a start" if kind == stages.POLICY else "reward models"
    why = f" ({found['assumed_from']})" if found["assumed_from"] else ""
    note = f"assumed: {what} trained as {mode!r}{why}"
    if note not in self.notes:
      self.notes.append(note)
    return found

  def restore(self, folder: str | Path, info: dict, template: PyTree) -> PyTree:
    """Returns new leaves: what a stage trained is no other array."""
    return template

  def merged(self, stage: stages.Stage) -> PyTree:
    """Returns the whole weights of a stage, LoRA factors merged."""
    return whole_weights(stage.role, stage.variables, {})

  def placed(self, tree: PyTree) -> PyTree:
    """Returns abstract arrays of what is in files."""
    return pretrained.with_shardings(tree, self.mesh)

  def compute(self, make: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns the abstract result of make(*args)."""
    return pretrained.with_shardings(jax.eval_shape(make, *args), self.mesh)

  state = compute

  def number(self, value: float | list[float]) -> jax.Array:
    """Returns an abstract float32 array [] or [M], on all devices."""
    shape = (len(value),) if isinstance(value, list) else ()
    return jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=mesh_lib.replicated(self.mesh)
    )


def whole_weights(role: Role, params: PyTree, frozen: PyTree) -> PyTree:
  """Returns what roles.sampling_params makes of a role's abstract trees.

  Kernels with factors are new arrays, or of few bits and have them beside;
  the others are passed on.
  """
  variables = trees.merge(params, frozen)
  flat, factors = trees.flatten(variables["params"]), variables.get("lora", {})
  for path, leaf in trees.flatten(
    lora.adapted(variables["params"], factors)
  ).items():
    flat[path] = jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    )
  scale = role.model.lora_scale
  flat |= trees.flatten(lora.kept_beside(variables["params"], factors, scale))
  return trees.unflatten(flat)


def _mesh(settings: mesh_lib.Config, devices: int | list[Any]) -> AnyMesh:
  if isinstance(devices, list):
    try:
      return mesh_lib.make_mesh(settings, devices)
    except (ValueError, NotImplementedError) as error:  # does not lie on torus
      raise FieldError(str(error)) from error
  count = settings.devices if settings.devices else devices
  sizes = [getattr(settings, axis) for axis in mesh_lib.AXES]
  given = math.prod(size for size in sizes if size != -1)
  rest, remainder = divmod(count, given)
  if count > devices or remainder or (-1 not in sizes and rest != 1):
    raise FieldError(
      f"mesh: {dict(zip(mesh_lib.AXES, sizes, strict=True))} "
      f"on {devices} devices. Set sizes whose product is the number of "
      "devices; -1 fills one axis."
    )
  return AbstractMesh(
    tuple(rest if size == -1 else size for size in sizes),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
  )
