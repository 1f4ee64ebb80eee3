"""Reward runs in, one reward model out: the mean of their weights (WARM).

Ramé et al. 2024, arXiv:2401.12187. Where an ensemble costs a forward pass a
member, their average costs one in all, and holds off noise of labels like an
ensemble's mean. The runs must begin alike, head included (reward.head_seed),
and differ in the order of their data (reward.seed), its subsets or their
settings; steps of one run (runs/x@100,runs/x@200) begin alike too. The average
is examined and normalised anew.

Left out: weights of the runs other than equal, and averages of policies.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import schema
from rlhf_jax.data import dataset, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation import reward_model as diagnostics
from rlhf_jax.exports import opened
from rlhf_jax.models import averaging, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.roles import Role
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.programs import build, features, reward_facts
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.runs import checkpoint, finite, stages
from rlhf_jax.schema import FieldError
from rlhf_jax.types import PyTree, TrainState

NAME = "average_rewards"
_ALIKE = {  # of stage.json, and what it says
  "model_fingerprint": "model",
  "tokenizer_fingerprint": "tokenizer",
  "merged_from_fingerprint": "start (init_from)",
  "head_seed": "head at their start (head_seed)",
  "reads_end_token": "end of rows (data.end_token)",
  "role": "role (trainable, stop_layer, head, LoRA)",
}


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """The average of reward models that began as one (WARM)."""

  runs: str = stage_field(
    stages.REWARD, several=True
  )  # folders of finished reward runs, with commas between
  source: str = ""  # model under all of them; "": what their stage.json says
  heldout: Data = Data()  # comparisons for the diagnosis
  reference_samples: str = (
    ""  # samples.npz of the SFT run, to normalise on; "":
  )
  # the held-out answers
  batch_size: int = 32  # rows that are scored at a time
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_least(self, batch_size=1)

  @property
  def data(self) -> Data:
    """Whose end token the scored rows have."""
    return self.heldout

  @property
  def folders(self) -> list[str]:
    """The folders of the runs."""
    return stages.listed(self.runs)


def check(settings: Settings, world: World) -> None:
  """Checks that the runs began as one; reads no weights."""
  folders = settings.folders
  if len(folders) < 2 or len(set(folders)) < len(folders):
    raise FieldError(
      f"runs={settings.runs!r}: name two different runs at least, with commas "
      "between; their weights are averaged."
    )
  build.check_needed(settings.heldout, "heldout")
  unread.check(settings.heldout, "heldout", unread.COMPARISONS, packs=False)
  build.check_rows(world, settings.batch_size, "batch_size")
  infos = [stages.need_stage(x, stages.REWARD, "config.runs") for x in folders]
  check_alike(folders, infos)
  if settings.heldout.end_token != infos[0]["reads_end_token"]:
    raise FieldError(
      f"heldout.end_token={settings.heldout.end_token}: the runs were trained "
      f"with {infos[0]['reads_end_token']}. Set that."
    )


def check_alike(folders: list[str], infos: list[dict]) -> None:
  """Raises FieldError for runs whose weights have no common start.

  Args:
    folders: of the runs.
    infos: their stage.json.
  """
  first = infos[0]
  for folder, info in zip(folders, infos, strict=True):
    role, members = info["role"], info["role"].get("members", 1)
    if role["trainable"] == "head" or members > 1:
      what = "only a head" if members == 1 else f"{members} members"
      raise FieldError(
        f"runs: {folder} trained {what}. The mean of linear heads is an "
        "ensemble's mean, and costs no more: name the runs as one ensemble, "
        "reward=runs/A,runs/B. Average runs with trainable.mode='full' or "
        "'lora' and one member."
      )
    if "head_seed" not in info:
      raise FieldError(
        f"runs: {folder} does not say which head it began with (it is from "
        "before that was written, or of a notebook). Train it again."
      )
    for field, what in _ALIKE.items():
      if info.get(field) != first.get(field):
        raise FieldError(
          f"runs: {folders[0]} and {folder} have not the same {what}, so the "
          "mean of their weights is no model. Train them alike but for seed "
          "and data, with one head_seed."
        )


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: the runs themselves say what is read."""
  del settings, world
  return []


