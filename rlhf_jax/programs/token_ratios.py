"""Where in an answer a policy has moved: the log-ratio of each token, as text.

  r_t = log pi(token_t) - log pi_ref(token_t), nats; its sum over an answer is
  what its KL is estimated by.

Tokens that are parts of one character are taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.types import Samples

BEFORE = 8  # tokens that one is decoded behind: texts depend on what precedes
MOST_TOKENS = 20_000  # of all answers together that get their ratios
_BROKEN = "\N{REPLACEMENT CHARACTER}"
Pieces = list[tuple[str, float]]


def pieces(
  tokenizer: Any, ids: Sequence[int], ratios: Sequence[float]
) -> Pieces | None:
  """Returns (text, log-ratio) of the tokens of an answer, in their order.

  Args:
    tokenizer: of the policy.
    ids: [n] tokens that have a text.
    ratios: [n] nats.

  Returns:
    None where the texts of the tokens do not make up that of the answer.
  """
  found: Pieces = []
  start = 0
  for end in range(1, len(ids) + 1):
    context = list(ids[max(0, start - BEFORE) : start])
    before = tokenizer.decode(context)
    whole = tokenizer.decode([*context, *ids[start:end]])
    if whole.endswith(_BROKEN) and end < len(ids):
      continue
    if not whole.startswith(before):
      return None
    found.append((whole[len(before) :], float(np.sum(ratios[start:end]))))
    start = end
  text = "".join(piece for piece, _ in found)
  return found if text == tokenizer.decode(list(ids)) else None


def of_samples(
  tokenizer: Any, samples: Samples, ratios: np.ndarray, room: int
) -> list[Pieces | None]:
  """Returns the pieces of each answer, None for those that find no room.

  Args:
    tokenizer: of the policy.
    samples: on the host.
    ratios: [N, L] nats, 0 beside the answers.
    room: tokens that may still be told.
  """
  found: list[Pieces | None] = []
  is_known = samples.tokens < tokenizer.vocab_size
  mask = (samples.response_mask > 0) & is_known
  for tokens, kept, values in zip(samples.tokens, mask, ratios, strict=True):
    ids = tokens[kept].tolist()
    room -= len(ids)
    is_told = room >= 0
    found.append(pieces(tokenizer, ids, values[kept]) if is_told else None)
  return found
