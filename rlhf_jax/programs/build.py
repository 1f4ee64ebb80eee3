"""Settings -> roles, loaders, optimizers: what pipelines start with."""

from __future__ import annotations

from typing import Any

import jax

from rlhf_jax import compiling, generate, optimizer
from rlhf_jax.data import batches
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import heads, lora_targets
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Role, Trainable
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs.program import MANY
from rlhf_jax.programs.world import World
from rlhf_jax.runs.loop import Schedule
from rlhf_jax.schema import FieldError, as_field

DEVICES = "the {} devices along mesh.data x mesh.fsdp"


def make_role(
  base: Base,
  trainable: Trainable,
  *,
  stop_layer: int | None = None,
  head: heads.Config | None = None,
) -> Role:
  """Returns the Role of a section `trainable` on a base model."""
  with as_field("trainable: "):
    return Role(
      model=lora_targets.from_layer(base.config, trainable.first_layer),
      trainable=trainable.mode,
      first_layer=trainable.first_layer,
      stop_layer=stop_layer,
      head=head,
    )


def check_trainable(
  model: Model,
  trainable: Trainable,
  *,
  has_head: bool = False,
  has_lora_critic: bool = False,
  start: str = "",
  samples: bool = True,
) -> None:
  """Checks what trains against what the model has.

  Args:
    model: the section.
    trainable: the section.
    has_head: whether there is a head that could train alone.
    has_lora_critic: whether a critic reads what is said of factors.
    start: init_from, whose factors train where model.lora_rank=0.
    samples: whether what trains is sampled from.
  """
  if trainable.mode == "head" and not has_head:
    raise FieldError(
      "trainable.mode='head': a policy has no head. Set 'full' or 'lora'."
    )
  if trainable.mode == "lora" and not model.lora_rank:
    if not start:
      raise FieldError(
        "trainable.mode='lora': needs factors, and model.lora_rank=0. Set "
        "--config.model.lora_rank=16, or name in init_from what has some."
      )
    if lora_targets.said(model):
      raise FieldError(
        f"{lora_targets.said(model)}: with model.lora_rank=0 all of this is as "
        f"in init_from={start!r}. Leave it out, or set lora_rank."
      )
  if not model.lora_merge and not (samples and trainable.mode == "lora"):
    raise FieldError(
      f"model.lora_merge=False with trainable.mode={trainable.mode!r}: it is "
      "for sampling from a model whose factors train, and nothing does here. "
      "Set lora_merge=True."
    )
  if trainable.mode == "full" and model.quantize != "none":
    raise FieldError(
      f"model.quantize={model.quantize!r} with trainable.mode='full': a matrix "
      "of few bits is frozen, as an update is smaller than its steps. Set "
      "trainable.mode='lora'"
      + (" or 'head'" if has_head else "")
      + ", or model.quantize='none'."
    )
  is_read = trainable.mode != "full" or has_lora_critic
  if not is_read and (model.lora_rank or lora_targets.said(model)):
    said = f"model.lora_rank={model.lora_rank}, model.lora_scale="
    said += f"{model.lora_scale}"
    if model.lora_targets != lora_targets.ALL:
      said += f", model.lora_targets={model.lora_targets!r}"
    raise FieldError(
      f"{said}: nothing reads them with trainable.mode='full'. Set "
      "mode='lora', or leave them out (lora_rank=0, lora_scale=1.0)."
    )


def make_loader(
  mesh: jax.sharding.Mesh, examples: Any, batch_size: int, **settings: Any
) -> batches.Loader:
  """Returns batches.make_loader of this process's part of each batch."""
  index, count = mesh_lib.host_part(mesh)
  return batches.make_loader(
    examples, batch_size, shard_index=index, shard_count=count, **settings
  )


def optimizer_of_run(
  config: optimizer.Config, field: str, updates: int
) -> optimizer.Config:
  """Returns an optimizer as a run uses it, see optimizer.of_run.

  Args:
    config: the section.
    field: where it stands, for messages.
    updates: of the whole run, MANY where only the data can tell.

  Raises:
    FieldError: the run ends within the warm-up.
  """
  with as_field(f"{field}."):
    return optimizer.of_run(config, updates)


def make_optimizer(
  config: optimizer.Config, updates: int, field: str = "optimizer"
) -> Any:
  """Returns the optax.GradientTransformation of a section; see above."""
  return optimizer.make_optimizer(optimizer_of_run(config, field, updates))


def compiler_options(role: Role, mesh: Any = None) -> dict[str, Any] | None:
  """Returns `compiler_options` of jax.jit for a step that trains a role.

  Those of the least memory where memory is what a step lacks: all layers train,
  or are recomputed. A step of a part of them is faster in the other order.

  Args:
    role: what trains.
    mesh: where; None for where JAX computes by default.
  """
  is_short = role.trainable == "full" or role.model.remat
  return compiling.for_training(mesh) if is_short else None


