# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/07_people_in_the_loop.ipynb)

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
# # People in the loop
#
# A reward model knows the answers that people compared. A policy that learns from it
# soon writes others, and there it may be wrong. So people compare the new answers too,
# and the next reward model learns from both. Here are such rounds: label, measure
# agreement, train a reward model, improve the policy, label again.
#
# The annotators are simulated unless you name people: what they prefer is known then,
# so that gain can be told from guessing. Another cell opens the page on which you label
# yourself.
#
# The next cell sets the size. On two CPU cores the notebook takes under ten minutes.

# %%
import os

SIZES = {
  # An untrained model and made-up ratings, to see that every line runs.
  "ci": {
    "model": "blank", "sentences": 80, "held": 60, "sft_steps": 2,
    "gold_steps": 30, "comparisons": 20, "test": 10, "reward_steps": 20,
    "steps": 2, "batch": 8, "prompts": 16, "tokens": 8, "rounds": 2,
  },
  "cpu": {
    "sentences": 800, "held": 300, "sft_steps": 30, "gold_steps": 200,
    "comparisons": 160, "test": 80, "reward_steps": 100, "steps": 10,
    "batch": 48, "prompts": 128, "tokens": 20, "rounds": 3,
  },
  # As configs/iterate.py: a T4, an L4 or a TPU v5e chip. Not yet run there.
  "accelerator": {
    "sentences": 1500, "held": 700, "sft_steps": 50, "gold_steps": 400,
    "comparisons": 500, "test": 100, "reward_steps": 200, "steps": 21,
    "batch": 64, "prompts": 256, "tokens": 20, "rounds": 4,
  },
}  # fmt: skip
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct"} | SIZES[SIZE]

# %% [markdown]
# ## Who labels
#
# `PEOPLE = "anna,ben"` lets people label every round: the run then serves the page,
# prints a link for each, and waits. Empty, three simulated annotators answer at once.

# %%
PEOPLE = ""

# %% [markdown]
# ## What the rounds are made of
#
# Each stage is one that you can run alone; notebook 1 has them one by one. The task: go
# on with a movie review so that people like the sentence. `gold` is a reward model of
# people's ratings (Hutto and Gilbert 2014). It is the taste of the simulated annotators,
# and no reward model or policy below is trained on it.

# %%
import json
from pathlib import Path

from rlhf_jax import main, pipelines
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.pipelines import defaults

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/people")
is_blank = size["model"] == "blank"
MODEL = blank.write(RUN / "model") if is_blank else size["model"]
POLICY = {"source": MODEL, "lora_rank": 16, "lora_scale": 1.0}
FIRST_LAYER, REWARD_LAYER, GOLD_LAYER = (1, 1, 2) if is_blank else (22, 15, 18)

RATINGS = {
  "source": "asset:movie-review-ratings",
  "format": "ratings",
  "prompt": "Movie review:",
  "min_words": 5,
  "max_text_tokens": 22,
  "max_length": 32,
  # Three sets of sentences without a common one.
  "splits": f"test:{size['held']},A:{size['sentences']},B:{size['sentences']}",
}
if is_blank:  # its tokens are bytes, so sentences are longer
  made_up = blank.ratings(RUN / "ratings.jsonl", count=300)
  RATINGS |= {"source": made_up, "max_text_tokens": 80, "max_length": 112}
SAMPLING = {"max_new_tokens": size["tokens"], "temperature": 0.8}
TOGETHER = min(64, size["prompts"])

config = defaults.iterate()
config.title = "People in the loop"

sft = config.sft  # the first policy
sft.model.update(POLICY)
sft.trainable.update(mode="lora", first_layer=FIRST_LAYER)
sft.data.update(RATINGS, split="A", pack="all")
sft.data.max_length = 256 if is_blank else 64
sft.schedule.update(batch_size=8, steps=size["sft_steps"], save_every=50)
sft.optimizer.update(learning_rate=2e-3, warmup_steps=3, weight_decay=0.0)
sft.samples = size["prompts"]  # reward scores are normalised on these
sft.sample_prompts.update(RATINGS, split="A", prefix_tokens=3)
sft.generate.update(SAMPLING, batch_size=TOGETHER)

for stage, layer in (
  (config.gold, GOLD_LAYER),
  (config.reward, REWARD_LAYER),
):
  stage.model.source = MODEL
  stage.trainable.mode = "head"  # a linear head on a frozen layer
  stage.stop_layer = layer
  stage.head.pooling = "mean_last"
  stage.optimizer.update(learning_rate=3e-3, weight_decay=1e-2, clip_norm=None)
