"""The policy-gradient method that a config names, and what goes with it."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.algorithms.policy_gradient import importance
from rlhf_jax.algorithms.policy_gradient.registry import (
  ALGORITHMS,
  check_run,
  further_of,
  has_critic,
)
from rlhf_jax.pipelines import method_sections
from rlhf_jax.pipelines.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Method(method_sections.Method):
  """A method of registry.ALGORITHMS, ready to be used."""

  @property
  def has_critic(self) -> bool:
    """Whether it trains a critic."""
    return has_critic(self.module)

  @property
  def needs_greedy(self) -> bool:
    """Whether it needs a greedy answer to each prompt."""
    return "greedy" in further_of(self.module, self.config)

  @property
  def group_size(self) -> int | None:
    """Answers to one prompt that are compared, or None."""
    return getattr(self.config, "group_size", None)


def tree(name: str = "ppo") -> ConfigDict:
  """Returns the section `algorithm` of a config: a name, and nothing set."""
  return method_sections.tree(ALGORITHMS, name)


def read(values: Any, num_samples: int, prefix: str = "") -> Method:
  """Returns the method of a section `algorithm`.

  Args:
    values: the section.
    num_samples: answers to each prompt; the size of a group where none is set.
    prefix: where the section stands ("policy.").

  Raises:
    ConfigError: no such method, or a field that is not its own or is wrong.
  """
  values = dict(values)
  module = ALGORITHMS.get(values.get("name"))
  usual = None if module is None else getattr(module.Config(), "group_size", 0)
  if usual and values.get("group_size") is None:
    values["group_size"] = num_samples
  found = method_sections.read(values, ALGORITHMS, f"{prefix}algorithm")
  return Method(found.name, found.module, found.config)


def check_judge(config: Any) -> None:
  """Raises ConfigError unless something, and one thing, judges answers.

  Args:
    config: of a pipeline that samples, on its own.
  """
  name = config.verifier.name
  if name and config.reward:
    raise ConfigError(
      f"config.verifier.name={name!r} and reward="
      f"{config.reward!r}: one of them judges. Set the other to ''; a reward "
      "model can watch as one of monitors."
    )
  if not name and not config.reward:
    raise ConfigError(
      "config.reward is empty: name the --workdir of a finished "
      "configs/reward.py run, or set verifier.name."
    )


def check_judges(config: Any, method: Method) -> None:
  """Raises ConfigError unless one thing judges, and the method can use it.

  Args:
    config: of a policy pipeline, on its own.
    method: what `read` returned.
  """
  check_judge(config)
  name = config.verifier.name
  if name and method.has_critic and config.value.init != "random":
    raise ConfigError(
      f"config.verifier.name={name!r}: {method.name!r} needs a critic, "
      "which starts as the reward model (value.init="
      f"{config.value.init!r}), and there is none. Set value.init='random' for "
      "one that starts at 0 on the policy's weights, or algorithm.name to a "
      "method without critic, such as 'rloo' or 'grpo'."
    )


def check_importance(
  weights: importance.Config, dtype: str, prefix: str = ""
) -> None:
  """Raises ConfigError for importance weights that would all be 1.

  Args:
    weights: the section `importance`.
    dtype: of the model.
    prefix: of the stage, for messages.
  """
  if weights.cap is not None and dtype == "float32":
    raise ConfigError(
      f"config.{prefix}importance.cap={weights.cap}: with model.dtype="
      "'float32' sampler and trainer agree on every log-probability, so all "
      "weights would be 1. Set None, or model.dtype='bfloat16'."
    )


def check(
  method: Method,
  *,
  num_samples: int,
  kl_coefficient: float,
  steps_per_rollout: int,
  pretrain_steps: int,
  prefix: str = "",
) -> None:
  """Raises ConfigError for settings that are wrong together.

  Args:
    method: what `read` returned.
    num_samples: answers to each prompt.
    kl_coefficient: beta of the KL in the reward.
    steps_per_rollout: epochs times minibatches.
    pretrain_steps: rollouts for the critic alone.
    prefix: of the stage, for messages.
  """
  if pretrain_steps and not method.has_critic:
    raise ConfigError(
      f"config.{prefix}value.pretrain_steps={pretrain_steps}: {method.name!r} "
      "has no critic to train. Set 0."
    )
  try:
    check_run(
      method.config,
      num_samples=num_samples,
      kl_coefficient=kl_coefficient,
      steps_per_rollout=steps_per_rollout,
    )
  except ValueError as error:
    raise ConfigError(f"config.{prefix}algorithm.{error}") from error
