"""Scores of texts that are there already, by reward models or a verifier.

Data: one JSON object a line, {"prompt", "response"} or {"messages"}; what a
verifier judges against in a field "reference". Several reward models are an
ensemble: their mean, and their spread on each text. scores.jsonl repeats every
record with its scores.

  python -m rlhf_jax.main --config=configs/score.py \\
      --config.data.source=texts.jsonl \\
      --config.rewards=runs/reward,runs/gold --workdir=runs/scores
  python -m rlhf_jax.main --config=configs/score.py \\
      --config.data.source=texts.jsonl --config.verifier.name=number \\
      --workdir=runs/verified
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the scores of prompts with answers, rendered as chats."""
  config = defaults.score_texts()
  config.data.chat = True
  return config
