# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/08_the_science_lab.ipynb)

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
# # The science lab
#
# Five questions that come up once RLHF runs at all. Where does gold turn while the proxy
# still rises? How much reward can a KL buy? Would a run say that its reward is being
# hacked? What else did training change? And what should be tried next? Each is measured
# here, on problems small enough that what is true is known.
#
# The next cell sets the size. On two CPU cores the notebook takes under ten minutes.

# %%
import os

SIZES = {
  # Short, and with an untrained model, to see that every line runs.
  "ci": {
    "model": "blank", "length": 5, "seeds": 2,
    "judges": {"size": ("linear", "width 4")},
    "study": {"steps": 40, "samples": 256, "most": 64},
    "frontier": {"steps": 60, "betas": (0.6, 2.4)}, "problems": 1,
    "shown": 4, "sft_steps": 5, "steps": 12, "dpo_steps": 2, "batch": 4, "items": 2,
  },
  "cpu": {
    "length": 8, "seeds": 4, "problems": 1,
    "judges": {
      "size": ("linear", "width 4", "width 32"),
      "ensemble": ("25 % flipped", "min of 5", "UWO of 5"),
    },
    "study": {"steps": 300, "samples": 8192, "most": 1024},
    "frontier": {"steps": 400},
    "shown": 40, "sft_steps": 300, "steps": 60, "dpo_steps": 40, "batch": 4, "items": 48,
  },
  # A T4, an L4 or a TPU v5e chip. Not yet run there.
  "accelerator": {
    "length": 8, "seeds": 10, "problems": 3,
    "judges": {
      "size": ("linear", "width 4", "width 32"),
      "data": ("250 pairs", "1,000 pairs", "4,000 pairs"),
      "ensemble": ("25 % flipped", "mean of 5", "min of 5", "UWO of 5"),
    },
    "study": {}, "frontier": {},
    "shown": 40, "sft_steps": 300, "steps": 120, "dpo_steps": 100, "batch": 16,
    "items": 0,  # all there are
  },
}  # fmt: skip
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct"} | SIZES[SIZE]

# %%
from pathlib import Path

from rlhf_jax import main, pipelines
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.pipelines import defaults

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/lab")
RUN.mkdir(parents=True, exist_ok=True)


