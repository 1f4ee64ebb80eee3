"""Judges that read text: verifiers and functions, on the host.

A config names a verifier of rewards/verifiers.py and its settings; each prompt
brings the reference that its answers are judged against (the answer of a
demonstration, or the field "reference" of a prompt).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax import distributed
from rlhf_jax.data import dataset, formats
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.rewards import verifiers
from rlhf_jax.schema import FieldError, UserError
from rlhf_jax.types import Samples

COMPONENT = "component/"
ROUNDING = 1e-4  # of a sum of weights


@dataclasses.dataclass(frozen=True)
class Verifier:
  """Which verifier judges, in place of a reward model."""

  name: str = ""  # of rewards/verifiers.py, or an import path; "" for none
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  # fields of its Config

  def __post_init__(self) -> None:
    self.judge()

  def judge(self) -> Callable[..., verifiers.Parts] | None:
    """Returns verifiers.bind_parts of the section, None without a verifier.

    Raises:
      FieldError: unknown verifier or setting, or a value out of range.
    """
    if self.name:
      return verifiers.bind_parts(self.name, **self.settings)
    if self.settings:
      raise FieldError(
        f"settings={self.settings}: are for no verifier. Set verifier.name to "
        f"one of {', '.join(verifiers.VERIFIERS)}."
      )
    return None


def sample_texts(
  tokenizer: Tokenizer, samples: Samples
) -> list[tuple[str, str]]:
  """Returns (prompt, response) texts of samples, end tokens left out.

  A model's vocabulary may be padded beyond its tokenizer's; such tokens have
  no text and are left out.
  """
  tokens, response, valid = distributed.fetch(
    (samples.tokens, samples.response_mask, samples.valid_mask)
  )
  response = response > 0
  prompt = (valid > 0) & ~response
  has_text = tokens < tokenizer.vocab_size

  def text(row: np.ndarray, mask: np.ndarray) -> str:
    return tokenizer.decode(row[mask].tolist())

  return [
    (text(row, p & known), text(row, r & known))
    for row, p, r, known in zip(tokens, prompt, response, has_text, strict=True)
  ]


def references(
  data: Data, tokenizer: Tokenizer, parts: Callable[..., verifiers.Parts]
) -> list[Any]:
  """Returns what the answers to each prompt are judged against.

  Args:
    data: prompts or demonstrations.
    tokenizer: of the model.
    parts: the verifier; each reference is tried on no answer.

  Raises:
    UserError: a record without a reference, or with one that cannot judge.
  """
  found, _ = dataset.records(data, tokenizer)
  result = []
  for record in found:
    if isinstance(record, formats.Demonstration) and not record.messages:
      result.append(record.response)
    elif isinstance(record, formats.Prompt) and record.reference is not None:
      result.append(record.reference)
    else:
      raise UserError(
        f"{record.where}: has nothing to judge an answer against. A verifier "
        'needs {"prompt", "reference"} or {"prompt", "response"} a line.'
      )
    try:
      parts([""], result[-1:])
    except ValueError as error:
      rule = str(error).replace("references[0]", "reference", 1)
      raise UserError(f"{record.where}: {rule}") from error
  return result


@dataclasses.dataclass(frozen=True)
class Judge:
  """Scores samples by their text, each process its share of them.

  parts: see verifiers.bind_parts.
  """

  parts: Callable[[Sequence[str], Sequence[Any]], verifiers.Parts]
  references: list[Any]
  tokenizer: Tokenizer

  def __call__(
    self, samples: Samples, index: Any
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns [N] float32 scores, and what is logged, by COMPONENT + name.

    Args:
      samples: [N, L], the samples of a prompt in contiguous rows.
      index: [P] number of each prompt in the data.
    """
    prompts = distributed.fetch(index)
    each = samples.tokens.shape[0] // len(prompts)
    texts = [text for _, text in sample_texts(self.tokenizer, samples)]
    wanted = [self.references[i] for i in np.repeat(prompts, each)]
    scores, logged = distributed.by_share(
      lambda mine: self.parts(texts[mine], wanted[mine]), len(texts)
    )
    return np.asarray(scores, np.float32), {
      COMPONENT + name: values for name, values in logged.items()
    }


def component_means(scores: dict[str, Any]) -> dict[str, float]:
  """Returns reward/component/NAME: the mean of each part, before its weight.

  Falling of one while others rise is bad: the policy trades it away. Of code
  the shares of answers that ran out of time (timeout) or hold no code
  (no_code): rising is bad.

  Args:
    scores: name -> [N], of which parts begin with COMPONENT.
  """
  return {
    f"reward/{name}": float(np.mean(distributed.fetch(values)))
    for name, values in scores.items()
    if name.startswith(COMPONENT)
  }


def correct_above(verifier: Verifier) -> float | None:
  """Returns the score above which an answer is right; None for no verifier."""
  if not verifier.name:
    return None
  return verifiers.full_marks(verifier.name, verifier.settings) - ROUNDING


def load(verifier: Verifier, data: Data, tokenizer: Tokenizer) -> Judge | None:
  """Returns the judge of a verifier on these prompts, None without one."""
  parts = verifier.judge()
  if parts is None:
    return None
  return Judge(parts, references(data, tokenizer, parts), tokenizer)
