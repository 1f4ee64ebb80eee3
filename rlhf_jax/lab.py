"""The way in from a notebook: from a model to an update in ten lines.

    policy = lab.load("asset:smollm2-135m-instruct", lora_rank=16)
    learn = lab.learner(
      policy, grpo, grpo.Config(group_size=4), optax.adam(1e-4)
    )
    for step in range(20):
      samples, texts = policy.sample(
        prompts, jax.random.key(step), num_samples=4, max_new_tokens=32
      )
      policy, metrics = learn(policy, samples, [score(text) for text in texts])

A policy is a value (notebook/models.py): `learn` returns a new one and leaves
the old one as it was, so a loop may keep, compare and go back to any of them.

  method                         model          learn(model, ...)
  a policy-gradient method       Policy         samples, scores
  algorithms.sft                 Policy         conversations
  a preference method            Policy         pairs; kto: judged answers
  algorithms.reward              RewardModel    pairs

Lists of texts are those of data/lists.py; docs/lab.md has a page of examples.
Nothing here is a program of its own: a pipeline calls the same functions with
files in the place of lists, and starts from what `save` writes.

Left out: what one wants of a run and not of a notebook, such as checkpoints of
the optimizer, packing, alarms, several processes.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import generate
from rlhf_jax.algorithms import reward, sft
from rlhf_jax.algorithms.policy_gradient import packing
from rlhf_jax.algorithms.policy_gradient import registry as policy_methods
from rlhf_jax.algorithms.preference import registry as preference_methods
from rlhf_jax.data import caches
from rlhf_jax.imported import nearest
from rlhf_jax.models.lora_targets import ALL
from rlhf_jax.models.pretrained import Base, Model
from rlhf_jax.models.roles import Trainable, split
from rlhf_jax.notebook.from_scores import from_scores
from rlhf_jax.notebook.from_texts import (
  from_comparisons,
  from_conversations,
  from_pairs,
)
from rlhf_jax.notebook.learner import Learner
from rlhf_jax.notebook.models import (
  Origin,
  Policy,
  RewardModel,
  made,
  placed,
  prompt_batch,
)
from rlhf_jax.notebook.readers import readers, shares_tokens
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import answer_numbers, answers, build, starts
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import judge
from rlhf_jax.rewards import model as reward_scores
from rlhf_jax.runs import history, stage_file, stages
from rlhf_jax.schema import Method, UserError, as_field
from rlhf_jax.types import Array

ALL_DEVICES = mesh_lib.Config()


@dataclasses.dataclass(frozen=True)
class _Start:
  """What starts.starting_policy reads of settings."""

  init_from: str
  trainable: Trainable
  seed: int


def load(
  source: str | Path,
  *,
  trainable: str = "",
  first_layer: int | None = None,
  mesh: mesh_lib.Config = ALL_DEVICES,
  seed: int = 0,
  **model: Any,
) -> Policy | RewardModel:
  """Returns a Policy, or the RewardModel that a folder holds.

  Programs that it compiles are kept for the next time, see data/caches.py.

  Args:
    source: asset:NAME, a .gguf file, a Hugging Face folder, or the folder of a
      finished stage (runs/x, runs/x@best, what `save` wrote).
    trainable: "full" or "lora"; "" for what lora_rank or the stage says.
    first_layer: lowest layer that trains; None for 0, or as in the stage.
    mesh: sizes of the mesh; all devices if it is not given.
    seed: of fresh LoRA factors.
    **model: fields of models.pretrained.Model: dtype, lora_rank, ...

  Raises:
    UserError: nothing there that could be a model, or a field is unknown.
  """
  caches.keep_by_default()
  folder, _ = stages.place(Path(source).expanduser())
  info = stages.read_stage(folder) if folder.is_dir() else None
  if info is None:
    settings = made(Model, {"source": str(source)} | model)
    return _load_policy("", settings, trainable, first_layer, mesh, seed)
  role = info["role"]
  known = {
    "source": info["model_source"],
    "lora_rank": role["lora_rank"],
    "lora_scale": role["lora_scale"],
    "lora_targets": ",".join(role.get("lora_targets", ())) or ALL,
    "tokenizer": info.get("tokenizer_source", ""),
    "chat_template": stage_file.template_of(folder),
    "prompt_end": info.get("prompt_end", "template"),
    "scan_layers": info.get("scan_layers", False),
    "quantize": info.get("quantize", "none"),
  }
  if trainable == "full":  # factors of the stage are merged into its weights
    known |= {"lora_rank": 0, "lora_scale": 1.0, "lora_targets": ALL}
  settings = made(Model, known | model)
  start = str(Path(source).expanduser().absolute())
  if stages.kind_of(info) == stages.REWARD:
    if trainable or first_layer is not None:
      raise UserError(
        f"trainable={trainable!r}, first_layer={first_layer}: {source} is a "
        "reward model and trains as it did. Leave them out."
      )
    return _load_reward_model(start, settings, mesh)
  if not trainable:
    trainable = role["trainable"]
    first_layer = role["first_layer"] if first_layer is None else first_layer
  return _load_policy(start, settings, trainable, first_layer, mesh, seed)


def _load_policy(
  start: str,
  settings: Model,
  trainable: str,
  first_layer: int | None,
  mesh: mesh_lib.Config,
  seed: int,
) -> Policy:
  """Returns a policy; see `load`. `start` is "" for a base model."""
  if not trainable:
    trainable = "lora" if settings.lora_rank else "full"
  section = Trainable(trainable, 0 if first_layer is None else first_layer)
  if trainable == "lora" and not settings.lora_rank:
    raise UserError(
      "trainable='lora': needs factors, and lora_rank=0. Set lora_rank=16."
    )
  build.check_trainable(settings, section)
  world = World.open(mesh, Path())
  base = world.base(settings)
  stage = starts.starting_policy(_Start(start, section, seed), base, world)
  merged_from = str(stage.info.get("merged_from", ""))
  params, frozen = stage.parts
  if trainable == "lora":
    params = placed(world.mesh, params)
  return Policy(
    base,
    stage.role,
    world.mesh,
    params,
    frozen,
    methods=tuple(history.history(start)) if start else (),
    origin=Origin(start, merged_from, start),
  )


def _load_reward_model(
  folder: str, settings: Model, mesh: mesh_lib.Config
) -> RewardModel:
  """Returns the reward model of a finished stage."""
  world = World.open(mesh, Path())
  base: Base = world.base(settings)
  scorer, weights, info = reward_scores.load(folder, base, world)
  if scorer.score_of_steps:
    raise UserError(
      f"{folder}: judges steps, which a notebook's reward model does not read. "
      "Use it in an experiment: reward in a policy run, or configs/score.py."
    )
  mean, std = np.asarray(weights.mean), np.asarray(weights.std)
  several = scorer.role.members > 1
  return RewardModel(
    base,
    scorer.role,
    world.mesh,
    *split(scorer.role, weights.variables),
    methods=tuple(history.history(folder)),
    origin=Origin("", _merged_from(folder, info), folder),
    mean=mean if several else float(mean),
    std=std if several else float(std),
    reads_end_token=scorer.reads_end_token,
  )


def _merged_from(folder: str, info: dict) -> str:
  found = stages.merged_folder(folder, info)
  return os.path.normpath(found) if found else ""


def learner(
  model: Policy | RewardModel,
  method: Any,
  config: Any,
  optimizer: Any,
  **options: Any,
) -> Learner:
  """Returns learn: (model, what it learns from) -> (model, metrics).

  Args:
    model: what will train; the reference where there is one.
    method: module of a method, or anything with its functions
      (algorithms/*/registry.py say which).
    config: its Config.
    optimizer: optax transformation; with a critic also {"policy": ...,
      "value": ...}.
    **options: those of from_scores, from_conversations, from_pairs or
      from_comparisons (notebook/), whichever the method is for.

  Raises:
    UserError: what does not go together; value, rule and remedy.
  """
  name = getattr(method, "__name__", type(method).__name__).rpartition(".")[2]
  if not isinstance(config, getattr(method, "Config", object)):
    raise UserError(
      f"config is a {type(config).__name__} of {type(config).__module__}: give "
      f"{name}.Config(...)."
    )
  make = _maker(method)
  _check_kind(model, name, wants_head=method is reward)
  known = [
    parameter.name
    for parameter in inspect.signature(make).parameters.values()
    if parameter.kind == parameter.KEYWORD_ONLY
  ]
  for option in options:
    if option not in known:
      raise UserError(
        f"{option}: {name} has no such option.{nearest(option, known)} There "
        f"are {', '.join(known)}."
      )
  # A group is as large as the config says, whatever num_samples is.
  chosen = Method(name, method, config, frozenset({"group_size"}))
  return make(model, chosen, optimizer, **options)


def _maker(method: Any) -> Callable[..., Learner]:
  """Returns what makes the learner of a method, which is checked."""
  if method is reward:
    return from_comparisons
  if method is sft:
    return from_conversations
  with as_field():
    if hasattr(method, "advantages"):
      policy_methods.check_method(method)
      return from_scores
    preference_methods.check_method(method)
    return from_pairs


def _check_kind(model: Any, name: str, *, wants_head: bool) -> None:
  """Raises UserError for a reward model in the place of a policy, or so."""
  if not hasattr(model, "role"):
    raise UserError(
      f"model is a {type(model).__name__}: give what lab.load returned."
    )
  if (model.role.head is not None) != wants_head:
    wanted = "a policy"
    if wants_head:
      wanted = "a reward model: policy.reward_model()"
    raise UserError(
      f"model is a {type(model).__name__}: {name} trains {wanted}."
    )


Score = RewardModel | Callable[[str], float]


def evaluate(
  before: Policy,
  after: Policy,
  prompts: Any,
  key: Array,
  *,
  reward: Score | None = None,
  gold: Score | None = None,
  batch_size: int | None = None,
  width: int | None = None,
  uses_lexicon: bool = False,
  **how: Any,
) -> tuple[dict[str, float], dict[str, answers.Answers]]:
  """Returns how two policies compare, and their answers by "before", "after".

  The numbers are those of the evaluate pipeline (answer_numbers.summarise):
  scores as proxy_*, gold_*, with win rate and standard error; kl_nats of after
  to before; diversity and length of both.

  Args:
    before, after: policies with one tokenizer.
    prompts: list, see Policy.sample; two at least.
    key: random key.
    reward, gold: reward models, of any tokenizer, or functions of an answer's
      text.
    batch_size: prompts at a time, a divisor of all; None for all at once.
    width: see Policy.sample.
    uses_lexicon: VADER sentiment of the texts too.
    **how: fields of generate.Config; one sample to a prompt.

  Raises:
    UserError: policies or settings that cannot be compared.
  """
  config = made(generate.Config, how)
  answers.check_sampling(config)
  if before.base.identity != after.base.identity or before.mesh != after.mesh:
    raise UserError(
      f"before is on {before.base.source}, after on {after.base.source}, or "
      "their meshes differ: a KL needs one model and one mesh under both."
    )
  whole = prompt_batch(after, prompts, config, width)
  count = len(whole.tokens)
  size = count if batch_size is None else batch_size
  if count < 2 or size < 1 or count % size:
    raise UserError(
      f"{count} prompts with batch_size={batch_size}: give two prompts at "
      "least, and a batch_size that divides their number."
    )
  parts = [
    jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + size], whole)
    for i in range(0, count, size)
  ]
  given = {"reward": reward, "gold": gold}
  read = {
    name: model
    for name, model in given.items()
    if isinstance(model, RewardModel) and not shares_tokens(model, after)
  }
  plan, weights = _judge_of(before, after, config, given)
  found = {}
  for number, (name, policy) in enumerate(
    (("before", before), ("after", after))
  ):
    role = "policy" if name == "after" else "reference"
    sampler = Sampler(
      policy.role, policy.frozen, policy.base, config, plan.taps(role)
    )
    with mesh_lib.current(policy.mesh):
      said = answers.answer(
        sampler,
        policy.params,
        judge.make_judge(plan),
        weights,
        parts,
        jax.random.fold_in(key, number),
        name=name,
        mesh=policy.mesh,
        packed=packing.Config(row_tokens=0),
        readers=readers(read, policy, prompts, config) if read else None,
      )
    scores = said.scores | {
      kind: np.asarray([scorer(text) for text in said.texts], np.float32)
      for kind, scorer in given.items()
      if scorer is not None and kind not in said.scores
    }
    found[name] = dataclasses.replace(said, scores=scores)
  return answer_numbers.summarise(*found.values(), uses_lexicon), found


def _judge_of(
  before: Policy,
  after: Policy,
  how: generate.Config,
  given: dict[str, Score | None],
) -> tuple[judge.Plan, judge.Weights]:
  """Returns the judge of answers: its reference is `before`."""
  scorers = {
    name: model.scorer
    for name, model in given.items()
    if isinstance(model, RewardModel) and shares_tokens(model, after)
  }
  base = after.base
  plan = judge.make_plan(
    base,
    after.stage,
    before.stage,
    None,
    scorers,
    how.temperature,
    how.max_new_tokens,
  )
  return plan, judge.Weights(
    base=base.params if plan.shared else {},
    reference=before.stage.variables,
    **judge.scorer_weights(scorers),
  )
