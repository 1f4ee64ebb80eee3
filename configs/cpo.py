"""Contrastive preference optimisation (CPO) on your own comparisons.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}.
DPO without a reference, held by the likelihood of the preferred answers.
Starts from your SFT run.
Method: Xu et al. 2024, beta 0.1 and weight 1; the optimizer is that of
configs/dpo.py, not the paper's (LoRA on translations).
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/cpo.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/cpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns CPO on a file of comparisons."""
  config = defaults.preference("cpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.warmup_steps = 150
  return config
