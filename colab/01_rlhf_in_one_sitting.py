# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/01_rlhf_in_one_sitting.ipynb)

# %%
# Installs the library where it is missing. Its requirements are floors, so what
# Colab has is kept: pip is told to leave jax and numpy exactly as they are.
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("rlhf_jax") is None:
  source = "rlhf_jax @ git+https://github.com/OWNER/rlhf_jax"
  if "/OWNER/" in source:
    raise SystemExit(
      "The address of the repository is a placeholder here. In a checkout: "
      "set [tool.rlhf_jax] repository in pyproject.toml and run "
      "`python colab/notebooks.py pair`, or install from it: pip install -e ."
    )
  kept = {
    f"{package.name}=={package.version}"
    for package in importlib.metadata.distributions()
    if str(package.name).lower().startswith(("jax", "libtpu", "numpy"))
  }
  pathlib.Path("kept.txt").write_text("\n".join(sorted(kept)))
  install = [sys.executable, "-m", "pip", "install", "-q", "-c", "kept.txt"]
  subprocess.run([*install, source], check=True)

# %% [markdown]
# # RLHF in one sitting
#
# From people's ratings to a policy that writes what they like, one stage at a time:
# supervised fine-tuning, a reward model, a second one that only watches, PPO, and a
# comparison on prompts that no stage has seen. It is the job of
# `configs/quickstart.py`, opened up and made smaller.
#
# The task: go on with a movie review so that people like the sentence. The judgements
# are human: sentences of movie reviews, each rated by about 19 people (Hutto and
# Gilbert 2014).
#
# The next cell sets the size. On two CPU cores the notebook takes about four minutes.

# %%
import os

SIZES = {
  # An untrained model and made-up ratings, to see that every line runs.
  "ci": {
    "model": "blank", "sentences": 80, "test": 60, "sft_steps": 2,
    "reward_steps": 30, "steps": 2, "batch": 8, "prompts": 16, "tokens": 8,
  },
  "cpu": {
    "sentences": 800, "test": 300, "sft_steps": 30, "reward_steps": 200,
    "steps": 20, "batch": 48, "prompts": 128, "tokens": 20,
  },
  # As configs/quickstart.py: a T4, an L4 or a TPU v5e chip. Not yet run there.
  "accelerator": {
    "sentences": 1500, "test": 700, "sft_steps": 50, "reward_steps": 400,
    "steps": 21, "batch": 64, "prompts": 256, "tokens": 20,
  },
}  # fmt: skip
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct"} | SIZES[SIZE]

# %% [markdown]
# ## What all stages share
#
# A pipeline is run by a configuration and leaves a folder; the next stage is given that
# folder. `defaults.sft()` has every field of the stage with its default.
#
# The model has 30 layers. The policy trains small factors (LoRA) in the upper eight.
# What the layers below compute is computed once, for everybody.

# %%
import json
from pathlib import Path

from rlhf_jax import main, pipelines
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.pipelines import defaults

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/sitting")
is_blank = size["model"] == "blank"
MODEL = blank.write(RUN / "model") if is_blank else size["model"]
POLICY = {"source": MODEL, "lora_rank": 16, "lora_scale": 1.0}
FIRST_LAYER, PROXY_LAYER, GOLD_LAYER = (1, 1, 2) if is_blank else (22, 15, 18)

RATINGS = {
  "source": "asset:movie-review-ratings",
  "format": "ratings",
  "prompt": "Movie review:",
  "min_words": 5,
  "max_text_tokens": 22,
  "max_length": 32,
  # Three sets of sentences without a common one.
  "splits": f"test:{size['test']},A:{size['sentences']},B:{size['sentences']}",
}
if is_blank:  # its tokens are bytes, so sentences are longer
  made_up = blank.ratings(RUN / "ratings.jsonl", count=300)
  RATINGS |= {"source": made_up, "max_text_tokens": 80, "max_length": 112}
SAMPLING = {"max_new_tokens": size["tokens"], "temperature": 0.8}

