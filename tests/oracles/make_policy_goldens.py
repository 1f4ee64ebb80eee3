"""Goldens of verl's advantages, losses and KL penalties, frozen here.

The tests never import torch or verl: they read what this script wrote. It runs
in an environment of its own, without this package and without verl's own
dependencies, whose modules are replaced by empty ones where core_algos.py only
names their types:

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 numpy==2.4.6
  oracle/bin/pip download verl==0.9.1 --no-deps
  unzip verl-0.9.1-py3-none-any.whl -d verl_wheel
  oracle/bin/python tests/oracles/make_policy_goldens.py verl_wheel

policy_verl.npz has, for six answers to two prompts (columns are response
tokens, answers of 1 to 5 of them):

  mask, rewards, baselines, old, new, reference, advantages, weights  inputs
  adv_grpo, adv_grpo_plain   compute_grpo_outcome_advantage, with and without
    norm_adv_by_std_in_grpo (epsilon 1e-6)
  adv_rloo, adv_remax        compute_{rloo,remax}_outcome_advantage
  adv_rpp                    compute_reinforce_plus_plus_outcome_advantage,
    gamma 0.9
  adv_rpp_baseline           ..._baseline_outcome_advantage
  loss_MODE, grad_MODE       compute_policy_loss_vanilla, clip 0.2 and 0.28, c
    3, and its gradient in `new`, for each loss_agg_mode ("const": divided by 9)
  loss_weighted              the same with rollout_is_weights, token-mean
  loss_gspo, grad_gspo       compute_policy_loss_gspo, clip 0.05 and 0.06
  loss_cispo, grad_cispo     compute_policy_loss_cispo, clip 1 and 0.2
  kl_KIND, kl_grad_KIND      kl_penalty of k2, k3 and k3+, summed for the
    gradient

verl whitens with the sample variance (n - 1), this package with n.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
LENGTHS = np.array([1, 4, 2, 3, 5, 1])
GROUP = np.array([0, 0, 0, 1, 1, 1])
MODES = {
  "token_mean": "token-mean",
  "seq_token_mean": "seq-mean-token-mean",
  "seq_token_sum": "seq-mean-token-sum",
  "const": "seq-mean-token-sum-norm",
}


class Anything(types.ModuleType):
  """A module whose every attribute is a class of its own."""

  def __getattr__(self, name: str):
    if name.startswith("__"):
      raise AttributeError(name)
    made = type(name, (dict,), {})
    setattr(self, name, made)
    return made


class Actor(dict):
  """The fields of verl's ActorConfig that a policy loss reads."""

  __getattr__ = dict.__getitem__


def core_algos(folder: Path):
  """Returns verl.trainer.ppo.core_algos with its dependencies emptied."""
  sys.path.insert(0, str(folder))
  for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.utils"):
    package = types.ModuleType(name)
    package.__path__ = [str(folder / name.replace(".", "/"))]
    sys.modules[name] = package
  for name in (
    "omegaconf",
    "tensordict",
    "transformers",
    "verl.trainer.config",
    "verl.workers",
    "verl.workers.config",
    "verl.utils.device",
    "verl.utils.import_utils",
  ):
    sys.modules[name] = Anything(name)
  sys.modules["verl.utils.import_utils"].deprecated = lambda _: lambda f: f
  sys.modules["verl.workers.config"].ActorConfig = Actor
  utils = sys.modules["verl.utils"]
  utils.as_torch_index = utils.group_mean_std = None
  return importlib.import_module("verl.trainer.ppo.core_algos")


def inputs() -> dict[str, torch.Tensor]:
  """Returns the arrays that every call reads."""
  rng = np.random.default_rng(101)
  mask = (np.arange(6)[None] < LENGTHS[:, None]).astype(np.float32)

  def field(scale: float) -> np.ndarray:
    return (rng.normal(0, scale, mask.shape) * mask).astype(np.float32)

  arrays = {
    "mask": mask,
    "rewards": field(1.0),
    "baselines": rng.normal(size=6).astype(np.float32),
    "old": field(0.5) - 2.0 * mask,
    "new": field(0.5) - 2.0 * mask,
    "reference": field(0.5) - 2.0 * mask,
    "advantages": 3.0 * field(1.0),
    "weights": np.abs(field(1.0)),
  }
  return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}


def advantages(verl, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns what verl's estimators make of the rewards."""
  config = Actor(gamma=0.9)
  grouped = (x["rewards"], x["mask"], GROUP)
  plain = {"norm_adv_by_std_in_grpo": False}
  found = {
    "adv_grpo": verl.compute_grpo_outcome_advantage(*grouped),
    "adv_grpo_plain": verl.compute_grpo_outcome_advantage(*grouped, **plain),
    "adv_rloo": verl.compute_rloo_outcome_advantage(*grouped),
    "adv_remax": verl.compute_remax_outcome_advantage(
      x["rewards"], x["baselines"], x["mask"]
    ),
    "adv_rpp": verl.compute_reinforce_plus_plus_outcome_advantage(
      x["rewards"], x["mask"], config=config
    ),
    "adv_rpp_baseline": (
      verl.compute_reinforce_plus_plus_baseline_outcome_advantage(*grouped)
    ),
  }
  return {name: pair[0] for name, pair in found.items()}


def losses(verl, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns policy losses and their gradients in the new log-probabilities."""
  results = {}

  def run(name, loss, mode, low, high, scale=None, weights=None):
    new = x["new"].clone().requires_grad_()
    config = Actor(
      clip_ratio=low,
      clip_ratio_low=low,
      clip_ratio_high=high,
      clip_ratio_c=3.0,
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
  run("weighted", vanilla, "token-mean", 0.2, 0.28, None, x["weights"])
  sequence = "seq-mean-token-mean"
  run("gspo", verl.compute_policy_loss_gspo, sequence, 0.05, 0.06)
  run("cispo", verl.compute_policy_loss_cispo, "token-mean", 1.0, 0.2)
  for kind in ("k2", "k3", "k3+"):
    new = x["new"].clone().requires_grad_()
    penalty = verl.kl_penalty(new, x["reference"], kind)
    (penalty * x["mask"]).sum().backward()
    results[f"kl_{kind}"] = (penalty * x["mask"]).detach()
    results[f"kl_grad_{kind}"] = new.grad
  return results


def main(folder: Path) -> None:
  """Writes policy_verl.npz beside this file."""
  verl = core_algos(folder)
  arrays = inputs()
  found = advantages(verl, arrays) | losses(verl, arrays)
  frozen = {k: v.numpy() for k, v in (arrays | found).items()}
  np.savez_compressed(HERE / "policy_verl.npz", **frozen)
  print(f"{len(frozen)} arrays; torch {torch.__version__}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
