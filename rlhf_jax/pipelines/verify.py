"""Verifiable rewards in the policy pipeline: texts judged on the host.

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
from rlhf_jax.data import formats
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.pipelines import build, inputs
from rlhf_jax.pipelines.config import ConfigError, Data
from rlhf_jax.rewards import verifiers
from rlhf_jax.types import Samples


def read(section: Any, prefix: str = "") -> Callable[..., np.ndarray] | None:
  """Returns score(texts, references) of a section `verifier`, None for "".

  Args:
    section: {"name", "settings"}.
    prefix: where it stands ("policy.").

  Raises:
    ConfigError: unknown verifier or setting, or a value out of range.
  """
  if not section.name:
    if dict(section.settings):
      raise ConfigError(
        f"config.{prefix}verifier.settings={dict(section.settings)}: are for "
        f"no verifier. Set verifier.name to one of "
        f"{', '.join(verifiers.VERIFIERS)}."
      )
    return None
  try:
    return verifiers.bind(section.name, **section.settings.to_dict())
  except ValueError as error:
    raise ConfigError(f"config.{prefix}verifier: {error}") from error


def references(data: Data, tokenizer: Tokenizer) -> list[Any]:
  """Returns what the answers to each prompt are judged against.

  Raises:
    ConfigError: records that have no reference.
  """
  found, _ = inputs.records(data, tokenizer)
  result = []
  for record in found:
    if isinstance(record, formats.Demonstration) and not record.messages:
      result.append(record.response)
    elif isinstance(record, formats.Prompt) and record.reference is not None:
      result.append(record.reference)
    else:
      raise ConfigError(
        f"{record.where}: has nothing to judge an answer against. A verifier "
        'needs {"prompt", "reference"} or {"prompt", "response"} a line.'
      )
  return result


@dataclasses.dataclass(frozen=True)
class Judge:
  """Scores samples by their text."""

  score: Callable[[Sequence[str], Sequence[Any]], np.ndarray]
  references: list[Any]
  tokenizer: Tokenizer

  def __call__(self, samples: Samples, index: Any) -> np.ndarray:
    """Returns [N] float32 scores.

    Args:
      samples: [N, L], the samples of a prompt in contiguous rows.
      index: [P] number of each prompt in the data.
    """
    prompts = distributed.fetch(index)
    each = samples.tokens.shape[0] // len(prompts)
    texts = [text for _, text in build.sample_texts(self.tokenizer, samples)]
    wanted = [self.references[i] for i in np.repeat(prompts, each)]
    return np.asarray(self.score(texts, wanted), np.float32)


def load(config: Any, data: Data, tokenizer: Tokenizer) -> Judge | None:
  """Returns the judge of a policy configuration, None without a verifier."""
  score = read(config.verifier)
  if score is None:
    return None
  return Judge(score, references(data, tokenizer), tokenizer)
