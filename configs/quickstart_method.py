"""The quickstart by another policy-gradient method: quickstart_method.py:NAME.

Same model, data, prompts and samples a step (64 answers; groups of four to 16
prompts where the method compares answers), same learning rate, 21 rollouts.
KL: where the method's reward may carry it, as in the quickstart; GRPO and GSPO
with their own KL in the loss; Dr. GRPO, DAPO and CISPO without any, as
published. Not tuned for any of them.

  python -m rlhf_jax.main --config=configs/quickstart_method.py:rloo \\
      --config.reuse=runs/quickstart --workdir=runs/rloo

benchmarks/methods_table.py runs several and prints the table.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

# name -> (answers to a prompt, whether the reward carries the KL)
METHODS = {
  "ppo": (1, True),
  "reinforce": (1, True),
  "rloo": (4, True),
  "remax": (1, True),
  "reinforce_pp": (1, True),
  "grpo": (4, False),
  "dr_grpo": (4, False),
  "dapo": (4, False),
  "gspo": (4, False),
  "cispo": (4, False),
}
ONE_STEP = ("reinforce", "remax")  # no importance ratio: one step a rollout


def _quickstart() -> ConfigDict:
  path = Path(__file__).with_name("quickstart.py")
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config(name: str = "rloo") -> ConfigDict:
  """Returns the quickstart with the method of this name."""
  if name not in METHODS:
    raise ValueError(
      f"quickstart_method.py:{name}: must be one of {', '.join(METHODS)}."
    )
  config = _quickstart()
  config.title = f"Movie reviews that people like, by {name}"
  config.facts.config = f"configs/quickstart_method.py:{name}"
  if name == "ppo":
    return config
  samples, has_kl_reward = METHODS[name]
  policy = config.policy
  policy.algorithm.update(name=name, value_coefficient=None)
  policy.generate.num_samples = samples
  policy.schedule.batch_size = 64 // samples
  if name in ONE_STEP:
    warmup = policy.policy_optimizer.warmup_steps // policy.epochs.minibatches
    policy.policy_optimizer.warmup_steps = warmup  # as many rollouts
    policy.epochs.minibatches = 1
  if not has_kl_reward:
    policy.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  return config
