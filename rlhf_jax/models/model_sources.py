"""Where a model is, and what it is: files, architecture, weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError

from rlhf_jax.data import assets
from rlhf_jax.models import gguf, hub, huggingface, shapes, transformer
from rlhf_jax.schema import FieldError, UserError, absence, check_local
from rlhf_jax.types import PyTree

RUN_FILE = "stage.json"  # that runs/stages.py writes


def check_source(source: str, name: str = "model") -> None:
  """Raises FieldError unless a model can be there.

  Args:
    source: of a Model section.
    name: of the section, for the message.
  """
  field = f"{name}.source"
  if not source:
    raise FieldError(
      f"{field} is empty: set it to asset:NAME, a .gguf file or a folder with "
      "config.json and *.safetensors."
    )
  if source.startswith(shapes.PREFIX):
    raise FieldError(
      f"{field}={source!r} is a shape without weights, for python -m "
      "rlhf_jax.plan only. To train, name the weights: asset:NAME, a .gguf "
      "file or a folder with config.json and *.safetensors."
    )
  if source.startswith("asset:"):
    assets.check_name(source, field)
    return
  check_local(source, field)
  if hub.parse(source) is not None:
    hub.pin(source, field)
    return
  path = Path(os.path.expanduser(source))
  if not os.path.isfile(path) and not os.path.isdir(path):
    what = absence(path).replace("no such file", "no such file or folder")
    raise FieldError(
      f"{field}={source!r}: {what}. Give a .gguf file, a folder with "
      "config.json and *.safetensors, asset:NAME, or org/name@revision of a "
      "model of the Hugging Face hub."
    )
  if path.is_file() and path.suffix != ".gguf":
    raise FieldError(
      f"{field}={source!r}: not a .gguf file. For safetensors give the folder "
      "that holds config.json."
    )
  if (path / RUN_FILE).is_file():
    raise FieldError(
      f"{field}={source!r}: a run of this package, with checkpoints in place "
      "of a model. Export it, and give what is written: python -m "
      f"rlhf_jax.main --config=configs/export.py --config.run={source} "
      f"--workdir=D, then {field}=D/model."
    )
  inner = path / "model"  # of an export
  if (inner / "config.json").is_file() and not any(path.glob("*.safetensors")):
    raise FieldError(
      f"{field}={source!r}: holds no weights itself, its folder 'model' does. "
      f"Give {os.path.join(source, 'model')!r}."
    )


def pinned_source(source: str) -> str:
  """Returns a source that means the same model tomorrow: see hub.pin."""
  return source if hub.parse(source) is None else hub.pin(source)


def locate(source: str, *, needs_weights: bool = True) -> Path:
  """Returns the file or folder of a model, fetched when it is elsewhere.

  Args:
    source: of a Model section.
    needs_weights: False where its tokenizer is enough.

  Raises:
    UserError: nothing there that could be a model, or it cannot be fetched.
  """
  check_source(source)
  if source.startswith("asset:"):
    return assets.fetch(source.removeprefix("asset:"))
  if hub.parse(source) is not None:
    return hub.fetch(source, needs_weights=needs_weights)
  return Path(os.path.expanduser(source))


def read_architecture(source: str) -> transformer.Config:
  """Returns the architecture of a model without reading its weights.

  Args:
    source: of a Model section; shape:NAME too.

  Raises:
    UserError, ValueError: nothing there that could be a model.
  """
  if source.startswith(shapes.PREFIX):
    return shapes.named(source.removeprefix(shapes.PREFIX))
  check_source(source)
  known = shapes.OF_ASSET.get(source.removeprefix("asset:"))
  if source.startswith("asset:") and known is not None:
    return shapes.named(known)
  if hub.parse(source) is not None:
    path = hub.fetch(source, needs_weights=False, needs_tokenizer=False)
  else:
    path = locate(source)
  if path.is_dir():
    return huggingface.read_config(path)[1]
  return gguf.read_config(path)


def read_weights(path: Path) -> tuple[transformer.Config, PyTree]:
  """Returns the architecture and the weights at a path, read when placed.

  Raises:
    UserError, ValueError, FileNotFoundError: damaged, incomplete, or of an
      architecture that is not implemented.
  """
  loader = huggingface if path.is_dir() else gguf
  try:
    return loader.load(path)
  except (json.JSONDecodeError, SafetensorError) as error:
    raise UserError(
      f"{path}: a file of the model is damaged ({error}). Copy or download the "
      "model again."
    ) from error
  except KeyError as error:
    raise UserError(
      f"{path}: the model's files do not say {error}. They are incomplete, or "
      "laid out in a way that is not read yet."
    ) from error
