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

COMPONENT = "component/"
ROUNDING = 1e-4  # of a sum of weights


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
  """Scores samples by their text.

  summed: parts and weights of "sum", which are reported one by one, or None.
  """

  score: Callable[[Sequence[str], Sequence[Any]], np.ndarray]
  references: list[Any]
  tokenizer: Tokenizer
  summed: verifiers.SumConfig | None = None

  def __call__(
    self, samples: Samples, index: Any
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns [N] float32 scores, and those of the parts by COMPONENT + name.

    Args:
      samples: [N, L], the samples of a prompt in contiguous rows.
      index: [P] number of each prompt in the data.
    """
    prompts = distributed.fetch(index)
    each = samples.tokens.shape[0] // len(prompts)
    texts = [text for _, text in build.sample_texts(self.tokenizer, samples)]
    wanted = [self.references[i] for i in np.repeat(prompts, each)]
    if self.summed is None:
      return np.asarray(self.score(texts, wanted), np.float32), {}
    parts = verifiers.score_parts(texts, wanted, self.summed)
    names = verifiers.part_names(self.summed)
    return verifiers.total(parts, self.summed).astype(np.float32), {
      COMPONENT + name: parts[:, i] for i, name in enumerate(names)
    }


def component_means(scores: dict[str, Any]) -> dict[str, float]:
  """Returns reward/component/NAME: the mean of each part, before its weight.

  Falling of one while others rise is bad: the policy trades it away.

  Args:
    scores: name -> [N], of which parts begin with COMPONENT.
  """
  return {
    f"reward/{name}": float(np.mean(distributed.fetch(values)))
    for name, values in scores.items()
    if name.startswith(COMPONENT)
  }


def correct_above(section: Any) -> float | None:
  """Returns the score above which an answer is right; None for no verifier.

  Args:
    section: {"name", "settings"}, checked by `read`.
  """
  if read(section) is None:
    return None
  settings = section.settings.to_dict()
  return verifiers.full_marks(section.name, settings) - ROUNDING


def load(config: Any, data: Data, tokenizer: Tokenizer) -> Judge | None:
  """Returns the judge of a policy configuration, None without a verifier."""
  score = read(config.verifier)
  if score is None:
    return None
  summed = None
  if config.verifier.name == "sum":
    summed = verifiers.SumConfig(**config.verifier.settings.to_dict())
  return Judge(score, references(data, tokenizer), tokenizer, summed)
