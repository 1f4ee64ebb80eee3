"""Who answers questions in a run: a policy, a model, or an endpoint."""

from __future__ import annotations

import jax

from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Model
from rlhf_jax.programs.world import World
from rlhf_jax.rewards.ai import direct
from rlhf_jax.rewards.ai.endpoint import Endpoint, Remote
from rlhf_jax.rewards.ai.reply_cache import Cache
from rlhf_jax.rewards.ai.voices import Voice
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError

CACHE_FILE = "judge_cache.jsonl"


def check(endpoint: Endpoint, folder: str, field: str) -> None:
  """Checks that one of them answers, and one process asks.

  Args:
    endpoint: the section.
    folder: of a policy run, or "".
    field: of the folder, for messages.

  Raises:
    FieldError: an endpoint and a policy, a key that is not there, or several
      processes.
  """
  if endpoint.url and folder:
    raise FieldError(
      f"{field}={folder!r} with endpoint.url={endpoint.url!r}: one of them "
      "answers. Set the other to ''."
    )
  endpoint.key()
  if jax.process_count() > 1:
    raise FieldError(
      f"endpoint.url={endpoint.url!r}, {field}={folder!r}: one process asks "
      "and keeps the replies, and there are several. Run one."
    )


def open_voice(
  endpoint: Endpoint,
  folder: str,
  model: Model,
  world: World,
  batch_size: int,
  chat: bool | None = None,
) -> Voice:
  """Returns who answers.

  Args:
    endpoint: the section; asked if it has a url.
    folder: of a policy run on the model; "" for the model itself.
    model: section.
    world: where it lives.
    batch_size: questions together.
    chat: see rewards.ai.local.Local.

  Raises:
    UserError: the run is not there.
    CheckpointError: it was trained on another model.
  """
  if endpoint.url:
    return Remote(endpoint)
  base = world.base(model)
  role, variables = roles.Role(model=base.config), {"params": base.params}
  name, origin = base.source, ""
  if folder:
    stage = stages.load(folder, stages.POLICY, base, world)
    role, variables, name = stage.role, stage.variables, folder
    origin = stages.stage_fingerprint(folder)
  return direct.voice_of(
    name, base, role, variables, world.mesh, batch_size, origin, chat
  )


def cache_of(path: str, world: World) -> Cache:
  """Returns the replies of a file, or of the run's own where none is named."""
  return Cache(path if path else world.workdir / CACHE_FILE)
