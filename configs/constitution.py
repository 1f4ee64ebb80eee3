"""Constitutional AI, first stage: answers, criticised and written again.

Bai et al. 2022, arXiv:2212.08073, section 3: prompts that provoke bad answers
({"prompt": ...} a line), up to 4 revisions, one of 16 principles drawn for
each, temperature 1; then SFT of the pretrained model on the last revisions,
with helpful samples beside them so that it stays helpful. They had a 52B model
that was trained to be helpful, and few-shot examples; here an instructed one
answers and criticises. Small models do not: SmolLM2-135M-Instruct's critiques
of 12 HH prompts were nonsense at temperature 1, and at 0.3 its revisions often
were the critique again ("repeated" in constitution.json). Read revisions.jsonl.

  python -m rlhf_jax.main --config=configs/constitution.py \\
      --config.prompts.source=red_team.jsonl --workdir=runs/constitution
  python -m rlhf_jax.main --config=configs/sft.py \\
      --config.data.source=runs/constitution/revisions.jsonl \\
      --config.data.format=messages --workdir=runs/sl_cai

The second stage, labels by the same principles, is configs/ai_feedback.py.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns one revision of each answer of SmolLM2-135M-Instruct."""
  config = defaults.constitution()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True)
  config.rounds = 1
  config.answer_tokens = config.critique_tokens = 128
  return config
