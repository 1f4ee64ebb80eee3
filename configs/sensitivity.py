"""How much the quickstart depends on beta, the rate, the clip and the epochs.

Each moves alone, from half or a fraction to a multiple of the quickstart's
value: nine short PPO runs on the SFT model and the reward models of a finished
quickstart, judged by the held-out (gold) reward model. One seed says where a
setting breaks, not which of two good ones is better: --seeds=3 for that.
Hardware: 2 CPU cores, 17 min. What came out: benchmarks/RESULTS.md.

  python -m rlhf_jax.sweep --config=configs/sensitivity.py \\
      --config.reuse=runs/quickstart --workdir=runs/sensitivity \\
      --metric=gold_after --best=max

results.png has the score against each; the same with `--results
--metric=kl_nats --best=min` draws the KL of these runs instead.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import sweeps

# The quickstart's own; its 4 minibatches of an epoch make 4 updates a rollout.
USUAL = {
  "policy.shaping.kl_coefficient": 0.09,
  "policy.policy_optimizer.learning_rate": 7.5e-4,
  "policy.algorithm.clip_ratio": 0.2,
  "policy.epochs.epochs": 1,
}
VALUES = {
  "policy.shaping.kl_coefficient": [0.0225, 0.09, 0.36],
  "policy.policy_optimizer.learning_rate": [1.5e-4, 7.5e-4, 3.75e-3],
  "policy.algorithm.clip_ratio": [0.02, 0.2, 0.8],
  "policy.epochs.epochs": [1, 2, 4],
}


def _quickstart() -> ConfigDict:
  path = Path(__file__).with_name("quickstart.py")
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config() -> ConfigDict:
  """Returns the quickstart with a fixed beta and a smaller evaluation."""
  config = _quickstart()
  config.title = "Sensitivity of PPO"
  config.facts.config = "configs/sensitivity.py"
  # A controller would undo another beta within a few steps.
  config.policy.shaping.kl_controller = "fixed"
  config.policy.shaping.halt_nats = 1000.0  # also where it runs away
  config.evaluation.count = 128
  config.evaluation.lexicon = False
  return config


def sweep() -> list[dict]:
  """Returns the usual run, and two others for each of four fields."""
  return sweeps.one_at_a_time(USUAL, VALUES)
