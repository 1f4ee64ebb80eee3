# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/06_tpu_and_pods.ipynb)

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
# # TPU VMs and pods: meshes, plans, resuming, a grid of runs
#
# What changes on many chips is where arrays live, not what is computed. Here four
# simulated devices stand in for chips, so all of it runs on a CPU; on a TPU VM the same
# lines use the chips that are there.
#
# The next cell sets the size. On two CPU cores the notebook takes about two minutes.

# %%
import os

SIZES = {
  # To see that every line runs.
  "ci": {
    "width": 64,
    "steps": 4,
    "grid": (1e-3, 1e-2),
    "seeds": 1,
    "recipe": "gemma_2b",
  },
  "cpu": {
    "width": 128,
    "steps": 20,
    "grid": (1e-3, 3e-3, 1e-2),
    "seeds": 2,
    "recipe": "llama3_8b",
  },
  # A v5e-1 or a v5e-8 VM: the chips that are there. Not yet run there.
  "tpu": {
    "width": 512,
    "steps": 50,
    "grid": (1e-4, 1e-3, 1e-2),
    "seeds": 3,
    "recipe": "llama3_8b",
  },
}
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = SIZES[SIZE]
if SIZE != "tpu":  # before jax is imported
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
  os.environ["JAX_PLATFORMS"] = "cpu"

# %% [markdown]
# ## A mesh
#
# `data` splits the batch. `fsdp` splits the weights too, and gathers them where they are
# used. `tensor` splits heads and the feed-forward width. -1 takes the devices that are
# left. One table says how each weight is split (`rlhf_jax/parallel/rules.py`).

# %%
from pathlib import Path

import jax

from rlhf_jax import lab, main
from rlhf_jax.models import trees
from rlhf_jax.notebook import blank, pictures
from rlhf_jax.parallel import mesh

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/pods")
MODEL = blank.write(RUN / "model", width=size["width"])
print(jax.device_count(), "devices")
sharded = lab.load(MODEL, mesh=mesh.Config(data=-1, fsdp=2))
print(dict(sharded.mesh.shape))
for path, array in list(trees.flatten(sharded.params).items())[:6]:
  shard = array.addressable_shards[0].data.shape
  print(f"{path:45} {array.shape!s:14} of which a device holds {shard}")

# %% [markdown]
# ## The same numbers
#
# One step of SFT on one device and on four. Losses agree to rounding: a mesh changes
# time and memory, and no result. Random keys are folded from seed, step, prompt and
# sample, so samples do not depend on the mesh either.

# %%
import optax

from rlhf_jax.algorithms import sft

texts = [(f"{i} and {i + 1} is", f" {2 * i + 1}") for i in range(8)]
for config in (
  mesh.Config(devices=1),
  mesh.Config(),
  mesh.Config(data=-1, fsdp=2),
):
  policy, losses = lab.load(MODEL, mesh=config), []
  learn = lab.learner(policy, sft, sft.Config(), optax.adam(1e-3), length=32)
  for _ in range(2):
    policy, metrics = learn(policy, texts)
    losses.append(f"{metrics['sft/loss']:.6f}")
  print(f"{dict(policy.mesh.shape)!s:40} losses {' '.join(losses)}")

# %% [markdown]
# ## Does it fit? A plan
#
# Before a slice is paid for: what each chip holds and sends, and how long a step takes at
# stated peak rates. `--analytic` counts; with libtpu installed (no TPU needed) the real
# programs are compiled for the slice. What does not fit is refused, with remedies.

# %%
import subprocess
import sys


def command(*arguments):
  """Runs a command of the package; returns what it prints."""
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  line = [sys.executable, "-m", *arguments]
  done = subprocess.run(line, env=environment, text=True, capture_output=True)
  return done.stdout + done.stderr


recipe = f"--config=configs/recipes/ppo.py:model={size['recipe']},roles=lora"
print(command("rlhf_jax.plan", recipe, "--topology=v5e:8x8", "--analytic"))

# %% [markdown]
# ## Killed and resumed
#
# Machines are preempted. A run saves checkpoints, each with a checksum, and the same
# command goes on from the newest one. Here one is killed with `kill -9` after its first
# checkpoints and started again; its last losses are those of a run that nobody killed.

# %%
import json
import signal
import time

data = RUN / "sums.jsonl"
rows = [{"prompt": f"{i}+{i}=", "response": str(2 * i)} for i in range(200)]
data.write_text("".join(json.dumps(row) + "\n" for row in rows))
STEPS = 40


