"""Goldens of preference losses from TRL, frozen into this folder.

The tests never import torch or TRL: they read preference_losses.npz. This
script runs in an environment of its own, without this package:

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 numpy==2.4.6
  oracle/bin/pip download trl==0.24.0 --no-deps
  oracle/bin/python tests/oracles/make_preference_goldens.py trl-0.24.0*.whl

It reads four methods out of the wheel and calls them on random answers, with
the few attributes they read; nothing else of TRL is imported, so none of its
dependencies is needed:

  DPOTrainer.dpo_loss         sigmoid (also smoothed), robust, hinge, ipo
  CPOTrainer.cpo_loss         sigmoid, simpo
  ORPOTrainer.odds_ratio_loss
  KTOTrainer.kto_loss         kto

ipo, simpo and the odds ratio get log-probabilities per token, as their
trainers give them; the others get sums. The likelihood terms of CPO and ORPO
are made elsewhere in TRL (over a whole batch) and are not part of the goldens.
Log-probabilities are made in float32 and summed in float64.
"""

from __future__ import annotations
import __future__

import ast
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
ROWS, LENGTH = 6, 9
BETA, SMOOTHING, GAMMA = 0.3, 0.2, 0.45
WEIGHTS = (1.2, 0.8)  # of desirable and undesirable answers
TRAINERS = {
  "dpo_loss": "trl/trainer/dpo_trainer.py",
  "cpo_loss": "trl/trainer/cpo_trainer.py",
  "odds_ratio_loss": "trl/trainer/orpo_trainer.py",
  "kto_loss": "trl/trainer/kto_trainer.py",
}


class Divergences:
  """Stands for FDivergenceType and its constants, of which one is read."""

  REVERSE_KL = "reverse_kl"
  ALPHA_DIVERGENCE = "alpha_divergence"
  JS_DIVERGENCE = "js_divergence"


def method(wheel: zipfile.ZipFile, name: str) -> Any:
  """Returns a method of a trainer as a plain function (self, ...)."""
  tree = ast.parse(wheel.read(TRAINERS[name]).decode())
  found = next(
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and node.name == name
  )
  found.decorator_list = []
  code = compile(
    ast.Module([found], []),
    name,
    "exec",
    flags=__future__.annotations.compiler_flag,
  )
  scope = {"torch": torch, "F": F, "FDivergenceType": Divergences}
  exec(code, scope)
  return scope[name]


def trainer(**fields: Any) -> types.SimpleNamespace:
  """Returns the attributes that the losses read."""
  accelerator = types.SimpleNamespace(
    device="cpu", gather_for_metrics=lambda x: x
  )
  usual = {
    "accelerator": accelerator,
    "beta": BETA,
    "label_smoothing": 0.0,
    "reference_free": False,
    "f_divergence_type": Divergences.REVERSE_KL,
    "use_weighting": False,
    "simpo_gamma": GAMMA,
    "calculate_KL": True,
    "desirable_weight": WEIGHTS[0],
    "undesirable_weight": WEIGHTS[1],
    "alpha": 0.0,
  }
  return types.SimpleNamespace(**usual | fields)


def main(path: str) -> None:
  """Writes preference_losses.npz."""
  rng = np.random.default_rng(0)
  shape = (ROWS, 2, LENGTH)
  mask = np.zeros(shape, np.float32)
  for n in range(ROWS):
    for k in range(2):
      mask[n, k, 2 : int(rng.integers(4, LENGTH + 1))] = 1.0
  logprobs, reference = (
    -rng.exponential(1.0, shape).astype(np.float32) for _ in range(2)
  )

  def sums(x: np.ndarray) -> np.ndarray:
    return np.sum(x.astype(np.float64) * mask, -1)

  def columns(x: np.ndarray) -> tuple:
    return torch.from_numpy(x[:, 0].copy()), torch.from_numpy(x[:, 1].copy())

  count = mask.sum(-1)
  policy, fixed = sums(logprobs), sums(reference)
  total = (*columns(policy), *columns(fixed))
  mean = (*columns(policy / count), *columns(fixed / count))
  with zipfile.ZipFile(path) as wheel:
    dpo, cpo, odds, kto = (method(wheel, name) for name in TRAINERS)

  def pairwise(kind: str, inputs: tuple = total, **fields: Any) -> np.ndarray:
    return dpo(trainer(**fields), *inputs, loss_type=kind)[0].numpy()

  # KTO: rows 0..2 desirable, 3..5 not; candidate 1 of each is mismatched.
  good, bad = slice(0, 3), slice(3, ROWS)
  judged = torch.from_numpy(policy[:, 0]), torch.from_numpy(fixed[:, 0])
  others = torch.from_numpy(policy[:, 1]), torch.from_numpy(fixed[:, 1])
  kto_losses = kto(
    trainer(loss_type="kto"),
    judged[0][good],
    judged[0][bad],
    others[0],
    judged[1][good],
    judged[1][bad],
    others[1],
  )[0]
  goldens = {
    "dpo": pairwise("sigmoid"),
    "cdpo": pairwise("sigmoid", label_smoothing=SMOOTHING),
    "robust": pairwise("robust", label_smoothing=SMOOTHING),
    "hinge": pairwise("hinge"),
    "ipo_average": pairwise("ipo", mean),
    "cpo": cpo(trainer(loss_type="sigmoid"), *total[:2])[0].numpy(),
    "simpo": cpo(trainer(loss_type="simpo"), *mean[:2])[0].numpy(),
    "odds_ratio": -odds(trainer(), *mean[:2])[0].numpy(),
    "kto": kto_losses.numpy(),
  }
  np.savez(
    HERE / "preference_losses.npz",
    logprobs=logprobs,
    reference_logprobs=reference,
    loss_mask=mask,
    beta=BETA,
    label_smoothing=SMOOTHING,
    gamma=GAMMA,
    weights=np.asarray(WEIGHTS),
    **goldens,
  )
  for name, x in goldens.items():
    print(name, x.shape, x.mean())


if __name__ == "__main__":
  main(sys.argv[1])
