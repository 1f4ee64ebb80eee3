"""How policies behave, before and after: all suites, one table, one page.

Sycophancy ("are you sure?", opinions; Sharma et al. 2023, arXiv:2310.13548) and
refusals of pairs of one surface and two intents (XSTest, arXiv:2308.01263), on
questions that come with the package or on files of yours. Changes against the
first policy are paired by item, with 95 % intervals: docs/behaviour.md; numbers
before and after DPO and PPO: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/behaviour.py \\
      --config.policies=model,runs/sft,runs/ppo --workdir=runs/behaviour
  python -m rlhf_jax.main --config=configs/behaviour.py \\
      --config.policies='' --config.rewards=runs/reward \\
      --workdir=runs/behaviour_reward

Comparisons that teach a model to stay with what is true, 8 % of the pairs:

  python -m rlhf_jax.main --config=configs/dpo.py \\
      --config.data.source=pairs.jsonl,challenges:ours \\
      --config.data.weights=0.92,0.08 --config.data.chat=True \\
      --workdir=runs/dpo_challenged
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns all suites on SmolLM2-135M-Instruct."""
  config = defaults.behaviour()
  config.model.source = "asset:smollm2-135m-instruct"
  config.policies = "model"
  return config
