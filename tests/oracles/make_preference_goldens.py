"""Goldens of preference losses from TRL 1.12.0 (Apache-2.0), frozen here.

The tests never import torch or TRL: they read preference_trl.npz. This script
runs in an environment of its own, without this package:

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 numpy==2.4.6
  oracle/bin/pip download trl==1.12.0 --no-deps
  unzip trl-1.12.0-py3-none-any.whl -d trl_wheel
  oracle/bin/python tests/oracles/make_preference_goldens.py trl_wheel

It calls these methods, read out of the wheel (wheel_code.py), on a model that
returns given log-probabilities: two tokens in the vocabulary, of which the
first is every token of every row.

  DPOTrainer._compute_loss            sigmoid, robust, hinge, ipo, sigmoid_norm,
                                      sft
  KTOTrainer._compute_loss            kto, apo_zero_unpaired
  experimental CPOTrainer.get_batch_loss_metrics    sigmoid (cpo_alpha 0 and
                                      1), simpo (cpo_alpha 0 and 1)
  experimental ORPOTrainer.get_batch_loss_metrics
  RewardTrainer.compute_loss          center_rewards_coefficient 0.01: gradient
                                      [B, 2] in `pair_scores`, loss_centred

preference_trl.npz has the inputs and, for each NAME above, loss_NAME [], the
mean over rows, and grad_NAME [B, 2, L], its gradient in the log-probabilities
of the tokens, both from float64. For KTO, rows 0 to 2 are desirable, and
candidate 1 is the mismatched answer.

Theirs alone, and how the tests convert:

  - sigmoid does not read label_smoothing (make_openrlhf_goldens.py has it).
  - exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_down and
    discopop have no counterpart here; apo_zero of a pair is apo_zero_unpaired
    of its two answers.
  - ipo is per token of the answer; OpenRLHF's and the paper's are sums
    (is_length_normalised).
  - The likelihood of CPO is a mean over the tokens of all preferred answers
    of a batch; ours of each answer's mean (or sum), so answers weigh alike.
    simpo has it too, with cpo_alpha 1 by default; ours has none.
  - The likelihood of ORPO counts the prompt's tokens too, over all tokens of
    the batch.
  - robust divides the loss by 1 - 2 epsilon, ours the label: the same number.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from wheel_code import Code

HERE = Path(__file__).parent
ROWS, LENGTH, PROMPT = 6, 9, 2
BETA, SMOOTHING, GAMMA = 0.3, 0.2, 0.45
WEIGHTS = (1.2, 0.8)  # of desirable and undesirable answers
TRAINERS = {
  "dpo": "trl/trainer/dpo_trainer.py",
  "kto": "trl/trainer/kto_trainer.py",
  "cpo": "trl/experimental/cpo/cpo_trainer.py",
  "orpo": "trl/experimental/orpo/orpo_trainer.py",
  "reward": "trl/trainer/reward_trainer.py",
}


def code(folder: Path) -> Code:
  """Returns TRL's files with what its losses name."""
  found = Code(
    folder,
    torch=torch,
    F=F,
    nn=nn,
    math=math,
    is_peft_model=lambda _: False,
    disable_gradient_checkpointing=lambda *_: contextlib.nullcontext(),
    is_torch_xla_available=lambda: False,
  )
  utils = ("selective_log_softmax", "entropy_from_logits")
  found.add("trl/trainer/utils.py", *utils)
  found.add("trl/experimental/utils.py", "pad_to_length")
  found.add(TRAINERS["orpo"], "log1mexp")
  return found


def trainer(**fields: Any) -> types.SimpleNamespace:
  """Returns the attributes that the losses read."""
  accelerator = types.SimpleNamespace(
    device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
  )
  usual = {
    "accelerator": accelerator,
    "model": types.SimpleNamespace(training=False),
    "aux_loss_enabled": False,
    "precompute_ref_logps": True,
    "beta": BETA,
    "label_smoothing": 0.0,
    "_metrics": defaultdict(lambda: defaultdict(list)),
    "_total_train_tokens": 0,
    "use_liger_kernel": False,
    "is_encoder_decoder": False,
    "pad_token_id": 0,
    "padding_value": 0,
  }
  return types.SimpleNamespace(**usual | fields)


