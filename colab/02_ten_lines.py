# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/02_ten_lines.ipynb)

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
# # The library in ten lines
#
# A policy is a value. `policy.sample` draws answers, any function of yours says how
# good they are, and `learn` returns a new policy and its metrics. That is GRPO in ten
# lines; SFT, DPO and PPO are the same ten with another word in them.
#
# The next cell sets the size. On two CPU cores the notebook takes about four minutes.

# %%
import os

SIZES = {
  # An untrained model of two layers, to see that every line runs.
  "ci": {"model": "blank", "steps": 2, "answers": 4, "tokens": 12},
  "cpu": {"steps": 8, "answers": 4, "tokens": 16},
  # Accelerators: not yet run. T4 has no bfloat16; L4 and TPU v5e have.
  "t4": {"steps": 60, "answers": 16, "tokens": 32},
  "l4": {"steps": 60, "answers": 16, "tokens": 32, "dtype": "bfloat16"},
  "v5e-1": {"steps": 60, "answers": 16, "tokens": 32, "dtype": "bfloat16"},
}
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct", "dtype": "float32"} | SIZES[
  SIZE
]

# %% [markdown]
# ## A model
#
# `lab.load` takes `asset:NAME`, a Hugging Face folder, a GGUF file or the folder of a
# finished run. With `lora_rank` small factors train and the model itself stays.

# %%
import jax
import optax

from rlhf_jax import lab, main
from rlhf_jax.notebook import blank, pictures

main.set_up_jax()  # compiled programs are kept for the next time
source = blank.write("model") if size["model"] == "blank" else size["model"]
start = lab.load(source, lora_rank=16, dtype=size["dtype"])

questions = ["Name a bird.", "Name a tree.", "Name a river.", "Name a star."]
prompts = [[{"role": "user", "content": text}] for text in questions]
how = {"num_samples": size["answers"], "max_new_tokens": size["tokens"]}
samples, texts = start.sample(prompts, jax.random.key(0), **how)
for question, text in zip(questions, texts[:: size["answers"]], strict=True):
  print(f"{question:16} {text!r}")

# %% [markdown]
# ## GRPO with a reward of your own
#
# The reward here wants answers of about 20 characters. Any function will do: a regular
# expression, a program that runs tests, a person at the keyboard.
#
# GRPO compares the answers to one prompt with each other. `rollout/score_mean` should
# rise. `rollout/kl_k1_sum` is how far the policy went from its start, in nats for an
# answer: it may rise, and where it runs away the answers go bad.

# %%
from rlhf_jax.algorithms.policy_gradient import grpo


def score(text):
  return -abs(len(text) - 20) / 20


policy, rows = start, []
config = grpo.Config(group_size=size["answers"])
learn = lab.learner(policy, grpo, config, optax.adam(4e-4))
for step in range(size["steps"]):
  samples, texts = policy.sample(prompts, jax.random.key(step), **how)
  policy, metrics = learn(policy, samples, [score(text) for text in texts])
  rows.append(metrics)
pictures.curves(rows, "rollout/score_mean", "rollout/kl_k1_sum")

# %% [markdown]
# `start` is still what it was: nothing was changed in place. So the two can be
# compared, on answers that neither was trained on.

# %%
numbers, answers = lab.evaluate(
  start,
  policy,
  prompts,
  jax.random.key(100),
  gold=score,
  max_new_tokens=size["tokens"],
)
print(
  f"win rate {numbers['gold_win_rate']:.2f}, KL {numbers['kl_nats']:.2f} nats"
)
for before, after in zip(
  answers["before"].texts, answers["after"].texts, strict=True
):
  print(f"before {before!r}\n after {after!r}")

# %% [markdown]
# ## SFT: show what you want
#
# A conversation is a list of messages, or (prompt, answer). One call is one step of the
# optimizer on the whole list.

# %%
from rlhf_jax.algorithms import sft

shown = ["A wren sings.", "An oak stands.", "The Rhine flows.", "Vega shines."]
conversations = list(zip(prompts, shown, strict=True))
taught, rows = start, []
learn = lab.learner(taught, sft, sft.Config(), optax.adam(1e-3), length=64)
for _ in range(size["steps"]):
  taught, metrics = learn(taught, conversations)
  rows.append(metrics)
samples, texts = taught.sample(prompts, jax.random.key(1), max_new_tokens=16)
print(texts)
pictures.curves(rows, "sft/loss")

# %% [markdown]
# ## DPO: say which of two is better
#
# A pair is (prompt, chosen, rejected). `ipo`, `simpo`, `orpo` and `cpo` read the same.
# `preference/margin` should rise: it is how much more the policy prefers the chosen
# answer than its start did. Watch what becomes of the chosen answers themselves:
# where their probability falls too, the policy is leaving both behind.

# %%
from rlhf_jax.algorithms.preference import dpo

long = "There are many of these, and I could go on and on about them."
pairs = [
  (prompt, text, long) for prompt, text in zip(prompts, shown, strict=True)
]
preferred, rows = start, []
learn = lab.learner(preferred, dpo, dpo.Config(), optax.adam(2e-4), length=128)
for _ in range(size["steps"]):
  preferred, metrics = learn(preferred, pairs)
  rows.append(metrics)
pictures.curves(rows, "preference/loss", "preference/margin")

# %% [markdown]
# ## PPO: with a critic
#
# The critic guesses how good an answer will be from its beginning. Here it is a head on
# the policy's weights that starts at 0. The KL to the start is part of the reward.
# `ppo/explained_variance` near 1 is a critic that knows; below 0 it does harm. A few
# steps are too few for this one: give it more, or start it as a reward model.

# %%
from rlhf_jax.algorithms.policy_gradient import ppo, shaping
from rlhf_jax.programs import critic

policy, rows = start, []
learn = lab.learner(
  policy,
  ppo,
  ppo.Config(),
  {"policy": optax.adam(4e-4), "value": optax.adam(1e-2)},
  critic=critic.Value(init="random", mode="head"),
  shaping=shaping.Config(kl_coefficient=0.02),
)
for step in range(size["steps"]):
  samples, texts = policy.sample(prompts, jax.random.key(step), **how)
  policy, metrics = learn(policy, samples, [score(text) for text in texts])
  rows.append(metrics)
pictures.curves(
  rows, "rollout/score_mean", "rollout/kl_k1_sum", "ppo/explained_variance"
)

# %% [markdown]
# ## And then
#
# `policy.save("runs/mine")` writes a folder that every pipeline can start from, and
# `rlhf_jax.export` one that transformers and vLLM load (notebook 5). All methods by
# name: `python -m rlhf_jax.catalogue`.
