"""Goldens of verl 0.9.1's (Apache-2.0) advantages, losses and KL penalties.

The tests never import torch or verl: they read what this script wrote. It runs
in an environment of its own, without this package and without verl's own
dependencies, whose modules are replaced by empty ones where core_algos.py only
names their types (wheel_code.py):

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 numpy==2.4.6
  oracle/bin/pip download verl==0.9.1 --no-deps
  unzip verl-0.9.1-py3-none-any.whl -d verl_wheel
  oracle/bin/python tests/oracles/make_policy_goldens.py verl_wheel

policy_verl.npz has the inputs of policy_inputs.py and, from float64:

  adv_gae, ret_gae           compute_gae_advantage_return, gamma 0.97, lam 0.9;
  adv_gaps, ret_gaps         the same on answers with holes
  adv_grpo, adv_grpo_plain   compute_grpo_outcome_advantage, with and without
    norm_adv_by_std_in_grpo (epsilon 1e-6)
  adv_rloo, adv_remax        compute_{rloo,remax}_outcome_advantage
  adv_rpp                    compute_reinforce_plus_plus_outcome_advantage,
    gamma 0.9
  adv_rpp_baseline           ..._baseline_outcome_advantage
  adv_grpo_alone             GRPO where the first answer has a group of its own
  adv_grpo_padded, adv_rloo_padded    where a reward of 1 stands in the last
    column of the first answer, off the mask
  rewards_kl                 compute_rewards of `rewards`, kl_ratio 0.05
  loss_MODE, grad_MODE       compute_policy_loss_vanilla, clip 0.2 and 0.28, c
    3, and its gradient in `new`, for each loss_agg_mode ("const": divided by
    9; "token_sum"), and with c 1e9 ("no_dual")
  loss_weighted              the same with rollout_is_weights, token-mean
  loss_gspo, grad_gspo       compute_policy_loss_gspo, clip 0.05 and 0.06
  loss_cispo, grad_cispo     compute_policy_loss_cispo, clip 1 and 0.2
  loss_gspo_far              GSPO, the first answer e^13 as probable and bad
  value_MODE, value_grad_MODE   compute_value_loss, cliprange_value 0.2, and
    its gradient in `new_values`
  kl_KIND, kl_grad_KIND      kl_penalty of k1, k2, k3 and k3+, summed for the
    gradient; kl_far, kl_grad_far: of k3 at log p_ref - log p of 2, 4 and 30
  kl_coefficients            AdaptiveKLController, 0.1 after KLs of 3, 6.5 and
    20 with target 6, horizon 100, 16 steps each

Theirs alone, and how the tests convert:

  - Whitening divides by the sample variance (n - 1), ours by n.
  - A group of one answer keeps its score as its advantage (over 1 + 1e-6);
    ours is 0, because there is nothing to compare.
  - GRPO and RLOO read sum(rewards) without the mask; ours with it.
  - c of the dual clip is always there, 3 by default; ours is None by default.
  - The value loss follows loss_agg_mode; ours is always over tokens.
  - "token-sum" is token-mean times the tokens; ours has no such mode.
  - The log-ratio of GSPO is bounded at 10, ours at 20; below both the same.
  - k3 is bounded at 10, with gradient 0 beyond; ours is not, because a bound
    biases it where the policies differ most.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import policy_inputs
import torch
from wheel_code import Fields, empty_modules

HERE = Path(__file__).parent
GROUP = policy_inputs.GROUP
MODES = {
  "token_mean": "token-mean",
  "token_sum": "token-sum",
  "seq_token_mean": "seq-mean-token-mean",
  "seq_token_sum": "seq-mean-token-sum",
  "const": "seq-mean-token-sum-norm",
}


def core_algos(folder: Path):
  """Returns verl.trainer.ppo.core_algos with its dependencies emptied."""
  empty_modules(
    folder,
    ("verl", "verl.trainer", "verl.trainer.ppo", "verl.utils"),
    (
      "omegaconf",
      "tensordict",
      "transformers",
      "verl.trainer.config",
      "verl.workers",
      "verl.workers.config",
      "verl.utils.device",
      "verl.utils.import_utils",
    ),
  )
  sys.modules["verl.utils.import_utils"].deprecated = lambda _: lambda f: f
  sys.modules["verl.workers.config"].ActorConfig = Fields
  utils = sys.modules["verl.utils"]
  utils.as_torch_index = utils.group_mean_std = None
  return importlib.import_module("verl.trainer.ppo.core_algos")


def advantages(verl, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns what verl's estimators make of the rewards."""
  config = Fields(gamma=0.9)
  grouped = (x["rewards"], x["mask"], GROUP)
  alone = (x["rewards"], x["mask"], np.array([9, 0, 0, 1, 1, 1]))
  padded = x["rewards"].clone()
  padded[0, 5] = 1.0
  plain = {"norm_adv_by_std_in_grpo": False}
  pairs = {
    "grpo": verl.compute_grpo_outcome_advantage(*grouped),
    "grpo_plain": verl.compute_grpo_outcome_advantage(*grouped, **plain),
    "grpo_alone": verl.compute_grpo_outcome_advantage(*alone),
    "rloo": verl.compute_rloo_outcome_advantage(*grouped),
    "grpo_padded": verl.compute_grpo_outcome_advantage(padded, *grouped[1:]),
    "rloo_padded": verl.compute_rloo_outcome_advantage(padded, *grouped[1:]),
    "remax": verl.compute_remax_outcome_advantage(
      x["rewards"], x["baselines"], x["mask"]
    ),
    "rpp": verl.compute_reinforce_plus_plus_outcome_advantage(
      x["rewards"], x["mask"], config=config
    ),
    "rpp_baseline": (
      verl.compute_reinforce_plus_plus_baseline_outcome_advantage(*grouped)
    ),
  }
  found = {f"adv_{name}": pair[0] for name, pair in pairs.items()}
  for name, mask in (("gae", x["mask"]), ("gaps", x["gaps"])):
    rewards = x["rewards"] * mask
    found[f"adv_{name}"], found[f"ret_{name}"] = (
      verl.compute_gae_advantage_return(rewards, x["values"], mask, 0.97, 0.9)
    )
  found["rewards_kl"] = verl.compute_rewards(
    x["rewards"], x["old"], x["reference"], 0.05
  )
  return found


