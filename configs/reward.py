"""A Bradley-Terry reward model on your own comparisons.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}
and optionally "label", the probability that chosen is better (0.5: a tie).
A tenth of the prompts is held out for accuracy, calibration and length bias.
Method: Ouyang et al. 2022, one epoch; start from your SFT run. All weights
train. Where memory is short: --config.model.remat=True, with which
batches of 64 HH pairs took 6 GiB on a CPU (docs/memory.md).

  python -m rlhf_jax.main --config=configs/reward.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/reward
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns a reward model on a file of comparisons."""
  config = defaults.reward()
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.optimizer.warmup_steps = 5
  return config
