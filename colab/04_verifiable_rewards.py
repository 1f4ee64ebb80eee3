# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/04_verifiable_rewards.ipynb)

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
# # Verifiable rewards
#
# Where a program can check an answer, no reward model is needed and none can be fooled;
# the checker can. This notebook checks answers with the verifiers that there are, adds
# one of its own, and then trains: a small model that answers three sums of ten rightly
# learns to answer nearly all of them, from right or wrong alone.
#
# The next cell sets the size. On two CPU cores the notebook takes less than a minute.

# %%
import os

SIZES = {
  # To see that every line runs.
  "ci": {"sft_steps": 5, "steps": 2, "hacked_steps": 2, "shown": 10},
  "cpu": {"sft_steps": 400, "steps": 120, "hacked_steps": 60, "shown": 200},
  # A T4, an L4 or a TPU v5e chip want a larger problem: see the last cell.
  "accelerator": {
    "sft_steps": 500,
    "steps": 200,
    "hacked_steps": 60,
    "shown": 200,
  },
}
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = SIZES[SIZE]

# %% [markdown]
# ## What a verifier says
#
# Texts and references in, one score a text out. `number` reads the number that an answer
# marks as its result, and nothing else: two different results are none.

# %%
from rlhf_jax import main
from rlhf_jax.rewards import verifiers

main.set_up_jax()  # compiled programs are kept for the next time
number = verifiers.bind("number")
said = [
  r"6 times 7 is \boxed{42}.",
  "The answer is #### 42.0",
  "42",  # nothing is marked
  r"\boxed{41} or \boxed{42}",  # both ways
  r"\boxed{42 apples}",
]
for text, value in zip(said, number(said, ["42"] * len(said)), strict=True):
  print(value, text)

# %% [markdown]
# `tags` asks for a form, `code` runs tests in a sandbox, `math` compares formulas with
# sympy, `exact` compares texts. `sum` adds several with weights. Its `gate` names the
# part without which nothing counts: else a policy learns to live off the form.

# %%
form = {
  "verifier": "tags",
  "weight": 0.2,
  "settings": {"tags": ("think", "answer")},
}
right = {
  "verifier": "number",
  "weight": 1.0,
  "settings": {"inside_tag": "answer", "formats": ("last_number",)},
}
both = verifiers.bind("sum", parts=(form, right))
gated = verifiers.bind("sum", parts=(form, right), gate=1)
said = [
  "<think>6 times 7</think><answer>42</answer>",
  "<think>hm</think><answer>7</answer>",  # well formed and wrong
  "it is <answer>42</answer>",  # right and badly formed
]
for text, *values in zip(
  said, both(said, ["42"] * 3), gated(said, ["42"] * 3), strict=True
):
  print(f"sum {values[0]:.1f}, with a gate {values[1]:.1f}  {text}")

# %% [markdown]
# ## One of your own
#
# A function in a file is as good as a name. It may ask for `texts`, `references`,
# `prompts` and more by the names of its parameters.

# %%
from pathlib import Path

RUN = Path("runs/sums")
RUN.mkdir(parents=True, exist_ok=True)
own = RUN / "near.py"
own.write_text('''
"""One minus a tenth of the error, and 0 for what is no number."""


def score(texts, references):
  def one(text, reference):
    if not text.strip().isdecimal():
      return 0.0
    return max(0.0, 1 - abs(int(text) - int(reference)) / 10)

  return [one(*pair) for pair in zip(texts, references, strict=True)]
''')
near = verifiers.bind(f"{own}:score")
print(near(["42", "40", "many"], ["42", "42", "42"]))

# %% [markdown]
# ## A problem and a model
#
# Sums of two digits modulo 10: "7+6=" wants "3". The model is made here: two layers,
# its tokens are bytes, and it knows nothing. It is first shown answers of which 30 of
# 100 are right and the others wrong at random, so it answers 30 of 100 rightly.

# %%
import json

import numpy as np

from rlhf_jax import lab, pipelines
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.pipelines import defaults

MODEL = blank.write(RUN / "model", context=16)
rng = np.random.default_rng(0)
sums = [(f"{a}+{b}=", (a + b) % 10) for a in range(10) for b in range(10)]


