"""Two policies on your own held-out prompts: what a training run changed.

Data: one JSON object a line, {"prompt": ...}. Compares a finished policy with
what its run started from, or with --config.init_from=FOLDER. A reward model
(--config.reward=FOLDER), a second one (--config.gold=FOLDER), a verifier or a
function may judge; without any there are KL, length and diversity.
Method: paired by prompt (rlhf_jax/evaluation/win_rate.py). Temperature and
number of tokens are part of what a policy is: leave them as they were in
training.

  python -m rlhf_jax.main --config=configs/evaluate.py \\
      --config.prompts.source=heldout_prompts.jsonl --config.policy=runs/ppo \\
      --config.reward=runs/reward --workdir=runs/evaluation
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the comparison of two SmolLM2-135M-Instruct policies."""
  config = defaults.evaluate()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.generate.max_new_tokens = 128
  config.update(count=64, batch_size=32)
  return config
