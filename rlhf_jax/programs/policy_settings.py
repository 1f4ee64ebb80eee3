"""What policy optimisation can be told, and what is wrong together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from rlhf_jax import imported, optimizer, schema
from rlhf_jax.algorithms.policy_gradient import (
  groups_in_rows,
  importance,
  objectives,
  packing,
  registry,
  shaping,
  update,
)
from rlhf_jax.data import unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.models import attention as attention_lib
from rlhf_jax.programs import build, critic, replay, sampled_settings
from rlhf_jax.programs.world import World
from rlhf_jax.schema import FieldError


@dataclasses.dataclass(frozen=True)
class Settings(sampled_settings.Sampled):
  """Policy optimisation by a policy gradient; PPO unless told otherwise.

  The critic learns five times as fast as the policy (METHODS 4).
  """

  value: critic.Value = critic.Value()  # the critic of a method that has one
  shaping: shaping.Config = shaping.Config()  # score and KL -> token rewards
  algorithm: schema.Method = schema.method(
    registry.ALGORITHMS, "ppo", registry.check_method
  )
  # the policy-gradient method
  objective_fn: str = ""  # import path of S(log_ratio, advantages, config)
  advantage_fn: str = ""  # import path of (rollout, config) -> rollout
  importance: importance.Config = importance.Config()  # trainer over sampler
  buffer: replay.Config = (
    replay.Config()
  )  # rollouts that are learned from again
  epochs: update.Config = update.Config()
  packing: packing.GroupConfig = packing.GroupConfig()  # several samples in a
  # row
  policy_optimizer: optimizer.Config = optimizer.Config(
    learning_rate=1e-6
  )  # of the policy
  value_optimizer: optimizer.Config = optimizer.Config(
    learning_rate=5e-6
  )  # of the critic; of its head where it shares the policy's trunk
  ptx: Data = Data()  # text mixed into the updates (PPO-ptx)
  ptx_batch_size: int = 32  # rows of that text in each rollout's updates

  def __post_init__(self) -> None:
    super().__post_init__()
    schema.check_least(self, ptx_batch_size=1)
    if self.value.pretrain_steps and not self.has_critic:
      raise FieldError(
        f"value.pretrain_steps={self.value.pretrain_steps}: "
        f"{self.algorithm.name!r} has no critic to train. Set 0."
      )
    if self.value.is_shared and not self.has_critic:
      raise FieldError(
        f"value.trunk={self.value.trunk!r}: {self.algorithm.name!r} has no "
        "critic to share a trunk with. Set 'own'."
      )
    if self.model.quantize != "none" and self.has_full_critic:
      raise FieldError(
        f"value.mode='full' with model.quantize={self.model.quantize!r}: the "
        "critic stands on matrices of few bits, which are frozen. Set "
        "value.mode='lora' or 'head', or model.quantize='none'."
      )
    with schema.as_field("algorithm."):
      registry.check_run(
        self.method,
        num_samples=self.generate.num_samples,
        kl_coefficient=self.shaping.kl_coefficient,
        steps_per_rollout=self.updates,
        objective=self.objective,
      )
    _ = self.advantages  # its signature is checked
    self._check_token_rewards()
    self._check_whitening()
    self._check_buffer()
    if self.importance.cap is not None and self.model.dtype == "float32":
      raise FieldError(
        f"importance.cap={self.importance.cap}: with model.dtype="
        "'float32' sampler and trainer agree on every log-probability, so all "
        "weights would be 1. Set None, or model.dtype='bfloat16'."
      )
    if self.has_ptx and not self.ptx.source:
      raise FieldError(
        f"algorithm.ptx_coefficient={self.method.ptx_coefficient}:"
        " needs a stream of text. Set ptx.source, or the coefficient to 0."
      )
    if self.ptx.source and not self.has_ptx:
      raise FieldError(
        f"ptx.source={self.ptx.source!r}: nothing reads it with "
        "algorithm.ptx_coefficient=0. Set a coefficient, or ptx.source=''."
      )
    unread.check(self.ptx, "ptx", unread.DEMONSTRATIONS, packs=False)
    self._check_separate()

  def _check_separate(self) -> None:
    """Checks what a method reads that takes each judge's score by itself."""
    if not hasattr(self.method, "reward_weights"):
      return
    if not self.named_judges:
      if self.method.reward_weights is not None:
        raise FieldError(
          f"algorithm.reward_weights={self.method.reward_weights}: there are "
          "no judges to weigh. Set judges, or None."
        )
      return
    name, shape = self.algorithm.name, self.shaping
    if self.combination.name != "sum":
      raise FieldError(
        f"combination.name={self.combination.name!r}: {name!r} adds what it "
        "makes of each judge, and nothing would read this. Set 'sum', or "
        "algorithm.name to another method, such as 'grpo'."
      )
    usual = type(shape)(clip=None, kl_coefficient=0.0, kl_controller="fixed")
    for field in (
      "clip",
      "kl_coefficient",
      "normalise",
      "length_penalty",
      "overlong_tokens",
      "whitening",
    ):
      if getattr(shape, field) != getattr(usual, field):
        raise FieldError(
          f"shaping.{field}={getattr(shape, field)!r}: {name!r} reads the "
          f"scores of judges, not the shaped one. Set "
          f"{getattr(usual, field)!r}; a KL may be in the loss "
          "(algorithm.kl_loss), a penalty a judge (judges.NAME.reward_fn)."
        )
    if shape.missing_eos not in ("keep", "mask"):
      raise FieldError(
        f"shaping.missing_eos={shape.missing_eos!r}: {name!r} reads the scores "
        "of judges, not the shaped one. Set 'keep' or 'mask'."
      )

  def _check_token_rewards(self) -> None:
    """Checks that something reads beginnings of answers, and their rewards."""
    mode = self.shaping.token_rewards
    if mode == "none":
      return
    if self.has_verifier:
      raise FieldError(
        f"shaping.token_rewards={mode!r}: a verifier or function judges whole "
        "answers only. Set 'none', or let a reward model judge."
      )
    if not self.advantage_fn:
      with schema.as_field("shaping."):
        registry.check_token_rewards(self.algorithm.module, self.method, mode)

  def _check_buffer(self) -> None:
    """Checks that stored rollouts have all that the method reads."""
    if not self.buffer.is_on:
      return
    field = f"buffer: keep={self.buffer.keep}, source={self.buffer.source!r}"
    why = {
      "a critic, whose old values are not its own": self.has_critic,
      "further answers, which are not stored": bool(
        registry.further_of(self.algorithm.module, self.method)
      ),
      "several judges, whose scores are not stored": bool(self.named_judges),
      "beginnings of answers, which are not stored": (
        self.shaping.token_rewards != "none"
      ),
      "batches drawn until they teach": (
        getattr(self.method, "resample_rounds", 1) > 1
      ),
      "running moments, which stored scores would enter twice": (
        self.shaping.normalise != "none"
      ),
      "adaptive KL, which stored samples do not tell": (
        not self.buffer.fresh and self.shaping.kl_controller == "adaptive"
      ),
    }
    for reason, applies in why.items():
      if applies:
        raise FieldError(
          f"{field}: the run has {reason}. Change that, or set keep=0 and "
          "source=''."
        )

  def _check_whitening(self) -> None:
    """Checks that a baseline is in the units of the whitened rewards."""
    further = registry.further_of(self.algorithm.module, self.method)
    if self.shaping.whitening != "none" and further:
      raise FieldError(
        f"shaping.whitening={self.shaping.whitening!r}: {self.algorithm.name!r}"
        f" takes the score of its {', '.join(further)} answers off, which is "
        "not whitened. Set 'none', or shaping.normalise='scale'."
      )

  def code(self) -> dict[str, str]:
    return super().code() | {
      "algorithm": self.algorithm.name,
      "objective_fn": self.objective_fn,
      "advantage_fn": self.advantage_fn,
    }

  @functools.cached_property
  def method(self) -> Any:
    """The method's Config; a group is all the answers to one prompt.

    Where nobody set group_size it is generate.num_samples, and reward_weights
    are those of several judges.
    """
    config, given = self.algorithm.config, self.algorithm.given
    filled: dict[str, Any] = {}
    if getattr(config, "group_size", None) is not None:
      filled["group_size"] = self.generate.num_samples
    if hasattr(config, "reward_weights") and self.named_judges:
      judges = self.named_judges.values()
      filled["reward_weights"] = tuple(judge.weight for judge in judges)
    filled = {name: x for name, x in filled.items() if name not in given}
    if not filled:
      return config
    with schema.as_field("algorithm."):
      return dataclasses.replace(config, **filled)

  @functools.cached_property
  def objective(self) -> Callable[..., Any] | None:
    """The policy objective that an import path names, or None."""
    return _imported(self.objective_fn, "objective_fn", objectives.checked)

  @functools.cached_property
  def advantages(self) -> Callable[..., Any]:
    """The method's advantages, or those that an import path names."""
    own = _imported(
      self.advantage_fn, "advantage_fn", registry.check_advantages
    )
    return self.algorithm.module.advantages if own is None else own

  @property
  def group_size(self) -> int | None:
    """Answers to one prompt that are compared, or None."""
    return getattr(self.method, "group_size", None)

  @property
  def has_lora_critic(self) -> bool:
    """Whether a critic trains LoRA factors."""
    return self.has_critic and self.value.mode == "lora"

  @property
  def has_full_critic(self) -> bool:
    """Whether a critic trains whole weights of its own."""
    is_own = self.has_critic and not self.value.is_shared
    return is_own and self.value.mode == "full"

  @property
  def has_critic(self) -> bool:
    """Whether the method trains a critic."""
    return registry.has_critic(self.algorithm.module)

  @property
  def has_ptx(self) -> bool:
    """Whether text is mixed into the updates (PPO-ptx)."""
    return self.method.ptx_coefficient > 0.0

  @property
  def updates(self) -> int:
    """Optimizer steps of one rollout."""
    return self.epochs.epochs * self.epochs.minibatches

  @property
  def updates_a_step(self) -> int:
    """Optimizer steps of one step, those on stored rollouts among them."""
    return self.updates * self.buffer.rollouts_a_step

  @property
  def optimizers(self) -> dict[str, optimizer.Config]:
    """The sections of the optimizers that take part."""
    found = {"policy_optimizer": self.policy_optimizer}
    if self.has_critic:
      found["value_optimizer"] = self.value_optimizer
    return found

  @property
  def answers(self) -> int:
    """Samples of a rollout."""
    return self.schedule.batch_size * self.generate.num_samples

  @property
  def parts(self) -> int:
    """Pieces that the rows of a rollout are cut into."""
    return self.epochs.minibatches * self.epochs.microbatches

  def row_targets(self, ways: int, attention: str) -> int:
    """Returns how many response tokens a row of a rollout holds at most.

    Args:
      ways: parts that rows are split into over a mesh.
      attention: the model's kind.
    """
    new, unit = self.generate.max_new_tokens, self.parts * ways
    groups = self.groups(ways, attention)
    return self.packing.targets(self.answers, unit, new, groups)

  def groups(self, ways: int, attention: str) -> groups_in_rows.Groups:
    """Returns which answers share their prompt in packed rows.

    Args:
      ways: parts that rows are split into over a mesh.
      attention: the model's kind.

    Raises:
      FieldError: they always should, and cannot.
    """
    mode, count = self.packing.share_prompts, self.generate.num_samples
    new, why = self.generate.max_new_tokens, ""
    groups = groups_in_rows.Groups(count, self.prompts.max_length - new)
    unit = self.parts * ways
    if count == 1:
      why = "generate.num_samples=1, so each prompt has one answer"
    elif self.packing.row_tokens == 0:
      why = "packing.row_tokens=0 gives each answer a row"
    elif attention not in attention_lib.BRANCHING:
      why = f"model.attention={attention!r} reads whole segments"
    elif not self.packing.shares(self.answers, unit, new, groups):
      why = f"{self.answers} answers are too few, so each has a row"
    if why and mode == "always":
      raise FieldError(
        f"packing.share_prompts='always': {why}. Leave it at 'auto', or set "
        "'never'."
      )
    if why or mode == "never":
      return groups_in_rows.ALONE
    return groups


