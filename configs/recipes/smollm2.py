"""The quickstart on TPU: SmolLM2-135M, movie reviews, all stages.

What configs/quickstart.py trains on two CPU cores, in bfloat16 and with 16
packed rows of demonstrations a step so that 16 chips have one each. Every chip
holds the whole model and takes its part of the batch.

  python -m rlhf_jax.main --config=configs/recipes/smollm2.py --workdir=DIR
  python -m rlhf_jax.plan --config=configs/recipes/smollm2.py \\
      --topology=v5e:2x4 --analytic

Not yet run. What the last command prints, GiB a chip at the fullest moment and
ms of a step if everything overlaps .. nothing does (the reward models read
features that are computed once, one pass a row; evaluation: 64 prompts that
both policies answer):

                          params  optimizer  peak        step
  v5e-1  1x1  sft           0.51       0.01  1.02   6%    2.7 .. 4.7
              reward, gold  0.50       0.00  0.59   4%    0.3 .. 0.3
              policy        0.51       0.01  0.95   6%   18.6 .. 25.7
              evaluation    0.51       0.00  0.94   6%   22.6 .. 29.2
  v5e-8  2x4  sft           0.51       0.01  0.88   6%    1.3 .. 1.6
              reward, gold  0.50       0.00  0.56   4%    0.3 .. 0.3
              policy        0.51       0.01  0.89   6%   14.0 .. 15.1
              evaluation    0.51       0.00  0.88   6%   18.1 .. 18.9
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
  config.sft.schedule.batch_size = 16
  return config
