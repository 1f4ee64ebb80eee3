"""PPO of large models on TPU slices; plans only until you name weights.

  model=gemma_2b | llama3_8b | llama3_70b   shapes of rlhf_jax/models/shapes.py
  roles=full   policy, critic, reference and reward model: four models
  roles=lora   one frozen model, factors of rank 16 for policy and critic

256 prompts of at most 512 tokens a step, answers of at most 512 tokens, two
epochs of two minibatches. Weights are split over "fsdp" and "tensor".

  python -m rlhf_jax.plan --topology=v5e:8x8 --analytic \\
      --config=configs/recipes/ppo.py:model=llama3_8b,roles=lora

Not yet run. What the command above prints, GiB a chip at the fullest moment
and seconds of a step if everything overlaps .. nothing does (v5p-64 is 64
chips, Cloud's v5p-128; v5p-256 its v5p-512):

                  slice              params  optimizer  peak         step
  gemma_2b full   v5e-64  8x8          0.73       0.58   6.07  39%   6.0 .. 9.1
                  v5p-64  4x4x4        0.73       0.58   6.07   6%   1.9 .. 3.1
                  v6e-64  8x8          0.73       0.58   6.07  19%   2.9 .. 4.0
  gemma_2b lora   v5e-64  8x8          0.38       0.23   5.48  35%   5.6 .. 8.0
                  v5p-64  4x4x4        0.38       0.23   5.48   6%   1.8 .. 2.7
                  v6e-64  8x8          0.38       0.23   5.48  18%   2.7 .. 3.5
  llama3_8b full  v5e-64  8x8          2.28       1.81   8.10  51%   9.3 .. 14.5
                  v5p-64  4x4x4        2.28       1.81   8.10   8%   3.6 .. 5.3
                  v6e-64  8x8          2.28       1.81   8.10  26%   3.1 .. 5.3
  llama3_8b lora  v5e-64  8x8          0.58       0.12   5.11  32%   8.0 .. 12.3
                  v5p-64  4x4x4        0.58       0.12   5.11   5%   3.1 .. 4.5
                  v6e-64  8x8          0.58       0.12   5.11  16%   2.7 .. 4.6
  llama3_70b lora v5p-256 4x8x8        1.31       0.28  19.09  20%   8.7 .. 13.5

Compiled for the slice (without --analytic, with libtpu), llama3_8b lora on
v5e-64: peak 5.54 (35%), step 8.0 .. 13.5.

To train, override model.source with a folder of weights, and set init_from,
reward and prompts.source as in configs/ppo.py.
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

TENSOR = {"gemma_2b": 1, "llama3_8b": 4, "llama3_70b": 8}
CHOICES = {"model": tuple(TENSOR), "roles": ("full", "lora")}


def read(argument: str) -> dict[str, str]:
  """Returns the choices of "model=llama3_8b,roles=lora"."""
  chosen = {"model": "llama3_8b", "roles": "lora"}
  for part in filter(None, argument.split(",")):
    name, _, value = part.partition("=")
    if value not in CHOICES.get(name, ()):
      raise ValueError(f"{part!r}: write one of {CHOICES}.")
    chosen[name] = value
  return chosen


def get_config(argument: str = "") -> ConfigDict:
  """Returns PPO of a named shape."""
  chosen = read(argument)
  config = defaults.policy()
  config.model.update(
    source=f"shape:{chosen['model']}",
    dtype="bfloat16",
    scan_layers=True,
    remat=True,
  )
  if chosen["roles"] == "lora":
    config.model.lora_rank = 16
    config.trainable.mode = "lora"
    config.value.mode = "lora"
  config.prompts.update(format="prompt", chat=True, max_length=1024)
  config.heldout.update(format="prompt", chat=True, max_length=1024)
  config.generate.max_new_tokens = 512
  config.shaping.update(missing_eos="replace", kl_target=6.0, kl_horizon=2560.0)
  config.algorithm.value_coefficient = 1.0
  config.epochs.update(epochs=2, minibatches=2, microbatches=2)
  config.policy_optimizer.warmup_steps = 10
  config.value_optimizer.warmup_steps = 10
  config.schedule.update(batch_size=256, steps=200, save_every=10)
  config.mesh.update(data=1, fsdp=-1, tensor=TENSOR[chosen["model"]])
  return config
