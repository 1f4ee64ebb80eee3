"""The rollouts on which every policy-gradient golden is computed.

Six answers, three to each of two prompts, of 1 to 5 tokens in 6 columns; all
arrays are float32 and 0 where `mask` is 0, except `values` and `new_values`,
which a critic gives everywhere, and `scores`, `baselines` and
`answer_advantages`, one per answer. `gaps` is a mask with holes in two answers
(tokens that a tool wrote). The seed is one where every clip is felt: both ends
of PPO's, a dual clip of 3, some of GSPO's answers, both ends of the weights.
Each make_*_goldens.py stores the inputs beside its results.
"""

from __future__ import annotations

import numpy as np
import torch

LENGTHS = np.array([1, 4, 2, 3, 5, 1])
GROUP = np.array([0, 0, 0, 1, 1, 1])


def arrays() -> dict[str, np.ndarray]:
  """Returns the inputs by name."""
  rng = np.random.default_rng(103)
  mask = (np.arange(6)[None] < LENGTHS[:, None]).astype(np.float32)

  def field(scale: float) -> np.ndarray:
    return (rng.normal(0, scale, mask.shape) * mask).astype(np.float32)

  found = {
    "mask": mask,
    "rewards": field(1.0),
    "baselines": rng.normal(size=6).astype(np.float32),
    "old": field(0.5) - 2.0 * mask,
    "new": field(0.5) - 2.0 * mask,
    "reference": field(0.5) - 2.0 * mask,
    "advantages": 3.0 * field(1.0),
    "weights": np.abs(field(1.0)),
    "values": rng.normal(size=mask.shape).astype(np.float32),
    "new_values": rng.normal(size=mask.shape).astype(np.float32),
    "returns": field(1.0),
    "sampler": field(0.7) - 2.0 * mask,
    "scores": rng.normal(size=6).astype(np.float32),
    "answer_advantages": (3.0 * rng.normal(size=6)).astype(np.float32),
  }
  gaps = mask.copy()
  gaps[1, 1] = gaps[4, 2] = gaps[4, 3] = 0.0
  return found | {"gaps": gaps}


def tensors() -> dict[str, torch.Tensor]:
  """Returns the inputs as float64, so that rounding is all on one side."""
  return {k: torch.from_numpy(v).double() for k, v in arrays().items()}
