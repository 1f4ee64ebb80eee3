"""Kahneman-Tversky optimisation (KTO) on answers that were liked or not.

Data: one JSON object a line, {"prompt": ..., "response": ..., "label": true},
with more than one prompt. Comparisons do too, with
--config.data.format=comparison: chosen is liked, rejected is not. Starts from
your SFT run. Weights: algorithm.desirable_weight times the liked answers
should be 1 to 1.5 times algorithm.undesirable_weight times the others.
Method: Ethayarajh et al. 2024: beta 0.1, AdamW at 5e-6.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/kto.py \\
      --config.data.source=judged.jsonl --config.init_from=runs/sft \\
      --workdir=runs/kto
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns KTO on a file of judged answers."""
  config = defaults.preference("kto")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="labelled", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=1.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.update(
    learning_rate=5e-6, schedule="linear", warmup_steps=10
  )
  return config
