"""Trials of the over-optimisation lab on the quickstart: judges and policies.

What `python -m rlhf_jax.overoptimise --level=pipeline` trains: reward models of
which each learns from comparisons of 200 sentences, a quarter of them with the
wrong label (about what people disagree by; Stiennon et al. 2020,
arXiv:2009.01325, report 73 to 77 % agreement): heads on layer 6, 10 and 15 that
know 100 comparisons, five heads on bootstraps of these on layer 15, and heads
there that know 1,000 and all; and for each judge a policy without a KL penalty,
with a gold probe every four steps whose best step is kept. SFT and gold are a
finished quickstart's. Without wrong labels gold hardly turns
(configs/overoptimisation_clean.py): gold, a head on layer 18, reads much the
same features, and from 204,800 comparisons all noise is averaged away. Another
model or task: copy this file, change what it returns, and give --trials=FILE.

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


def some_sentences(count: int, seed: int) -> dict[str, str]:
  """Returns the fields that leave a reward model `count` of 1,500 sentences.

  Args:
    count: how many.
    seed: of the trial: 0 to 3 learn from other sentences of those that the
      quickstart's own reward model has.
  """
  before = 200 * (seed % 4)
  splits = f"test:700,before:{before},some:{count}"
  return {"data.splits": splits, "data.split": "some"}


def rewards(seed: int) -> dict[str, dict]:
  """Returns reward model -> what it sets.

  Args:
    seed: of the trial, which says what sentences they know.
  """
  noisy = {**some_sentences(200, seed), "data.flips": 0.25}
  steps = {
    "schedule.batch_size": 48,
    "schedule.steps": 100,
    "schedule.save_every": 100,
  }
  few = {**noisy, **steps, "data.pairs": 100}
  more = {**noisy, **steps, "data.pairs": 1000}
  return {
    "layer 6": {"stop_layer": 6, **few},
    "layer 10": {"stop_layer": 10, **few},
    "100 pairs": {"stop_layer": 15, **few},
    "5 on 100 pairs": {"stop_layer": 15, "ensemble.members": 5, **few},
    "1,000 pairs": {"stop_layer": 15, **more},
    "all pairs": {"stop_layer": 15, **noisy},
  }


def judges() -> list[dict]:
  """Returns what optimises whom.

  judge: its name. reward: a name of `rewards`. settings: of the policy run.
  rule, uncertainty_weight: how members are combined. ladders: name -> rung;
  judges of one ladder differ in one thing, the weakest is at 0. single: of an
  ensemble, the one judge that it is held against, which learns from all pairs,
  its members from bootstraps of them. has_policy: False for best of n alone.
  """
  five = {"reward": "5 on 100 pairs", "single": "100 pairs"}
  return [
    {"judge": "layer 6", "reward": "layer 6", "ladders": {"depth": 0}},
    {"judge": "layer 10", "reward": "layer 10", "ladders": {"depth": 1}},
    {
      "judge": "100 pairs",
      "reward": "100 pairs",
      "ladders": {"depth": 2, "data": 0},
    },
    {"judge": "min of 5", "rule": "min", **five},
    {"judge": "UWO of 5", "rule": "uwo", "uncertainty_weight": 0.5, **five},
    {"judge": "mean of 5", "rule": "mean", "has_policy": False, **five},
    {"judge": "1,000 pairs", "reward": "1,000 pairs", "ladders": {"data": 1}},
    {"judge": "all pairs", "reward": "all pairs", "ladders": {"data": 2}},
  ]
