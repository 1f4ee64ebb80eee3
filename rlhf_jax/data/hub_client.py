"""The Hugging Face hub: its library, and what a person can do about its errors.

Models of the hub are in models/hub.py, data sets in hub_sources.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from rlhf_jax.schema import FieldError, UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Name(NamedTuple):
  """A repository of the hub; revision: a branch, a tag or a commit."""

  repository: str
  revision: str

  @property
  def is_pinned(self) -> bool:
    return _COMMIT.fullmatch(self.revision) is not None

  def __str__(self) -> str:
    return f"{self.repository}@{self.revision}"


def library() -> Any:
  """Returns the module huggingface_hub.

  Raises:
    UserError: it is not installed.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f"needs huggingface_hub ({error}). Install it with pip install -e "
      "'.[hub]', or give the path of a folder."
    ) from error
  return huggingface_hub


def explained(error: Exception, name: Name, kind: str = "model") -> UserError:
  """Returns what a person can do about an error of huggingface_hub.

  Args:
    error: as it was raised; what one that speaks of the cache came of counts.
    name: that was asked for.
    kind: "model" or "dataset".
  """
  from huggingface_hub import constants, errors

  if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
    error = error.__cause__
  is_model = kind == "model"
  what = "model" if is_model else "data set"
  page = f"{constants.ENDPOINT}/{'' if is_model else 'datasets/'}"
  page += name.repository
  if isinstance(error, errors.GatedRepoError):
    return UserError(
      f"its authors ask for consent first. Log in and agree at {page}, then "
      "`hf auth login`, or set HF_TOKEN, with a token of the same account."
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    here = ", and no folder here is so named" if is_model else ""
    return UserError(
      f"{constants.ENDPOINT} has no such {what}, or it is private{here}. "
      "Correct the name (org/name), or log in with "
      "`hf auth login`, or set HF_TOKEN, if you may read it."
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return UserError(
      f"there is no revision {name.revision!r} of it. Give a branch, a tag or "
      f"a whole commit that {page} lists."
    )
  if isinstance(error, errors.EntryNotFoundError) and not isinstance(
    error, errors.LocalEntryNotFoundError
  ):
    if not is_model:
      return UserError(f"a file of it is not there at {name.revision}.")
    return UserError(
      f"has no config.json at {name.revision}: it is no model that "
      "transformers reads. For a GGUF file, fetch it and give its path."
    )
  why = str(error).strip().splitlines()
  of_kind = "" if is_model else "--repo-type dataset "
  return UserError(
    f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: "
    f"{why[0][:200] if why else ''}), and the cache "
    f"{constants.HF_HUB_CACHE} does not hold all of it. Run this once with a "
    f"network (and without HF_HUB_OFFLINE), or fetch it elsewhere with `hf "
    f"download {of_kind}{name.repository} --local-dir FOLDER` and give that "
    f"folder{'' if is_model else chr(39) + 's files'}."
  )


@contextlib.contextmanager
def in_field(source: str, field: str) -> Iterator[None]:
  """Puts a field and its value before what is said inside."""
  try:
    yield
  except FieldError:
    raise
  except UserError as error:
    raise FieldError(f"{field}={source!r}: {error}") from error
