"""Red teaming: attacks on a policy, as they are and in other words.

Perez et al. 2022, arXiv:2202.03286 (attacks by a language model, graded by a
classifier); later rounds go on from the best attempt, as Chao et al. 2023,
arXiv:2310.08419. The attacks of the package are mild, 43 prompts of 11
categories in templates; yours are {"prompt", "category"} a line. Not yet run as
an experiment against a policy that was trained to refuse.

  python -m rlhf_jax.main --config=configs/red_team.py \\
      --config.policy=runs/ppo --workdir=runs/red_team
  python -m rlhf_jax.main --config=configs/red_team.py \\
      --config.policy=runs/ppo --config.attacks=attacks.jsonl \\
      --config.search=policy --config.rounds=3 \\
      --config.rule=reward --config.reward=runs/harmless \\
      --config.threshold=1.0 --workdir=runs/red_team_reward
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the search by templates on SmolLM2-135M-Instruct."""
  config = defaults.red_team()
  config.model.source = "asset:smollm2-135m-instruct"
  return config
