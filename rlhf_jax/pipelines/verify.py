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


def read(
  section: Any, prefix: str = ""
) -> Callable[..., verifiers.Parts] | None:
  """Returns verifiers.bind_parts of a section `verifier`, None for "".

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
    return verifiers.bind_parts(section.name, **section.settings.to_dict())
  except ValueError as error:
    raise ConfigError(f"config.{prefix}verifier: {error}") from error


def references(
  data: Data, tokenizer: Tokenizer, parts: Callable[..., verifiers.Parts]
) -> list[Any]:
  """Returns what the answers to each prompt are judged against.

  Args:
    data: prompts or demonstrations.
    tokenizer: of the model.
    parts: the verifier, from `read`; each reference is tried on no answer.

  Raises:
    ConfigError: a record without a reference, or with one that cannot judge.
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
    try:
      parts([""], result[-1:])
    except ValueError as error:
      rule = str(error).replace("references[0]", "reference", 1)
      raise ConfigError(f"{record.where}: {rule}") from error
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
    texts = [text for _, text in build.sample_texts(self.tokenizer, samples)]
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
  parts = read(config.verifier)
  if parts is None:
    return None
  return Judge(parts, references(data, tokenizer, parts), tokenizer)
