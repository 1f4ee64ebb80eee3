"""Fine-tuning from preferences: the best of four, labelled as PPO goes on.

Ziegler et al. 2019, arXiv:1909.08593, and its released code. GPT-2 of 774M on
book excerpts and posts; 5,000 to 60,000 labels, each a choice of the best of
four continuations.

  reward   cross-entropy of the choice among four; one epoch, batch 32, 5e-5 in
           the code, linear to 0; again from the start as labels come in, on all
           of them; scores of mean 0 and deviation 1 on the first policy
  PPO      adaptive KL to the first policy: 0.15 at the start, target 6 nats, a
           tenth of the error a rollout; 512 answers a rollout, 4 epochs, 1e-5
           linear to 0; clip 0.2, critic clip 0.2, c_v 0.1, gamma 1, lambda
           0.95; Adam as TensorFlow has it, epsilon 1e-5; rewards of tokens
           whitened about their mean, advantages whitened; temperature 0.7; 24
           tokens; no fitting end: score -1
  online   the policy's own continuations are labelled while it trains

Changed: SmolLM2-135M-Instruct in place of GPT-2. They labelled all through
training, at a rate that falls; here there are three rounds, and the policy
trains on from round to round (policy_start "last") with its KL to the first one
(reference "first"). A critic with weights of its own in place of a head beside
the policy's; so its loss has weight 1 and its own optimizer. Two minibatches,
so that a step fits. Simulated annotators, who like what a lexicon of sentiment
likes: their stylistic task, without its people. For people set
--config.labels.by=page and labels.people.
Not yet run with these values.

Data: excerpts {"prompt", "response"} and starts of excerpts {"prompt"}.

  python -m rlhf_jax.main --config=configs/papers/ziegler.py \\
      --config.sft.data.source=excerpts.jsonl \\
      --config.sft.sample_prompts.source=starts.jsonl \\
      --config.sampling.prompts.source=starts.jsonl \\
      --config.policy.prompts.source=starts.jsonl \\
      --config.evaluation.prompts.source=heldout_starts.jsonl \\
      --workdir=runs/ziegler
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

MODEL = "asset:smollm2-135m-instruct"


def get_config() -> ConfigDict:
  """Returns three rounds of choices among four."""
  config = defaults.iterate()
  config.title = "Fine-tuning from preferences"
  config.rounds.update(
    count=3, reference="first", policy_start="last", reward_start="fresh"
  )
  config.comparisons.update(count=1700, answers=4, policies="last", test=100)
  config.labels.update(by="simulated", preference="lexicon", overlap=2)
  config.annotators.update(count=3, temperature=0.3)
  config.sft.model.source = MODEL
  config.sft.trainable.mode = "full"
  config.sft.data.update(format="demonstration", max_length=128)
  config.sft.schedule.update(batch_size=32, epochs=1.0, save_every=100)
  config.sft.samples = 256  # the scores are normalised on them
  config.sft.sample_prompts.update(format="prompt", max_length=128)
  reward = config.reward
  reward.model.source = MODEL
  reward.trainable.mode = "full"
  reward.data.update(rankings="whole", max_length=128)
  reward.loss.objective = "choice"
  reward.optimizer.update(
    learning_rate=5e-5, schedule="linear", adam_tf_style=True, epsilon=1e-5
  )
  reward.schedule.update(batch_size=32, epochs=1.0, save_every=50)
  policy = config.policy
  policy.model.source = MODEL
  policy.trainable.mode = "full"
  policy.prompts.update(format="prompt", max_length=128)
  policy.shaping.update(
    missing_eos="replace",
    missing_eos_value=-1.0,
    kl_controller="adaptive",
    kl_coefficient=0.15,
    kl_target=6.0,
    kl_horizon=5120.0,  # 512 answers a rollout: a tenth
    whitening="keep_mean",
    clip=None,
  )
  policy.algorithm.update(
    clip_ratio=0.2,
    value_clip=0.2,
    value_coefficient=1.0,  # the critic has an optimizer of its own
    discount=1.0,
    gae_lambda=0.95,
    whitens_advantages=True,
  )
  policy.epochs.update(epochs=4, minibatches=2, microbatches=4)
  for optimizer in (policy.policy_optimizer, policy.value_optimizer):
    optimizer.update(
      learning_rate=1e-5, schedule="linear", adam_tf_style=True, epsilon=1e-5
    )
  policy.schedule.update(batch_size=512, steps=600, save_every=25)
  for stage in (config.sampling, config.evaluation):
    stage.model.source = MODEL
    stage.prompts.update(format="prompt", max_length=128)
  for stage in (config.sft, config.sampling, policy, config.evaluation):
    stage.generate.update(max_new_tokens=24, temperature=0.7)
  config.caveats = (
    "The annotators are simulated and like what a lexicon of sentiment likes.",
  )
  return config
