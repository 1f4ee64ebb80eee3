"""Models of the Hugging Face hub by their name: org/name[@revision].

A branch or a tag moves, so a name is pinned to the commit that it means, and a
run records that commit (pipelines/pinned.py). Only what a model here needs is
fetched, into the cache of huggingface_hub ($HF_HOME), and read from there
without a network the next time. A file or folder of that name wins.

Left out: GGUF files and adapters on the hub; fetch them and give their path.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from rlhf_jax.data.hub_client import Name, explained, in_field, library
from rlhf_jax.models import tensor_files
from rlhf_jax.schema import UserError

WEIGHTS, INDEX = tensor_files.WEIGHTS, tensor_files.INDEX
FURTHER = (  # read where a model has them
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "additional_chat_templates/tool_use.jinja",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "README.md",
)
_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*?)(?:@([\w-][\w./-]*))?", re.A)
_FILES = (".gguf", ".safetensors", ".json", ".bin", ".model")


def parse(source: str) -> Name | None:
  """Returns the name that a source of a Model section is; None if it is none.

  It is a path where there is a file or folder so named, where it ends like a
  file, and, unless a revision says otherwise, where its first part is a folder
  here: runs/sfft is a mistake, not a model of somebody called "runs".
  """
  found = _NAME.fullmatch(source)
  if found is None or source.endswith(_FILES) or os.path.exists(source):
    return None
  repository, revision = found[1], found[2]
  if revision is None and os.path.isdir(repository.partition("/")[0]):
    return None
  return Name(repository, "main" if revision is None else revision)


def _download(name: Name, file: str) -> Path | None:
  """Returns a file of a model, fetched if need be; None where it has none.

  Raises:
    UserError: it cannot be had.
  """
  hub = library()
  from huggingface_hub import errors

  if name.is_pinned:
    cached = hub.try_to_load_from_cache(
      name.repository, file, revision=name.revision
    )
    if cached is hub._CACHED_NO_EXIST:
      return None
    if cached is not None:
      return Path(cached)
  try:
    path = hub.hf_hub_download(name.repository, file, revision=name.revision)
  except errors.LocalEntryNotFoundError as error:
    raise explained(error, name) from error
  except errors.EntryNotFoundError as error:
    if file == "config.json":
      raise explained(error, name) from error
    return None
  except Exception as error:  # of whichever library carries its requests
    raise explained(error, name) from error
  return Path(path)


@functools.lru_cache(maxsize=64)
def pin(source: str, field: str = "model.source") -> str:
  """Returns org/name@COMMIT of a name, and says so where that is news.

  Args:
    source: that `parse` takes for a name.
    field: where it stands, for messages.

  Raises:
    FieldError: there is no such model or revision, or nobody can be asked and
      the cache does not know it.
  """
  name = parse(source)
  if name.is_pinned:
    return str(name)
  with in_field(source, field):
    before = _cached_commit(name)
    try:
      library().HfApi().model_info(
        name.repository, revision=name.revision, timeout=30
      )
      config = _download(name, "config.json")
    except UserError:
      raise
    except Exception as error:
      from huggingface_hub import errors

      is_answer = isinstance(
        error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError
      )
      if is_answer or before is None:
        raise explained(error, name) from error
      print(
        f"{source}: the hub cannot be reached ({type(error).__name__}); the "
        f"cache holds {before[:12]} as its {name.revision}, which is read"
      )
      return str(name._replace(revision=before))
  return str(name._replace(revision=config.parent.name))


def _cached_commit(name: Name) -> str | None:
  """Returns the commit that the cache knows a branch or a tag as."""
  path = library().try_to_load_from_cache(
    name.repository, "config.json", revision=name.revision
  )
  return Path(path).parent.name if isinstance(path, str) else None


def fetch(
  source: str,
  field: str = "model.source",
  *,
  needs_weights: bool = True,
  needs_tokenizer: bool = True,
) -> Path:
  """Returns the folder of a model of the hub, with all that is read of it.

  Args:
    source: that `parse` takes for a name.
    field: where it stands, for messages.
    needs_weights, needs_tokenizer: both False for config.json alone.

  Raises:
    FieldError: it cannot be had, or holds no weights that are read here.
  """
  name = parse(pin(source, field))
  with in_field(source, field):
    folder = _download(name, "config.json").parent
    is_here = (folder / WEIGHTS).exists() or (folder / INDEX).exists()
    if needs_weights and not is_here:
      print(f"fetching {name} from the hub", flush=True)
    for file in FURTHER if needs_tokenizer else ():
      _download(name, file)
    if not needs_weights:
      return folder
    index = _download(name, INDEX)
    files = [WEIGHTS] if index is None else tensor_files.shard_names(index)
    for file in files:
      if _download(name, file) is None:
        raise UserError(
          f"it has no {file} at {name.revision[:12]}: weights in safetensors "
          "are read. Ask its authors for them, convert it with transformers' "
          "save_pretrained, or give a GGUF file that you fetched."
        )
  return folder
