# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/03_a_reward_model_of_your_own.ipynb)

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
# # A reward model of your own, and what is wrong with it
#
# A policy does what its reward model says, not what you meant. So look at the reward
# model before anything is trained on it. Here the ratings have a flaw that we put
# there ourselves: some raters look at nothing but the length. Tired people do that. We train on them, find the flaw with four pictures,
# and see what it does to the best of n texts.
#
# The next cell sets the size. On two CPU cores the notebook takes about a minute.

# %%
import os

SIZES = {
  # An untrained model and made-up ratings, to see that every line runs.
  "ci": {"model": "blank", "layer": 1, "train": 80, "held": 64, "steps": 60},
  "cpu": {"train": 500, "held": 300, "steps": 300},
  # A T4, an L4 or a TPU v5e chip. Not yet run there.
  "accelerator": {"train": 3000, "held": 700, "steps": 1000},
}
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct", "layer": 15} | SIZES[SIZE]

# %% [markdown]
# ## What people said
#
# Sentences of movie reviews with about 19 ratings each, from -4 to 4 (Hutto and Gilbert
# 2014). The mean of the ratings is the closest to a truth that there is here.

# %%
import json
from pathlib import Path

import numpy as np

from rlhf_jax import lab, main, pipelines
from rlhf_jax.data import assets, formats
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.pipelines import defaults

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/own_reward")
MODEL = size["model"]
if MODEL == "blank":
  MODEL = blank.write(RUN / "model")
  made_up = blank.ratings(RUN / "ratings.jsonl", count=400)
  sentences = formats.load(made_up, "ratings")
else:
  sentences = assets.movie_reviews(assets.fetch("movie-review-ratings"))

rng = np.random.default_rng(0)
rated = {sentence.text: sentence.ratings for sentence in sentences}
texts = [text for text in rated if 5 <= len(text.split()) <= 15]
texts = [texts[i] for i in rng.permutation(len(texts))]
held, train = texts[: size["held"]], texts[size["held"] :][: size["train"]]
truth = {text: float(np.mean(rated[text])) for text in held}
print(len(train), "sentences to train on,", len(held), "held out")
for text in sorted(held, key=truth.get)[:: len(held) // 4]:
  print(f"{truth[text]:5.2f}  {text}")

# %% [markdown]
# ## Your own file
#
# A reward model reads comparisons, `{"prompt", "chosen", "rejected"}` a line, or ratings,
# `{"text", "ratings"}`, of which it draws comparisons: two sentences, one random rater
# each, the higher rating wins. Here are ratings. In the flawed file `TIRED` of the raters
# were replaced by one who looks at the length alone.

# %%
PROMPT = "Movie review:"
TIRED = 0.4
lengths = [len(text) for text in texts]


def by_length(text):
  return np.clip(
    np.rint(2 * (len(text) - np.mean(lengths)) / np.std(lengths)), -4, 4
  )


def write_ratings(path, texts, tired):
  rows = []
  for text in texts:
    ratings = [
      by_length(text) if rng.random() < tired else x for x in rated[text]
    ]
    rows.append({"text": text, "ratings": [int(x) for x in ratings]})
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


RUN.mkdir(parents=True, exist_ok=True)
flawed = write_ratings(RUN / "flawed.jsonl", train, TIRED)
sound = write_ratings(RUN / "sound.jsonl", train, 0.0)
checked = write_ratings(RUN / "held.jsonl", held, 0.0)
print(Path(flawed).open().readline())

# %% [markdown]
# ## Training
#
# A linear head on a frozen layer: the features of each sentence are computed once, then
# training takes seconds. `heldout` are sentences that it never saw, with all their raters.


# %%
def train_on(source, name):
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "head"
  config.stop_layer = size["layer"]
  config.head.pooling = "mean_last"
  rows = {
    "format": "ratings",
    "prompt": PROMPT,
    "max_length": 160,
    "end_token": False,
  }
  config.data.update(rows, source=source, pairs=512 * size["steps"])
  config.heldout.update(rows, source=checked, pairs=2000)
  config.schedule.update(batch_size=512, steps=size["steps"], log_every=5)
  config.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, clip_norm=None)
  return pipelines.run(config, RUN / name)


info = train_on(flawed, "flawed")
diagnosis = info["diagnosis"]
for name in (
  "accuracy",
  "loss",
  "temperature",
  "length_spearman",
  "accuracy_shorter_won",
  "accuracy_longer_won",
):
  print(f"{name:22} {diagnosis[f'reward_model/{name}']:.3f}")

