"""RLHF from people's ratings on a laptop: SFT, reward model, PPO, evaluation.

Task: continue a movie review so that people like the sentence. Ratings of
movie-review sentences (about 19 people each) are the human judgements; pairs
are drawn from them: two sentences, one random rater each, the higher one wins.

Model: SmolLM2-135M-Instruct. LoRA on layers 22-29 for the policy; reward
model and critic are heads on the frozen layer 15, the held-out ("gold")
reward model one on layer 18 with other sentences.
Methods: SFT; Bradley-Terry; PPO with adaptive KL (Ziegler et al. 2019).
Hardware: 2 CPU cores, 4 GiB. Time and results: README. With the base in 8
bits (docs/quantisation.md): --config=configs/quickstart.py:int8

  python -m rlhf_jax.main --config=configs/quickstart.py \\
      --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

MODEL = "asset:smollm2-135m-instruct"
RATINGS = "asset:movie-review-ratings"
PROMPT = "Movie review:"
FIRST_LAYER = 22  # LoRA from here up; everything below is computed once
RESPONSE_TOKENS = 20


def ratings(split: str, **changes) -> dict:
  """Returns the Data fields of one part of the rated sentences."""
  return {
    "source": RATINGS,
    "format": "ratings",
    "prompt": PROMPT,
    "min_words": 5,
    "max_text_tokens": 22,
    "max_length": 32,
    "splits": "test:700,A:1500,B:1500",  # disjoint sentences
    "split": split,
    **changes,
  }


def policy_model() -> dict:
  return {"source": MODEL, "lora_rank": 16, "lora_scale": 1.0}


def sampling() -> dict:
  return {
    "max_new_tokens": RESPONSE_TOKENS,
    "temperature": 0.8,  # part of the definition of policy and reference
  }


def sft() -> ConfigDict:
  config = defaults.sft()
  config.model.update(policy_model())
  config.trainable.update(mode="lora", first_layer=FIRST_LAYER)
  config.data.update(ratings("A", pack="all", max_length=64))
  config.schedule.update(batch_size=8, steps=50, save_every=25)
  config.optimizer.update(
    learning_rate=2e-3, warmup_steps=5, final_fraction=0.0, weight_decay=0.0
  )
  config.samples = 256  # reward scores are normalised on these
  config.sample_prompts.update(ratings("A", prefix_tokens=3))
  config.generate.update(sampling(), batch_size=64)
  return config


def reward(split: str, layer: int) -> ConfigDict:
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "head"  # linear head on the frozen trunk
  config.stop_layer = layer
  config.head.pooling = "mean_last"
  config.data.update(ratings(split, pairs=204_800, end_token=False))
  config.heldout.update(
    ratings("test", limit=300, pairs=4_000, end_token=False)
  )
  config.schedule.update(
    batch_size=512, steps=400, save_every=200, log_every=10
  )
  config.optimizer.update(
    learning_rate=3e-3, final_fraction=0.0, weight_decay=1e-2, clip_norm=None
  )
  return config


def policy() -> ConfigDict:
  config = defaults.policy()
  config.model.update(policy_model())
  config.trainable.update(mode="lora", first_layer=FIRST_LAYER)
  config.prompts.update(ratings("A", prefix_tokens=3))
  config.generate.update(sampling())
  config.value.update(mode="head", hidden_units=64)
  config.shaping.update(
    missing_eos="replace",  # a response without an end scores -1
    missing_eos_value=-1.0,
    kl_coefficient=0.09,
    kl_target=7.0,  # nats; ends clearly under 10
    kl_horizon=640.0,  # 64 samples a step: K_beta = 0.1
  )
  config.algorithm.update(
    value_coefficient=1.0,  # the critic has an optimizer of its own
    entropy_coefficient=0.03,  # against falling for a few fine words
  )
  config.epochs.update(epochs=1, minibatches=4)
  config.policy_optimizer.update(
    learning_rate=7.5e-4,
    beta2=0.98,
    warmup_steps=16,
    schedule="linear",  # smaller steps at the end, where the KL grows fast
    final_fraction=0.4,
  )
  config.value_optimizer.update(learning_rate=2e-3, beta2=0.98)
  config.schedule.update(batch_size=64, steps=21, save_every=7)
  return config


def evaluation() -> ConfigDict:
  config = defaults.evaluate()
  config.model.update(policy_model())
  config.prompts.update(ratings("test", prefix_tokens=3))
  config.generate.update(sampling())
  config.count = 256
  config.batch_size = 64
  config.lexicon = True
  return config


CAVEATS = (
  "The comparisons are induced from ratings of single sentences by different "
  "people. Nobody compared two answers to the same prompt.",
  "The gold reward model never trained the policy and has seen other "
  "sentences, but it shares the frozen lower layers with the proxy. It is a "
  "held-out reward model, not the truth.",
  "VADER is a sentiment lexicon. It can be fooled, and a positive sentence is "
  "not a good review.",
  "A model of 135 million parameters writes broken English at times, before "
  "and after.",
  "Distinct bigrams depend on the number and length of the answers; they are "
  "compared at equal counts only.",
)


def get_config(quantize: str = "none") -> ConfigDict:
  """Returns the quickstart; every stage's fields can be overridden.

  Args:
    quantize: bits of the frozen base in all stages: quickstart.py:int8.
  """
  config = defaults.rlhf()
  config.title = "Movie reviews that people like"
  config.sft = sft()
  config.reward = reward("A", layer=15)
  config.gold = reward("B", layer=18)
  config.policy = policy()
  config.evaluation = evaluation()
  for stage in ("sft", "reward", "gold", "policy", "evaluation"):
    config[stage].model.quantize = quantize
  config.facts = ConfigDict(
    {
      "config": "configs/quickstart.py",
      "model": "SmolLM2-135M-Instruct, Q4_1 weights (Apache-2.0, Hugging Face)",
      "human_judgements": "movie-review sentences, about 19 ratings each "
      "(Hutto and Gilbert 2014; MIT, with vaderSentiment 3.3.2)",
      "lexicon": "VADER (MIT; Hutto and Gilbert 2014)",
    }
  )
  config.caveats = CAVEATS
  return config