def policy_losses(verl, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns policy losses and their gradients in the new log-probabilities."""
  results = {}

  def run(name, loss, mode, low, high, scale=None, weights=None, dual=3.0):
    new = x["new"].clone().requires_grad_()
    config = Fields(
      clip_ratio=low,
      clip_ratio_low=low,
      clip_ratio_high=high,
      clip_ratio_c=dual,
      global_batch_info={"loss_scale_factor": scale},
    )
    value, _ = loss(
      x["old"], new, x["advantages"], x["mask"], mode, config, weights
    )
    value.backward()
    results[f"loss_{name}"] = value.detach()
    results[f"grad_{name}"] = new.grad

  vanilla = verl.compute_policy_loss_vanilla
  for name, mode in MODES.items():
    run(name, vanilla, mode, 0.2, 0.28, 9)
  run("no_dual", vanilla, "token-mean", 0.2, 0.28, dual=1e9)
  run("weighted", vanilla, "token-mean", 0.2, 0.28, None, x["weights"])
  sequence = "seq-mean-token-mean"
  run("gspo", verl.compute_policy_loss_gspo, sequence, 0.05, 0.06)
  far = dict(x)
  x["advantages"], x["new"] = x["advantages"].clone(), x["new"].clone()
  x["advantages"][0], x["new"][0, 0] = -1.0, x["old"][0, 0] + 13.0
  run("gspo_far", verl.compute_policy_loss_gspo, sequence, 0.05, 0.06)
  x |= far
  run("cispo", verl.compute_policy_loss_cispo, "token-mean", 1.0, 0.2)
  return results


def other_losses(verl, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns value losses, KL penalties and KL coefficients."""
  results = {}
  for name, mode in MODES.items():
    values = x["new_values"].clone().requires_grad_()
    loss, _ = verl.compute_value_loss(
      values, x["returns"], x["values"], x["mask"], 0.2, mode
    )
    loss.backward()
    results[f"value_{name}"] = loss.detach()
    results[f"value_grad_{name}"] = values.grad
  far = torch.tensor([-2.0, -4.0, -30.0]).double()
  for name, kind, start, reference, mask in (
    *(
      (kind, kind, x["new"], x["reference"], x["mask"])
      for kind in ("k1", "k2", "k3", "k3+")
    ),
    ("far", "k3", far, torch.zeros(3), torch.ones(3)),
  ):
    new = start.clone().requires_grad_()
    penalty = verl.kl_penalty(new, reference, kind)
    (penalty * mask).sum().backward()
    results[f"kl_{name}"] = (penalty * mask).detach()
    results[f"kl_grad_{name}"] = new.grad
  controller = verl.AdaptiveKLController(0.1, 6.0, 100)
  coefficients = []
  for kl in (3.0, 6.5, 20.0):
    controller.update(kl, 16)
    coefficients.append(float(controller.value))
  return results | {"kl_coefficients": torch.tensor(coefficients)}


def main(folder: Path) -> None:
  """Writes policy_verl.npz beside this file."""
  verl = core_algos(folder)
  arrays = policy_inputs.arrays()
  x = policy_inputs.tensors()
  found = advantages(verl, x) | policy_losses(verl, x) | other_losses(verl, x)
  np.savez_compressed(
    HERE / "policy_verl.npz",
    **arrays,
    **{k: v.numpy() for k, v in found.items()},
  )
  print(f"{len(found)} arrays; torch {torch.__version__}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
