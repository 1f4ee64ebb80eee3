"""Goldens of TRL 1.12.0's (Apache-2.0) GRPO, RLOO and PPO, frozen here.

The tests never import torch or TRL: they read policy_trl.npz. This script runs
where make_preference_goldens.py does:

  oracle/bin/python tests/oracles/make_trl_policy_goldens.py trl_wheel

It calls, on the inputs of policy_inputs.py and in float64, read out of the
wheel (wheel_code.py):

  GRPOTrainer._compute_loss         loss_NAME [], grad_NAME [N, L] in `new`
    grpo, bnpo, dr_grpo, dapo       clip 0.2 and 0.28, k3 with beta 0.04
    delta                           grpo without KL, with delta 3
    corrected                       grpo with use_bias_correction_kl
    entropy                         grpo without KL, entropy_coef 0.1 on `old`
    gspo                            importance_sampling_level sequence, clip
                                    0.05 and 0.06, one advantage an answer
    cispo                           epsilon_high 1.2
    empty, empty_dr                 grpo and dr_grpo whose last answer has no
                                    token
    far                             grpo, the first answer far more probable
                                    (by e^23) and bad (-1)
  GRPOTrainer._generate_and_score_completions, its statements from the
    rewards to the advantages       adv_group, adv_none, adv_batch [N]
  RLOOTrainer, the same             adv_rloo, adv_rloo_normalised [N], with the
                                    KL of old and reference, beta 0.05
  RLOOTrainer._compute_loss         loss_rloo, grad_rloo, at new = old
  experimental PPOTrainer.train, its statements from the padding masks to the
    advantages (kl_coef 0.05, gamma 0.97, lam 0.9): ppo_rewards,
    ppo_advantages, ppo_returns, with whiten_rewards ppo_white_rewards; and
    those of the loss of a minibatch (cliprange 0.2, cliprange_value 0.2,
    vf_coef 0.1): loss_ppo, grad_ppo, grad_ppo_values

Theirs alone, and how the tests convert:

  - The deviation of a group adds 1e-4 (scale_epsilon); that of a batch is the
    sample deviation of the rewards, ours the population deviation of what is
    left of them after their group means.
  - grpo and dr_grpo divide by all rows, ours by those with a token.
  - cispo's epsilon_high bounds the ratio itself: 1 + ours. No lower bound.
  - The KL in the loss is not weighted by the ratio (has_kl_loss_ratio=False);
    with use_bias_correction_kl it is, and the gradient runs through the
    ratio, ours does not: theirs has beta rho K on top.
  - The entropy bonus is a mean over tokens whatever the loss type; ours
    follows `aggregation`.
  - RLOO clips one ratio of the whole answer, exp(sum of log rho), ours one
    per token: on the policy's own samples the gradients are the same and the
    values differ by the length.
  - normalize_advantages of RLOO divides by the sample deviation over answers
    plus 1e-4; ours does not have it.
  - PPO puts the score on the token AFTER the end token (EOS + 1) and lets
    values and returns run to it: our arrays with a mask one longer, where the
    score then is on the last token. (An answer that fills all columns has it
    on its last token in TRL too.) The policy loss is over the answer, the
    value loss over the longer mask.
  - PPO whitens with the sample variance.
  - The ratio has no bound of its own, ours is at most e^20, without a gradient
    there.
"""

from __future__ import annotations

import contextlib
import math
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import policy_inputs
import torch
from wheel_code import Code

HERE = Path(__file__).parent
GRPO = "trl/trainer/grpo_trainer.py"
RLOO = "trl/trainer/rloo_trainer.py"
PPO = "trl/experimental/ppo/ppo_trainer.py"
LONGEST = 9  # max_completion_length of dr_grpo
INVALID = 1.0  # TRL's INVALID_LOGPROB


def code(folder: Path) -> Code:
  """Returns TRL's files with what its losses name."""
  found = Code(
    folder, torch=torch, math=math, gather=lambda x: x, INVALID_LOGPROB=INVALID
  )
  found.add("trl/trainer/utils.py", "nanstd", "nanmin", "nanmax")
  found.add(PPO, "masked_mean", "masked_var", "masked_whiten")
  return found


