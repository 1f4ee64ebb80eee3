"""PPO-max: the parts of PPO that keep it stable, together.

Zheng et al. 2023, "Secrets of RLHF in Large Language Models, Part I: PPO",
arXiv:2307.04964, section 5, and its released training script. 7B models on
dialogues (HH-RLHF in English).

  reward   scores normalised by running moments and clipped; the KL per token in
           the reward, weight 0.01 in the script (0.02 by default): what it
           calls the key constraint
  start    policy from SFT; critic from the reward model, trained alone first
  PPO      5e-7, critic 1.5e-6, warm-up of a tenth, then the inverse square
           root; clip 0.2, critic clip 0.2; gamma 1, lambda 0.95; gradients
           clipped by their global norm; rollouts used at once; pretraining loss
           optional; temperature 0.8; answers of 512 tokens at most
  watched  perplexity, length and KL of the policy, not its reward

Changed: SmolLM2-135M-Instruct in place of 7B. The script scales rewards and
leaves the clip off; the paper's section 5.2 normalises and clips, and so does
this, at 5 deviations. Top-p 0.9 and a repetition penalty of 1.1 are left out:
they sample from another distribution than the ratio divides by (METHODS N2),
and are refused. Critic warm-up of 50 rollouts; rollouts of 128 answers in four
updates. The critic's loss has weight 1 and its own optimizer. The gold model
is ours: it is what the report measures by.
Not yet run with these values.

Data: demonstrations {"prompt", "response"}; comparisons {"prompt", "chosen",
"rejected"}; prompts {"prompt"}.

  python -m rlhf_jax.main --config=configs/papers/ppo_max.py \\
      --config.sft.data.source=demonstrations.jsonl \\
      --config.sft.sample_prompts.source=prompts.jsonl \\
      --config.reward.data.source=comparisons.jsonl \\
      --config.gold.data.source=other_comparisons.jsonl \\
      --config.policy.prompts.source=prompts.jsonl \\
      --config.evaluation.prompts.source=heldout_prompts.jsonl \\
      --workdir=runs/ppo_max
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

MODEL = "asset:smollm2-135m-instruct"


def reward() -> ConfigDict:
  """Returns a reward model on comparisons."""
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "full"
  config.data.update(format="comparison", chat=True, max_length=768)
  config.loss.microbatches = 8
  config.schedule.update(batch_size=64, epochs=1.0, save_every=100)
  return config


def get_config() -> ConfigDict:
  """Returns SFT, reward model, PPO-max and evaluation."""
  config = defaults.rlhf()
  config.title = "PPO-max"
  config.sft.model.source = MODEL
  config.sft.trainable.mode = "full"
  config.sft.data.update(format="demonstration", chat=True, max_length=768)
  config.sft.schedule.update(batch_size=32, epochs=2.0, save_every=100)
  config.sft.samples = 256
  config.sft.sample_prompts.update(format="prompt", chat=True, max_length=768)
  config.reward, config.gold = reward(), reward()
  policy = config.policy
  policy.model.source = MODEL
  policy.trainable.mode = "full"
  policy.prompts.update(format="prompt", chat=True, max_length=768)
  policy.shaping.update(
    normalise="standardise",
    clip=5.0,
    kl_controller="fixed",
    kl_coefficient=0.01,
  )
  policy.value.pretrain_steps = 50
  policy.algorithm.update(
    clip_ratio=0.2,
    value_clip=0.2,
    value_coefficient=1.0,  # the critic has an optimizer of its own
    discount=1.0,
    gae_lambda=0.95,
  )
  policy.epochs.update(epochs=1, minibatches=4, microbatches=8)
  for optimizer, rate in (
    (policy.policy_optimizer, 5e-7),
    (policy.value_optimizer, 1.5e-6),
  ):
    optimizer.update(
      learning_rate=rate,
      schedule="inverse_sqrt",
      warmup_fraction=0.1,
      clip_norm=1.0,
    )
  policy.schedule.update(batch_size=128, steps=1000, save_every=50)
  config.evaluation.model.source = MODEL
  config.evaluation.prompts.update(format="prompt", chat=True, max_length=768)
  for stage in (config.sft, policy, config.evaluation):
    stage.generate.update(max_new_tokens=512, temperature=0.8)
  return config
