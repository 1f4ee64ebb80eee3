"""PPO on your own prompts, against your own reward model.

Data: one JSON object a line, {"prompt": ...}. Needs a finished SFT run and a
finished reward run (configs/sft.py, configs/reward.py).
Method: InstructGPT's PPO with an adaptive KL (Ziegler et al. 2019); policy,
critic, reference and reward model are four full models. Critic five times as
fast as the policy. For one shared base set trainable.mode and value.mode to
"lora" and model.lora_rank to 16. For a critic that is a head on the policy (one
pass for both, about half the work of an update) set value.trunk="shared" and
value.init="random".

  python -m rlhf_jax.main --config=configs/ppo.py \\
      --config.prompts.source=prompts.jsonl --config.init_from=runs/sft \\
      --config.reward=runs/reward --workdir=runs/ppo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns PPO of SmolLM2-135M-Instruct on a file of prompts."""
  config = defaults.policy()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.heldout.update(format="prompt", chat=True, max_length=512)
  config.generate.max_new_tokens = 128
  config.shaping.update(missing_eos="replace", kl_target=6.0, kl_horizon=640.0)
  config.algorithm.value_coefficient = 1.0
  config.epochs.update(epochs=2, minibatches=2, microbatches=4)
  config.policy_optimizer.warmup_steps = 10
  config.value_optimizer.warmup_steps = 10
  config.schedule.update(batch_size=64, steps=200, save_every=10)
  return config
