"""The report card of a finished reward run: one command, a page.

Data: the comparisons that the run held out itself; or a file of comparisons
that it has not seen, in the format of rankings, pairs, HH transcripts, or laid
out as RewardBench, LLMBar or JudgeBench (data.format; docs/report_card.md).

  python -m rlhf_jax.main --config=configs/report_card.py \\
      --config.reward=runs/quickstart/reward --workdir=runs/card
  python -m rlhf_jax.main --config=configs/report_card.py \\
      --config.reward=runs/reward --config.data.source=llmbar.jsonl \\
      --config.data.format=llmbar --workdir=runs/card_llmbar
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the report card; --config.reward says of which run."""
  return defaults.report_card()
