"""Two objectives at many weights: a Pareto front with a picture.

Task: continue a movie review. One judge is the quickstart's reward model, which
likes what people like; the other wants few words, which a plain function
says. The weight goes from one to the other; each setting is a short RLOO run.
Needs a finished quickstart (its SFT model and its reward model).
Time: about two minutes a setting on two CPU cores; docs/objectives.md has
what one seed gave.

  python -m rlhf_jax.sweep --config=configs/pareto.py --workdir=runs/pareto \\
      --pareto=heldout/component/liked,heldout/component/brief

One setting alone, the weights in the middle:

  python -m rlhf_jax.main --config=configs/pareto.py --workdir=runs/both

Your own objectives: change `judges` (docs/objectives.md).
"""

from ml_collections import ConfigDict

from rlhf_jax import sweeps
from rlhf_jax.pipelines import defaults

BEFORE = "runs/quickstart"
FIRST_LAYER = 22  # as in the quickstart
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the reward model


def brief(texts: list[str]) -> list[float]:
  """Scores 0 for an empty answer, and one less for every ten words."""
  return [-len(text.split()) / 10 for text in texts]


def ratings(split: str) -> dict:
  """Returns the Data fields of prompts of one part of the rated sentences."""
  return {
    "source": "asset:movie-review-ratings",
    "format": "ratings",
    "prompt": "Movie review:",
    "prefix_tokens": 3,
    "min_words": 5,
    "max_text_tokens": 22,
    "max_length": 32,
    "splits": "test:700,A:1500,B:1500",
    "split": split,
  }


def get_config() -> ConfigDict:
  """Returns RLOO on the quickstart's model, judged by two."""
  config = defaults.policy("rloo")
  config.model.update(
    source="asset:smollm2-135m-instruct", lora_rank=16, lora_scale=1.0
  )
  config.trainable.update(mode="lora", first_layer=FIRST_LAYER)
  config.init_from = f"{BEFORE}/sft"
  config.judges = ConfigDict(
    {
      "liked": {"reward": f"{BEFORE}/reward", "weight": 0.5},
      "brief": {"reward_fn": f"{__file__}:brief", "weight": 0.5},
    }
  )
  config.prompts.update(ratings("A"))
  config.heldout.update(ratings("test"))
  config.evaluation.count = 128
  config.generate.update(max_new_tokens=20, temperature=0.8, num_samples=4)
  config.shaping.update(
    missing_eos="keep", kl_coefficient=0.1, kl_controller="fixed"
  )
  config.policy_optimizer.update(learning_rate=7.5e-4, warmup_steps=4)
  config.schedule.update(batch_size=16, steps=20, save_every=20, eval_every=20)
  return config


def sweep() -> list[dict]:
  """Returns one trial a weight; the two sum to 1."""
  return sweeps.zipped(
    {
      "judges.liked.weight": list(WEIGHTS),
      "judges.brief.weight": [1.0 - weight for weight in WEIGHTS],
    }
  )
