"""Experiment files <-> frozen dataclasses, with errors before any compile.

An experiment file starts from a `defaults.*()` tree and changes what it
changes. Each section is turned into the dataclass that lives beside the code
it configures; unknown fields and wrong types are refused by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from rlhf_jax import optimizer

T = TypeVar("T")


class ConfigError(ValueError):
  """A value in the experiment's configuration that cannot be right."""


@dataclasses.dataclass(frozen=True)
class Model:
  """Which decoder, and how it runs."""

  source: str = ""  # asset:NAME, a .gguf file, or a Hugging Face folder
  tokenizer: str = ""  # file or folder; "" reads the model's own
  dtype: str = "float32"  # compute dtype
  scan_layers: bool = False  # one compiled block (deep models on TPU)
  remat: bool = False  # recompute blocks in the backward pass
  lora_rank: int = 0
  lora_scale: float = 1.0

  def __post_init__(self) -> None:
    if self.lora_rank < 0:
      raise ConfigError(f"lora_rank={self.lora_rank}: must be >= 0.")


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What trains, as in models/roles.py."""

  mode: str = "full"  # "full", "lora" or "head"
  first_layer: int = 0  # layers below are frozen, their output computed once


@dataclasses.dataclass(frozen=True)
class Data:
  """Records and how they become rows of tokens."""

  source: str = ""  # asset:NAME, file.jsonl[.gz], tfds:NAME:SPLIT; "" for none
  format: str = "comparison"  # a name of data/formats.py
  prompt: str = ""  # prompt text put before rated texts, e.g. "Review:"
  prefix_tokens: int = 0  # first tokens of a text that join the prompt
  chat: bool = False  # render prompts with the tokenizer's chat template
  max_length: int = 512  # tokens of a row, prompt and response
  min_words: int = 0  # texts with fewer are left out (and counted)
  max_text_tokens: int = 0  # texts with more are left out; 0: no limit
  end_token: bool = True  # responses end with the end-of-sequence token
  train_on_prompt: bool = False  # SFT only
  pack: bool = False  # SFT only: several examples fill a row of max_length
  split: str = ""  # "" for all, or NAME of splits
  splits: str = ""  # "test:700,A:1500,B:1500": disjoint, drawn in this order
  split_seed: int = 0
  pairs: int = 0  # comparisons drawn from ratings
  ties: str = "drop"  # equal ratings: "drop" or "soft" (label 0.5)
  limit: int = 0  # first so many records; 0: all

  def __post_init__(self) -> None:
    for field in (
      "prefix_tokens",
      "min_words",
      "max_text_tokens",
      "pairs",
      "limit",
    ):
      if getattr(self, field) < 0:
        raise ConfigError(f"{field}={getattr(self, field)}: must be >= 0.")
    if self.max_length < 2:
      raise ConfigError(f"max_length={self.max_length}: must be >= 2 tokens.")
    if self.ties not in ("drop", "soft"):
      raise ConfigError(f"ties={self.ties!r}: must be 'drop' or 'soft'.")
    self.split_sizes()

  def split_sizes(self) -> dict[str, int]:
    """Returns {name: size} of `splits`, checked against `split`."""
    sizes: dict[str, int] = {}
    for part in filter(None, self.splits.split(",")):
      name, _, size = part.strip().partition(":")
      if not size.isdigit():
        raise ConfigError(
          f"splits={self.splits!r}: {part!r} is not NAME:SIZE. Write for "
          "example 'test:700,A:1500'."
        )
      sizes[name] = int(size)
    if self.split and self.split not in sizes:
      raise ConfigError(
        f"split={self.split!r} is not in splits={self.splits!r}."
      )
    return sizes


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long, how often saved, how reported."""

  batch_size: int = 32  # rows (policy: prompts) a step, over all hosts
  steps: int = 0  # optimizer steps (policy: rollouts); 0: from epochs
  epochs: float = 0.0  # passes over the data; 0: from steps
  save_every: int = 50  # steps between checkpoints
  keep: int = 2  # newest checkpoints kept
  log_every: int = 1  # steps between metric rows

  def __post_init__(self) -> None:
    if self.batch_size < 1 or self.save_every < 1 or self.keep < 1:
      raise ConfigError(
        f"batch_size={self.batch_size}, save_every={self.save_every}, keep="
        f"{self.keep}: all must be >= 1."
      )
    if self.steps < 0 or self.epochs < 0 or self.log_every < 1:
      raise ConfigError(
        f"steps={self.steps}, epochs={self.epochs}, log_every="
        f"{self.log_every}: need steps, epochs >= 0 and log_every >= 1."
      )

  def total_steps(self, examples: int) -> int:
    """Returns the number of steps for a data set of `examples` rows."""
    if (self.steps > 0) == (self.epochs > 0):
      raise ConfigError(
        f"steps={self.steps}, epochs={self.epochs}: set exactly one of them."
      )
    if self.steps:
      return self.steps
    return max(1, round(self.epochs * (examples // self.batch_size)))


def tree(cls: type) -> ml_collections.ConfigDict:
  """Returns a config section with the defaults of a dataclass.

  Fields whose default is None become typed placeholders, so that the command
  line can set them.
  """
  hints = typing.get_type_hints(cls)
  section = ml_collections.ConfigDict()
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING:
      continue
    if field.default is None:
      kinds = [
        t for t in typing.get_args(hints[field.name]) if t is not type(None)
      ]
      section[field.name] = config_dict.placeholder(kinds[0])
    else:
      section[field.name] = field.default
  return section


def _plain(value: Any) -> Any:
  if isinstance(value, ml_collections.ConfigDict):
    return value.to_dict()
  return value


def _fits(value: Any, hint: Any) -> bool:
  options = (
    typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType)
    else (hint,)
  )
  for option in options:
    kind = typing.get_origin(option) or option
    if kind is Any or (kind is float and type(value) is int):
      return True
    if kind is int and isinstance(value, bool):
      continue
    if isinstance(kind, type) and isinstance(value, kind):
      return True
  return False


def section(cls: type[T], values: Any, name: str) -> T:
  """Returns the dataclass of a config section.

  Args:
    cls: frozen dataclass with range checks in __post_init__.
    values: ConfigDict or dict.
    name: where the section stands, for messages ("policy.optimizer").

  Raises:
    ConfigError: for an unknown field (with the nearest known one), a wrong
      type or a value out of range.
  """
  values = {key: _plain(value) for key, value in dict(values).items()}
  hints = typing.get_type_hints(cls)
  known = {field.name for field in dataclasses.fields(cls)}
  for key, value in values.items():
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ConfigError(
        f"config.{name}.{key}: no such field.{hint} Known: "
        f"{', '.join(sorted(known))}."
      )
    if not _fits(value, hints[key]):
      raise ConfigError(
        f"config.{name}.{key}={value!r}: wants {hints[key]}, got "
        f"{type(value).__name__}."
      )
  try:
    return cls(**values)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"config.{name}: {error}") from error


def check_sections(config: Any, known: set[str], name: str) -> None:
  """Raises ConfigError for sections of an experiment that nobody reads."""
  for key in config:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ConfigError(f"config.{name}{key}: no such section.{hint}")


def optimizer_section(values: Any, name: str, total_steps: int) -> Any:
  """Returns optimizer.Config, its decay ending at `total_steps` if not set."""
  values = {key: _plain(value) for key, value in dict(values).items()}
  if values.get("total_steps") is None:
    values["total_steps"] = total_steps
  return section(optimizer.Config, values, name)
