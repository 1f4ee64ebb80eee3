"""What happens without a KL penalty: the proxy rises, the gold reward turns.

The quickstart's policy and task with beta = 0, no entropy bonus, larger steps
at a constant learning rate, no halt, and a smaller reward model: a head on
layer 6 instead of 15. Gao et al. 2022 (arXiv:2210.10760) found that the
smaller the reward model, the sooner its optimisation goes wrong; their gold was
a large reward model, ours is the quickstart's, a head on layer 18 trained on
other sentences. With the quickstart's own proxy gold stops rising but hardly
falls: both read much the same features.
Takes SFT and gold from a finished quickstart when it is named:

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
  config.title = "No KL penalty, a smaller reward model"
  config.facts.config = "configs/overoptimise.py"
  config.reuse_stages = ("sft", "gold")
  config.reward.stop_layer = 6
  config.policy.shaping.update(
    kl_coefficient=0.0,
    kl_controller="fixed",
    warn_nats=15.0,
    halt_nats=1000.0,  # let it run away: that is the point
  )
  config.policy.algorithm.entropy_coefficient = 0.0  # it would delay the turn
  config.policy.epochs.update(epochs=2, minibatches=2)
  config.policy.policy_optimizer.update(learning_rate=2e-3, schedule="constant")
  config.policy.policy_optimizer.final_fraction = None
  config.policy.schedule.steps = 32
  return config
