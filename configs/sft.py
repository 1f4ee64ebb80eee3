"""Supervised fine-tuning on your own demonstrations.

Data: one JSON object a line, {"prompt": ..., "response": ...}, or with
format="messages" {"messages": [{"role": ..., "content": ...}, ...]}.
Method: cross-entropy of the responses (Ouyang et al. 2022). Learning rate for
full fine-tuning; LoRA wants about ten times more.

  python -m rlhf_jax.main --config=configs/sft.py \\
      --config.data.source=demonstrations.jsonl --workdir=runs/sft
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns SFT of SmolLM2-135M-Instruct on a file of demonstrations."""
  config = defaults.sft()
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(format="demonstration", chat=True, max_length=512)
  config.validation.update(format="demonstration", chat=True, max_length=512)
  config.schedule.update(batch_size=32, epochs=2.0, save_every=50)
  config.optimizer.warmup_steps = 5
  return config