def _imported(
  path: str, field: str, check_signature: Callable[[Any], Any]
) -> Callable[..., Any] | None:
  """Returns what an import path names, its signature checked; None for ""."""
  if not path:
    return None
  with schema.as_field():
    function = imported.load(path, field)
  with schema.as_field(f"{field}={path!r}: "):
    check_signature(function)
  return function


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  sampled_settings.check_sampled(settings, world)
  named = settings.value.judge
  if named and named not in settings.judge_folders:
    known = ", ".join(settings.judge_folders) or "none: set ''"
    raise FieldError(
      f"value.judge={named!r}: must be one of judges that is a reward model. "
      f"There are {known}."
    )
  if not settings.has_one_model and settings.has_critic and not named:
    if settings.value.init != "random":
      field = "reward_fn" if settings.reward_fn else "verifier.name"
      name = settings.reward_fn or settings.verifier.name
      if settings.named_judges:
        field, name = "judges", ", ".join(settings.named_judges)
      raise FieldError(
        f"{field}={name!r}: {settings.algorithm.name!r} needs a critic, "
        "which starts as the reward model (value.init="
        f"{settings.value.init!r}), and there is none. Set value.init='random' "
        "for one that starts at 0 on the policy's weights, value.judge to one "
        "of judges that is a reward model, or algorithm.name "
        "to a method without critic, such as 'rloo' or 'grpo'."
      )
  build.check_length(
    settings.schedule, settings.optimizers, settings.updates_a_step
  )
  check_batches(settings, world)


