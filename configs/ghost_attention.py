"""Ghost Attention: dialogues that teach to keep what was asked at first.

Touvron et al. 2023 (Llama 2), arXiv:2307.09288, section 3.3: the policy answers
with the instruction in every turn; what is trained on has it in the first one,
and loss on the last answer alone. They had Llama 2 Chat and report instructions
kept over 20 turns. Not yet run as an experiment on a model of that kind; it
teaches what the policy can do already in one turn, and no more.

  python -m rlhf_jax.main --config=configs/ghost_attention.py \\
      --config.policy=runs/ppo --config.prompts.source=questions.jsonl \\
      --workdir=runs/ghost
  python -m rlhf_jax.main --config=configs/sft.py \\
      --config.init_from=runs/ppo \\
      --config.data.source=runs/ghost/dialogues.jsonl \\
      --config.data.format=messages --config.data.chat=True \\
      --config.data.last_answer_only=True --config.data.max_length=1024 \\
      --workdir=runs/lasting
  python -m rlhf_jax.main --config=configs/behaviour.py \\
      --config.suites=persistence --config.turns=8 \\
      --config.policies=runs/ppo,runs/lasting --workdir=runs/lasts
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns dialogues of four turns by SmolLM2-135M-Instruct."""
  config = defaults.ghost_attention()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.format = "prompt"
  return config