pairs, steps = {"end_token": False}, size["gold_steps"]
config.gold.data.update(RATINGS, split="B", pairs=512 * steps, **pairs)
config.gold.heldout.update(RATINGS, split="test", pairs=2000, **pairs)
config.gold.schedule.update(batch_size=512, steps=steps, log_every=5)
# What this one reads is what is compared in the rounds.
config.reward.data.update(max_length=RATINGS["max_length"], **pairs)
config.reward.schedule.update(
  batch_size=16 if is_blank else 64, steps=size["reward_steps"], log_every=5
)

policy = config.policy
policy.model.update(POLICY)
policy.trainable.update(mode="lora", first_layer=FIRST_LAYER)
policy.force = is_blank  # its reward model knows too little
policy.prompts.update(RATINGS, split="A", prefix_tokens=3)
policy.generate.update(SAMPLING)
policy.value.update(mode="head", hidden_units=64)
policy.shaping.update(
  missing_eos="replace",  # an answer without an end scores -1
  missing_eos_value=-1.0,
  kl_coefficient=0.09,
  kl_target=7.0,
  kl_horizon=640.0,
)
policy.algorithm.update(value_coefficient=1.0, entropy_coefficient=0.03)
policy.epochs.update(epochs=1, minibatches=4)
policy.policy_optimizer.update(learning_rate=1e-3, beta2=0.98, warmup_steps=4)
policy.value_optimizer.update(learning_rate=2e-3, beta2=0.98)
policy.schedule.update(
  batch_size=size["batch"], steps=size["steps"], save_every=50
)

for stage, split in ((config.sampling, "A"), (config.evaluation, "test")):
  stage.model.update(POLICY)
  stage.prompts.update(RATINGS, split=split, prefix_tokens=3)
  stage.generate.update(SAMPLING)
  stage.batch_size = TOGETHER
config.evaluation.count = size["prompts"]

# %% [markdown]
# ## The first round
#
# Two answers to a prompt are a comparison, and two annotators judge each. They prefer
# what gold prefers, but they do not see it well: `temperature` is noise in units of its
# scores, and the third one does not look at four of ten. `test` comparisons of this
# round train nothing; every reward model is measured on them.
#
# Each policy starts where the one before ended, and its KL is measured to the first.

# %%
names = [name for name in PEOPLE.split(",") if name]
overlap = min(2, len(names)) if PEOPLE else 2
config.rounds.update(count=1, policy_start="last", reference="first")
config.comparisons.update(count=size["comparisons"], test=size["test"])
config.labels.overlap = overlap
if PEOPLE:
  config.labels.update(by="page", people=PEOPLE)
else:
  config.labels.preference = "gold"
  config.annotators.update(
    count=3, temperature=0.3, reliability="1,1,0.6", ties=0.05
  )
if overlap < 2:
  config.agreement.action = "off"  # nobody to agree with
numbers = pipelines.run(config, RUN / "rounds")

# %% [markdown]
# ## What was said
#
# A judgement is a line of JSON, whoever said it: a person, a simulated annotator or a
# language model. `ranks` belong to the answers in their order, 0 is the best; `shown` is
# how they stood on the page.

# %%
from rlhf_jax.programs import iterated

FIRST = RUN / "rounds/round_1"
records = iterated.read(FIRST / "labels.jsonl")
for record in records[:6]:
  print(f"{record['annotator']}: {record['prompt']}")
  for rank, answer in sorted(
    zip(record["ranks"], record["answers"], strict=True)
  ):
    print(f"  {rank}  {answer.strip()!r}")

# %% [markdown]
# ## Do they agree?
#
# Look before a reward model is trained: it cannot be surer than its annotators. `raw` is
# how often two of them say the same of two answers, `alpha` is Krippendorff's, 0 for
# chance and 1 for always. `with the others` finds who does not look, and `weight` is
# what `python -m rlhf_jax.agreement` would give a label of theirs.

# %%
from rlhf_jax.labelling import judgements, summary


def agreement_of(path):
  found, _ = judgements.read(path)
  return summary.summarise(found)


def show(facts):
  overall = facts["objectives"]["overall"]
  print(f"raw {overall['raw'].value:.2f}, alpha {overall['alpha'].value:.2f}")
  for row in facts["by_annotator"]:
    share = row["majority"]
    print(
      f"  {row['name']:12} {row['judgements']:4} judgements, with the others "
      f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f}), "
      f"weight {row['weight']:.2f}"
    )
  for warning in facts["warnings"]:
    print("warning:", warning)


show(agreement_of(FIRST / "labels.jsonl"))

# %% [markdown]
# ## Now you
#
# This cell serves the page with comparisons of the round. Set `WAIT = 300`, run it, and
# open the link: for so many seconds, or until you are done, it waits for you. Keys `1`
# and `2` choose, `t` is a tie, `Enter` submits. With 0 it waits for nobody and goes on.
# Afterwards it says how often you agree with the annotators above.
#
# The link works in a browser of the machine that the notebook runs on, so not from
# Colab. From another machine: `ssh -L PORT:127.0.0.1:PORT MACHINE`.

