"""Direct preference optimisation (DPO) on your own comparisons.

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...}
and optionally "label", the probability that chosen is better. Starts from your
SFT run, which is the reference too. A tenth of the prompts is held out.
Method: Rafailov et al. 2023, its released settings: beta 0.1, batch 64,
RMSprop at 1e-6 after 150 steps of warm-up. With labels that are wrong at a
known rate: --config.algorithm.label_smoothing=0.2 (cDPO), and with
--config.algorithm.is_robust=True robust DPO, whose optimum has no bias; others:
algorithm.link="hinge" (SLiC-HF), algorithm.is_length_normalised (Tulu 3).
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/dpo.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/dpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns DPO on a file of comparisons."""
  config = defaults.preference("dpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.update(
    warmup_steps=150,
    beta1=0.0,  # without a first moment Adam is RMSprop
    beta2=0.99,
    clip_norm=10.0,
  )
  return config