def check_length(
  schedule: Schedule,
  optimizers: dict[str, optimizer.Config],
  updates_a_step: int = 1,
) -> None:
  """Checks that something trains, and optimizers against its length.

  Args:
    schedule: the section.
    optimizers: their sections by name.
    updates_a_step: optimizer steps of one step of the schedule.
  """
  schedule.total_steps(MANY)
  updates = schedule.steps * updates_a_step if schedule.steps else MANY
  for field, config in optimizers.items():
    optimizer_of_run(config, field, updates)


def check_measured(schedule: Schedule, data: Data, name: str) -> None:
  """Checks that there is something to measure on, where that is asked for.

  Args:
    schedule: the section.
    data: of held-out records.
    name: of that section.
  """
  if schedule.eval_every and not data.source:
    raise FieldError(
      f"schedule.eval_every={schedule.eval_every}: there is nothing to measure "
      f"on. Set {name}.source, or schedule.eval_every=0."
    )


def announced(
  schedule: Schedule,
  examples: int,
  phase: str,
  optimizers: dict[str, optimizer.Config],
  updates_a_step: int = 1,
) -> int:
  """Returns the steps of a run; says where they differ from what was set.

  Args:
    schedule: the section.
    examples: rows of the data set.
    phase: name in the messages.
    optimizers: their sections by name.
    updates_a_step: optimizer steps of one step of the schedule.
  """
  total = schedule.announced(examples, phase)
  for field, config in optimizers.items():
    updates = total * updates_a_step
    used = optimizer_of_run(config, field, updates)
    if used.warmup_steps < config.warmup_steps:
      print(
        f"{phase}: {field}.warmup_steps={config.warmup_steps} is more than "
        f"warmup_max_fraction={config.warmup_max_fraction:g} of {updates} "
        f"updates: the warm-up takes {used.warmup_steps}"
      )
  return total


def check_rows(
  world: World,
  rows: int,
  field: str = "schedule.batch_size",
  parts: int = 1,
  cut: str = "loss.microbatches",
) -> None:
  """Checks that each microbatch divides among the devices.

  Args:
    world: whose devices.
    rows: of a batch.
    field: that says so.
    parts: that each batch is cut into.
    cut: the field that says that.
  """
  if rows % (world.ways * parts) == 0:
    return
  factors = [f"{cut}={parts}"] if parts > 1 else []
  factors += [DEVICES.format(world.ways)] if world.ways > 1 else []
  raise FieldError(
    f"{field}={rows}: not a multiple of {' x '.join(factors)}. Change one of "
    "them."
  )


def check_portions(prompts: int, settings: generate.Config, field: str) -> None:
  """Checks that samples divide into portions that are decoded together.

  Args:
    prompts: of one batch.
    settings: of sampling.
    field: that gives the number of prompts, for the message.
  """
  rows, size = prompts * settings.num_samples, settings.batch_size
  if size is not None and (size < 1 or rows % size):
    raise FieldError(
      f"generate.batch_size={size}: must divide {field} x "
      f"num_samples = {rows}. Set None for all rows at once."
    )


def check_room(
  data: Data, settings: generate.Config, name: str = "prompts"
) -> None:
  """Checks that rows have room for a prompt beside the answer."""
  if data.source and data.max_length <= settings.max_new_tokens:
    raise FieldError(
      f"{name}.max_length={data.max_length}: leaves no room for a "
      f"prompt beside generate.max_new_tokens={settings.max_new_tokens}. Raise "
      "max_length or lower max_new_tokens."
    )


def check_needed(data: Data, name: str) -> None:
  """Raises FieldError unless a Data section names a source."""
  if not data.source:
    raise FieldError(
      f"{name}.source is empty: name a file (--config.{name}.source=my.jsonl), "
      "tfds:NAME:SPLIT, hub:ORG/NAME:SPLIT or asset:NAME."
    )


def check_fraction(settings: Any) -> None:
  """Checks the heldout_fraction of settings."""
  if not 0.0 <= settings.heldout_fraction < 1.0:
    raise FieldError(
      f"heldout_fraction={settings.heldout_fraction}: must be in [0, 1)."
    )


def check_pairs(settings: Any) -> None:
  """Checks that ratings in data and heldout are drawn as pairs."""
  for key in ("data", "heldout"):
    data = getattr(settings, key)
    if data.source and data.has_format("ratings") and data.pairs < 1:
      raise FieldError(
        f"{key}.pairs={data.pairs}: comparisons are drawn from ratings; say "
        f"how many, for example --config.{key}.pairs=20000."
      )