# %%
import importlib.util
import time

from rlhf_jax.labelling.loop import serve, wait_for
from rlhf_jax.labelling.store import Store
from rlhf_jax.labelling.task import Task

WAIT = 0  # seconds

if importlib.util.find_spec("uvicorn") is None:
  print("The page needs two more packages: pip install starlette uvicorn")
else:
  with (
    Store(RUN / "yours", Task(check_share=0.0)) as store,
    serve(store) as page,
  ):
    store.add_annotator("you")
    store.add_items(iterated.read(FIRST / "items.jsonl")[:20], batch="a look")
    print("the page:", page.link("you") if WAIT else page.address)
    until = time.monotonic() + WAIT
    wait_for(store, "a look", should_stop=lambda: time.monotonic() >= until)
    yours = [row for row in store.records("a look") if not row.get("skipped")]
  if yours:
    iterated.write(RUN / "both.jsonl", [*records, *yours])
    show(agreement_of(RUN / "both.jsonl"))
  else:
    print("nobody was there: the rounds go on without you")

# %% [markdown]
# ## What the reward model and the policy made of it
#
# On the left the loss on the comparisons. The others are of the policy: what the reward
# model thinks of its answers, and how far it went from the first policy.

# %%
from rlhf_jax.evaluation import figures

row = numbers["rounds"][0]
print(f"reward model: accuracy {row['reward_accuracy']:.3f} on held-out pairs")
print(
  f"policy: {row['judge']} {row['judge_before']:.3f} -> "
  f"{row['judge_after']:.3f}, KL {row['kl_nats']:.1f} nats"
)
curves = {
  "Loss of the reward model": ("reward", "reward_model/loss"),
  "Score of its policy": ("policy", "rollout/score_mean"),
  "KL to the first policy": ("policy", "rollout/kl_k1_sum"),
}
pictures.panels(
  *(
    figures.Curve(title, "", {"": pictures.series(FIRST / folder, metric)})
    for title, (folder, metric) in curves.items()
  )
)

# %% [markdown]
# ## Label again
#
# More rounds are a larger number and the same call. What is finished is not repeated,
# and a run that was killed goes on the same way. In each round the newest policy answers,
# its answers are compared, and the next reward model learns from all rounds.

# %%
config.rounds.count = size["rounds"]
numbers = pipelines.run(config, RUN / "rounds")

# %% [markdown]
# ## Round by round
#
# 1. **Agreement.** It falls where answers become alike, or people tired.
# 2. **The reward model**, on the frozen comparisons of round 1, and on those of the *next*
#    round, which the policy that it trained wrote. The second is the reason for rounds:
#    where it is lower, the policy has left what the reward model knows.
# 3. **Gold** of the policy's answers and of the first policy's, to prompts that nothing
#    trained on. With people gold is not known: then it is the round's own reward model,
#    which is no neutral judge.

# %%
rows = numbers["rounds"]


def by_round(name):
  values = [row[name] for row in rows]  # None where it is not known
  rounded = [x if x is None else round(x, 3) for x in values]
  return [row["round"] for row in rows], rounded


pictures.panels(
  figures.Curve(
    "Agreement of two annotators",
    "share",
    {"": by_round("agreement")},
    {"warn": config.agreement.threshold},
    xlabel="round",
  ),
  figures.Curve(
    "Accuracy of the reward model",
    "share",
    {
      "held-out": by_round("reward_accuracy"),
      "next round": by_round("freshness"),
    },
    {"chance": 0.5},
    xlabel="round",
  ),
  figures.Curve(
    f"What answers are worth ({numbers['judge']})",
    "score",
    {"policy": by_round("judge_after"), "before": by_round("judge_before")},
    xlabel="round",
  ),
)

# %%
last = RUN / f"rounds/round_{size['rounds']}/evaluation/texts.jsonl"
for row in [json.loads(line) for line in last.open()][:6]:
  print(
    f"{row['prompt']}\n  before: {row['before']}\n  after:  {row['after']}\n"
  )

# %% [markdown]
# ## And then
#
# `runs/people/rounds/report.html` has all of it. Larger, four rounds of 500 comparisons,
# and with people:
#
#     python -m rlhf_jax.main --config=configs/iterate.py:page \
#         --config.labels.people=anna,ben --workdir=runs/iterate
#
# Try here: `config.rounds.policy_start = "first"` in another folder, or an annotator who
# never looks, `reliability="1,1,0"`. Stop the run where people do not agree with
# `config.agreement.action = "stop"`.
