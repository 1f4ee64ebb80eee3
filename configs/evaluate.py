"""Policies on your own held-out prompts: two of them, one, or any number.

Data: one JSON object a line, {"prompt": ...}; for a verifier {"prompt",
"reference"}. Compares a finished policy with what its run started from, or with
--config.init_from=FOLDER; with :many any policies, "model" being the model
itself, with the first. A reward model (--config.reward=FOLDER), a second one
(--config.gold=FOLDER), a verifier or a function may judge; without any there
are KL, length and diversity. With generate.num_samples=8 there are pass@1, 2, 4
and 8 of a verifier, and best-of-n curves; generate.temperature=0 is greedy.
Method: paired by prompt (rlhf_jax/evaluation/win_rate.py). Temperature and
number of tokens are part of what a policy is: leave them as they were in
training where a KL or a reward of training is compared.

  python -m rlhf_jax.main --config=configs/evaluate.py \\
      --config.prompts.source=heldout_prompts.jsonl --config.policy=runs/ppo \\
      --config.reward=runs/reward --workdir=runs/evaluation
  python -m rlhf_jax.main --config=configs/evaluate.py:many \\
      --config.prompts.source=heldout_prompts.jsonl \\
      --config.policies=runs/sft,runs/dpo,runs/ppo@best \\
      --config.reward=runs/reward --workdir=runs/evaluation_many
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config(argument: str = "") -> ConfigDict:
  """Returns the comparison of two policies, or, of "many", of any number."""
  if argument not in ("", "many"):
    raise ValueError(
      f"configs/evaluate.py:{argument}: there is :many, for any number of "
      "policies. Leave it out to compare two."
    )
  config = defaults.evaluate_many() if argument else defaults.evaluate()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.generate.max_new_tokens = 128
  config.update(count=64, batch_size=32)
  return config
