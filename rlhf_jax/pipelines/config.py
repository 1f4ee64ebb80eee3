"""Experiment files <-> frozen dataclasses, with errors before any compile.

An experiment file starts from a `defaults.*()` tree and changes what it
changes. Each section is turned into the dataclass that lives beside the code
it configures; unknown fields and wrong types are refused by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from rlhf_jax import optimizer
from rlhf_jax.data import formats
from rlhf_jax.models import attention

T = TypeVar("T")

_WORDS = {
  int: "a whole number",
  float: "a number",
  bool: "True or False",
  str: "text",
  type(None): "None",
}


class ConfigError(ValueError):
  """A value in the experiment's configuration that cannot be right."""


@dataclasses.dataclass(frozen=True)
class Model:
  """Which decoder, and how it runs."""

  source: str = ""  # asset:NAME, a .gguf file, or a Hugging Face folder
  tokenizer: str = ""  # file or folder; "" reads the model's own
  dtype: str = "float32"  # compute dtype
  attention: str = "auto"  # by platform; or a kind of models/attention.py
  scan_layers: bool = False  # one compiled block (deep models on TPU)
  remat: bool = False  # recompute blocks in the backward pass
  lora_rank: int = 0
  lora_scale: float = 1.0

  def __post_init__(self) -> None:
    if self.lora_rank < 0:
      raise ConfigError(f"lora_rank={self.lora_rank}: must be >= 0.")
    _check_choice("dtype", self.dtype, ("float32", "bfloat16"))
    _check_choice("attention", self.attention, ("auto", *attention.KINDS))


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What trains, as in models/roles.py."""

  mode: str = "full"  # "full", "lora" or "head"
  first_layer: int = 0  # layers below are frozen, their output computed once

  def __post_init__(self) -> None:
    _check_choice("mode", self.mode, ("full", "lora", "head"))
    if self.first_layer < 0:
      raise ConfigError(f"first_layer={self.first_layer}: must be >= 0.")


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
    _check_choice("ties", self.ties, ("drop", "soft"))
    _check_choice("format", self.format, tuple(formats.FORMATS))
    if not 0 <= self.split_seed < 2**32:
      raise ConfigError(f"split_seed={self.split_seed}: must be in 0..2**32-1.")
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
        f"split={self.split!r}: splits={self.splits!r} holds no part of this "
        "name. Add it there as NAME:SIZE, or set split=''."
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
  keep_best: str = ""  # metric by which the best saved step is kept besides
  best: str = "max"  # "max" or "min" of that metric is the best
  asynchronous: bool = False  # checkpoints are written while steps go on
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
    _check_choice("best", self.best, ("max", "min"))
    if self.steps > 0 and self.epochs > 0:
      raise ConfigError(
        f"steps={self.steps}, epochs={self.epochs}: set exactly one of them "
        "and the other to 0."
      )

  def total_steps(self, examples: int) -> int:
    """Returns the number of steps for a data set of `examples` rows."""
    if self.steps == 0 and self.epochs == 0:
      raise ConfigError(
        f"config.schedule.steps={self.steps}, epochs={self.epochs}: nothing "
        "would be trained. Set one of them."
      )
    if self.steps:
      return self.steps
    return max(1, round(self.epochs * (examples // self.batch_size)))


def _check_choice(field: str, value: str, allowed: Collection[str]) -> None:
  """Raises ConfigError unless the value is an allowed one."""
  if value not in allowed:
    raise ConfigError(
      f"{field}={value!r}: must be one of {', '.join(allowed)}."
      f"{nearest(value, allowed)}"
    )


def nearest(word: str, known: Collection[str]) -> str:
  """Returns " Did you mean ...?", or "" where no known word is near."""
  near = difflib.get_close_matches(word, known, 1)
  return f" Did you mean {near[0]!r}?" if near else ""


def _options(hint: Any) -> tuple:
  """Returns the alternatives of a type hint."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.get_args(hint)
  return (hint,)


def tree(cls: type) -> ml_collections.ConfigDict:
  """Returns a config section with the defaults of a dataclass.

  Fields that may be None become typed references: they keep their type while
  they are None, so that the command line can set them again.
  """
  hints = typing.get_type_hints(cls)
  section = ml_collections.ConfigDict()
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING:
      continue
    kinds = [t for t in _options(hints[field.name]) if t is not type(None)]
    if kinds != [hints[field.name]]:
      section[field.name] = config_dict.FieldReference(
        field.default, field_type=kinds[0]
      )
    else:
      section[field.name] = field.default
  return section


