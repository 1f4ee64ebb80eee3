"""Odds-ratio preference optimisation (ORPO): SFT and preference in one run.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}.
Needs no SFT run and no reference: it starts from the base model.
Method: Hong et al. 2024, weight 0.1 (Mistral; 0.2 for Llama 2), 5e-6.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/orpo.py \\
      --config.data.source=comparisons.jsonl \\
      --workdir=runs/orpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns ORPO on a file of comparisons."""
  config = defaults.preference("orpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.algorithm.odds_weight = 0.1
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.update(
    learning_rate=5e-6, schedule="cosine", warmup_steps=10
  )
  return config
