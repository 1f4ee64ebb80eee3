"""The quickstart on TPU: SmolLM2-135M, movie reviews, all stages.

What configs/quickstart.py trains on two CPU cores, in bfloat16 and without
compaction (rows cannot move between chips), with 16 packed rows of
demonstrations a step so that 16 chips have one each. Every chip holds the
whole model and takes its part of the batch.

  python -m rlhf_jax.main --config=configs/recipes/smollm2.py --workdir=DIR
  python -m rlhf_jax.plan --config=configs/recipes/smollm2.py \\
      --topology=v5e:2x4
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def _quickstart() -> ConfigDict:
  path = Path(__file__).parents[1] / "quickstart.py"
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def get_config() -> ConfigDict:
  """Returns the quickstart as it runs on TPU."""
  config = _quickstart()
  config.title = "Movie reviews that people like, on TPU"
  config.facts.config = "configs/recipes/smollm2.py"
  for stage in ("sft", "reward", "gold", "policy", "evaluation"):
    config[stage].model.dtype = "bfloat16"
  for stage in ("sft", "policy", "evaluation"):
    config[stage].generate.compact = False
  config.sft.schedule.batch_size = 16
  return config
