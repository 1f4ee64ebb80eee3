"""What stands beside the weights: tokenizer, template, end tokens, licences."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.data import assets, stops, streams
from rlhf_jax.data.sentencepiece_backend import SentencePieceTokenizer
from rlhf_jax.data.tokenizer_backends import HuggingFaceTokenizer
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models.model_sources import locate
from rlhf_jax.models.pretrained import Base
from rlhf_jax.schema import UserError

CONFIG = "tokenizer_config.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
# Of a Hugging Face folder, beside the weights; copied where they are.
FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "spiece.model",
  "vocab.json",
  "merges.txt",
  CONFIG,
  "special_tokens_map.json",
  "added_tokens.json",
  TEMPLATE,
)
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def of_model(base: Base) -> Path:
  """Returns the file or folder that a base model comes from."""
  return locate(base.source)


def token_ids(base: Base) -> dict[str, int | list[int]]:
  """Returns the ids of special tokens for config.json, all that end a text."""
  tokenizer = base.tokenizer
  ends = list(stops.end_ids(tokenizer))
  ids = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id,
    "pad_token_id": tokenizer.pad_id,
  }
  return {name: i for name, i in ids.items() if i is not None}


def write(base: Base, folder: Path, pad: str | None = None) -> None:
  """Writes the tokenizer of a base model, as it is where it comes from.

  What comes out of a GGUF file is written as tokenizer.json.

  Args:
    base: whose tokenizer.
    folder: to write into.
    pad: text of another padding token; None for its own.
  """
  own = base.tokenizer_source
  source = Path(os.path.expanduser(own)) if own else of_model(base)
  if source.suffix == ".gguf":
    write_made(base.tokenizer, folder)
  else:
    where = source if source.is_dir() else source.parent
    for name in FILES:
      if (where / name).is_file():
        shutil.copyfile(where / name, folder / name)
    if source.suffix == ".model":
      shutil.copyfile(source, folder / "tokenizer.model")
  template = base.tokenizer.chat_template
  if template is not None and template != load_tokenizer(source).chat_template:
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
  if pad is not None:
    _set_padding(folder / CONFIG, pad)


def _set_padding(path: Path, pad: str) -> None:
  """Writes the text of the padding token into tokenizer_config.json."""
  remedy = "Download the tokenizer again."
  known = strict_json.read_object(path, remedy) if path.is_file() else {}
  _write_json(path, known | {"pad_token": pad})


def _write_json(path: Path, values: Any) -> None:
  text = json.dumps(values, indent=2, ensure_ascii=False)
  path.write_text(text + "\n", encoding="utf-8")


def write_made(
  tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer, folder: Path
) -> None:
  """Writes the files of a tokenizer that has none of its own.

  tokenizer.json, or tokenizer.model of a SentencePiece model, and
  tokenizer_config.json.

  Args:
    tokenizer: read from a GGUF file.
    folder: to write into.
  """
  if isinstance(tokenizer, SentencePieceTokenizer):
    (folder / "tokenizer.model").write_bytes(tokenizer.to_model())
    kind = {
      "tokenizer_class": "LlamaTokenizer",
      "add_bos_token": tokenizer.bos_id in streams.first_ids(tokenizer),
      "legacy": tokenizer.is_legacy,
    }
  else:
    text = tokenizer.to_json()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
  names = {i: name for name, i in tokenizer.special_tokens.items()}
  config = kind | {
    "eos_token": names[tokenizer.eos_id],
    "bos_token": names.get(tokenizer.bos_id),
    "pad_token": names[tokenizer.pad_id],
    "chat_template": tokenizer.chat_template,
    "clean_up_tokenization_spaces": False,
  }
  config = {name: value for name, value in config.items() if value is not None}
  _write_json(folder / CONFIG, config)


def write_generation(base: Base, folder: Path) -> None:
  """Writes generation_config.json: the base model's, with all end tokens."""
  source, known = of_model(base), {}
  if source.is_dir() and (source / GENERATION).is_file():
    known = strict_json.read_object(source / GENERATION, "Download it again.")
  _write_json(folder / GENERATION, known | token_ids(base))


def copy_licences(base: Base, folder: Path) -> list[str]:
  """Copies licences and notices of a base model; returns their names."""
  source, found = of_model(base), []
  if source.is_dir():
    for pattern in LICENCES:
      for path in sorted(source.glob(pattern)):
        if path.is_file():
          shutil.copyfile(path, folder / path.name)
          found.append(path.name)
  return found


def licence_of(source: str) -> str:
  """Returns the licence of a base model, "" where nothing says it.

  Args:
    source: of its Model section; a folder's README.md may say it.
  """
  if source.startswith("asset:"):
    return assets.ASSETS[source.removeprefix("asset:")].licence
  try:
    card = locate(source) / "README.md"
  except UserError:
    return ""
  if not card.is_file():
    return ""
  head = card.read_text(encoding="utf-8", errors="replace").split("---")
  lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
  for line in lines:
    name, _, value = line.partition(":")
    if name.strip() == "license":
      return value.strip().strip("'\"")
  return ""
