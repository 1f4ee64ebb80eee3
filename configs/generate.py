"""Answers of any policy to your prompts: all of them, or the best of n.

Data: one JSON object a line, {"prompt": ...}; for a verifier {"prompt",
"reference"}. Without --config.policy the model itself answers. answers.jsonl is
data of format "demonstration" (of dialogues "messages"), with scores beside it.

  python -m rlhf_jax.main --config=configs/generate.py \\
      --config.prompts.source=prompts.jsonl --config.policy=runs/ppo \\
      --workdir=runs/answers
  python -m rlhf_jax.main --config=configs/generate.py \\
      --config.prompts.source=prompts.jsonl --config.policy=runs/sft \\
      --config.generate.num_samples=16 --config.reward=runs/reward \\
      --config.choose=proxy --workdir=runs/best_of_16
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns one answer of SmolLM2-135M-Instruct to each prompt."""
  config = defaults.generate_answers()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.generate.max_new_tokens = 128
  config.batch_size = 32
  return config
