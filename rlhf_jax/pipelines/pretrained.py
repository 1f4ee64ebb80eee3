"""A Model section -> the files it names: weights, architecture, tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

from safetensors import SafetensorError

from rlhf_jax.data import assets
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from rlhf_jax.models import attention, gguf, huggingface, shapes, transformer
from rlhf_jax.pipelines.config import ConfigError, Model, nearest
from rlhf_jax.types import PyTree


def check_asset(source: str, field: str) -> None:
  """Raises ConfigError unless asset:NAME names an asset."""
  name = source.removeprefix("asset:")
  if name not in assets.ASSETS:
    raise ConfigError(
      f"{field}={source!r}: no such asset.{nearest(name, assets.ASSETS)} "
      f"Known: {', '.join(assets.ASSETS)}."
    )


def check_source(source: str, name: str = "model") -> None:
  """Raises ConfigError unless a model can be there.

  Args:
    source: of a Model section.
    name: of the section, for the message.
  """
  field = f"config.{name}.source"
  if not source:
    raise ConfigError(
      f"{field} is empty: set it to asset:NAME, a .gguf file or a folder with "
      "config.json and *.safetensors."
    )
  if source.startswith(shapes.PREFIX):
    raise ConfigError(
      f"{field}={source!r} is a shape without weights, for python -m "
      "rlhf_jax.plan only. To train, name the weights: asset:NAME, a .gguf "
      "file or a folder with config.json and *.safetensors."
    )
  if source.startswith("asset:"):
    check_asset(source, field)
    return
  path = Path(os.path.expanduser(source))
  if not path.exists():
    raise ConfigError(
      f"{field}={source!r}: no such file or folder. Give a .gguf file, a "
      "folder with config.json and *.safetensors, or asset:NAME."
    )
  if path.is_file() and path.suffix != ".gguf":
    raise ConfigError(
      f"{field}={source!r}: not a .gguf file. For safetensors give the folder "
      "that holds config.json."
    )


def locate(source: str) -> Path:
  """Returns the file or folder of a model, fetched when it is an asset.

  Raises:
    ConfigError: nothing there that could be a model.
    AssetError: cannot be fetched.
  """
  check_source(source)
  if source.startswith("asset:"):
    return assets.fetch(source.removeprefix("asset:"))
  return Path(os.path.expanduser(source))


def read_architecture(source: str) -> transformer.Config:
  """Returns the architecture of a model without reading its weights.

  Args:
    source: of a Model section; shape:NAME too.

  Raises:
    ConfigError, ValueError: nothing there that could be a model.
  """
  if source.startswith(shapes.PREFIX):
    return shapes.named(source.removeprefix(shapes.PREFIX))
  check_source(source)
  known = shapes.OF_ASSET.get(source.removeprefix("asset:"))
  if source.startswith("asset:") and known is not None:
    return shapes.named(known)
  path = locate(source)
  if path.is_dir():
    return huggingface.read_config(path)[1]
  return gguf.read_config(path)


def as_run(
  config: transformer.Config, model: Model, platform: str
) -> transformer.Config:
  """Returns an architecture with what a Model section says of its run.

  Args:
    config: architecture.
    model: the section.
    platform: "cpu", "gpu" or "tpu", where it runs.

  Raises:
    ConfigError: an attention program that the platform does not have.
  """
  try:
    kind = attention.resolve(model.attention, platform, model.dtype)
  except ValueError as error:
    raise ConfigError(f"config.model.{error}") from error
  return dataclasses.replace(
    config,
    dtype=model.dtype,
    attention=kind,
    scan_layers=model.scan_layers,
    remat=model.remat,
    lora_rank=model.lora_rank,
    lora_scale=model.lora_scale,
  )


@functools.lru_cache(maxsize=2)
def read_weights(path: Path) -> tuple[transformer.Config, PyTree]:
  """Returns the architecture and the float32 weights at a path.

  Raises:
    ConfigError, ValueError, FileNotFoundError: damaged, incomplete, or of an
      architecture that is not implemented.
  """
  loader = huggingface if path.is_dir() else gguf
  try:
    return loader.load(path)
  except (json.JSONDecodeError, SafetensorError) as error:
    raise ConfigError(
      f"{path}: a file of the model is damaged ({error}). Copy or download the "
      "model again."
    ) from error
  except KeyError as error:
    raise ConfigError(
      f"{path}: the model's files do not say {error}. They are incomplete, or "
      "laid out in a way that is not read yet."
    ) from error


def read_tokenizer(model: Model, path: Path) -> Tokenizer:
  """Returns the tokenizer of a Model section; `path` is where its model is.

  Raises:
    ConfigError, ValueError: it is not there, or cannot be read.
  """
  if not model.tokenizer:
    try:
      return load_tokenizer(path)
    except ValueError as error:
      raise ConfigError(
        f"config.model.tokenizer is empty, so the model's own is read, but "
        f"{error}"
      ) from error
  own = Path(os.path.expanduser(model.tokenizer))
  if not own.exists():
    raise ConfigError(
      f"config.model.tokenizer={model.tokenizer!r}: no such file or folder. "
      "Give a tokenizer.json, a folder that holds one, a SentencePiece "
      "*.model, or '' for the model's own."
    )
  return load_tokenizer(own)
