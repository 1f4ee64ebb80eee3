"""Trials of the over-optimisation lab whose comparisons are all right.

As configs/overoptimisation_lab.py, without wrong labels: heads on layer 6, 10
and 15 that know 200 sentences, five heads on bootstraps of these on layer 15,
and heads there that know 800 and all. Gold hardly turns: 200 sentences are
204,800 comparisons.

  python -m rlhf_jax.overoptimise --level=pipeline --runs=runs/quickstart \\
      --trials=configs/overoptimisation_clean.py --workdir=runs/clean

All that a trial is told is what `python -m rlhf_jax.explain
--config=configs/overoptimisation_clean.py:policy` says.
"""

import importlib.util
from pathlib import Path


def _lab():
  path = Path(__file__).with_name("overoptimisation_lab.py")
  spec = importlib.util.spec_from_file_location("overoptimisation_lab", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


_LAB = _lab()
get_config = _LAB.get_config


def rewards(seed: int) -> dict[str, dict]:
  """Returns reward model -> what it sets.

  Args:
    seed: of the trial, which says what sentences they know.
  """
  few, more = _LAB.some_sentences(200, seed), _LAB.some_sentences(800, seed)
  return {
    "layer 6": {"stop_layer": 6, **few},
    "layer 10": {"stop_layer": 10, **few},
    "layer 15": {"stop_layer": 15, **few},
    "5 on layer 15": {"stop_layer": 15, "ensemble.members": 5, **few},
    "800 sentences": {"stop_layer": 15, **more},
    "all sentences": {"stop_layer": 15},
  }


def judges() -> list[dict]:
  """Returns what optimises whom, as configs/overoptimisation_lab.py."""
  five = {"reward": "5 on layer 15", "single": "layer 15"}
  return [
    {"judge": "layer 6", "reward": "layer 6", "ladders": {"depth": 0}},
    {"judge": "layer 10", "reward": "layer 10", "ladders": {"depth": 1}},
    {
      "judge": "layer 15",
      "reward": "layer 15",
      "ladders": {"depth": 2, "data": 0},
    },
    {"judge": "min of 5", "rule": "min", **five},
    {"judge": "UWO of 5", "rule": "uwo", "uncertainty_weight": 0.5, **five},
    {"judge": "mean of 5", "rule": "mean", "has_policy": False, **five},
    {
      "judge": "800 sentences",
      "reward": "800 sentences",
      "ladders": {"data": 1},
    },
    {
      "judge": "all sentences",
      "reward": "all sentences",
      "ladders": {"data": 2},
    },
  ]
