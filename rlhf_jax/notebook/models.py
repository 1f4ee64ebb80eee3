"""Policies and reward models as values: sample, score, save.

A value is a base model, a role, and its variables split by what trains. It is
what the pipelines have in a stage (runs/stages.py), with the devices it is on
and what was done to it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import distributed, generate
from rlhf_jax.algorithms import ensemble
from rlhf_jax.algorithms.ensemble import Combination
from rlhf_jax.data import lists
from rlhf_jax.imported import nearest
from rlhf_jax.models import heads, trees
from rlhf_jax.models.pretrained import Base
from rlhf_jax.models.roles import Role, Trainable, split
from rlhf_jax.notebook.learner import Carried
from rlhf_jax.notebook.readers import readers, shares_tokens
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from rlhf_jax.programs import build, features, rollouts
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import model as reward_scores
from rlhf_jax.rewards.texts import sample_texts
from rlhf_jax.runs import checkpoint, stages
from rlhf_jax.schema import UserError
from rlhf_jax.types import Array, PromptBatch, PyTree, Samples, TrainState

HEAD = heads.Config()
SCORED_ROWS = 32  # texts that a reward model reads at a time


@flax.struct.dataclass
class Sampled(Samples):
  """Samples, and how they were drawn: `learn` must know.

  tokenizer: fingerprint of that of their tokens; "" where nobody said.
  """

  how: generate.Config = flax.struct.field(pytree_node=False)
  tokenizer: str = flax.struct.field(pytree_node=False, default="")


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a model value comes from, for the stage.json of what is saved.

  start: folder of the stage that was loaded, "" for a base model.
  merged_from: folder whose whole weights the frozen ones are, "" for the base.
  folder: that holds exactly this value, "" for the base; None: in memory only.
  """

  start: str = ""
  merged_from: str = ""
  folder: str | None = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
  """A model and what of it trains; a value that nothing changes.

  params, frozen: its variables, split by what trains.
  methods: (name, steps) of each method that trained it, in order.
  carried: what a learner hands on beside params (optimizer, critic).
  """

  base: Base
  role: Role
  mesh: jax.sharding.Mesh
  params: PyTree
  frozen: PyTree
  methods: tuple[tuple[str, int], ...] = ()
  origin: Origin = Origin()
  carried: Carried | None = None

  @property
  def steps(self) -> int:
    """How often it learned."""
    return sum(steps for _, steps in self.methods)

  @property
  def stage(self) -> stages.Stage:
    """The same as the pipelines know it."""
    variables = trees.merge(self.params, self.frozen)
    return stages.Stage(
      self.role, variables, {"merged_from": self.origin.merged_from}
    )

  def facts(self) -> dict[str, Any]:
    """Returns what stage.json says of this kind of model."""
    return {}

  def save(self, folder: str | Path) -> Any:
    """Writes a stage that any pipeline can start from; returns it as loaded.

    Args:
      folder: new, or empty.

    Raises:
      UserError: there is something in the folder, or the frozen weights are
        in no folder.
    """
    if self.origin.merged_from is None:
      raise UserError(
        "the frozen weights are those of a policy that is in no folder, and a "
        "stage has only what trains. Save that policy first and go on from "
        "what save returns: policy = policy.save(FOLDER)."
      )
    path = new_folder(folder)
    state = TrainState(
      step=jnp.int32(self.steps),
      params=self.params,
      opt_state={},
      skipped=jnp.int32(0),
    )
    meta = {"step": self.steps, "facts": {}, "iterators": {}}
    with checkpoint.Checkpoints(str(path / "checkpoints")) as saved:
      meta |= self.base.identity
      saved.save(self.steps, {"train": state}, meta, is_final=True)
    stages.write_stage(
      path,
      "lab",
      self.base,
      self.role,
      trained=stages.TRAINED,
      steps=self.steps,
      methods=[list(method) for method in self.methods],
      init_from=self.origin.start,
      merged_from=self.origin.merged_from,
      **self.facts(),
    )
    return dataclasses.replace(
      self, origin=dataclasses.replace(self.origin, folder=str(path))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Policy(Trained):
  """A policy."""

  def sample(
    self, prompts: Any, key: Array, *, width: int | None = None, **how: Any
  ) -> tuple[Sampled, list[str]]:
    """Returns samples and the texts of the answers.

    The answers to a prompt are beside each other, in the order of prompts.

    Args:
      prompts: list of texts, or of lists of messages (data/lists.py).
      key: random key; each call wants its own.
      width: columns of prompts; None for the longest, rounded up to 8. Another
        width compiles again.
      **how: fields of generate.Config: num_samples, max_new_tokens,
        temperature.

    Raises:
      UserError: a field that is not known, or prompts that do not fit.
    """
    config = made(generate.Config, how)
    sampler = Sampler(self.role, self.frozen, self.base, config)
    batch = prompt_batch(self, prompts, config, width)
    with mesh_lib.current(self.mesh):
      samples = sampler(self.params, batch, key)
    texts = [text for _, text in sample_texts(self.base.tokenizer, samples)]
    name = self.base.tokenizer.fingerprint
    return Sampled(**vars(samples), how=config, tokenizer=name), texts

  def reward_model(
    self,
    *,
    trainable: str = "head",
    first_layer: int = 0,
    stop_layer: int | None = None,
    head: heads.Config = HEAD,
    members: int = 1,
    seed: int = 0,
  ) -> RewardModel:
    """Returns a reward model on this policy's weights, its head drawn anew.

    Args:
      trainable: "head", "lora" or "full".
      first_layer: lowest layer that trains.
      stop_layer: the trunk ends before it; None for all layers.
      head: settings of the head.
      members: heads on the trunk, an ensemble; each learns from all pairs.
      seed: of what is drawn.
    """
    world, base = World(self.mesh, Path()), self.base
    section = Trainable(trainable, first_layer)
    role = build.make_role(base, section, stop_layer=stop_layer, head=head)
    role = dataclasses.replace(role, members=members)
    params, folder = base.params, self.origin.folder
    if folder != "":
      params = world.merged(self.stage)
    fresh = placed(self.mesh, features.fresh(role, seed, world))
    return RewardModel(
      base,
      role,
      self.mesh,
      *split(role, {"params": params} | fresh),
      origin=Origin(merged_from=folder, folder=None),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel(Trained):
  """A reward model. Its scores are (raw - mean) / std.

  An ensemble has a mean and a deviation of each member, [M], and a
  combination that makes one score of theirs.
  """

  mean: float | np.ndarray = 0.0
  std: float | np.ndarray = 1.0
  reads_end_token: bool = True
  combination: Combination = reward_scores.ALONE

  @property
  def scorer(self) -> tuple[reward_scores.Scorer, reward_scores.Weights]:
    """The same as rewards/model.py knows it."""
    scorer = reward_scores.Scorer(
      self.role, self.reads_end_token, self.combination
    )
    shape = (self.role.members,) if self.role.members > 1 else ()
    weights = reward_scores.Weights(
      self.stage.variables,
      jnp.broadcast_to(jnp.float32(self.mean), shape),
      jnp.broadcast_to(jnp.float32(self.std), shape),
    )
    return scorer, weights

  def score(self, prompts: Any, texts: list[str]) -> np.ndarray:
    """Returns [N] scores of texts, of an ensemble combined.

    Args:
      prompts: see Policy.sample.
      texts: [N] answers, those to one prompt beside each other.
    """
    found = self.member_scores(prompts, texts)
    return ensemble.combined(found, self.combination)

  def member_scores(self, prompts: Any, texts: list[str]) -> np.ndarray:
    """Returns [N, M] scores of members, each in its own deviations.

    Args:
      prompts, texts: see `score`.
    """
    return (self._raw(prompts, texts) - self.mean) / self.std

  def _raw(self, prompts: Any, texts: list[str]) -> np.ndarray:
    """Returns raw scores [N, M]; see `score`."""
    rows = lists.answers(
      prompts,
      texts,
      self.base.tokenizer,
      self.base.config.max_length,
      end_token=self.reads_end_token,
    )
    with mesh_lib.current(self.mesh):
      found = features.row_scores(
        self.base,
        self.role,
        self.params,
        self.frozen,
        rows,
        None,
        min(len(rows), SCORED_ROWS),
        self.mesh,
      )
    return found.reshape(len(rows), -1)

  def score_samples(
    self,
    samples: Samples,
    *,
    policy: Policy | None = None,
    prompts: Any = None,
  ) -> np.ndarray:
    """Returns [N] scores of samples, token by token as they were drawn.

    Args:
      samples: the answers to a prompt beside each other.
      policy, prompts: that drew them, and to what: for a policy with another
        tokenizer, whose answers are decoded and encoded again.

    Raises:
      UserError: samples of another tokenizer without these.
    """
    own = self.base.tokenizer.fingerprint
    if policy is not None and not shares_tokens(self, policy):
      count = len(lists.listed(prompts, "prompts"))
      read = readers({"reward": self}, policy, prompts, samples.how)
      return read(samples, np.arange(count))["reward"]
    if getattr(samples, "tokenizer", "") not in ("", own):
      raise UserError(
        f"samples: their tokens are not those of {self.base.source}, whose "
        "tokenizer is another one. Give score_samples(samples, policy=policy, "
        "prompts=prompts): then they are decoded and encoded again."
      )
    scorer, weights = self.scorer
    plain = rollouts.samples_of(samples)
    with mesh_lib.current(self.mesh):
      scores = reward_scores.make_score(scorer)(weights, plain)
    return distributed.fetch(scores)

  def normalised(self, prompts: Any, texts: list[str]) -> RewardModel:
    """Returns the model whose scores of these texts have mean 0, deviation 1.

    Give answers of the policy that will be trained; see `score`.
    """
    raw = np.asarray(self._raw(prompts, texts), np.float64)
    mean, std = np.mean(raw, axis=0), np.std(raw, axis=0)
    if not np.all(std > 1e-6):
      number = int(np.argmin(std))
      raise UserError(
        f"all {len(raw)} texts have the score {raw[0, number]:g}: there is no "
        "deviation to divide by. Train the model first, or give more texts."
      )
    several = self.role.members > 1
    return dataclasses.replace(
      self,
      mean=mean if several else float(mean[0]),
      std=std if several else float(std[0]),
      origin=dataclasses.replace(self.origin, folder=None),
    )

  def facts(self) -> dict[str, Any]:
    """Returns what stage.json says of a reward model."""
    unknown = "trained in a notebook; its held-out accuracy is not known."
    facts = {"reads_end_token": self.reads_end_token}
    facts["guards"] = [["warn", unknown]]
    if self.role.members == 1:
      return facts | {"normalisation": {"mean": self.mean, "std": self.std}}
    members = self.role.members
    scales = zip(
      np.broadcast_to(self.mean, members).tolist(),
      np.broadcast_to(self.std, members).tolist(),
      strict=True,
    )
    outputs = [
      {"name": f"member {i}", "mean": mean, "std": std}
      for i, (mean, std) in enumerate(scales)
    ]
    return facts | {"normalisation": {}, "outputs": outputs}


def placed(mesh: jax.sharding.Mesh, tree: PyTree) -> PyTree:
  """Returns small new arrays where the sharding table wants them."""
  return mesh_lib.place(tree, rules.sharding_tree(mesh, tree))


def made(cls: type, values: dict[str, Any]) -> Any:
  """Returns cls(**values); an unknown field is a person's mistake."""
  known = [field.name for field in dataclasses.fields(cls)]
  for name in values:
    if name not in known:
      raise UserError(
        f"{name}: no such setting.{nearest(name, known)} There are "
        f"{', '.join(known)}."
      )
  return cls(**values)


def prompt_batch(
  policy: Trained, prompts: Any, how: generate.Config, width: int | None
) -> PromptBatch:
  """Returns prompts on the devices of a policy.

  Args:
    policy: that will answer.
    prompts: list of texts, or of lists of messages.
    how: whose max_new_tokens must fit beside them.
    width: see Policy.sample.
  """
  room = policy.base.config.max_length - how.max_new_tokens
  if room < 1:
    raise UserError(
      f"max_new_tokens={how.max_new_tokens}: the context of "
      f"{policy.base.source} is {policy.base.config.max_length} tokens, prompt "
      "included. Lower it."
    )
  batch = lists.prompts(prompts, policy.base.tokenizer, room, width=width)
  return mesh_lib.spread_batch(policy.mesh, batch)


def new_folder(folder: str | Path) -> Path:
  """Returns a folder to write into, made if need be.

  Raises:
    UserError: there is something in it, or it is no folder.
  """
  path = Path(folder).expanduser()
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(
      f"{path}: there is something already. Name a new or an empty folder."
    )
  path.mkdir(parents=True, exist_ok=True)
  return path
