"""The peer's side of a comparison, run by the peer's Python: see __main__.py.

transformers' generate, and the trainers of TRL, in float32 on the CPU. They
read the records in the order of the file, but PPO's shuffles its prompts.
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.peers import files, judge
from benchmarks.peers.clock import (
  ANSWERS,
  BATCH,
  GROUP,
  MAX_LENGTH,
  NEW,
  RANK,
  Clock,
)

CLOCK = Clock()  # before anything is imported

PACKED = 4  # rows of 256 tokens, which hold as many examples as BATCH rows


def records(folder, name):
  """Returns a datasets.Dataset of a file of records."""
  import datasets

  rows = files.read(folder, name)
  for row in rows:
    if "response" in row:
      row["completion"] = row.pop("response")
    row |= {  # a space where the answer begins, as words have none
      key: " " + row[key]
      for key in ("completion", "chosen", "rejected")
      if key in row
    }
  return datasets.Dataset.from_list(rows)


def ticking(mark=None, sampled=None):
  """Returns a callback of transformers that ticks after each step.

  Args:
    mark: which of the logged numbers is a mark.
    sampled: list that `count_tokens` fills; its last number is the mark.
  """
  import transformers

  class Ticking(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
      CLOCK.tick(sampled[-1] if sampled else None)

    def on_log(self, args, state, control, logs=None, **_):
      if logs and mark in logs:
        CLOCK.marks.append(float(logs[mark]))

  return Ticking()


def count_tokens(model, pad):
  """Returns a list to which each call of model.generate adds its tokens."""
  found, call = [], model.generate

  def counted(*args, **how):
    output = call(*args, **how)
    tokens = getattr(output, "sequences", output)
    inputs = how.get("input_ids", args[0] if args else None)
    answers = tokens[:, inputs.shape[1] :]
    found.append(float((answers != pad).sum()))
    return output

  model.generate = counted
  return found


def common(folder, steps, rows=BATCH):
  """Returns the arguments that every trainer of TRL takes."""
  return dict(
    output_dir=str(folder / "trl"),
    max_steps=steps,
    per_device_train_batch_size=rows,
    train_sampling_strategy="sequential",
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
  )


def load(folder, dtype="float32"):
  """Returns the model and its tokenizer."""
  import torch
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "model"))
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(folder / "model"), dtype=getattr(torch, dtype)
  )
  return model, tokenizer


def scorer(folder, tokenizer):
  """Returns a model with a head of one number, whose weights ours has too."""
  import torch
  import transformers

  kind = transformers.AutoModelForSequenceClassification
  model = kind.from_pretrained(
    str(folder / "model"), num_labels=1, dtype=torch.float32
  )
  model.config.pad_token_id = tokenizer.pad_token_id
  weights = files.score_weights(model.config.hidden_size)
  with torch.no_grad():
    model.score.weight.copy_(torch.from_numpy(weights)[None])
  return model


def ends(folder, tokenizer):
  """Returns the tokens that end an answer."""
  stops = tokenizer.convert_tokens_to_ids(files.stop_words(folder))
  return [tokenizer.eos_token_id, *stops]


def sft(folder, steps, variant):
  """TRL's SFTTrainer, an example a row or packed."""
  import trl

  model, tokenizer = load(folder)
  is_packed = variant == "packed"
  arguments = trl.SFTConfig(
    **common(folder, steps, PACKED if is_packed else BATCH),
    learning_rate=2e-5,
    max_length=MAX_LENGTH,
    packing=is_packed,  # rows of 256, as many tokens as in BATCH
    completion_only_loss=True,
  )
  trl.SFTTrainer(
    model=model,
    args=arguments,
    train_dataset=records(folder, "demonstrations"),
    processing_class=tokenizer,
    callbacks=[ticking("loss")],
  ).train()


