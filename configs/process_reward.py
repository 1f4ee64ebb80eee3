"""A process reward model: which steps of an answer are right.

Data: {"prompt", "steps": [text, ...], "labels": [1, 0, null, ...]} a line, or
data.format="prm800k" or "math_shepherd" as published. A tenth of the prompts is
held out for accuracy, calibration and how often the first error is found.
Method: Lightman et al. 2023 (arXiv:2305.20050): one epoch, cross-entropy at the
ends of steps; the score of an answer there is the product of its steps, in
Math-Shepherd (arXiv:2312.08935) the least. docs/process_rewards.md.

  python -m rlhf_jax.main --config=configs/process_reward.py \\
      --config.data.source=steps.jsonl --config.init_from=runs/sft \\
      --workdir=runs/process_reward

Not yet run on PRM800K or Math-Shepherd.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns a process reward model on a file of judged steps."""
  config = defaults.process_reward()
  config.model.source = "asset:smollm2-135m-instruct"
  config.steps.update(delimiter="\n", score="min")
  config.data.update(format="steps", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.optimizer.warmup_steps = 5
  return config