def logits(logprobs: torch.Tensor) -> torch.Tensor:
  """Returns [R, L, 2] whose first token has the log-probabilities [R, L].

  Those of token t stand at t - 1, where it is predicted; the softmax of such
  a pair is the pair, and its gradient in the log-probability is 1.
  """
  other = torch.log(-torch.expm1(logprobs))
  pair = torch.stack([logprobs, other], -1)
  return torch.cat([pair[:, 1:], torch.zeros_like(pair[:, :1])], 1)


def model(*replies: torch.Tensor) -> Any:
  """Returns a model that answers with one log-probability array a call."""
  waiting = list(replies)
  return lambda *_, **__: types.SimpleNamespace(logits=logits(waiting.pop(0)))


def both(x: torch.Tensor) -> torch.Tensor:
  """Returns [2 B, L] of x [B, 2, L]: all first candidates, then the others."""
  return torch.cat([x[:, 0], x[:, 1]])


def inputs() -> dict[str, np.ndarray]:
  """Returns random answers: two a row, prompts of two tokens, ragged."""
  rng = np.random.default_rng(12)
  shape = (ROWS, 2, LENGTH)
  mask = np.zeros(shape, np.float32)
  for n in range(ROWS):
    for k in range(2):
      mask[n, k, PROMPT : int(rng.integers(4, LENGTH + 1))] = 1.0
  logprobs, reference = (
    -rng.exponential(1.0, shape).astype(np.float32) for _ in range(2)
  )
  return {
    "logprobs": logprobs,
    "reference_logprobs": reference,
    "loss_mask": mask,
    "pair_scores": rng.normal(size=(ROWS, 2)).astype(np.float32),
  }


def dpo(
  trl: Code, kind: str, logprobs: torch.Tensor, x: dict, **fields: Any
) -> torch.Tensor:
  """Returns DPOTrainer's loss of one loss type."""
  chosen, rejected = x["reference_sums"].unbind(1)
  batch = {
    "input_ids": torch.zeros(2 * ROWS, LENGTH, dtype=torch.long),
    "attention_mask": both(x["valid"]),
    "completion_mask": both(x["mask"]).long(),
    "ref_chosen_logps": chosen,
    "ref_rejected_logps": rejected,
  }
  settings = trainer(
    loss_types=[kind],
    loss_weights=[1.0],
    ld_alpha=None,
    f_divergence_type="reverse_kl",
    use_weighting=False,
    **fields,
  )
  compute = trl.function(TRAINERS["dpo"], "_compute_loss")
  return compute(settings, model(both(logprobs)), batch, False)


def kto(trl: Code, kind: str, logprobs: torch.Tensor, x: dict) -> torch.Tensor:
  """Returns KTOTrainer's loss; candidate 1 is what the KL is made of."""
  tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
  batch = {
    "input_ids": tokens,
    "attention_mask": x["valid"][:, 0],
    "completion_mask": x["mask"][:, 0],
    "label": torch.tensor([1, 1, 1, 0, 0, 0]),
    "ref_logps": x["reference_sums"][:, 0],
    "KL_input_ids": tokens,
    "KL_attention_mask": x["valid"][:, 1],
    "KL_completion_mask": x["mask"][:, 1],
    "ref_KL_logps": x["reference_sums"][:, 1],
  }
  has_kl = kind == "kto"
  settings = trainer(
    loss_type=kind,
    calculate_KL=has_kl,
    desirable_weight=WEIGHTS[0],
    undesirable_weight=WEIGHTS[1],
  )
  settings._compute_kl_logps = functools.partial(
    trl.function(TRAINERS["kto"], "_compute_kl_logps"), settings
  )
  replies = [logprobs[:, 1]] * has_kl + [logprobs[:, 0]]
  compute = trl.function(TRAINERS["kto"], "_compute_loss")
  return compute(settings, model(*replies), batch, False)