# %% [markdown]
# ## Stage 1: supervised fine-tuning
#
# The model has seen the internet. First it learns what a sentence of a movie review
# looks like: cross-entropy on human sentences, good and bad ones alike. Nothing is
# aligned here. This policy is the start of PPO and the reference of its KL.
#
# `sft/loss` is in nats a token. It falls fast and then slowly; where held-out loss rises
# while it falls, stop earlier.

# %%
config = defaults.sft()
config.model.update(POLICY)
config.trainable.update(mode="lora", first_layer=FIRST_LAYER)
config.data.update(RATINGS, split="A", pack="all")
config.data.max_length = 256 if is_blank else 64
config.schedule.update(batch_size=8, steps=size["sft_steps"], save_every=50)
config.optimizer.update(learning_rate=2e-3, warmup_steps=3, weight_decay=0.0)
config.samples = size["prompts"]  # reward scores are normalised on these
config.sample_prompts.update(RATINGS, split="A", prefix_tokens=3)
config.generate.update(SAMPLING, batch_size=min(64, size["prompts"]))
pipelines.run(config, RUN / "sft")
pictures.curves(RUN / "sft", "sft/loss", "sft/gradient_norm")

# %% [markdown]
# ## Stage 2: a reward model
#
# Two sentences, one random rater each: the one with the higher rating wins. From such
# pairs the reward model learns a score. It is a linear head on a frozen layer, so its
# features are computed once and training takes seconds.
#
# What counts is the accuracy on pairs that it has not seen. Raters differ, so 1.0
# cannot be reached: `ceiling` is how often the mean of all raters agrees with one.


# %%
def reward_model(split, layer):
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "head"
  config.stop_layer = layer
  config.head.pooling = "mean_last"
  pairs = {"end_token": False, "split_seed": 0}
  steps = size["reward_steps"]
  config.data.update(RATINGS, split=split, pairs=512 * steps, **pairs)
  config.heldout.update(RATINGS, split="test", pairs=2000, **pairs)
  config.schedule.update(batch_size=512, steps=steps, log_every=5)
  config.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, clip_norm=None)
  config.reference_samples = str(RUN / "sft" / "samples.npz")
  return config


info = pipelines.run(reward_model("A", PROXY_LAYER), RUN / "reward")
print(
  f"accuracy {info['diagnosis']['reward_model/accuracy']:.3f}, ceiling {info['ceiling']:.3f}"
)

# %% [markdown]
# The picture on the right asks whether its probabilities are honest: where it says 0.8,
# does the favourite win 8 times of 10? The one in the middle asks whether it just likes
# long sentences.

# %%
import numpy as np

from rlhf_jax.evaluation import figures
from rlhf_jax.evaluation import reward_model as diagnostics

held = {name: np.asarray(x) for name, x in info["heldout_pairs"].items()}
calibration = diagnostics.calibration(held["score_difference"], held["label"])
bias = held | {"rho": info["diagnosis"]["reward_model/length_spearman"]}
losses = figures.Curve(
  "Loss on training pairs",
  "nats",
  {"": pictures.series(RUN / "reward", "reward_model/loss")},
  lines={"chance": float(np.log(2))},
)
pictures.panels(
  losses,
  lambda axes: figures.draw_length_bias(axes, bias),
  lambda axes: figures.draw_calibration(axes, calibration),
)

# %% [markdown]
# ## A second reward model, which only watches
#
# PPO will find what the first reward model (the proxy) overrates. So another one is
# trained on other sentences and another layer, and never shown to PPO. It is called gold
# here. It is a held-out judge and not the truth.

# %%
info = pipelines.run(reward_model("B", GOLD_LAYER), RUN / "gold")
print(f"accuracy {info['diagnosis']['reward_model/accuracy']:.3f}")

# %% [markdown]
# ## Stage 3: PPO
#
# The policy writes, the proxy scores, and each token's probability is moved by how much
# better the answer was than the critic expected. `kl_coefficient` pulls it back to the
# SFT policy; it adapts so that the KL stays near `kl_target` nats.

