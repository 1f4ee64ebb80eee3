"""A reward model on dialogues in the format of Anthropic's HH data.

Data: {"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": ...} a
line, plain or gzipped (Bai et al. 2022, arXiv:2204.05862; MIT). The path is
the config's argument. A head on the frozen lower half of the model, so that
two CPU cores are enough; for a real one set trainable.mode to "lora" or
"full" and use an accelerator.

  python -m rlhf_jax.main --config=configs/reward_hh.py:path=test.jsonl.gz \\
      --workdir=runs/reward_hh
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config(argument: str = "") -> ConfigDict:
  """Returns the config; argument is "path=FILE" or FILE."""
  config = defaults.reward()
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(
    source=argument.removeprefix("path="), format="hh", max_length=256
  )
  config.trainable.mode = "head"
  config.stop_layer = 15
  config.head.pooling = "mean_last"
  config.heldout_fraction = 0.2
  config.schedule.update(batch_size=64, epochs=2.0, save_every=100)
  config.optimizer.update(
    learning_rate=1e-3, weight_decay=1e-2, final_fraction=0.0, clip_norm=None
  )
  return config
