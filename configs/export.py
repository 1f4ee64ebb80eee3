"""A finished run as a folder that transformers, vLLM or peft load.

Any stage, any step that was kept: --config.run=runs/ppo, runs/ppo@best,
runs/ppo@120. A policy becomes whole weights with its LoRA factors merged, or
with --config.form=adapter the factors alone; a reward model with a linear head
on the last token becomes a sequence classifier with one label.

  python -m rlhf_jax.main --config=configs/export.py \\
      --config.run=runs/ppo --workdir=exports/ppo

writes exports/ppo/model (docs/export.md says what is in it).
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the export of a run in bfloat16."""
  config = defaults.export()
  config.dtype = "bfloat16"  # half the bytes of float32, which trained
  return config
