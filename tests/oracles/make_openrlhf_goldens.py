"""Goldens of OpenRLHF 0.11.2 (Apache-2.0): losses and advantages, frozen here.

The tests never import torch or OpenRLHF: they read openrlhf.npz. This script
runs in an environment of its own, without this package and without OpenRLHF's
dependencies, whose modules are replaced by empty ones (wheel_code.py):

  python3.11 -m venv oracle
  oracle/bin/pip install torch==2.13.0 numpy==2.4.6
  oracle/bin/pip download openrlhf==0.11.2 --no-deps
  unzip openrlhf-0.11.2-*.whl -d openrlhf_wheel
  oracle/bin/python tests/oracles/make_openrlhf_goldens.py \\
    openrlhf_wheel/openrlhf-0.11.2.data/purelib

openrlhf.npz has the inputs of policy_inputs.py, the comparisons of
make_preference_goldens.py as log-probabilities of whole answers, and, from
float64 (KL penalties from float32, as OpenRLHF casts):

  models/loss.py; loss_NAME [], grad_NAME in `new` (or what NAME says)
    ppo, ppo_answers    PolicyLoss, clip 0.2 and 0.28, token_level_loss or not
    dual                with dual_clip 3
    gspo                policy_loss_type gspo, clip 0.05 and 0.06, one
                        advantage per answer; gspo_tokens: one per token
    clipped, banded     is_correction_level token, mode clip, threshold (0, 2)
                        and (0.5, 2), `sampler` as rollout_log_probs
    value, value_free   ValueLoss, clip_eps 0.2 and None; grad in `new_values`
    dpo, cdpo, ipo      DPOLoss, beta 0.3; label_smoothing 0.2; ipo; grad [B, 2]
                        in the log-probabilities of answers
    pair, margin        PairWiseLoss without and with `margins`; grad [B, 2]
    logexp              LogExpLoss with `margins`, which it does not read
    sft                 SFTLoss on `new`, token_level_loss
  models/utils.py       kl_KIND, kl_grad_KIND: compute_approx_kl of k1, k2, k3,
                        and "k3_unbiased" with unbiased_gradient and `old`;
                        kl_far_KIND, kl_grad_far_KIND: at log ratios of -2, -4
                        and -30
  RemoteExperienceMaker.compute_advantages_and_returns    adv_NAME, scores on
                        the last token, no KL unless said: gae (gamma 0.97,
                        lambda 0.9), ret_gae; gaps (gae on answers with holes);
                        reinforce (gamma 0.9, KL 0.05), rloo, rloo_kl (KL
                        0.05), group_norm, dr_grpo, reinforce_baseline,
                        reinforce_free (no_std_norm), clipped (reinforce, clip
                        of 0.5)
  apply_overlong_penalty    overlong [N]: max_new_tokens 5, buffer 3, factor 0.7
  AdaptiveKLController      kl_coefficients, as in make_policy_goldens.py

There is no KTO in this version.

Theirs alone, and how the tests convert:

  - Whitening is by the population deviation, as ours; advantages keep values
    off the mask.
  - group_norm divides by the sample deviation of a group plus 1e-9
    (scale_epsilon).
  - GAE and returns do not skip holes: a masked token has reward and value 0
    and costs a factor of gamma (and lambda). Ours pass over it.
  - Baselines are of scores alone; the KL comes after and counts from each
    token on: theirs is ours of the scores plus the KL to go. Ours puts the KL
    into the return of the whole answer before the baseline.
  - The clip of the reward comes after the baseline; ours before it.
  - ipo takes sums over tokens (TRL: means).
  - LogExpLoss ignores its margin: the pairwise loss without one.
  - gspo gives every token of an answer the same ratio, and the mean over the
    answer; the gradient is ours where the answer has one advantage.
  - The token weights clip to [0.5, 5] by default; ours have no lower end.
  - k1, k2 and k3 are bounded at 10, with gradient 0 beyond; ours are not. The
    unbiased gradient is that of our k3+, whose value is weighted by the ratio
    too.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import make_preference_goldens
import numpy as np
import policy_inputs
import torch
from wheel_code import Fields, empty_modules

HERE = Path(__file__).parent
BETA, SMOOTHING = 0.3, 0.2


def load(folder: Path) -> types.SimpleNamespace:
  """Returns OpenRLHF's modules with their dependencies emptied."""
  packages = (
    "openrlhf",
    "openrlhf.models",
    "openrlhf.trainer",
    "openrlhf.trainer.ppo_utils",
    "openrlhf.utils",
  )
  emptied = (
    "deepspeed",
    "ray",
    "openrlhf.trainer.ppo_utils.experience",
    "openrlhf.trainer.ray",
    "openrlhf.trainer.ray.launcher",
    "openrlhf.utils.logging_utils",
    "openrlhf.utils.seqlen_balancing",
  )
  empty_modules(folder, packages, emptied)

  def module(name: str) -> Any:
    return importlib.import_module(f"openrlhf.{name}")

  return types.SimpleNamespace(
    loss=module("models.loss"),
    utils=module("models.utils"),
    maker=module("trainer.ppo_utils.experience_maker"),
    controller=module("trainer.ppo_utils.kl_controller"),
    length=module("trainer.ppo_utils.length_penalty"),
  )


