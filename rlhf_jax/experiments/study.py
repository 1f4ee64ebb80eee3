"""What the curves of a study's folder have in common: WORKDIR/study.json.

Curves of another level, or of other sizes, would stand in one table with those
that are there. How many seeds there are is no part of it: more may follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import strict_json
from rlhf_jax.pipelines import workdir as workdir_lib
from rlhf_jax.schema import UserError

FILE = "study.json"
# A note of a page, (level, message).
SHORT = ("note", "A short trial (--smoke): these numbers mean nothing.")


def check(workdir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the folder says; {} where it says nothing yet.

  Args:
    workdir: of the study.
    facts: the level first, then what else must be as it was; what the folder
      does not say is not compared.

  Raises:
    UserError: one of them is another than before.
  """
  path = workdir / FILE
  if not path.is_file():
    return {}
  before = strict_json.read_object(path, "Delete it.")
  for name, value in facts.items():
    if before.get(name, value) != value:
      raise UserError(
        f"{path}: was begun with {name}={before[name]!r}, and is asked for "
        f"with {value!r}. Curves of one folder are of one study. Give another "
        "--workdir, or the level and --smoke of before."
      )
  return before


def record(workdir: Path, facts: Mapping[str, Any]) -> None:
  """Writes study.json, or checks it; a folder without one is taken as it is.

  Args:
    workdir: of the study; made where it is not there.
    facts: see `check`.

  Raises:
    UserError: see `check`.
  """
  found = {**check(workdir, facts), **facts}
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(found, indent=2) + "\n"
  workdir_lib.write_durably(workdir / FILE, text)