# %%
config = defaults.policy()
config.model.update(POLICY)
config.trainable.update(mode="lora", first_layer=FIRST_LAYER)
config.init_from = str(RUN / "sft")
config.reward = str(RUN / "reward")
config.monitors = {"gold": str(RUN / "gold")}  # watches, trains nothing
config.force = is_blank  # its reward model knows too little
config.prompts.update(RATINGS, split="A", prefix_tokens=3)
config.generate.update(SAMPLING)
config.value.update(mode="head", hidden_units=64)
config.shaping.update(
  missing_eos="replace",  # an answer without an end scores -1
  missing_eos_value=-1.0,
  kl_coefficient=0.09,
  kl_target=7.0,
  kl_horizon=640.0,
)
config.algorithm.update(value_coefficient=1.0, entropy_coefficient=0.03)
config.epochs.update(epochs=1, minibatches=4)
config.policy_optimizer.update(learning_rate=1e-3, beta2=0.98, warmup_steps=4)
config.value_optimizer.update(learning_rate=2e-3, beta2=0.98)
config.schedule.update(
  batch_size=size["batch"], steps=size["steps"], save_every=50
)
pipelines.run(config, RUN / "policy")
pictures.curves(
  RUN / "policy",
  "rollout/score_mean",
  "eval/gold",
  "rollout/kl_k1_sum",
  "rollout/entropy",
  "rollout/length_mean",
  "ppo/explained_variance",
)

# %% [markdown]
# How to read them: the score should rise while the KL stays of the order of its target.
# Entropy and distinct-2 that fall towards 0 are a policy that writes one sentence again
# and again. `ppo/explained_variance` near 1 is a critic that knows what is coming.
#
# What the policy wrote, step by step:

# %%
rows = [json.loads(x) for x in (RUN / "policy/samples.jsonl").open()]
for row in rows[:: max(1, len(rows) // 8)]:
  print(f"step {row['step']:3}: {row['prompt']}|{row['response']}")

# %% [markdown]
# ## Stage 4: did it help?
#
# Both policies answer prompts that neither was trained on. Proxy and gold score the
# answers, in deviations of the SFT policy's scores. The win rate of gold is what to
# look at: a proxy that rises alone is a proxy that was fooled.

# %%
config = defaults.evaluate()
config.model.update(POLICY)
config.prompts.update(RATINGS, split="test", prefix_tokens=3)
config.generate.update(SAMPLING)
config.update(count=size["prompts"], batch_size=min(64, size["prompts"]))
config.init_from = str(RUN / "sft")
config.policy = str(RUN / "policy")
config.reward = str(RUN / "reward")
config.gold = str(RUN / "gold")
config.lexicon = True
numbers = pipelines.run(config, RUN / "evaluation")
for name in ("proxy", "gold", "vader", "length", "distinct_2"):
  before, after = (numbers[f"{name}_{when}"] for when in ("before", "after"))
  print(f"{name:12} {before:7.3f} -> {after:7.3f}")
print(
  f"gold win rate {numbers['gold_win_rate']:.3f}, KL {numbers['kl_nats']:.1f} nats"
)

# %%
answers = [json.loads(x) for x in (RUN / "evaluation/texts.jsonl").open()]
for row in answers[:6]:
  print(
    f"{row['prompt']}\n  before: {row['before']}\n  after:  {row['after']}\n"
  )
pictures.panels(
  *(
    figures.Histogram(
      f"{judge} scores",
      "raw score",
      {
        when: [row[f"{judge}_{when}"] for row in answers]
        for when in ("before", "after")
      },
    )
    for judge in ("proxy", "gold")
  )
)

# %% [markdown]
# ## And then
#
# The whole quickstart takes about eight minutes on two cores and writes a report with
# all of these pictures:
#
#     python -m rlhf_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
#
# Try here: `kl_coefficient=0.0` with more steps (the proxy goes up, gold turns down), or
# `defaults.policy("rloo")` in the place of PPO.
