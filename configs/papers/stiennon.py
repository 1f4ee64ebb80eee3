"""Learning to summarise: comparisons of summaries, PPO with a critic apart.

Stiennon et al. 2020, arXiv:2009.01325, section 3 and appendix B. Models of 1.3B
and 6.7B on Reddit posts (TL;DR); 123,169 posts for SFT, 64,832 comparisons.

  SFT      one epoch, batch 128, cosine; about 6.4e-5 at 1.3B
  reward   from the SFT model; pairs, one epoch, batch 64, 1.5e-5, cosine to 0;
           scores moved so that reference summaries score 0
  PPO      KL 0.05 in the reward, fixed; 512 answers a rollout, 4 epochs of one
           minibatch, 1.5e-5; clip 0.2, lambda 0.95, no discount; temperature
           0.7; a critic with weights of its own, which start as the reward
           model's; 48 tokens at most; a million answers

Changed: SmolLM2-135M-Instruct in place of their GPT models. Two minibatches an
epoch, so that a step fits. Scores are normalised on samples of the SFT policy,
not on reference summaries. Comparisons come at once: they labelled in batches,
each on newer policies (configs/papers/bai.py does that). The gold model, on
comparisons that the reward model never saw, is ours.
Not yet run with these values.

Data: {"prompt": post, "response": summary}; {"prompt", "chosen", "rejected"};
{"prompt"}. Posts end with "TL;DR:".

  python -m rlhf_jax.main --config=configs/papers/stiennon.py \\
      --config.sft.data.source=summaries.jsonl \\
      --config.sft.sample_prompts.source=posts.jsonl \\
      --config.reward.data.source=comparisons.jsonl \\
      --config.gold.data.source=other_comparisons.jsonl \\
      --config.policy.prompts.source=posts.jsonl \\
      --config.evaluation.prompts.source=heldout_posts.jsonl \\
      --workdir=runs/stiennon
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

MODEL = "asset:smollm2-135m-instruct"


def reward() -> ConfigDict:
  """Returns the reward model on pairs."""
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "full"
  config.data.update(format="comparison", max_length=640)
  config.loss.microbatches = 4
  config.optimizer.update(
    learning_rate=1.5e-5, schedule="cosine", final_fraction=0.0
  )
  config.schedule.update(batch_size=64, epochs=1.0, save_every=200)
  return config


def get_config() -> ConfigDict:
  """Returns SFT, reward model, PPO and evaluation."""
  config = defaults.rlhf()
  config.title = "Learning to summarise"
  config.sft.model.source = MODEL
  config.sft.trainable.mode = "full"
  config.sft.data.update(format="demonstration", max_length=640)
  config.sft.optimizer.update(learning_rate=6.4e-5, schedule="cosine")
  config.sft.schedule.update(batch_size=128, epochs=1.0, save_every=100)
  config.sft.samples = 256
  config.sft.sample_prompts.update(format="prompt", max_length=640)
  config.reward, config.gold = reward(), reward()
  policy = config.policy
  policy.model.source = MODEL
  policy.trainable.mode = "full"
  policy.prompts.update(format="prompt", max_length=640)
  policy.value.update(init="reward", mode="full", trunk="own")
  policy.shaping.update(kl_controller="fixed", kl_coefficient=0.05, clip=None)
  policy.algorithm.update(
    clip_ratio=0.2,
    value_clip=0.2,
    value_coefficient=1.0,  # the critic has an optimizer of its own
    discount=1.0,
    gae_lambda=0.95,
  )
  policy.epochs.update(epochs=4, minibatches=2, microbatches=8)
  policy.policy_optimizer.update(learning_rate=1.5e-5, schedule="linear")
  policy.value_optimizer.update(learning_rate=1.5e-5, schedule="linear")
  policy.schedule.update(batch_size=512, steps=2000, save_every=50)
  config.evaluation.model.source = MODEL
  config.evaluation.prompts.update(format="prompt", max_length=640)
  for stage in (config.sft, policy, config.evaluation):
    stage.generate.update(max_new_tokens=48, temperature=0.7)
  return config
