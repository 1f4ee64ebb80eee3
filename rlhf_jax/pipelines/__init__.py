"""The only loops and I/O; `RUN` maps a config's `pipeline` to its function."""

from rlhf_jax.pipelines import (
  bond,
  evaluate,
  online_preference,
  policy,
  preference,
  rejection,
  reward,
  rlhf,
  sft,
)

RUN = {
  "sft": sft.run,
  "reward": reward.run,
  "policy": policy.run,
  "preference": preference.run,
  "rejection": rejection.run,
  "online_preference": online_preference.run,
  "bond": bond.run,
  "evaluate": evaluate.run,
  "rlhf": rlhf.run,
}
