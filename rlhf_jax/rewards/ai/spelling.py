"""Labels as the tokenizer of a judge spells them, and their probabilities.

    tokens that all labels begin with   belong to the prefix
    P(label)                            product over its further tokens
    "1", where "10" goes on from it     P("1") (1 - P("0" | "1"))

A label that cannot be read so is an error that says why not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data import tokenizers
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.schema import UserError

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How a tokenizer writes labels behind a prefix.

  prefix: ids that come before all of them.
  labels: the further ids of each, none of them empty.
  """

  prefix: Path
  labels: tuple[Path, ...]

  @property
  def nodes(self) -> list[Path]:
    """The beginnings after which several labels, or a label's rest, follow."""
    found = {path[:n] for path in self.labels for n in range(len(path))}
    return sorted(found, key=lambda path: (len(path), path))


@functools.lru_cache(maxsize=32)
def spelled(
  prefix: str,
  labels: tuple[str, ...],
  tokenizer: Tokenizer,
  *,
  is_single: bool,
  space: str = "",
) -> Spelling:
  """Returns the ids of labels behind a prefix, checked.

  Args:
    prefix: of the answer, without a space at its end.
    labels: that follow it.
    tokenizer: of the judge.
    is_single: each must be one token.
    space: between prefix and label.

  Raises:
    UserError: a label that melts into the prefix, is spelled as another one, or
      is no single token where it must be.
  """
  before = tokenizers.encode_inside(prefix, tokenizer)
  found = []
  for label in labels:
    ids = tokenizers.encode_inside(f"{prefix}{space}{label}", tokenizer)
    if ids[: len(before)] != before or len(ids) == len(before):
      raise UserError(
        f"the label {label!r} after {prefix!r} changes the tokens before it in "
        f"the tokenizer {tokenizer.name}, so its probability cannot be read. "
        "Take another judge, or an endpoint."
      )
    found.append(tuple(ids[len(before) :]))
  if len(set(found)) < len(found):
    raise UserError(
      f"the labels {', '.join(labels)} are not told apart by the tokenizer "
      f"{tokenizer.name}: {found}. Take another judge, or an endpoint."
    )
  shared = 0
  while all(len(x) > shared + 1 for x in found) and (
    len({x[shared] for x in found}) == 1
  ):
    shared += 1
  further = tuple(x[shared:] for x in found)
  if is_single and any(len(x) > 1 for x in further):
    label = next(
      x for x, ids in zip(labels, further, strict=True) if len(ids) > 1
    )
    raise UserError(
      f"the label {label!r} is {len(further[labels.index(label)])} tokens "
      f"after {prefix!r} in the tokenizer {tokenizer.name}, and must be one. "
      "Take another judge, or an endpoint."
    )
  return Spelling((*before, *found[0][:shared]), further)


def path_logprobs(
  labels: Sequence[Path],
  nodes: dict[Path, np.ndarray],
  column: dict[int, int],
) -> list[float]:
  """Returns the log-probability of each label.

  Args:
    labels: their tokens.
    nodes: beginning -> [C] log-probabilities of the tokens after it.
    column: token -> its place in these.
  """
  result = []
  for path in labels:
    total = 0.0
    for n, token in enumerate(path):
      total += float(nodes[path[:n]][column[token]])
    if path in nodes:  # another label goes on from here
      after = {other[len(path)] for other in labels if _goes_on(other, path)}
      on = sum(np.exp(nodes[path][column[token]]) for token in after)
      total += float(np.log(max(1.0 - on, 1e-12)))
    result.append(total)
  return result


def _goes_on(other: Path, path: Path) -> bool:
  return len(other) > len(path) and other[: len(path)] == path