def _plain(value: Any) -> Any:
  if isinstance(value, ml_collections.ConfigDict):
    return value.to_dict()
  return value


def _fits(value: Any, hint: Any) -> bool:
  for option in _options(hint):
    kind = typing.get_origin(option) or option
    if kind is Any or (kind is float and type(value) is int):
      return True
    if kind is int and isinstance(value, bool):
      continue
    if isinstance(kind, type) and isinstance(value, kind):
      return True
  return False


def _checked(value: Any, hint: Any, name: str) -> Any:
  """Returns a value of a field's type; whole numbers become floats there."""
  if not _fits(value, hint):
    wanted = " or ".join(
      _WORDS.get(option, str(option)) for option in _options(hint)
    )
    raise ConfigError(
      f"config.{name}={value!r}: must be {wanted}, not {type(value).__name__}."
    )
  if isinstance(value, float) and math.isnan(value):
    raise ConfigError(f"config.{name}={value}: must be a number.")
  is_float = float in _options(hint) and int not in _options(hint)
  return float(value) if is_float and type(value) is int else value


def section(cls: type[T], values: Any, name: str) -> T:
  """Returns the dataclass of a config section.

  Args:
    cls: frozen dataclass with range checks in __post_init__.
    values: ConfigDict or dict.
    name: where the section stands, for messages ("policy.optimizer").

  Raises:
    ConfigError: for an unknown field (with the nearest known one), a missing
      one, a wrong type or a value out of range.
  """
  if not isinstance(values, (ml_collections.ConfigDict, dict)):
    raise ConfigError(
      f"config.{name}={values!r}: is a section. Set its fields, for example "
      f"config.{name}.{dataclasses.fields(cls)[0].name}."
    )
  values = {key: _plain(value) for key, value in dict(values).items()}
  hints = typing.get_type_hints(cls)
  known = [field.name for field in dataclasses.fields(cls)]
  for key in values:
    if key not in known:
      raise ConfigError(
        f"config.{name}.{key}: no such field.{nearest(key, known)} Known: "
        f"{', '.join(sorted(known))}."
      )
  for field in dataclasses.fields(cls):
    if field.default is dataclasses.MISSING and field.name not in values:
      raise ConfigError(f"config.{name}.{field.name}: not set, has no default.")
  typed = {
    key: _checked(value, hints[key], f"{name}.{key}")
    for key, value in values.items()
  }
  try:
    return cls(**typed)
  except ValueError as error:
    raise ConfigError(_located(str(error), name, known)) from error


def _located(message: str, name: str, known: Collection[str]) -> str:
  """Returns a message about a field, with the field's full name."""
  start = re.match(r"(?:\w+\.)?(\w+)=", message)
  if start is not None and start[1] in known:
    return f"config.{name}.{message[start.start(1) :]}"
  return f"config.{name}: {message}"


def check_sections(config: Any, known: Collection[str], name: str) -> None:
  """Raises ConfigError for sections of an experiment that nobody reads."""
  for key in config:
    if key not in known:
      raise ConfigError(
        f"config.{name}{key}: no such section or field.{nearest(key, known)} "
        f"Known: {', '.join(sorted(known))}."
      )


def optimizer_section(values: Any, name: str, total_steps: int) -> Any:
  """Returns optimizer.Config, its decay ending at `total_steps` if not set.

  Raises:
    ConfigError: as `section`; or the run ends within the warm-up.
  """
  values = {key: _plain(value) for key, value in dict(values).items()}
  if values.get("total_steps") is None:
    values["total_steps"] = total_steps
    warmup = values.get("warmup_steps")
    decays = values.get("schedule") in ("cosine", "linear")
    if decays and type(warmup) is int and warmup >= total_steps:
      raise ConfigError(
        f"config.{name}.warmup_steps={warmup}: the run has {total_steps} "
        "updates in all, so it would end within the warm-up. Lower "
        "warmup_steps, or train longer (more data, more steps, smaller "
        "batches)."
      )
  return section(optimizer.Config, values, name)