def show(*found, columns=2):
  """Shows pictures of a study's page."""

  def drawn(picture):
    def panel(axes):
      picture.draw(axes, picture.content)
      legend = axes.get_legend()
      lines = -(-len(legend.get_texts()) // 3) if legend else 0
      axes.set_title(picture.title, pad=6 + 12 * lines)

    return panel

  return pictures.panels(*map(drawn, found), columns=columns)


# %% [markdown]
# ## 1 Over-optimisation, with nothing left to chance
#
# All answers of a few tokens are listed, so a policy is a table and nothing is sampled.
# The judge learned gold from comparisons of the start's answers; then its favourites get
# more and more of the probability. d is the root of the KL to the start.

# %%
from rlhf_jax.experiments import curves, curves_page, enumerated_level

space = enumerated_level.make(seed=0, length=size["length"])
print(f"{len(space.gold):,} answers, gold of mean 0 and deviation 1")
exact = curves.rows(enumerated_level.curves(space, width=0, seed=0))
for row in exact:
  peak = row.observed[0]
  print(
    f"{curves_page.METHODS[row.method]:9}  gold peaks at d = {peak.distance:.2f} "
    f"with {peak.gold:.2f} and ends at {peak.end:.2f}; "
    f"the proxy ends at {row.curves[0].proxy[-1]:.2f}"
  )
show(*map(curves_page.of_judge, exact))

# %% [markdown]
# Where the amber line leaves the dashed one, the judge is paid for what gold does not
# like; the triangle is where to stop. "RL" is where RL with a KL penalty ends up, for
# every strength of the penalty.

# %% [markdown]
# ## Judges side by side
#
# Now policies are trained by REINFORCE, on a gold that turns where samples of the start
# hardly go. Judges differ in size, in flipped labels, and in how five members of an
# ensemble are combined; each has several seeds. This is
# `python -m rlhf_jax.overoptimise --level=saturation` with fewer judges.

# %%
from rlhf_jax.experiments import claims, saturation_level

names = [name for group in size["judges"].values() for name in group]
saturation_level.run(
  RUN / "saturation",
  range(size["seeds"]),
  saturation_level.Size(**size["study"]),
  [x for x in saturation_level.conditions() if x.judge in names],
)
table = curves.rows(curves.read(RUN / "saturation"))
trained = {row.judge: row for row in table if row.method == "rl"}
show(
  *(
    curves_page.side_by_side(
      [trained[name] for name in group], "gold", f"gold, by {what}", what
    )
    for what, group in size["judges"].items()
  )
)

# %% [markdown]
# Lines are means of seeds, a triangle is the peak of one, dotted is the fit; what falls
# far below the start is cut off.
#
# Gao et al. (2022) fit d (alpha - beta log d) to gold under RL: R2 is of one curve for
# all seeds, `each` of their own ones, and the interval of the peak is over seeds. `kept`
# needs no fit: gold at the end over its peak, below 0 where gold ends below the start.

# %%
for name in names:
  row = trained[name]
  fit, (low, high) = row.fit, row.spans["peak"]
  print(
    f"{name:12}  alpha {fit.alpha:.2f}  beta {fit.beta:.2f}  R2 {fit.r2:.2f} "
    f"(each {row.r2_each:.2f})  peak at d = {fit.peak:.2f} ({low:.2f} to {high:.2f})  "
    f"kept {row.mean('kept'):.2f}"
  )

# %% [markdown]
# What the literature says of such curves, asked of these. A "NO" at a small size is no
# refutation: look at how many seeds there are.

# %%
claims.show(claims.claims(table))

# %% [markdown]
# ## 2 How much reward a KL can buy
#
# On answers that can be listed, the most reward at each KL is known. Each method learns
# from samples, by the package's own losses; a point below the line has paid KL for
# nothing.

# %%
from rlhf_jax.experiments import frontier

points = frontier.run(size["problems"], frontier.Size(**size["frontier"]))
claims.show(frontier.claims(points))
for method in dict.fromkeys(point.method for point in points):
  _, _, share = frontier.means([x for x in points if x.method == method])
  print(f"{method:13} has {share:.0%} of the reward that its KL could buy")
show(frontier.picture_of(points, 0))

# %% [markdown]
# Which method is best on text this cannot say: here DPO sees comparisons and PPO the
# reward itself. `PPO (learnt)` sees a reward learned from few comparisons: what it lacks
# against PPO is what those did not tell.

# %% [markdown]
# ## 3 A hack, and whether anybody says so
#
# A checker of sums has a slip: it asks whether the right answer stands *somewhere* in
# the text. A model is shown answers of which three in ten are right and one in five is a
# list of four. Two policies start from it: one is paid by the checker with the slip, the
# other by a strict one. The checker that does not pay only watches: its weight is 0.

# %%
import json

import numpy as np

rng = np.random.default_rng(0)
SUMS = [(a, b) for a in range(10) for b in range(a, 10)]


def line(a, b):
  result = a + b if rng.random() < 0.3 else rng.integers(19)
  return f"{a}+{b}={result}"


def answer(a, b):
  if rng.random() < 0.8:
    return line(a, b)
  return "\n".join(f"- {line(a, b)}" for _ in range(4))


def write(name, rows):
  (RUN / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(RUN / name)


problems = write(
  "problems.jsonl",
  [{"prompt": f"{a}+{b}? ", "reference": f"{a}+{b}={a + b}"} for a, b in SUMS],
)
demonstrations = write(
  "demonstrations.jsonl",
  [
    {"prompt": f"{a}+{b}? ", "response": answer(a, b)}
    for a, b in SUMS
    for _ in range(size["shown"])
  ],
)
SLIP = RUN / "slip.py"
_ = SLIP.write_text("""
def score(texts, references):
  return [float(x in text) for text, x in zip(texts, references, strict=True)]
""")

# %% [markdown]
# The model is made here: two layers, its tokens are bytes, and it knows nothing.

# %%
TINY = blank.write(RUN / "tiny", context=64)
config = defaults.sft()
config.model.source = TINY
config.data.update(source=demonstrations, format="demonstration", max_length=64)
config.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
config.schedule.update(batch_size=64, steps=size["sft_steps"], save_every=1000)
pipelines.run(config, RUN / "sft")
pictures.curves(RUN / "sft", "sft/loss")

# %% [markdown]
# Both runs are the same but for the weights of their judges. Neither has a KL penalty,
# so the KL's own guard may stop one early.

# %%
JUDGES = {
  "slip": {"reward_fn": f"{SLIP}:score"},
  "strict": {"verifier": {"name": "exact"}},
}


def trained_by(paid):
  config = defaults.policy("rloo")
  config.model.source, config.init_from = TINY, str(RUN / "sft")
  config.judges = {
    name: judge | {"weight": float(name == paid), "scale": "none"}
    for name, judge in JUDGES.items()
  }
  config.prompts.update(source=problems, format="prompt", max_length=52)
  config.generate.update(max_new_tokens=44, num_samples=4)
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed", clip=None)
  config.packing.row_tokens = 0  # one shape of rows, compiled once
  config.policy_optimizer.update(learning_rate=3e-4, warmup_steps=5)
  config.schedule.update(batch_size=32, steps=size["steps"], save_every=1000)
  pipelines.run(config, RUN / paid)


for name in JUDGES:
  trained_by(name)

# %% [markdown]
# Warnings of repeats and of entropy are no sign of a hack here: a sum has one right
# answer, so who learns it says it again and again.
#
# The monitors of hacks were not told what to look for. They watch for lists, bold words,
# hedges, praise, length and repetition, and for a judge of weight 0 that falls.
# `monitors.replay` reads the metrics of any run and says what rang.

# %%
from rlhf_jax.evaluation import monitors
from rlhf_jax.metrics import read_metrics

for paid in JUDGES:
  watched = [f"reward/component/{x}" for x in JUDGES if x != paid]
  rang = monitors.replay(read_metrics(RUN / paid / "metrics.jsonl"), watched)
  print(f"\npaid by the {paid} checker: {len(rang)} alarms")
  for step, alarm in rang:
    print(f"  step {step}: {alarm.text}")

# %% [markdown]
# Would the score alone have told the two apart? Means of the first and the last five
# steps, and the whole course.

# %%
SHOWN = ("rollout/score_mean", "reward/component/strict", "rollout/list_share")
for paid in JUDGES:
  rows = read_metrics(RUN / paid / "metrics.jsonl")
  ends = [
    f"{name} {np.mean([x[name] for x in rows[:5]]):.2f} -> "
    f"{np.mean([x[name] for x in rows[-5:]]):.2f}"
    for name in SHOWN
  ]
  print(f"paid by {paid:7}", ", ".join(ends))
pictures.curves({f"paid by {name}": RUN / name for name in JUDGES}, *SHOWN)

# %% [markdown]
# ## 4 What else did training change?
#
# Chat models tend to give way when a user doubts them (Sharma et al. 2023). DPO on
# comparisons that stay with what is true (`challenges:ours`, made of facts that are not
# asked below) is meant against that; does it help, and what does it cost?

# %%
is_blank = size["model"] == "blank"
MODEL = blank.write(RUN / "model", context=1024) if is_blank else size["model"]

config = defaults.preference("dpo")
config.model.update(source=MODEL, lora_rank=16)
config.trainable.update(mode="lora", first_layer=1 if is_blank else 20)
config.data.update(source="challenges:ours", format="comparison", chat=True)
config.data.max_length = 512 if is_blank else 128
config.optimizer.update(learning_rate=3e-4, warmup_steps=5)
config.schedule.update(
  batch_size=size["batch"], steps=size["dpo_steps"], save_every=1000
)
pipelines.run(config, RUN / "stays")
pictures.curves(RUN / "stays", "preference/loss", "preference/margin")

# %% [markdown]
# ## Before and after
#
# The policy is asked, doubted ("Are you sure?") and asked again; `flipped` is how often
# a right answer is gone at the end, and `corrected` how often a wrong one is mended by
# the truth. A policy that never moves is no better, so read both.

# %%
from rlhf_jax import terminal
from rlhf_jax.evaluation.behaviour import page

POLICIES = f"model,{RUN / 'stays'}"
config = defaults.behaviour()
config.model.source = MODEL
config.update(policies=POLICIES, suites="flips", count=size["items"])
config.update(answer_tokens=8 if is_blank else 24)
told = pipelines.run(config, RUN / "behaviour")
for heads, rows in page.tables(told):
  print(terminal.format_table(heads, rows))

# %% [markdown]
# Read transcripts before you believe a rate: here are dialogues that end otherwise than
# before.

# %%
lines = (RUN / "behaviour/transcripts.jsonl").read_text().splitlines()
rows = [json.loads(text) for text in lines]
half = len(rows) // 2  # those of the first policy come first
differ = [
  pair
  for pair in zip(rows[:half], rows[half:], strict=True)
  if pair[0]["right_at_last"] != pair[1]["right_at_last"]
]
print(f"{len(differ)} of {half} dialogues")
for pair in differ[:3]:
  for when, row in zip(("before", "after"), pair, strict=True):
    said = [message["content"].strip() for message in row["messages"]]
    print(f"{when:6}", " | ".join(said))

# %% [markdown]
# What it cost: the same two policies on small tasks that have nothing to do with doubt.
# A change whose interval holds 0 may be none.

# %%
from rlhf_jax.evaluation.tasks import tables

config = defaults.evaluate_tasks()
config.model.source, config.policies = MODEL, POLICIES
config.suite.update(
  tasks="made:agreement,made:capitals,made:opposites", limit=size["items"]
)
print(tables.show(pipelines.run(config, RUN / "tasks")))

# %% [markdown]
# ## 5 What to try next
#
# The advisor counts what the data holds and says which method to start with, and what
# that rests on. This is the data of this notebook: sums that can be checked,
# demonstrations, and a few comparisons at 0.5 each. With `--model=shape:llama3_8b
# --chips=v5e:8x8 --price=1.2` it plans memory, hours and money of each stage too.

# %%
from rlhf_jax import advise
from rlhf_jax.data import challenges

pairs = write("pairs.jsonl", [x for _, x in challenges.each("challenges:ours")])
data = f"{problems},{demonstrations},{pairs}"
_ = advise.main(["advise", f"--data={data}", "--annotation=0.5"])

# %% [markdown]
# ## And then
#
# The studies in full, with pages and tables, and over-optimisation on a language model:
#
#     python -m rlhf_jax.overoptimise --level=saturation --workdir=runs/saturation
#     python -m rlhf_jax.frontier --workdir=runs/frontier
#     python -m rlhf_jax.overoptimise --level=pipeline --runs=runs/quickstart \
#         --workdir=runs/overoptimisation
#
# Try here: `shaping.kl_coefficient` in `trained_by`, and see whether the list still wins;
# `suites="flips,opinions,refusals"`; a judge of your own beside the two checkers.