# %% [markdown]
# ## Four questions
#
# 1. **Is it right on what it has not seen?** Accuracy; 0.5 is a coin.
# 2. **Is it honest?** Where it says 0.8, does the favourite win 8 times of 10? A
#    `temperature` above 1 says that it is too sure.
# 3. **Does it like length?** The middle picture: score difference against length
#    difference. A slope is a bias, unless people like length too. `accuracy_longer_won`
#    far above `accuracy_shorter_won` says the same.
# 4. **Does it go with people over the whole range,** and not only on average?

# %%
from rlhf_jax.evaluation import figures
from rlhf_jax.evaluation import reward_model as diagnostics


def four_pictures(info, name):
  pairs = {key: np.asarray(x) for key, x in info["heldout_pairs"].items()}
  calibration = diagnostics.calibration(
    pairs["score_difference"], pairs["label"]
  )
  bias = pairs | {"rho": info["diagnosis"]["reward_model/length_spearman"]}
  model = lab.load(RUN / name)
  scores = model.score([PROMPT], [f" {text}" for text in held])

  def against_people(axes):
    axes.plot([truth[text] for text in held], scores, ".", ms=3)
    axes.set_xlabel("mean rating of people")
    axes.set_ylabel("score")

  picture = pictures.panels(
    lambda axes: figures.draw_calibration(axes, calibration),
    lambda axes: figures.draw_length_bias(axes, bias),
    against_people,
  )
  return model, dict(zip(held, scores, strict=True)), picture


model, scores, picture = four_pictures(info, "flawed")
picture

# %% [markdown]
# ## Ask it about texts that nobody would send you
#
# A policy will. It finds repetition, exclamation marks and padding, because nothing in
# the ratings spoke against them. Write down what must not win, and look.

# %%
base = "a warm and funny film"
probes = [
  base,
  "a dull and empty film",
  "not a warm and funny film",
  f"{base}, {base}, {base}",
  "warm funny warm funny warm funny",
  f"{base}!!!!!!!!",
  "a dull and empty film, and it goes on and on, as films of this kind do",
]
for text, value in zip(
  probes, model.score([PROMPT], [f" {x}" for x in probes]), strict=True
):
  print(f"{value:6.2f}  {text}")

# %% [markdown]
# ## What it does to the best of n
#
# Let the reward model choose the best of n held-out sentences, and ask people's ratings
# how good the chosen ones are. This is what a policy is pushed towards, without training
# one. The lines should rise together. Where the model's own score rises and the truth
# does not, more optimisation makes things worse (Gao et al. 2023).

# %%
from rlhf_jax.algorithms import best_of_n

GROUP = 32
NS = [1, 2, 4, 8, 16, 32]
groups = [rng.choice(len(held), GROUP, replace=False) for _ in range(200)]


def curves_of(scores):
  """The proxy's own score, people's rating and the length of the best of n."""
  unit = np.std(list(truth.values()))
  by_name = {
    "proxy": [
      (scores[x] - np.mean(list(scores.values())))
      / np.std(list(scores.values()))
      for x in held
    ],
    "gold (people)": [
      (truth[x] - np.mean(list(truth.values()))) / unit for x in held
    ],
    "length, words": [len(x.split()) for x in held],
  }
  table = {key: np.asarray(x)[np.asarray(groups)] for key, x in by_name.items()}
  return {
    key: best_of_n.best_of_n_curve(table["proxy"], x, NS).mean(0)
    for key, x in table.items()
  }


def draw(curves):
  both = {key: (NS, curves[key]) for key in ("proxy", "gold (people)")}
  return pictures.panels(
    figures.Curve("Best of n", "deviations", both, xlabel="n"),
    figures.Curve(
      "What was chosen",
      "words",
      {"": (NS, curves["length, words"])},
      xlabel="n",
    ),
  )


flawed_curves = curves_of(scores)
draw(flawed_curves)

# %% [markdown]
# ## Mend it
#
# The flaw is in the ratings, so it is mended there: the same sentences and settings,
# without the tired rater. Where you cannot ask people again, compare only texts of about
# the same length.

# %%
info = train_on(sound, "sound")
model, scores, picture = four_pictures(info, "sound")
picture

# %%
sound_curves = curves_of(scores)
print(f"people's rating of the best of {GROUP}, in deviations:")
for name, curves in (("flawed", flawed_curves), ("sound", sound_curves)):
  print(
    f"  {name:7} {curves['gold (people)'][-1]:.2f}, {curves['length, words'][-1]:.1f} words"
  )
draw(sound_curves)

# %% [markdown]
# ## And then
#
# The folder is a reward model for every pipeline: `--config.reward=runs/own_reward/sound`
# in PPO, rejection sampling or an evaluation. Two of them that were trained on different
# sentences are better than one: let one train the policy and the other watch
# (`monitors`), as notebook 1 does.