def reward(folder, steps, variant):
  """TRL's RewardTrainer."""
  import trl

  del variant
  _, tokenizer = load(folder)
  trl.RewardTrainer(
    model=scorer(folder, tokenizer),
    args=trl.RewardConfig(
      **common(folder, steps), learning_rate=1e-5, max_length=MAX_LENGTH
    ),
    train_dataset=records(folder, "comparisons"),
    processing_class=tokenizer,
    callbacks=[ticking("loss")],
  ).train()


def dpo(folder, steps, variant):
  """TRL's DPOTrainer; variant "precomputed" asks the reference once."""
  import trl

  model, tokenizer = load(folder)
  trl.DPOTrainer(
    model=model,
    args=trl.DPOConfig(
      **common(folder, steps),
      learning_rate=1e-6,
      max_length=MAX_LENGTH,
      precompute_ref_log_probs=variant == "precomputed",
    ),
    train_dataset=records(folder, "comparisons"),
    processing_class=tokenizer,
    callbacks=[ticking("logps/chosen")],
  ).train()


dpo_epoch = dpo


def adapt(model):
  """Puts factors on all linear maps of the layers, which alone train."""
  import peft

  kinds = ("q", "k", "v", "o", "gate", "up", "down")
  targets = [f"{kind}_proj" for kind in kinds]
  how = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
  return peft.inject_adapter_in_model(how, model)


def ppo(folder, steps, variant):
  """TRL's PPOTrainer with the epochs and minibatches that are ours."""
  import datasets
  from trl.experimental.ppo import PPOConfig, PPOTrainer

  model, tokenizer = load(folder)
  critic = scorer(folder, tokenizer)
  if variant == "lora":
    adapt(model)
    adapt(critic).score.requires_grad_(True)
  tokenizer.padding_side = "left"
  prompts = [row["prompt"] for row in files.read(folder, "prompts")]
  sampled = count_tokens(model, tokenizer.pad_token_id)
  trainer = PPOTrainer(
    args=PPOConfig(
      **common(folder, -1, ANSWERS),
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
    ref_model=load(folder)[0],
    reward_model=scorer(folder, tokenizer),
    value_model=critic,
    train_dataset=datasets.Dataset.from_list(
      [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts]
    ),
    callbacks=[ticking(sampled=sampled)],
  )
  # The trainer itself knows one token that ends an answer, or none.
  model.generation_config.eos_token_id = ends(folder, tokenizer)
  model.generation_config.pad_token_id = tokenizer.pad_token_id
  trainer.train()


def grpo(folder, steps, variant):
  """TRL's GRPOTrainer, its reference as in the method's default here."""
  import trl

  del variant
  model, tokenizer = load(folder)
  sampled = count_tokens(model, tokenizer.pad_token_id)

  def rewards(completions, **_):
    return judge.spread(completions)

  trl.GRPOTrainer(
    model=model,
    args=trl.GRPOConfig(
      **common(folder, steps, ANSWERS),
      learning_rate=1e-6,
      num_generations=GROUP,
      max_completion_length=NEW,
      beta=0.04,
      shuffle_dataset=False,
      generation_kwargs={"eos_token_id": ends(folder, tokenizer)},
    ),
    reward_funcs=rewards,
    train_dataset=records(folder, "prompts"),
    processing_class=tokenizer,
    callbacks=[ticking(sampled=sampled)],
  ).train()


def generate(folder, steps, variant):
  """transformers' generate, of ANSWERS prompts a step."""
  import torch

  model, tokenizer = load(folder, variant)
  tokenizer.padding_side = "left"
  prompts = [row["prompt"] for row in files.read(folder, "prompts")]
  sampled = count_tokens(model, tokenizer.pad_token_id)
  torch.manual_seed(0)
  for step in range(steps):
    part = prompts[step * ANSWERS : (step + 1) * ANSWERS]
    inputs = tokenizer(
      part, return_tensors="pt", padding="max_length", max_length=files.PROMPT
    )
    with torch.no_grad():
      model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW,
        eos_token_id=ends(folder, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
      )
    CLOCK.tick(sampled[-1])


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
