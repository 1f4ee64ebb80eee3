"""The quickstart by another method: quickstart_method.py:NAME[,rollouts=N].

Same model, prompts, peak learning rate and number of answers for all: N times
64, with N = 21 as in the quickstart. Not tuned for any method.

Policy gradient: ppo, reinforce, rloo, remax, reinforce_pp, grpo, dr_grpo, dapo,
  gspo, cispo. N rollouts; groups of four to 16 prompts where the method
  compares answers. KL where the method's reward may carry it, as in the
  quickstart; GRPO with its own KL in the loss; Dr. GRPO, DAPO, GSPO and CISPO
  without any, as published. ReMax draws a greedy answer to each prompt besides.
Sampling and ranking: online_dpo (best against worst of four), raft (best of
  four, 48 prompts a round, each round from the one before), j_bond (16 prompts
  a step, two answers of the anchor and one of the policy).
Offline: dpo, ipo, kto, orpo, simpo, cpo. They want a file of N x 64 answers of
  the SFT policy, judged by the same reward model: benchmarks/judged_answers.py
  writes it, and --config.policy.data.source= names it.

  python -m rlhf_jax.main --config=configs/quickstart_method.py:rloo \\
      --config.reuse=runs/quickstart --workdir=runs/rloo

benchmarks/methods_table.py runs several and prints the table.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

# name -> (answers to a prompt, whether the reward carries the KL)
POLICY_GRADIENT = {
  "ppo": (1, True),
  "reinforce": (1, True),
  "rloo": (4, True),
  "remax": (1, True),
  "reinforce_pp": (1, True),
  "grpo": (4, False),
  "dr_grpo": (4, False),
  "dapo": (4, False),
  "gspo": (4, False),
  "cispo": (4, False),
}
ONE_STEP = ("reinforce", "remax")  # no importance ratio: one step a rollout
RANKED = ("online_dpo", "raft", "j_bond")
# name -> its settings, where they are not the defaults
OFFLINE = {
  "dpo": {},
  "ipo": {"is_length_normalised": True},
  "kto": {},
  "orpo": {},
  "simpo": {},
  "cpo": {},
}
METHODS = (*POLICY_GRADIENT, *RANKED, *OFFLINE)
ROLLOUTS = 21
ANSWERS = 64  # of a rollout
GROUP = 4  # answers to a prompt that are compared


def read(argument: str) -> tuple[str, int]:
  """Returns (method, rollouts) of "rloo,rollouts=12"."""
  name, _, rest = argument.partition(",")
  if name not in METHODS:
    raise ValueError(
      f"quickstart_method.py:{name}: must be one of {', '.join(METHODS)}."
    )
  field, _, number = rest.partition("=")
  if rest and (field != "rollouts" or not number.isdigit() or int(number) < 1):
    raise ValueError(
      f"quickstart_method.py:{argument}: write {name},rollouts=12."
    )
  return name, int(number) if rest else ROLLOUTS


def _quickstart() -> ConfigDict:
  path = Path(__file__).with_name("quickstart.py")
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def policy_gradient(policy: ConfigDict, name: str) -> ConfigDict:
  """Returns the quickstart's policy stage with another method."""
  samples, has_kl_reward = POLICY_GRADIENT[name]
  policy.algorithm.update(name=name, value_coefficient=None)
  policy.generate.num_samples = samples
  policy.schedule.batch_size = ANSWERS // samples
  if name in ONE_STEP:
    warmup = policy.policy_optimizer.warmup_steps // policy.epochs.minibatches
    policy.policy_optimizer.warmup_steps = warmup  # as many rollouts
    policy.epochs.minibatches = 1
  if not has_kl_reward:
    policy.shaping.update(kl_coefficient=0.0, kl_controller="fixed")
  return policy


def _like(policy: ConfigDict, config: ConfigDict, steps: int) -> ConfigDict:
  """Returns a stage with model, prompts and optimizer of the quickstart's."""
  for name in ("model", "trainable", "prompts", "generate"):
    if name in config:
      config[name].update(policy[name].to_dict())
  config.optimizer.update(policy.policy_optimizer.to_dict())
  minibatches = policy.epochs.minibatches
  config.optimizer.warmup_steps = max(
    1, policy.policy_optimizer.warmup_steps * steps // (ROLLOUTS * minibatches)
  )
  config.schedule.update(steps=steps, save_every=steps)
  return config


def online_dpo(policy: ConfigDict, rollouts: int) -> ConfigDict:
  """Returns online DPO: the best against the worst of four answers."""
  config = _like(policy, defaults.online_preference("dpo"), rollouts)
  config.generate.num_samples = GROUP
  config.schedule.batch_size = ANSWERS // GROUP
  return config


def raft(policy: ConfigDict, rollouts: int) -> ConfigDict:
  """Returns RAFT: the best of four answers, rounds of three rollouts."""
  if rollouts % 3:
    raise ValueError(f"raft,rollouts={rollouts}: a round takes three.")
  prompts = 3 * ANSWERS // GROUP
  rows = 16
  config = _like(policy, defaults.rejection(), 2 * prompts // rows)
  config.generate.num_samples = GROUP
  config.selection.rule = "per_prompt"
  config.rounds.update(
    count=rollouts // 3, prompts=prompts, batch_size=16, start="previous"
  )
  config.schedule.update(batch_size=rows)
  config.optimizer.update(warmup_steps=1, weight_decay=0.0)
  return config


def j_bond(policy: ConfigDict, rollouts: int) -> ConfigDict:
  """Returns J-BOND: three answers to each of 16 prompts a step."""
  prompts = 16
  if rollouts * ANSWERS % (3 * prompts):
    raise ValueError(f"j_bond,rollouts={rollouts}: must be a multiple of 3.")
  steps = rollouts * ANSWERS // (3 * prompts)
  config = _like(policy, defaults.bond(), steps)
  config.generate.num_samples = 2
  config.schedule.batch_size = prompts
  return config


def offline(policy: ConfigDict, name: str, rollouts: int) -> ConfigDict:
  """Returns a preference method: four steps for each rollout's answers."""
  steps = 4 * rollouts
  config = _like(policy, defaults.preference(name), steps)
  config.algorithm.update(OFFLINE[name])
  is_single = name == "kto"
  config.data.update(
    format="labelled" if is_single else "comparison", max_length=40
  )
  config.schedule.batch_size = 16 if is_single else 8
  return config


def get_config(argument: str = "rloo") -> ConfigDict:
  """Returns the quickstart with a method, and a budget of answers."""
  name, rollouts = read(argument)
  config = _quickstart()
  config.title = f"Movie reviews that people like, by {name}"
  config.facts.config = f"configs/quickstart_method.py:{argument}"
  policy = config.policy
  policy.schedule.update(steps=rollouts)
  if name in OFFLINE:
    config.policy = offline(policy, name, rollouts)
  elif name in RANKED:
    make = {"online_dpo": online_dpo, "raft": raft, "j_bond": j_bond}[name]
    config.policy = make(policy, rollouts)
  elif name != "ppo":
    config.policy = policy_gradient(policy, name)
  return config
