"""Trials of the over-optimisation lab on the quickstart: judges and policies.

What `python -m rlhf_jax.overoptimise --level=pipeline` trains: reward models
(heads on layer 6, 10 and 15, and five heads on bootstraps on layer 6), and for
each judge a policy without a KL penalty, with a gold probe every four steps
whose best step is kept. SFT and gold are a finished quickstart's. Another model
or task: copy this file, change what it returns, and name it by --trials=FILE.

  python -m rlhf_jax.overoptimise --level=pipeline --runs=runs/quickstart \\
      --workdir=runs/overoptimisation

All that a trial is told, of "reward" or "policy":

  python -m rlhf_jax.explain --config=configs/overoptimisation_lab.py:policy
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def _overoptimise() -> ConfigDict:
  path = Path(__file__).with_name("overoptimise.py")
  spec = importlib.util.spec_from_file_location("overoptimise", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config(stage: str = "policy") -> ConfigDict:
  """Returns what all trials of a stage have in common.

  Args:
    stage: "reward" or "policy".
  """
  whole = _overoptimise()
  if stage == "reward":
    return whole.reward
  config = whole.policy
  config.schedule.update(
    batch_size=48,
    steps=32,
    save_every=1000,  # the best step and the last one are what is kept
    eval_every=4,
    keep_best="heldout/gold_score",
  )
  config.heldout.update(whole.evaluation.prompts)
  config.evaluation.count = 64
  config.monitors = ConfigDict({"gold": ""})  # the lab names it
  return config


def rewards() -> dict[str, dict]:
  """Returns reward model -> what it sets."""
  return {
    "layer 6": {"stop_layer": 6},
    "layer 10": {"stop_layer": 10},
    "layer 15": {"stop_layer": 15},
    "5 on layer 6": {"stop_layer": 6, "ensemble.members": 5},
  }


def judges() -> list[dict]:
  """Returns what optimises whom.

  judge: its name. reward: a name of `rewards`. settings: of the policy run.
  rule, uncertainty_weight: how members are combined. ladder, rung: judges that
  differ in one thing, the weakest first. single: of an ensemble, the one judge
  that it is held against, which learns from all pairs, its members from
  bootstraps of them. has_policy: False for best of n alone.
  """
  five = {"reward": "5 on layer 6", "single": "layer 6"}
  return [
    {"judge": "layer 6", "reward": "layer 6", "ladder": "depth", "rung": 0},
    {"judge": "layer 10", "reward": "layer 10", "ladder": "depth", "rung": 1},
    {"judge": "layer 15", "reward": "layer 15", "ladder": "depth", "rung": 2},
    {"judge": "min of 5", "rule": "min", **five},
    {"judge": "UWO of 5", "rule": "uwo", "uncertainty_weight": 0.5, **five},
    {"judge": "mean of 5", "rule": "mean", "has_policy": False, **five},
  ]
