"""Tunix's side of a comparison, run by its Python: see __main__.py.

Its sampler and its trainers on its Llama, in float32 on the CPU. Batches are
ours: Tunix leaves to its user how wide a row is, and a row is as wide here as
the longest record, so that one program serves all.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.peers import files, judge
from benchmarks.peers.clock import ANSWERS, BATCH, GROUP, NEW, Clock

CLOCK = Clock()  # before anything is imported


def mesh():
  """Returns a mesh of one device."""
  import jax
  import numpy as np

  devices = np.array(jax.devices()[:1]).reshape(1, 1)
  return jax.sharding.Mesh(devices, ("fsdp", "tp"))


def load(folder):
  """Returns Tunix's Llama with the weights of the folder."""
  import jax.numpy as jnp
  from tunix.models.llama3 import model, params

  saved = json.loads((folder / "model" / "config.json").read_text())
  config = model.ModelConfig(
    num_layers=saved["num_hidden_layers"],
    vocab_size=saved["vocab_size"],
    embed_dim=saved["hidden_size"],
    hidden_dim=saved["intermediate_size"],
    num_heads=saved["num_attention_heads"],
    head_dim=saved["head_dim"],
    num_kv_heads=saved["num_key_value_heads"],
    rope_theta=int(saved["rope_theta"]),
    norm_eps=saved["rms_norm_eps"],
    weight_tying=True,
  )
  return params.create_model_from_safe_tensors(
    str(folder / "model"), config, mesh(), dtype=jnp.float32
  )


def tokenizer_of(folder):
  """Returns the tokenizer."""
  import transformers

  return transformers.AutoTokenizer.from_pretrained(str(folder / "model"))


def ends(folder, tokenizer):
  """Returns the tokens that end an answer."""
  stops = tokenizer.convert_tokens_to_ids(files.stop_words(folder))
  return [tokenizer.eos_token_id, *stops]


def adamw(learning_rate):
  """Returns the optimizer that ours is by default."""
  import optax

  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, b2=0.95)
  )


def ticking(kind, mark=""):
  """Returns a trainer class that waits for each step and ticks."""

  class Ticking(kind):
    def _post_process_train_step(self, aux):
      super()._post_process_train_step(aux)
      loss = self._buffered_train_metrics.losses[-1]
      CLOCK.tick(float(aux[mark] if mark else loss))

  return Ticking


def padded(rows, width, is_left=False):
  """Returns int32 [rows, width] tokens, 0 being the pad, and bool mask."""
  import numpy as np

  tokens = np.zeros((len(rows), width), np.int32)
  mask = np.zeros((len(rows), width), bool)
  for n, row in enumerate(rows):
    part = slice(width - len(row), width) if is_left else slice(len(row))
    tokens[n, part], mask[n, part] = row, True
  return tokens, mask


def batches(rows, steps):
  """Returns the records of each step."""
  return [rows[n * BATCH : (n + 1) * BATCH] for n in range(steps)]


def sft(folder, steps, variant):
  """Tunix's PeftTrainer without adapters, on answers alone."""
  from tunix.sft import peft_trainer, utils

  del variant
  tokenizer = tokenizer_of(folder)
  rows = []
  for row in files.read(folder, "demonstrations"):
    prompt = tokenizer.encode(row["prompt"])
    answer = [*tokenizer.encode(row["response"]), tokenizer.eos_token_id]
    rows.append((prompt + answer, len(prompt)))
  width = max(len(tokens) for tokens, _ in rows)

  def batch(part):
    tokens, valid = padded([row for row, _ in part], width)
    answer = valid.copy()
    for n, (_, start) in enumerate(part):
      answer[n, :start] = False
    return {"tokens": tokens, "valid": valid, "answer": answer}

  trainer = ticking(peft_trainer.PeftTrainer)(
    load(folder),
    adamw(2e-5),
    peft_trainer.TrainingConfig(eval_every_n_steps=10**6, max_steps=steps),
  ).with_gen_model_input_fn(
    lambda x: {
      "input_tokens": x["tokens"],
      "input_mask": x["answer"],
      "positions": utils.build_positions_from_mask(x["valid"]),
      "attention_mask": utils.make_causal_attn_mask(x["valid"]),
    }
  )
  with mesh():
    trainer.train([batch(part) for part in batches(rows, steps)])


def dpo(folder, steps, variant):
  """Tunix's DPOTrainer; it asks the reference in each step."""
  from tunix.sft.dpo import dpo_trainer

  del variant
  tokenizer = tokenizer_of(folder)
  rows = [
    {key: tokenizer.encode(text) for key, text in row.items()}
    for row in files.read(folder, "comparisons")
  ]
  for row in rows:
    row["chosen"].append(tokenizer.eos_token_id)
    row["rejected"].append(tokenizer.eos_token_id)
  width = max(max(len(r["chosen"]), len(r["rejected"])) for r in rows)

  def batch(part):
    found = {}
    for name, key, size in (
      ("prompt", "prompt", files.PROMPT),
      ("chosen", "chosen", width),
      ("rejected", "rejected", width),
    ):
      ids, mask = padded([r[key] for r in part], size, name == "prompt")
      found |= {f"{name}_ids": ids, f"{name}_mask": mask}
    return dpo_trainer.TrainingInput(**found)

  kind = ticking(dpo_trainer.DPOTrainer, "log_probs/chosen")
  trainer = kind(
    model=load(folder),
    ref_model=load(folder),
    optimizer=adamw(1e-6),
    training_config=dpo_trainer.DPOTrainingConfig(
      eval_every_n_steps=10**6, max_steps=steps, beta=0.1
    ),
  )
  with mesh():
    trainer.train([batch(part) for part in batches(rows, steps)])