def write(name, rows):
  (RUN / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(RUN / name)


def shown(answer):
  wrong = rng.random() >= 0.3
  return str((answer + wrong * rng.integers(1, 10)) % 10)


problems = write(
  "problems.jsonl", [{"prompt": p, "reference": str(x)} for p, x in sums]
)
demonstrations = write(
  "demonstrations.jsonl",
  [
    {"prompt": p, "response": shown(x)}
    for p, x in sums
    for _ in range(size["shown"])
  ],
)

config = defaults.sft()
config.model.source = MODEL
config.data.update(source=demonstrations, format="demonstration", max_length=8)
config.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
config.schedule.update(batch_size=256, steps=size["sft_steps"], save_every=1000)
pipelines.run(config, RUN / "sft")
pictures.curves(RUN / "sft", "sft/loss")

# %% [markdown]
# ## GRPO
#
# Eight answers to each of 32 problems a step; the verifier says right or wrong; an
# answer is as good as it is better than its group. Watch `group/pass1`, the share of
# right answers, and `group/passG`, the share of problems with a right one among eight:
# nothing is learned where that is 0. `group/zero_variance_share` are groups that say
# nothing, because all eight are right or all are wrong; it grows as the policy learns.


# %%
def grpo(run, steps, **verifier):
  config = defaults.policy("grpo")
  config.model.source = MODEL
  config.init_from = str(RUN / "sft")
  config.verifier.update(verifier)
  config.prompts.update(source=problems, format="prompt", max_length=8)
  config.generate.update(max_new_tokens=2, num_samples=8)
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed", clip=None)
  config.epochs.update(epochs=1, minibatches=1)
  config.policy_optimizer.update(learning_rate=1e-3, warmup_steps=5)
  config.schedule.update(batch_size=32, steps=steps, save_every=1000)
  pipelines.run(config, RUN / run)
  return RUN / run


folder = grpo("exact", size["steps"], name="exact")
pictures.curves(
  folder, "group/pass1", "group/passG", "group/zero_variance_share"
)

# %% [markdown]
# ## pass@1 and pass@k
#
# 16 fresh answers to each of the 100 problems, before and after. pass@k is the chance
# that one of k answers is right, without bias (Chen et al. 2021). RL often raises pass@1
# and leaves pass@16 where it was: it makes likely what was possible. All problems were
# trained on, so this says that the policy does what the verifier says, and not that it
# understood addition.

# %%
import jax

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.evaluation import figures

KS = [1, 2, 4, 8, 16]
exact = verifiers.bind("exact")
prompts, references = [p for p, _ in sums], [str(x) for _, x in sums]


def pass_at_k(folder):
  policy = lab.load(folder)
  _, texts = policy.sample(
    prompts, jax.random.key(1), num_samples=16, max_new_tokens=2
  )
  scores = exact(texts, [x for x in references for _ in range(16)]).reshape(
    -1, 16
  )
  return best_of_n.best_of_n_curve(scores, scores, KS).mean(0)


found = {"before": pass_at_k(RUN / "sft"), "after": pass_at_k(folder)}
for name, values in found.items():
  print(
    f"{name:7}",
    "  ".join(f"pass@{k} {x:.2f}" for k, x in zip(KS, values, strict=True)),
  )
pictures.panels(
  figures.Curve(
    "pass@k", "share", {name: (KS, x) for name, x in found.items()}, xlabel="k"
  )
)

# %% [markdown]
# ## A verifier that can be fooled
#
# The same with a slip in the checker: `>=` in the place of `==`. Its reward rises to
# nearly 1, as the right one did, and most of the sums are wrong. Nothing in the curves
# says so. So check a verifier as you would check a program: with answers that must not
# pass.

# %%
slip = RUN / "slip.py"
slip.write_text("""
def score(texts, references):
  def one(text, reference):
    return float(text.strip().isdecimal() and int(text) >= int(reference))

  return [one(*pair) for pair in zip(texts, references, strict=True)]
""")
folder = grpo("hacked", size["hacked_steps"], name=f"{slip}:score")
found["slip"] = pass_at_k(folder)
print(
  f"right answers: {found['before'][0]:.2f} before, {found['slip'][0]:.2f} after"
)
pictures.curves(folder, "rollout/score_mean", "rollout/entropy")

# %% [markdown]
# ## Larger
#
# Grade-school problems on one accelerator; the same pipeline, another file and another
# verifier. Not yet run there.
#
#     python -m rlhf_jax.main --config=configs/grpo_gsm8k.py:path=train.jsonl \
#         --config.model.source=Qwen/Qwen2.5-0.5B-Instruct --config.model.dtype=bfloat16 \
#         --workdir=runs/gsm8k
#
# On a T4 take `--config.model.dtype=float32` and half the `schedule.batch_size`. What
# such a run would hold on a TPU: `python -m rlhf_jax.plan` with the same options
# (notebook 6).
