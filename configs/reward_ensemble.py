"""RLHF on a laptop with four reward models in one, and their disagreement.

The quickstart (configs/quickstart.py) with an ensemble as the proxy: four
heads on the frozen layer 15, each on sentences of its own (bootstrap), trained
in one pass over features that are computed once, so in hardly more time than
one. The policy follows UWO, the mean less a tenth of the members' variance
(Coste et al. 2023, arXiv:2310.02743); --config.policy.scoring.combine=min (and
uncertainty_weight=None) for the worst case. reward/component/
reward_deviation_ratio says how far the policy is from where members agree.

Hardware: 2 CPU cores, 4 GiB. Not yet run at full size.

  python -m rlhf_jax.main --config=configs/reward_ensemble.py \\
      --workdir=runs/reward_ensemble
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def _quickstart() -> ConfigDict:
  path = Path(__file__).with_name("quickstart.py")
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config() -> ConfigDict:
  """Returns the quickstart with an ensemble of four as the proxy."""
  config = _quickstart()
  config.title = "Movie reviews that four reward models like"
  config.facts.config = "configs/reward_ensemble.py"
  config.reward.ensemble.update(members=4, subsets="bootstrap")
  config.policy.scoring.update(combine="uwo", uncertainty_weight=0.1)
  config.evaluation.scoring.update(combine="uwo", uncertainty_weight=0.1)
  return config
