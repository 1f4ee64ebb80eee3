"""What happens without a KL penalty: the proxy rises, the gold reward turns.

The quickstart's policy, reward models and task, with beta = 0, no entropy
bonus, a higher and constant learning rate and no halt. Gao et al. 2022
(arXiv:2210.10760) is the paper; its gold was a large reward model, ours is one
trained on other sentences.
Takes SFT and reward models from a finished quickstart when it is named:

  python -m rlhf_jax.main --config=configs/overoptimise.py \\
      --config.reuse=runs/quickstart --workdir=runs/overoptimise
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
  """Returns the quickstart without a KL penalty."""
  config = _quickstart()
  config.title = "The same policy without a KL penalty"
  config.facts.config = "configs/overoptimise.py"
  config.policy.shaping.update(
    kl_coefficient=0.0,
    kl_controller="fixed",
    warn_nats=15.0,
    halt_nats=1000.0,  # let it run away: that is the point
  )
  config.policy.algorithm.entropy_coefficient = 0.0  # it would delay the turn
  config.policy.policy_optimizer.update(learning_rate=1e-3, schedule="constant")
  config.policy.policy_optimizer.final_fraction = None
  config.policy.schedule.steps = 50
  return config