def gradient(call: Any, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns call(at) and its gradient."""
  leaf = at.clone().requires_grad_()
  value = call(leaf)
  value.sum().backward()
  return value.detach(), leaf.grad


def token_losses(lib, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns losses on tokens, and gradients."""
  wide = {"clip_eps_low": 0.2, "clip_eps_high": 0.28}
  correction = {"is_correction_level": "token", "is_correction_mode": "clip"}
  cases: dict[str, dict[str, Any]] = {
    "ppo": wide,
    "ppo_answers": wide | {"token_level_loss": False},
    "dual": wide | {"dual_clip": 3.0},
    "gspo": {
      "clip_eps_low": 0.05,
      "clip_eps_high": 0.06,
      "policy_loss_type": "gspo",
    },
    "gspo_tokens": {"policy_loss_type": "gspo"},
    "clipped": wide | correction | {"is_correction_threshold": (0.0, 2.0)},
    "banded": wide | correction | {"is_correction_threshold": (0.5, 2.0)},
  }
  found = {}
  for name, settings in cases.items():
    advantages = x["advantages"]
    if name == "gspo":
      advantages = x["answer_advantages"][:, None].expand(-1, 6)
    policy = lib.loss.PolicyLoss(**settings)
    found[name] = gradient(
      lambda new, policy=policy, advantages=advantages: policy(
        new, x["old"], advantages, x["mask"], x["sampler"]
      )[0],
      x["new"],
    )
  for name, clip in (("value", 0.2), ("value_free", None)):
    value = lib.loss.ValueLoss(clip)
    found[name] = gradient(
      lambda new, value=value: value(new, x["values"], x["returns"], x["mask"]),
      x["new_values"],
    )
  found["sft"] = gradient(
    lambda new: lib.loss.SFTLoss()(new, x["mask"]), x["new"]
  )
  return named(found)


def named(found: dict[str, tuple]) -> dict[str, torch.Tensor]:
  """Returns loss_NAME and grad_NAME of pairs."""
  return {f"loss_{name}": pair[0] for name, pair in found.items()} | {
    f"grad_{name}": pair[1] for name, pair in found.items()
  }


def answer_losses(lib, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns losses on pairs of answers, and gradients."""
  reference = x["pair_reference"].unbind(1)
  found = {}
  for name, settings in (
    ("dpo", {}),
    ("cdpo", {"label_smoothing": SMOOTHING}),
    ("ipo", {"ipo": True}),
  ):
    dpo = lib.loss.DPOLoss(BETA, **settings)
    found[name] = gradient(
      lambda policy, dpo=dpo: dpo(*policy.unbind(1), *reference)[0],
      x["pair_policy"],
    )
  for name, loss, margins in (
    ("pair", lib.loss.PairWiseLoss(), None),
    ("margin", lib.loss.PairWiseLoss(), x["margins"]),
    ("logexp", lib.loss.LogExpLoss(), x["margins"]),
  ):
    found[name] = gradient(
      lambda scores, loss=loss, margins=margins: loss(
        *scores.unbind(1), margins
      ),
      x["pair_scores"],
    )
  return named(found)


def kl_penalties(lib, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns compute_approx_kl and its gradient."""
  far = torch.tensor([-2.0, -4.0, -30.0])
  found = {}
  for name, kind, at, reference, settings in (
    ("k1", "k1", x["new"], x["reference"], {}),
    ("k2", "k2", x["new"], x["reference"], {}),
    ("k3", "k3", x["new"], x["reference"], {}),
    (
      "k3_unbiased",
      "k3",
      x["new"],
      x["reference"],
      {"log_probs_old": x["old"], "unbiased_gradient": True},
    ),
    *((f"far_{k}", k, far, torch.zeros(3), {}) for k in ("k1", "k2", "k3")),
  ):
    value, grad = gradient(
      lambda new, k=kind, r=reference, s=settings: lib.utils.compute_approx_kl(
        new, r, kl_estimator=k, **s
      ),
      at,
    )
    found[f"kl_{name}"], found[f"kl_grad_{name}"] = value, grad
  return found


def advantages(lib, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns what the experience maker's estimators give."""
  found = {}
  kl = lib.utils.compute_approx_kl(x["old"], x["reference"]).double()

  def run(name, estimator, gamma=1.0, coefficient=0.0, mask="mask", **fields):
    maker = object.__new__(lib.maker.RemoteExperienceMaker)
    advantage = {"estimator": estimator, "gamma": gamma, "lambd": 0.9}
    advantage["no_std_norm"] = fields.get("no_std_norm", False)
    reward = {"clip_range": fields.get("clip_range")}
    reward |= {"overlong_buffer_len": None, "stop_properly_penalty_coef": None}
    maker.strategy = Fields(
      args=Fields(
        algo=Fields(advantage=Fields(advantage)),
        rollout=Fields(n_samples_per_prompt=3),
        reward=Fields(reward),
      )
    )
    maker.args = maker.strategy.args
    maker.advantage_estimator = estimator
    maker.kl_ctl = lib.controller.FixedKLController(coefficient)
    experience = types.SimpleNamespace(
      rewards=x["scores"].clone(),
      index=list(range(6)),
      kl=kl.clone(),
      action_mask=x[mask],
      values=x["values"],
      info={},
    )
    maker.compute_advantages_and_returns([experience])
    found[f"adv_{name}"] = experience.advantages
    found[f"ret_{name}"] = experience.returns

  run("gae", "gae", 0.97)
  run("gaps", "gae", 0.97, mask="gaps")
  run("reinforce", "reinforce", 0.9, 0.05)
  run("clipped", "reinforce_baseline", clip_range=(-0.5, 0.5))
  run("rloo", "rloo")
  run("rloo_kl", "rloo", coefficient=0.05)
  run("group_norm", "group_norm")
  run("dr_grpo", "dr_grpo")
  run("reinforce_baseline", "reinforce_baseline")
  run("reinforce_free", "reinforce", no_std_norm=True)
  return found


def controls(lib, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Returns scores after the overlong penalty, and KL coefficients."""
  experience = types.SimpleNamespace(
    rewards=x["scores"].clone(), response_length=x["mask"].sum(1)
  )
  lib.length.apply_overlong_penalty([experience], 5, 3, 0.7)
  controller = lib.controller.AdaptiveKLController(0.1, 6.0, 100)
  coefficients = []
  for kl in (3.0, 6.5, 20.0):
    controller.update(kl, 16)
    coefficients.append(float(controller.value))
  return {
    "overlong": experience.rewards,
    "kl_coefficients": torch.tensor(coefficients),
  }


def pair_inputs() -> dict[str, np.ndarray]:
  """Returns log-probabilities of answers, and margins, beside the scores."""
  made = make_preference_goldens.inputs()
  rng = np.random.default_rng(7)
  mask = made["loss_mask"]
  return made | {
    "pair_policy": np.sum(made["logprobs"].astype(np.float64) * mask, -1),
    "pair_reference": np.sum(
      made["reference_logprobs"].astype(np.float64) * mask, -1
    ),
    "margins": rng.uniform(0.0, 1.5, size=6),
  }


def main(folder: Path) -> None:
  """Writes openrlhf.npz beside this file."""
  lib = load(folder)
  pairs = pair_inputs()
  x = policy_inputs.tensors()
  x |= {k: torch.from_numpy(v) for k, v in pairs.items()}
  found = (
    token_losses(lib, x)
    | answer_losses(lib, x)
    | kl_penalties(lib, x)
    | advantages(lib, x)
    | controls(lib, x)
  )
  np.savez_compressed(
    HERE / "openrlhf.npz",
    beta=BETA,
    label_smoothing=SMOOTHING,
    **policy_inputs.arrays(),
    **pairs,
    **{k: v.numpy() for k, v in found.items()},
  )
  print(f"{len(found)} arrays; torch {torch.__version__}")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