def cluster(folder, steps, updates, rows, critic=None):
  """Returns an RLCluster that ticks when it generates, and its prompts."""
  import jax
  import numpy as np
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  tokenizer, one = tokenizer_of(folder), mesh()
  roles = rl_cluster.Role
  used = [roles.ACTOR, roles.REFERENCE, roles.ROLLOUT]
  used += [roles.CRITIC] if critic is not None else []
  optimizers = {"actor_optimizer": adamw(1e-6)}
  if critic is not None:
    optimizers["critic_optimizer"] = adamw(1e-5)
  config = base_rollout.RolloutConfig(
    max_tokens_to_generate=NEW,
    max_prompt_length=files.PROMPT,
    kv_cache_size=files.PROMPT + NEW,
    temperature=1.0,
    top_p=1.0,
    eos_tokens=ends(folder, tokenizer),
  )
  found = rl_cluster.RLCluster(
    actor=load(folder),
    reference=load(folder),
    critic=critic,
    tokenizer=tokenizer,
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(used, one),
      rollout_config=config,
      training_config=rl_cluster.RLTrainingConfig(
        **optimizers,
        eval_every_n_steps=10**6,
        max_steps=updates * steps,
        mini_batch_size=rows,
        train_micro_batch_size=rows,
      ),
    ),
  )
  generate, sampled = found.generate, []

  def counted(*args, **how):
    if sampled:  # the step before is done
      CLOCK.tick(sampled[-1])
    config.seed = jax.random.PRNGKey(len(sampled))
    output = generate(*args, **how)
    sampled.append(float(sum(len(x) for x in output.tokens)))
    return output

  found.generate = counted
  prompts = [row["prompt"] for row in files.read(folder, "prompts")]
  parts = np.array(prompts)[: steps * rows].reshape(steps, rows)
  return found, [{"prompts": part} for part in parts], sampled


def rewards(prompts, completions, **_):
  """Returns the reward that ours has."""
  del prompts
  return judge.spread(completions)


def grpo(folder, steps, variant):
  """Tunix's GRPOLearner, one update a rollout."""
  from tunix.rl.grpo import grpo_learner

  del variant
  found, data, sampled = cluster(folder, steps, 1, ANSWERS // GROUP)
  grpo_learner.GRPOLearner(
    rl_cluster=found,
    reward_fns=rewards,
    algo_config=grpo_learner.GRPOConfig(
      num_generations=GROUP, num_iterations=1, beta=0.04
    ),
  ).train(data)
  CLOCK.tick(sampled[-1])


def critic_of(folder):
  """Returns the Llama with a head of one number.

  Tunix 0.1.7 gives critics segments, which its Llama does not take; a mask says
  the same.
  """
  from flax import nnx
  from tunix.models.llama3 import model

  class Critic(model.Llama3):
    def __call__(self, *args, segment_ids=None, **how):
      del segment_ids
      return super().__call__(*args, **how)

  critic = load(folder)
  critic.__class__ = Critic
  width = critic.config.embed_dim
  critic.config = dataclasses.replace(critic.config, weight_tying=False)
  critic.lm_head = nnx.Linear(width, 1, use_bias=False, rngs=nnx.Rngs(0))
  return critic


def judged_ppo(folder, steps, variant):
  """Tunix's PPOLearner, two updates of policy and critic a rollout."""
  from tunix.rl.ppo import ppo_learner

  del variant
  critic = critic_of(folder)
  found, data, sampled = cluster(folder, steps, 2, ANSWERS, critic)
  ppo_learner.PPOLearner(
    rl_cluster=found,
    ppo_config=ppo_learner.PPOConfig(num_iterations=2, beta=0.1),
    reward_fns=rewards,
  ).train(data)
  CLOCK.tick(sampled[-1])


def generate(folder, steps, variant):
  """Tunix's sampler, of ANSWERS prompts a step."""
  from tunix.generate import sampler

  del variant
  model, tokenizer = load(folder), tokenizer_of(folder)
  config = model.config
  call = sampler.Sampler(
    model,
    tokenizer,
    sampler.CacheConfig(
      cache_size=files.PROMPT + NEW,
      num_layers=config.num_layers,
      num_kv_heads=config.num_kv_heads,
      head_dim=config.head_dim,
    ),
  )
  prompts = [row["prompt"] for row in files.read(folder, "prompts")]
  for step in range(steps):
    found = call(
      input_strings=prompts[step * ANSWERS : (step + 1) * ANSWERS],
      max_generation_steps=NEW,
      max_prompt_length=files.PROMPT,
      temperature=1.0,
      top_p=1.0,
      seed=step,
      eos_tokens=ends(folder, tokenizer),
      return_logprobs=True,
    )
    CLOCK.tick(float(sum(len(x) for x in found.tokens)))


def main():
  """Runs one comparison and writes its times."""
  parser = argparse.ArgumentParser()
  for name in ("comparison", "folder", "workdir", "output", "variant"):
    parser.add_argument(name)
  parser.add_argument("steps", type=int)
  asked = parser.parse_args()
  globals()[asked.comparison](Path(asked.folder), asked.steps, asked.variant)
  names = ("google-tunix", "jax", "flax")
  versions = {name: importlib.metadata.version(name) for name in names}
  CLOCK.write(asked.output, versions=versions)


if __name__ == "__main__":
  main()
