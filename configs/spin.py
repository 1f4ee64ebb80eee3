"""Self-play fine-tuning (SPIN), in rounds that sample for themselves.

Data: demonstrations, {"prompt", "response"} or {"messages"} a line. Each round
the policy answers their prompts and learns to tell the demonstration from its
own answer; the same command goes on with an interrupted round.
Method: Chen et al. 2024, arXiv:2401.01335: four rounds, lambda 0.1, RMSprop at
5e-7, batch 64, two epochs; 50,000 demonstrations, each round beside the
comparisons of the one before; the last two rounds at 1e-7, the very last with
lambda 5.
Changed: 1e-7 in the last round alone.
Not yet run on this model.

  python -m rlhf_jax.main --config=configs/spin.py \\
      --config.sampling.prompts.source=demonstrations.jsonl \\
      --config.init_from=runs/sft --workdir=runs/spin
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns four rounds of SPIN on demonstrations."""
  config = defaults.self_play()
  config.rounds.update(count=4, pool=2, last_beta=5.0, last_learning_rate=1e-7)
  for stage in (config.sampling, config.training):
    stage.model.source = "asset:smollm2-135m-instruct"
  config.sampling.prompts.update(format="messages", chat=True, max_length=512)
  config.sampling.generate.max_new_tokens = 256
  training = config.training
  training.algorithm.beta = 0.1
  training.data.update(chat=True, max_length=512)
  training.schedule.update(batch_size=64, epochs=2.0, save_every=50)
  training.accumulation.microbatches = 4
  training.optimizer.update(
    learning_rate=5e-7,
    schedule="linear",
    warmup_fraction=0.1,
    beta1=0.0,  # without a first moment Adam is RMSprop
    beta2=0.99,
  )
  return config
