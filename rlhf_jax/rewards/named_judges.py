"""Several judges that have names: what an experiment says of them.

  config.judges = {
    "helpful": {"reward": "runs/helpful", "weight": 0.7},
    "safe": {"reward": "runs/safe", "weight": 0.3},
    "format": {"verifier": {"name": "tags"}, "requires": "safe"},
    "mine": {"reward_fn": "my_file.py:score", "kinds": ["code"]},
  }
  config.combination.name = "sum"

Each is a reward model, a verifier or a function. A judge with `kinds` judges
the prompts of these kinds: `combination.by` names the field of a prompt that
says its kind. What becomes of their scores: combination.py, docs/objectives.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import imported, schema
from rlhf_jax.algorithms.combination import components
from rlhf_jax.rewards import functions, texts
from rlhf_jax.rewards.functions import Bound
from rlhf_jax.schema import FieldError, UserError

SOURCES = ("reward", "verifier", "reward_fn")
SCALES = ("auto", *components.SCALES)
# Names of roles, of columns and of the one judge where there is one.
TAKEN = (
  "reward",
  "score",
  "policy",
  "reference",
  "value",
  "prompt",
  "response",
)


@dataclasses.dataclass(frozen=True)
class Named:
  """One of several judges; one of reward, verifier and reward_fn says which."""

  reward: str = ""  # folder of a finished reward run
  verifier: texts.Verifier = texts.Verifier()
  reward_fn: str = ""  # import path of a function that judges, file.py:name
  output: str = ""  # of a reward model of several objectives, the one that
  # judges here; "": all of them, as scoring.combine says
  weight: float = 1.0  # of its score among the others
  scale: str = "auto"  # "own": a reward model's normalisation; "running": the
  # moments of all its scores so far; "none": as given; "auto": own for a reward
  # model, running for others where scores are added, as given elsewhere
  kinds: tuple = ()  # kinds of prompts that it judges, see combination.by; ()
  # for all
  requires: str = ""  # another judge: this one's score counts only where that
  # one's is high enough
  requires_at: float = 1.0  # how high, on the scale of that one

  def __post_init__(self) -> None:
    schema.check_choice("scale", self.scale, SCALES)
    if self.output and not self.is_model:
      raise FieldError(
        f"output={self.output!r}: only a reward model has outputs. Set ''."
      )
    if self.is_model and self.scale == "none":
      raise FieldError(
        "scale='none': a reward model's scores are always in units of its own "
        "normalisation. Set 'own' or 'running'."
      )
    if not self.is_model and self.scale == "own":
      raise FieldError(
        "scale='own': only a reward model has a normalisation of its own. Set "
        "'running' or 'none'."
      )

  @property
  def is_model(self) -> bool:
    """Whether a reward model judges."""
    return not self.verifier.name and not self.reward_fn

  def bound(self, field: str) -> Bound | None:
    """Returns what judges texts, None of a reward model.

    Args:
      field: where a function is named, for messages.
    """
    if not self.reward_fn:
      return self.verifier.bound()
    function = imported.load(self.reward_fn, field)
    return functions.bind(function, {}, field, self.reward_fn)


def read(values: Mapping[str, Any]) -> dict[str, Named]:
  """Returns the judges of the section `judges`, by name.

  Raises:
    UserError: value, rule and remedy; the message begins with its field.
  """
  found = {}
  for name, entry in values.items():
    where = f"judges.{name}"
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or name in TAKEN:
      raise FieldError(
        f"{where}: a judge's name is letters, digits and _, and none of "
        f"{', '.join(TAKEN)}. Call it otherwise."
      )
    if not isinstance(entry, Mapping):
      raise FieldError(
        f"{where}={entry!r}: is a section. Write such as {{'reward': folder}}."
      )
    given = [x for x in SOURCES if x in entry]
    if len(given) != 1:
      raise FieldError(
        f"{where}: sets {' and '.join(given) if given else 'no judge'}. Set "
        f"one of {', '.join(SOURCES)}."
      )
    entry = {k: tuple(x) if k == "kinds" else x for k, x in entry.items()}
    found[name] = schema.read(Named, entry, where)
    if given[0] != "reward" and found[name].is_model:
      raise FieldError(f"{where}.{given[0]} is empty: name what judges.")
  for name, judge in found.items():
    others = [x for x in found if x != name]
    if judge.requires and judge.requires not in others:
      raise FieldError(
        f"judges.{name}.requires={judge.requires!r}: must be another judge."
        f"{imported.nearest(judge.requires, others)}"
      )
  return found


def judges_of(
  named: Mapping[str, Named], method: schema.Method
) -> components.Judges:
  """Returns the static part of all judges, in their order.

  Args:
    named: from `read`.
    method: the combination.

  Raises:
    FieldError: judges and combination do not fit.
  """
  is_added = {
    name: method.name != "switch" and name != getattr(method.config, "cost", "")
    for name in named
  }

  def scale(name: str, judge: Named) -> str:
    if judge.scale != "auto":
      return judge.scale
    if judge.is_model:
      return "own"
    return "running" if is_added[name] else "none"

  found = tuple(
    components.Judge(
      name=name,
      weight=judge.weight,
      scale=scale(name, judge),
      requires=judge.requires,
      requires_at=judge.requires_at,
      is_model=judge.is_model,
    )
    for name, judge in named.items()
  )
  with schema.as_field():
    method.module.check(found, method.config)
  by = getattr(method.config, "by", "")
  kinds = {name for name, judge in named.items() if judge.kinds}
  if kinds and not by:
    raise FieldError(
      f"judges.{min(kinds)}.kinds={named[min(kinds)].kinds}: combination.by is "
      "empty, so no prompt has a kind. Name the field of a prompt that says it."
    )
  if by and not kinds:
    raise FieldError(
      f"combination.by={by!r}: no judge has kinds, so all judge all prompts. "
      "Set judges.NAME.kinds, or by=''."
    )
  return found


def has_fixed_units(named: Mapping[str, Named], method: schema.Method) -> bool:
  """Returns whether one score means the same in all rollouts of a run.

  It does not where judges that count are standardised by running moments, or a
  multiplier moves.

  Args:
    named: from `read`; {} where there is one judge, in units of its own.
    method: the combination.
  """
  if not named:
    return True
  judges = judges_of(named, method)
  is_running = any(x.scale == "running" and x.weight for x in judges)
  return method.name != "lagrangian" and not is_running


def prompts_judged(
  found: Sequence[Any],
  named: Mapping[str, Named],
  by: str,
  *,
  is_whole: bool,
) -> np.ndarray:
  """Returns [prompts, K] float32, 1 where a judge judges a prompt.

  Args:
    found: the records of the prompts.
    named: K judges.
    by: field of a record that is its kind; "" for none.
    is_whole: every kind that a judge names must be there.

  Raises:
    UserError: a prompt without a kind, or of a kind that no judge judges; a
      kind without a prompt.
  """
  kinds = {n: {str(x) for x in judge.kinds} for n, judge in named.items()}
  if not by:
    return np.ones((len(found), len(named)), np.float32)
  rows, seen = [], set()
  for record in found:
    fields = getattr(record, "fields", {})
    if by not in fields:
      raise UserError(
        f"{record.where}: has no field {by!r} (combination.by), so nobody "
        "knows which judges judge it. Add it."
      )
    kind = str(fields[by])
    seen.add(kind)
    row = [not known or kind in known for known in kinds.values()]
    if not any(row):
      raise UserError(
        f"{record.where}: {by}={kind!r}: no judge judges this kind. Add it to "
        "judges.NAME.kinds, or leave the prompt out."
      )
    rows.append(row)
  for name, known in kinds.items():
    absent = sorted(known - seen)
    if absent and is_whole:
      raise UserError(
        f"config.judges.{name}.kinds: no prompt has {by}={absent[0]!r}."
        f"{imported.nearest(absent[0], seen)} There are "
        f"{', '.join(sorted(seen))}."
      )
  return np.asarray(rows, np.float32).reshape(-1, len(named))


def prompts_tagged(found: Sequence[Any], field: str) -> np.ndarray:
  """Returns [prompts] float32, 1 where a prompt's field is true.

  Args:
    found: the records of the prompts.
    field: of a record; "" for none.

  Raises:
    UserError: a prompt without that field, or one that is no truth value.
  """
  if not field:
    return np.zeros(len(found), np.float32)
  tags = []
  for record in found:
    value = getattr(record, "fields", {}).get(field)
    if value not in (True, False):  # 0 and 1 too
      raise UserError(
        f"{record.where}: {field}={value!r} (combination.tagged_by): must be "
        "true or false in every prompt."
      )
    tags.append(float(value))
  return np.asarray(tags, np.float32)
