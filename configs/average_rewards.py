"""One reward model of several: the mean of their weights (WARM).

Method: Ramé et al. 2024, arXiv:2401.12187. Train three to five reward models
alike but for the order of their data, from one head:

  for s in 1 2 3; do python -m rlhf_jax.main --config=configs/reward.py \\
      --config.data.source=comparisons.jsonl --config.init_from=runs/sft \\
      --config.head_seed=0 --config.seed=$s --workdir=runs/reward_$s; done

and average them; the result stands wherever a reward run does:

  python -m rlhf_jax.main --config=configs/average_rewards.py \\
      --config.runs=runs/reward_1,runs/reward_2,runs/reward_3 \\
      --config.heldout.source=heldout.jsonl --workdir=runs/reward_mean

Not run at full size; tests/pipelines/test_average_rewards.py runs it small.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the average of reward runs, examined on held-out comparisons."""
  config = defaults.average_rewards()
  config.heldout.update(format="comparison", chat=True, max_length=512)
  config.batch_size = 64
  return config