def without_reference(
  trl: Code, name: str, logprobs: torch.Tensor, x: dict, **fields: Any
) -> torch.Tensor:
  """Returns the loss of CPOTrainer or ORPOTrainer."""
  batch = {}
  for k, side in enumerate(("chosen", "rejected")):
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    batch[f"{side}_input_ids"] = tokens
    batch[f"{side}_attention_mask"] = x["valid"][:, k].long()
    batch[f"{side}_labels"] = torch.where(x["mask"][:, k] > 0, tokens, -100)
  settings = trainer(alpha=0.0, simpo_gamma=GAMMA, **fields)
  for method in ("concatenated_inputs", "get_batch_logps"):
    setattr(settings, method, trl.function(TRAINERS[name], method))
  objective = {"cpo": "cpo_loss", "orpo": "odds_ratio_loss"}[name]
  for method in ("concatenated_forward", objective):
    bound = functools.partial(trl.function(TRAINERS[name], method), settings)
    setattr(settings, method, bound)
  compute = trl.function(TRAINERS[name], "get_batch_loss_metrics")
  return compute(settings, model(both(logprobs)), batch)[0]


def centred_reward(trl: Code, scores: torch.Tensor) -> torch.Tensor:
  """Returns RewardTrainer's loss of scores [B, 2]."""
  settings = trainer(
    args=types.SimpleNamespace(center_rewards_coefficient=0.01)
  )
  reply = types.SimpleNamespace(logits=both(scores[..., None]))
  compute = trl.function(TRAINERS["reward"], "compute_loss")
  return compute(settings, lambda **_: reply, {})


def main(folder: Path) -> None:
  """Writes preference_trl.npz beside this file."""
  arrays = inputs()
  trl = code(folder)
  mask = torch.from_numpy(arrays["loss_mask"])
  reference = torch.from_numpy(arrays["reference_logprobs"]).double()
  valid = mask.clone()
  valid[..., :PROMPT] = 1.0
  x = {
    "mask": mask,
    "valid": valid,
    "reference_sums": (reference * mask).sum(-1),
  }
  calls = {
    kind: functools.partial(dpo, trl, kind)
    for kind in ("sigmoid", "hinge", "ipo", "sigmoid_norm", "sft")
  }
  calls["robust"] = functools.partial(
    dpo, trl, "robust", label_smoothing=SMOOTHING
  )
  for kind in ("kto", "apo_zero_unpaired"):
    calls[kind] = functools.partial(kto, trl, kind)
  for kind, name in (("sigmoid", "cpo"), ("simpo", "simpo")):
    for alpha, suffix in ((0.0, ""), (1.0, "_nll")):
      calls[name + suffix] = functools.partial(
        without_reference, trl, "cpo", loss_type=kind, cpo_alpha=alpha
      )
  calls["orpo"] = functools.partial(without_reference, trl, "orpo")

  found: dict[str, np.ndarray] = {}
  for name, call in calls.items():
    logprobs = torch.from_numpy(arrays["logprobs"]).double().requires_grad_()
    loss = call(logprobs, x)
    loss.backward()
    found[f"loss_{name}"] = loss.detach().numpy()
    found[f"grad_{name}"] = logprobs.grad.numpy()
    print(name, float(loss.detach()))
  scores = torch.from_numpy(arrays["pair_scores"]).double().requires_grad_()
  loss = centred_reward(trl, scores)
  loss.backward()
  found |= {"loss_centred": loss.detach().numpy()}
  found |= {"grad_centred": scores.grad.numpy()}
  np.savez_compressed(
    HERE / "preference_trl.npz",
    beta=BETA,
    label_smoothing=SMOOTHING,
    gamma=GAMMA,
    weights=np.asarray(WEIGHTS),
    **arrays,
    **found,
  )
  print(f"{len(found)} arrays; torch {torch.__version__}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
