"""DPO in many languages at once, and what each of them gains and forgets.

Dang et al. 2024, "RLHF Can Speak Many Languages", arXiv:2407.02552. Aya 23 of
8B, 23 languages.

  data     English prompts translated to 22 languages; answers of several models
           in each language, never translated ones; ranked by a reward model
  finding  preferences of one language move the others; more languages and more
           data move them further; training on the policy's own answers (RLOO)
           beats DPO

Changed: SmolLM2-135M-Instruct, which knows English and little else: name a
multilingual model of yours. The rates and beta that they swept are DPO's own
here (Rafailov et al. 2023, arXiv:2305.18290): beta 0.1, 1e-6 after 150 updates,
batch 64. Each language is one file and has an equal share of the data by
`weights`. Held-out losses are told for each language, before and after. For
training on own answers: configs/method.py:rloo on the same prompts.
Not yet run with these values.

Data: comparisons {"prompt", "chosen", "rejected", "language"}, a file for each
language; data.weights has a number for each file.

  python -m rlhf_jax.main --config=configs/papers/aya.py \\
      --config.data.source=en.jsonl,de.jsonl,hi.jsonl \\
      --config.data.weights=1,1,1 \\
      --config.heldout.source='heldout/*.jsonl' \\
      --config.init_from=runs/sft --workdir=runs/multilingual_dpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns DPO on comparisons in several languages."""
  config = defaults.preference("dpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.trainable.mode = "full"
  for section in (config.data, config.heldout):
    section.update(
      format="comparison", chat=True, max_length=1024, by="language"
    )
  config.algorithm.beta = 0.1
  config.accumulation.microbatches = 8
  config.schedule.update(
    batch_size=64, epochs=1.0, save_every=50, eval_every=50
  )
  config.optimizer.update(learning_rate=1e-6, warmup_steps=150)
  return config
