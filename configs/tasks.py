"""Capability tasks before and after: what a policy forgot (the alignment tax).

Data: files in the layout of MMLU, GSM8K or HumanEval, texts for perplexity,
small tasks made by this package, tasks of lm-eval (docs/tasks.md). The first of
the policies is what the others are compared with, item by item, with 95 %
bootstrap intervals over items; "model" is the model itself.
Method: log-likelihoods of choices, greedy answers (METHODS 14).

  python -m rlhf_jax.main --config=configs/tasks.py \\
      --config.policies=runs/sft,runs/ppo --workdir=runs/tasks
  python -m rlhf_jax.main --config=configs/tasks.py \\
      --config.suite.tasks=mmlu:mmlu.jsonl,gsm8k:test.jsonl,lm_eval:arc_easy \\
      --config.suite.chat=True --config.policies=model,runs/ppo@best \\
      --workdir=runs/tasks_of_mine
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns the tasks that need no files."""
  config = defaults.evaluate_tasks()
  config.model.source = "asset:smollm2-135m-instruct"
  config.policies = "model"
  config.suite.tasks = (
    "made:agreement,made:capitals,made:opposites,made:series,made:prose"
  )
  return config
