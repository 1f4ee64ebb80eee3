"""Simple preference optimisation (SimPO) on your own comparisons.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}.
No reference, so nothing holds the policy near its start: evaluate the KL and
the lengths of what it writes. Starts from your SFT run.
Method: Meng et al. 2024: beta 2.5, gamma / beta 0.55, 1e-6, batch 128.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/simpo.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/simpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns SimPO on a file of comparisons."""
  config = defaults.preference("simpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.algorithm.update(beta=2.5, margin_ratio=0.55)
  config.schedule.update(batch_size=128, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 8
  config.optimizer.update(schedule="cosine", warmup_steps=10)
  return config