def trainer(new: torch.Tensor, x: dict, **fields: Any):
  """Returns the attributes that the losses read."""
  accelerator = types.SimpleNamespace(
    num_processes=1,
    gather=lambda y: y,
    gather_for_metrics=lambda y: y,
    reduce=lambda y, reduction: y,
    sync_gradients=False,
  )
  settings = {
    "use_bias_correction_kl": fields.pop("corrected", False),
    "delta": fields.pop("delta", None),
    "steps_per_generation": 1,
  }
  usual = {
    "accelerator": accelerator,
    "args": types.SimpleNamespace(**settings),
    "model": types.SimpleNamespace(training=True),
    "_get_per_token_logps_and_entropies": lambda *_, **__: (
      new,
      -x["old"],
      None,
    ),
    "_metrics": defaultdict(lambda: defaultdict(list)),
    "aux_loss_enabled": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "importance_sampling_level": "token",
    "loss_type": "grpo",
    "beta": 0.0,
    "epsilon_low": 0.2,
    "epsilon_high": 0.28,
    "use_vllm": False,
    "current_gradient_accumulation_steps": 1,
    "max_completion_length": LONGEST,
    "_entropy_bonus_enabled": "entropy_coef" in fields,
    "use_adaptive_entropy": False,
  }
  return types.SimpleNamespace(**usual | fields)


