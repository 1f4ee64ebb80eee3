"""The peer's side of a comparison, run by the peer's Python: see __main__.py.

transformers' generate, and the trainers of TRL, in float32 on the CPU.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.peers import files, judge
from benchmarks.peers.clock import Clock

CLOCK = Clock()  # before anything is imported

BATCH = 16
PACKED = 4  # rows of 256 tokens, which hold as many examples as BATCH rows
ANSWERS, GROUP, NEW = 64, 4, 64


def records(folder, name):
  """Returns a datasets.Dataset of a file of records."""
  import datasets

  lines = (folder / f"{name}.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  if name == "demonstrations":
    rows = [
      {"prompt": row["prompt"], "completion": " " + row["response"]}
      for row in rows
    ]
  if name == "comparisons":
    rows = [
      {"prompt": row["prompt"]}
      | {key: " " + row[key] for key in ("chosen", "rejected")}
      for row in rows
    ]
  return datasets.Dataset.from_list(rows)


def ticking():
  """Returns a callback of transformers that ticks after each step."""
  import transformers

  class Ticking(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
      CLOCK.tick()

    def on_log(self, args, state, control, logs=None, **_):
      if logs and "loss" in logs:
        CLOCK.losses.append(float(logs["loss"]))

  return Ticking()


def common(folder, steps, dtype):
  """Returns the arguments that every trainer of TRL takes."""
  return dict(
    output_dir=str(folder / "trl"),
    max_steps=steps,
    per_device_train_batch_size=BATCH,
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=dtype == "bfloat16",
    gradient_checkpointing=False,
    disable_tqdm=True,
  )


def load(folder, dtype):
  """Returns the model and its tokenizer."""
  import torch
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "model"))
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(folder / "model"), dtype=getattr(torch, dtype)
  )
  return model, tokenizer


def sft(folder, steps, variant):
  """TRL's SFTTrainer, an example a row or packed."""
  import trl

  model, tokenizer = load(folder, "float32")
  shared = common(folder, steps, "float32")
  if variant == "packed":
    shared["per_device_train_batch_size"] = PACKED
  arguments = trl.SFTConfig(
    **shared,
    learning_rate=2e-5,
    max_length=256,
    packing=variant == "packed",  # rows of 256, as many tokens as in BATCH
    completion_only_loss=True,
  )
  trl.SFTTrainer(
    model=model,
    args=arguments,
    train_dataset=records(folder, "demonstrations"),
    processing_class=tokenizer,
    callbacks=[ticking()],
  ).train()


def reward(folder, steps, variant):
  """TRL's RewardTrainer."""
  import transformers
  import trl

  del variant
  _, tokenizer = load(folder, "float32")
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    str(folder / "model"), num_labels=1
  )
  model.config.pad_token_id = tokenizer.pad_token_id
  trl.RewardTrainer(
    model=model,
    args=trl.RewardConfig(
      **common(folder, steps, "float32"), learning_rate=1e-5, max_length=256
    ),
    train_dataset=records(folder, "comparisons"),
    processing_class=tokenizer,
    callbacks=[ticking()],
  ).train()


def dpo(folder, steps, variant):
  """TRL's DPOTrainer; variant "precomputed" asks the reference once."""
  import trl

  model, tokenizer = load(folder, "float32")
  trl.DPOTrainer(
    model=model,
    args=trl.DPOConfig(
      **common(folder, steps, "float32"),
      learning_rate=1e-6,
      max_length=256,
      precompute_ref_log_probs=variant == "precomputed",
    ),
    train_dataset=records(folder, "comparisons"),
    processing_class=tokenizer,
    callbacks=[ticking()],
  ).train()


dpo_epoch = dpo


def ppo(folder, steps, variant):
  """TRL's PPOTrainer with the epochs and minibatches that are ours."""
  import datasets
  import transformers
  from trl.experimental.ppo import PPOConfig, PPOTrainer

  del variant
  model, tokenizer = load(folder, "float32")
  tokenizer.padding_side = "left"
  scalar = transformers.AutoModelForSequenceClassification.from_pretrained
  reward_model, value_model = (
    scalar(str(folder / "model"), num_labels=1) for _ in range(2)
  )
  prompts = [row["prompt"] for row in records(folder, "prompts")]
  arguments = common(folder, steps, "float32")
  arguments |= {"max_steps": -1, "per_device_train_batch_size": ANSWERS}
  trainer = PPOTrainer(
    args=PPOConfig(
      **arguments,
      total_episodes=steps * ANSWERS,
      num_ppo_epochs=2,
      num_mini_batches=2,
      learning_rate=1e-6,
      response_length=NEW,
      temperature=1.0,
      local_rollout_forward_batch_size=ANSWERS,
      num_sample_generations=0,
    ),
    processing_class=tokenizer,
    model=model,
    ref_model=load(folder, "float32")[0],
    reward_model=reward_model,
    value_model=value_model,
    train_dataset=datasets.Dataset.from_list(
      [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts]
    ),
    callbacks=[ticking()],
  )
  ends = tokenizer.convert_tokens_to_ids(files.words()[: files.STOPS])
  model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
  model.generation_config.pad_token_id = tokenizer.pad_token_id
  trainer.train()


def grpo(folder, steps, variant):
  """TRL's GRPOTrainer, its reference as in the method's default here."""
  import trl

  del variant
  model, tokenizer = load(folder, "float32")
  ends = tokenizer.convert_tokens_to_ids(files.words()[: files.STOPS])
  arguments = common(folder, steps, "float32")
  arguments["per_device_train_batch_size"] = ANSWERS
  model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]

  def rewards(completions, **_):
    return judge.spread(completions)

  trl.GRPOTrainer(
    model=model,
    args=trl.GRPOConfig(
      **arguments,
      learning_rate=1e-6,
      num_generations=GROUP,
      max_completion_length=NEW,
      beta=0.04,
      generation_kwargs={
        "eos_token_id": [tokenizer.eos_token_id, *ends],
      },
    ),
    reward_funcs=rewards,
    train_dataset=records(folder, "prompts"),
    processing_class=tokenizer,
    callbacks=[ticking()],
  ).train()


def generate(folder, steps, variant):
  """transformers' generate, of ANSWERS prompts a step."""
  import torch

  dtype = "bfloat16" if variant == "bfloat16" else "float32"
  model, tokenizer = load(folder, dtype)
  tokenizer.padding_side = "left"
  prompts = [row["prompt"] for row in records(folder, "prompts")]
  ends = tokenizer.convert_tokens_to_ids(files.words()[: files.STOPS])
  torch.manual_seed(0)
  for step in range(steps):
    part = prompts[step * ANSWERS : (step + 1) * ANSWERS]
    inputs = tokenizer(
      part, return_tensors="pt", padding="max_length", max_length=40
    )
    with torch.no_grad():
      found = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW,
        eos_token_id=[tokenizer.eos_token_id, *ends],
        pad_token_id=tokenizer.pad_token_id,
      )
    answers = found[:, 40:]
    CLOCK.tick(float((answers != tokenizer.pad_token_id).sum()))


def main():
  """Runs one comparison and writes its times."""
  parser = argparse.ArgumentParser()
  for name in ("comparison", "folder", "workdir", "output", "variant"):
    parser.add_argument(name)
  parser.add_argument("steps", type=int)
  asked = parser.parse_args()
  globals()[asked.comparison](Path(asked.folder), asked.steps, asked.variant)
  names = ("torch", "transformers", "trl")
  versions = {name: importlib.metadata.version(name) for name in names}
  CLOCK.write(asked.output, versions=versions)


if __name__ == "__main__":
  main()