def run_line(name):
  fields = {
    "model.source": MODEL, "data.source": data, "data.chat": False,
    "data.max_length": 16, "schedule.batch_size": 16, "schedule.epochs": 0.0,
    "schedule.steps": STEPS, "schedule.save_every": 5, "optimizer.learning_rate": 1e-3,
  }  # fmt: skip
  settings = [f"--config.{field}={value}" for field, value in fields.items()]
  return [
    "rlhf_jax.main",
    "--config=configs/sft.py",
    *settings,
    f"--workdir={RUN / name}",
  ]


def losses(name):
  path = RUN / name / "metrics.jsonl"
  return [
    json.loads(line)["sft/loss"] for line in path.read_text().splitlines()
  ]


command(*run_line("undisturbed"))
environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
victim = subprocess.Popen(
  [sys.executable, "-m", *run_line("killed")],
  env=environment,
  stdout=subprocess.DEVNULL,
  stderr=subprocess.DEVNULL,
)
checkpoint = RUN / "killed" / "checkpoints" / "5" / "manifest.json"
while not checkpoint.exists() and victim.poll() is None:
  time.sleep(0.05)
victim.send_signal(signal.SIGKILL)
victim.wait()
print("killed; steps logged:", len(losses("killed")))
said = command(*run_line("killed"))
print(
  [
    line
    for line in said.splitlines()
    if "goes on" in line or "finished" in line
  ]
)
print("the same losses:", losses("killed") == losses("undisturbed"))

# %% [markdown]
# ## A grid of runs
#
# An experiment file says which runs a sweep has, in `sweep()` beside `get_config()`
# (docs/sweeps.md). Each trial has a folder, a log and a seed of its own; what is done is
# not repeated, and the same command goes on after a kill. A difference between two
# settings is worth believing when it is larger than that between seeds. Trials are
# processes of their own: here they use the CPU, because this notebook holds the chips;
# in a terminal `--chips=1` gives each job one.

# %%
experiment = RUN / "grid.py"
experiment.write_text(f"""
from rlhf_jax import sweeps
from rlhf_jax.pipelines import defaults


def get_config():
  config = defaults.sft()
  config.mesh.devices = 1
  config.model.source = {str(MODEL)!r}
  config.data.update(source={str(data)!r}, format="demonstration", max_length=16)
  config.schedule.update(batch_size=16, steps={size["steps"]}, save_every=1000)
  config.optimizer.weight_decay = 0.0
  return config


def sweep():
  return sweeps.grid({{"optimizer.learning_rate": {list(size["grid"])}}})
""")
GRID = RUN / "grid"
line = [
  "rlhf_jax.sweep",
  f"--config={experiment}",
  f"--workdir={GRID}",
  "--jobs=2",
  f"--seeds={size['seeds']}",
  "--metric=sft/loss",
]
print(command(*line))

# %% [markdown]
# The same command again only writes the tables. A trial is a run like any other: its
# curves are in its folder.


# %%
def finished():
  return [path.stat().st_mtime_ns for path in sorted(GRID.glob("*.log"))]


before = finished()
command(*line)
print("trials run again:", finished() != before)
trials = [
  json.loads(x) for x in (GRID / "trials.jsonl").read_text().splitlines()
]
chosen = trials[: len(size["grid"])]  # the first seed of each setting
pictures.curves(
  {
    f"{rate:g}": GRID / trial["trial"]
    for rate, trial in zip(size["grid"], chosen, strict=True)
  },
  "sft/loss",
)

# %% [markdown]
# ## On a slice
#
# The commands around `gcloud` (tpu_scripts/README.md says what each costs and survives):
#
#     export TPU_NAME=my-tpu TPU_ZONE=us-east5-b TPU_TYPE=v6e-8 TPU_PROVISIONING=spot
#     tpu_scripts/create.sh
#     tpu_scripts/setup.sh
#     tpu_scripts/watch.sh --config=configs/ppo.py --workdir=gs://my-bucket/ppo
#     tpu_scripts/sweep.sh --file=grid.txt --slices=4 --workdir=gs://my-bucket/grid
#     tpu_scripts/delete.sh
#
# On several hosts every worker runs the same command; `--distributed=auto` finds the
# others. Weights and batches are spread by the mesh of the configuration:
# `--config.mesh.fsdp=8 --config.mesh.tensor=1`. In a notebook on a TPU VM of one host set
# `SIZE = "tpu"` above: the mesh is then made of its chips.
