"""Identity preference optimisation (IPO) on your own comparisons.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}.
For comparisons that everybody would decide alike: the margin has a finite
target there, and DPO's has none. Starts from your SFT run.
Method: Azar et al. 2023, log-ratios per token as its authors run it, tau 0.1.
The paper trains no language model; the optimizer is that of configs/dpo.py.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/ipo.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/ipo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns IPO on a file of comparisons."""
  config = defaults.preference("ipo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.algorithm.update(tau=0.1, is_length_normalised=True)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.warmup_steps = 150
  return config
