"""A round of self-play fine-tuning (SPIN).

Data: one JSON object a line, {"prompt": ..., "chosen": ..., "rejected": ...},
where people wrote `chosen` and the policy of the round before, init_from,
wrote `rejected`. Start the next round from this run with new `rejected`.
Method: Chen et al. 2024: lambda 0.1, RMSprop at 5e-7, batch 64; the last
round at 1e-7 with lambda 5.
Not yet run on this model: a round needs its own samples.

  python -m rlhf_jax.main --config=configs/spin.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --workdir=runs/spin
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns one round of SPIN on a file of comparisons."""
  config = defaults.preference("spin")
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.schedule.update(batch_size=64, epochs=2.0, save_every=50)
  config.accumulation.microbatches = 4
  config.optimizer.update(
    learning_rate=5e-7,
    schedule="linear",
    warmup_steps=10,
    beta1=0.0,  # without a first moment Adam is RMSprop
    beta2=0.99,
  )
  return config
