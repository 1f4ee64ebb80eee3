"""Reward models of a notebook that have another tokenizer than the policy."""

from __future__ import annotations

from typing import Any

from rlhf_jax import generate
from rlhf_jax.data import lists, retold, stops
from rlhf_jax.rewards.reader import Reader, Readers
from rlhf_jax.schema import UserError


def shares_tokens(model: Any, policy: Any) -> bool:
  """Says whether a RewardModel reads the tokens of a Policy."""
  theirs = policy.base.tokenizer.fingerprint
  return model.base.tokenizer.fingerprint == theirs


def readers(
  models: dict[str, Any],
  policy: Any,
  prompts: Any,
  how: generate.Config,
) -> Readers:
  """Returns what scores a policy's samples by their text.

  Args:
    models: reward models by name, on one mesh with the policy.
    policy: that draws the samples.
    prompts: list of all prompts, numbered from 0.
    how: they are drawn.
  """
  for name, model in models.items():
    if model.mesh != policy.mesh:
      raise UserError(
        f"{name}: a reward model on another mesh than the policy. Load both "
        "with the same mesh."
      )
  found = [
    Reader(name, *model.scorer, model.base.tokenizer)
    for name, model in models.items()
  ]
  return Readers(
    tuple(found),
    {
      reader.name: [
        retold.asked(item, reader.tokenizer)
        for item in lists.listed(prompts, "prompts")
      ]
      for reader in found
    },
    policy.base.tokenizer,
    stops.end_ids(policy.base.tokenizer, how.stop_tokens),
    policy.mesh,
  )