def run(settings: Settings, world: World) -> dict:
  """Averages reward runs; returns stage.json."""
  folders, name = settings.folders, world.workdir.name
  infos = [stages.need_stage(x, stages.REWARD) for x in folders]
  base = world.base(opened.model_of(folders[0], infos[0], settings.source))
  info = stages.finished(world.workdir, NAME, base, stages.REWARD)
  if info is not None:
    return info
  reward_facts.check_tokens(settings.reference_samples, base.tokenizer)
  held = dataset.comparisons(settings.heldout, base.tokenizer, 0)
  print(f"{name}: the mean of the weights of {', '.join(folders)}")
  role, params, frozen = averaged(folders, base, world)
  merged = str(stages.merged_folder(folders[0], infos[0]))
  facts = _facts(settings, name, held, base, role, params, frozen, world)
  world.workdir.mkdir(parents=True, exist_ok=True)
  _save(world.workdir, base, params)
  return stages.write_stage(
    world.workdir,
    NAME,
    base,
    role,
    trained=stages.TRAINED,
    steps=1,
    merged_from=merged,
    runs=[str(Path(x).expanduser().absolute()) for x in folders],
    origins=stages.origins(**{f"run_{i}": x for i, x in enumerate(folders)}),
    reads_end_token=infos[0]["reads_end_token"],
    head_seed=infos[0]["head_seed"],
    **facts,
  )


def averaged(
  folders: list[str], base: Base, world: World
) -> tuple[Role, PyTree, PyTree]:
  """Returns the role, the averaged and the frozen weights of runs.

  Args:
    folders: of runs that began as one.
    base: the model underneath.
    world: where they are.
  """
  first = stages.load(folders[0], stages.REWARD, base, world)
  params, frozen = first.parts

  def trained():
    yield params
    for folder in folders[1:]:
      yield stages.load(folder, stages.REWARD, base, world).parts[0]

  role, found = averaging.average(first.role, trained(), len(folders))
  found = mesh_lib.place(found, rules.sharding_tree(world.mesh, found))
  return role, found, frozen


def _facts(
  settings: Settings,
  name: str,
  held: dataset.Comparisons,
  base: Base,
  role: Role,
  params: PyTree,
  frozen: PyTree,
  world: World,
) -> dict:
  """Returns diagnosis, scale and guards of the average."""
  score = functools.partial(
    features.row_scores,
    base,
    role,
    params,
    frozen,
    features=None,
    batch_size=settings.batch_size,
    mesh=world.mesh,
  )
  scores = score(rows=held.rows)
  found = reward_facts.diagnose(lambda *_: scores, held, None, name)
  scale = reward_facts.normalise(
    settings, role, trees.merge(params, frozen), lambda: np.asarray(scores)
  )
  if not settings.reference_samples:
    scale["source"] = "held-out answers"
  infos = [stages.read_stage(stages.place(x)[0]) for x in settings.folders]
  count = min(x.get("comparisons", 0) for x in infos)
  epochs = max(x.get("epochs", 0.0) for x in infos)
  guards = diagnostics.guard(found["diagnosis"], count, epochs)
  for level, message in guards:
    print(f"{name}: {level}: {message}")
  return found | {
    "diagnosis": finite.or_none(found["diagnosis"]),
    "normalisation": scale,
    "comparisons": count,
    "epochs": epochs,
    "guards": guards,
  }


def _save(workdir: Path, base: Base, params: PyTree) -> None:
  """Writes the averaged weights as a checkpoint."""
  state = TrainState(
    step=jnp.int32(1), params=params, opt_state={}, skipped=jnp.int32(0)
  )
  meta = {"step": 1, "facts": {}, "iterators": {}} | base.identity
  with checkpoint.Checkpoints(str(workdir / "checkpoints")) as saved:
    saved.save(1, {"train": jax.block_until_ready(state)}, meta, is_final=True)


PIPELINE = Pipeline(
  name=NAME,
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  leaves=stages.REWARD,
  describe=lambda settings: (
    f"the weights of {len(settings.folders)} reward runs are averaged"
  ),
)
