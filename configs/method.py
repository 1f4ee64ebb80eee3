"""Any policy-gradient method on your own prompts: configs/method.py:NAME.

NAME is one of the entries below, each with its paper's values where this
machine's memory allows (batches are smaller; the paper's are in comments).
Data: one JSON object a line, {"prompt": ...}. Needs a finished SFT run and a
finished reward run (configs/sft.py, configs/reward.py), or a verifier: set
verifier.name and put {"prompt", "reference"} on each line.

  python -m rlhf_jax.main --config=configs/method.py:rloo \\
      --config.prompts.source=prompts.jsonl --config.init_from=runs/sft \\
      --config.reward=runs/reward --workdir=runs/rloo

README says which to choose when.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

TOKENS = 128  # of an answer at most
# name -> (answers to a prompt, beta in the reward, fields of the method)
METHODS = {
  "reinforce": (1, 0.03, {}),  # Ahmadian 2024, section 4
  "rloo": (4, 0.03, {}),  # Ahmadian 2024: G 2 or 4, beta 0.03 to 0.10, 512
  "remax": (1, 0.03, {}),  # Li 2023
  "reinforce_pp": (1, 0.01, {}),  # Hu 2025
  "grpo": (8, 0.0, {}),  # Shao 2024: k3 in the loss, 0.04; G 64, 1024
  "dr_grpo": (8, 0.0, {"aggregation_tokens": TOKENS}),  # Liu 2025: no KL
  "dapo": (16, 0.0, {}),  # Yu 2025: G 16, clip 0.2 / 0.28, no KL; resamples
  "gspo": (8, 0.0, {}),  # Zheng 2025: clip 3e-4 / 4e-4 of a sequence
  "cispo": (8, 0.0, {}),  # MiniMax 2025
  "gdpo": (8, 0.0, {}),  # Liu 2026: several judges (docs/objectives.md)
}
# no importance ratio, or, in GRPO, one step as published
ONE_STEP = ("reinforce", "remax", "grpo", "gdpo")
SHAPING = {
  "reinforce_pp": {"clip": 10.0},
  "gdpo": {"clip": None},  # it reads the scores of judges by themselves
  # as Yu 2025: a fifth of the room, in which the penalty grows to 1
  "dapo": {"overlong_tokens": TOKENS, "overlong_cache": TOKENS // 5},
}


def get_config(name: str = "rloo") -> ConfigDict:
  """Returns a method on SmolLM2-135M-Instruct and a file of prompts."""
  if name not in METHODS:
    raise ValueError(f"method.py:{name}: must be one of {', '.join(METHODS)}.")
  samples, beta, fields = METHODS[name]
  config = defaults.policy()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.heldout.update(format="prompt", chat=True, max_length=512)
  config.generate.update(max_new_tokens=TOKENS, num_samples=samples)
  config.algorithm.update(name=name, **fields)
  config.shaping.update(
    kl_coefficient=beta, kl_controller="fixed", missing_eos="keep"
  )
  config.shaping.update(SHAPING.get(name, {}))
  steps = 1 if name in ONE_STEP else 2
  config.epochs.update(epochs=1, minibatches=steps, microbatches=4)
  config.policy_optimizer.warmup_steps = 10
  config.schedule.update(batch_size=64 // samples, steps=200, save_every=10)
  return config