def check_batches(settings: Settings, world: World) -> None:
  """Checks that batches and portions divide, and the KL controller."""
  rows, field = settings.schedule.batch_size, "schedule.batch_size"
  build.check_rows(world, rows)
  _check_minibatches(settings, world.ways)
  shape, least = settings.shaping, settings.shaping.kl_clip * settings.answers
  if shape.kl_controller == "adaptive" and shape.kl_horizon <= least:
    raise FieldError(
      f"shaping.kl_horizon={shape.kl_horizon:g}: must be more "
      f"than kl_clip x {settings.answers} answers a step = {least:g}, or the "
      "coefficient could turn negative. Raise it."
    )
  parts = settings.parts
  if settings.has_ptx and settings.ptx_batch_size % (parts * world.ways):
    raise FieldError(
      f"ptx_batch_size={settings.ptx_batch_size}: must be a multiple of "
      f"epochs.minibatches x epochs.microbatches = {parts}, times "
      f"{build.DEVICES.format(world.ways)}."
    )
  sampled_settings.check_sampling(settings.generate)
  build.check_portions(rows, settings.generate, field)


def _check_minibatches(settings: Settings, ways: int) -> None:
  """Checks that each microbatch of a rollout divides among the devices."""
  rows, what = settings.answers, "schedule.batch_size x generate.num_samples"
  if settings.packing.row_multiple is not None:
    rows, what = settings.packing.row_multiple, "packing.row_multiple"
  update, parts = settings.epochs, settings.parts
  if rows % (parts * ways):
    split = f" x {build.DEVICES.format(ways)}" if ways > 1 else ""
    raise FieldError(
      f"epochs: minibatches={update.minibatches} x "
      f"microbatches={update.microbatches}{split} = {parts * ways} must divide "
      f"{what} = {rows}. Change one of them."
    )
