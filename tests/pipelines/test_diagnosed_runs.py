"""Real tiny PPO runs with a planted cause: the finding names it."""

import pytest

from rlhf_jax import pipelines
from tests.pipelines import tiny_runs

STEPS = 24


def findings(files, start, scorer, name, **rates):
  """Returns the sentences of a run's findings."""
  config = tiny_runs.policy_config(files, "lora", start, scorer)
  config.schedule.update(steps=STEPS, save_every=STEPS, keep=1)
  config.value.pretrain_steps = 0
  config.policy_optimizer.learning_rate = rates.get("policy", 1e-3)
  config.value_optimizer.learning_rate = rates["value"]
  info = pipelines.run(config, files.root / f"diagnosed_{name}")
  return [text for _, text in info["findings"]]


@pytest.mark.slow
def test_the_critics_rate_is_named(files, sft_lora, reward_head, capsys):
  made = (files, sft_lora, reward_head)
  (high,) = findings(*made, "high", value=3.0)
  assert high.startswith("critic diverges") and "3e+03 times" in high
  assert high in capsys.readouterr().out
  (low,) = findings(*made, "low", value=1e-9)
  assert low.startswith("critic idle") and "rate is too low" in low
  assert findings(*made, "usual", value=2e-2) == []
