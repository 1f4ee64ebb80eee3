"""Preferences between segments of trajectories, in an environment of its own.

Task: hold up a pole, or swing up a pendulum, without ever seeing a reward.
Pairs of segments of 25 steps are compared, by a simulated annotator who sees
the true reward or by people who see the segments drawn; three predictors learn
what is liked; PPO trains on their mean (Christiano et al. 2017,
arXiv:1706.03741).

  segments.py:cart_pole         700 labels; a pole that falls goes on swinging
  segments.py:pendulum          700 labels; a torque too weak to lift it
  segments.py:cart_pole,people  60 labels, on the page that the run serves

Hardware: 2 CPU cores, 1 GiB. The control is --config.agent.reward=true; random
pairs are --config.queries.choose=random; --config.labels.noise=0.1 makes a
tenth of the answers coins.

  python -m rlhf_jax.main --config=configs/segments.py:cart_pole \\
      --workdir=runs/segments
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

ENVIRONMENTS = ("cart_pole", "pendulum")


def get_config(argument: str = "cart_pole") -> ConfigDict:
  """Returns a run of a minute or two.

  Args:
    argument: one of ENVIRONMENTS, and ",people" for people at the page.
  """
  name, comma, by = argument.partition(",")
  if name not in ENVIRONMENTS or (comma and by != "people"):
    raise ValueError(
      f"segments.py:{argument}: must be one of {', '.join(ENVIRONMENTS)}, "
      "with ',people' behind it or not."
    )
  config = defaults.segments()
  config.environment = name
  config.mesh.devices = 1
  if name == "cart_pole":
    # A random policy drops the pole at once: most is asked of better ones.
    config.agent.hidden = config.predictor.hidden = 32
    config.queries.update(first_share=0.1, half_rollouts=60.0)
    config.schedule.steps = 120
  if name == "pendulum":
    config.ppo.discount = 0.95
    config.schedule.steps = 60
  if by == "people":
    config.labels.update(by="page", count=60)
    config.schedule.save_every = 1  # what is done need not be done again
    config.queries.update(first_share=0.2, half_rollouts=10.0)  # soon done
  return config