def completions(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns the batch that a loss reads."""
  ids = torch.zeros(x["mask"].shape, dtype=torch.long)
  return {
    "prompt_ids": ids,
    "prompt_mask": ids,
    "completion_ids": ids,
    "completion_mask": x["mask"],
    "advantages": x["answer_advantages"],
    "old_per_token_logps": x["old"],
    "ref_per_token_logps": x["reference"],
    "num_items_in_batch": x["mask"].sum(),
  }


def grpo_losses(trl: Code, x: dict) -> dict[str, torch.Tensor]:
  """Returns losses and gradients of GRPOTrainer."""
  found = {}
  compute = trl.function(GRPO, "_compute_loss")
  last = torch.ones(6, 1)
  last[5] = 0.0
  kl = {"beta": 0.04}
  narrow = {"epsilon_low": 0.05, "epsilon_high": 0.06}
  cases: dict[str, dict[str, Any]] = {
    kind: {"loss_type": kind} | kl
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo")
  }
  cases |= {
    "delta": {"delta": 3.0},
    "corrected": {"corrected": True} | kl,
    "entropy": {"entropy_coef": 0.1},
    "gspo": {"importance_sampling_level": "sequence"} | narrow,
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2},
    "empty": {},
    "empty_dr": {"loss_type": "dr_grpo"},
    "far": {},
  }
  for name, fields in cases.items():
    new = x["new"].clone().requires_grad_()
    batch = completions(x)
    if name.startswith("empty"):
      batch["completion_mask"] = x["mask"] * last
    if name not in ("gspo", "cispo"):
      batch["advantages"] = x["advantages"]
    if name == "far":
      batch["old_per_token_logps"] = x["old"].clone()
      batch["old_per_token_logps"][0, 0] = x["new"][0, 0] - 23.0
      batch["advantages"] = x["advantages"].clone()
      batch["advantages"][0, 0] = -1.0
    loss = compute(trainer(new, x, **fields), None, batch)
    loss.backward()
    found[f"loss_{name}"], found[f"grad_{name}"] = loss.detach(), new.grad
  return found


def group_advantages(trl: Code, x: dict) -> dict[str, torch.Tensor]:
  """Returns advantages of GRPOTrainer and RLOOTrainer, one per answer."""
  found = {}
  for scale in ("group", "none", "batch"):
    settings = types.SimpleNamespace(
      multi_objective_aggregation="sum_then_normalize",
      scale_rewards=scale,
      reward_weights=torch.ones(1),
    )
    names = {
      "self": settings,
      "device": "cpu",
      "rewards_per_func": x["scores"][:, None],
      "unscorable_mask": torch.zeros(6, dtype=torch.bool),
      "num_generations": 3,
    }
    found[f"adv_{scale}"] = trl.statements(
      GRPO,
      "_generate_and_score_completions",
      "if self.multi_objective_aggregation",
      "advantages = torch.nan_to_num",
      names,
    )["advantages"]
  for name, normalise in (("adv_rloo", False), ("adv_rloo_normalised", True)):
    names = {
      "self": types.SimpleNamespace(
        reward_clip_range=None, beta=0.05, normalize_advantages=normalise
      ),
      "rewards": x["scores"].clone(),
      "old_per_token_logps": x["old"],
      "ref_per_token_logps": x["reference"],
      "completion_mask": x["mask"],
      "num_generations": 3,
    }
    found[name] = trl.statements(
      RLOO,
      "_generate_and_score_completions",
      "if self.reward_clip_range",
      "advantages = torch.nan_to_num",
      names,
    )["advantages"]
  return found


def rloo_loss(trl: Code, x: dict) -> dict[str, torch.Tensor]:
  """Returns RLOOTrainer's loss on the policy's own samples."""
  new = x["old"].clone().requires_grad_()
  batch = completions(x) | {"old_logps": (x["old"] * x["mask"]).sum(1)}
  compute = trl.function(RLOO, "_compute_loss")
  loss = compute(trainer(new, x), None, batch)
  loss.backward()
  return {"loss_rloo": loss.detach(), "grad_rloo": new.grad}


def ppo(trl: Code, x: dict) -> dict[str, torch.Tensor]:
  """Returns what PPOTrainer.train makes of a rollout, and its loss."""
  found = {}
  last = x["mask"].sum(1).long() - 1
  names = {
    "responses": torch.zeros(x["mask"].shape),
    "sequence_lengths": last,
    "logprobs": x["old"],
    "ref_logprobs": x["reference"],
    "values": x["values"],
    "scores": x["scores"],
  }
  for white in (True, False):
    names["args"] = types.SimpleNamespace(
      kl_estimator="k1",
      kl_coef=0.05,
      whiten_rewards=white,
      gamma=0.97,
      lam=0.9,
    )
    made = trl.statements(
      PPO,
      "train",
      "response_idxs = ",
      "advantages = torch.masked_fill",
      names,
    )
    kind = "white_" if white else ""
    for name in ("rewards", "advantages", "returns"):
      found[f"ppo_{kind}{name}"] = made[name]
  new = x["new"].clone().requires_grad_()
  values = x["new_values"].clone().requires_grad_()
  loss = trl.statements(
    PPO,
    "train",
    "vpred = torch.masked_fill",
    "loss = ",
    {
      "args": types.SimpleNamespace(
        cliprange=0.2, cliprange_value=0.2, vf_coef=0.1
      ),
      "vpred": values,
      "padding_mask": made["padding_mask"],
      "padding_mask_p1": made["padding_mask_p1"],
      "micro_batch_inds": torch.arange(6),
      "mb_values": made["values"],
      "mb_return": made["returns"],
      "mb_advantage": made["advantages"],
      "mb_logprobs": made["logprobs"],
      "new_logprobs": torch.masked_fill(new, made["padding_mask"], INVALID),
    },
  )["loss"]
  loss.backward()
  found |= {"loss_ppo": loss.detach(), "grad_ppo": new.grad}
  return found | {"grad_ppo_values": values.grad}


def main(folder: Path) -> None:
  """Writes policy_trl.npz beside this file."""
  arrays = policy_inputs.arrays()
  x = policy_inputs.tensors()
  trl = code(folder)
  with contextlib.redirect_stdout(sys.stderr):
    found = (
      grpo_losses(trl, x)
      | group_advantages(trl, x)
      | rloo_loss(trl, x)
      | ppo(trl, x)
    )
  np.savez_compressed(
    HERE / "policy_trl.npz",
    **arrays,
    **{k: v.numpy() for k, v in found.items()},
  )
  for name, value in found.items():
    print(name, tuple(value.shape), float(value.sum()))
  print(f"{len(found)} arrays; torch {torch.__version__}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
