"""A reward model on rankings of K answers, as InstructGPT's was trained.

Data: one JSON object a line, {"prompt": ..., "answers": [...], "ranks": [...]}
(0 is the best, equal ones tie, null is not ranked), or a public layout; a
"choice" or "scores" may stand for the ranks (docs/comparisons.md).
Method: Ouyang et al. 2022, section 3.5: all pairs of a prompt in one forward,
one epoch, learning rate 9e-6, cosine to a tenth, 64 prompts a batch, 4 to 9
answers each. The run measures on held-out prompts, keeps its best step
(runs/reward@best) and ends where it gets no better. Not yet run at that size.

  python -m rlhf_jax.main --config=configs/reward_rankings.py \\
      --config.data.source=rankings.jsonl --config.init_from=runs/sft \\
      --workdir=runs/reward

The argument is another loss, configs/reward_rankings.py:choice (or
plackett-luce, regression, ordinal); another layout is --config.data.format.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config(objective: str = "k-wise") -> ConfigDict:
  """Returns a reward model on a file of rankings, with a loss by its name."""
  config = defaults.reward()
  config.model.source = "asset:smollm2-135m-instruct"
  config.data.update(
    format="ranking", rankings="whole", chat=True, max_length=512
  )
  config.loss.objective = objective
  config.schedule.update(
    batch_size=64,  # prompts
    epochs=1.0,
    save_every=50,
    eval_every=25,
    keep_best="validation/loss",
    patience=8,
  )
  config.optimizer.update(learning_rate=9e-6, warmup_fraction=0.03)
  return config
