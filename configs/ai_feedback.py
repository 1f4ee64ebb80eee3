"""A language model compares answers: soft labels for a reward model (RLAIF).

Data: pairs ({"prompt", "chosen", "rejected"}: the judge is also audited against
these labels, which it does not see), or answers of policies ({"prompt",
"response"} a line, several a prompt: answers.jsonl of configs/generate.py).
feedback.jsonl is then data of format "ranking"; docs/ai_feedback.md.

  python -m rlhf_jax.main --config=configs/ai_feedback.py \\
      --config.data.source=pairs.jsonl --workdir=runs/ai
  python -m rlhf_jax.main --config=configs/reward.py \\
      --config.data.source=runs/ai/feedback.jsonl \\
      --config.data.format=ranking --workdir=runs/rlaif

With a judge behind a URL, which is sent all prompts and answers:

  python -m rlhf_jax.main --config=configs/ai_feedback.py \\
      --config.data.source=pairs.jsonl --config.model.source= \\
      --config.endpoint.url=http://localhost:8000/v1 \\
      --config.endpoint.model=NAME --workdir=runs/ai

SmolLM2-135M-Instruct is the default since it is small, and it is no judge: on
100 pairs of HH's harmlessness test set (principles='') it named the same letter
in both orders in 82 %, and agreed with people in 53 % (43 to 62 %); 3.5 minutes
on two CPU cores.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns both orders of one pair a prompt, by our principles."""
  config = defaults.ai_feedback()
  config.model.source = "asset:smollm2-135m-instruct"
  config.principles = "ours"
  return config
