"""Llama 2-Chat: two reward models, rejection sampling in rounds, then PPO.

Touvron et al. 2023, arXiv:2307.09288, section 3.2. Models of 7B to 70B; 1.4M
comparisons of their own in weekly batches, five versions (RLHF-V1 to V5), the
first four by rejection sampling, PPO on top of the last.

  reward     one model of helpfulness, one of safety; pairs with a margin by
             strength: 1, 2/3, 1/3, 0 for significantly better, better,
             slightly, negligibly; one epoch (two over-fit), 1e-5 (5e-6 at
             70B), cosine to a tenth, warm-up 3 %, 512 pairs
  switch     the safety score where it is below 0.15 or the prompt is tagged,
             else helpfulness; the logit of that, whitened
  rejection  10 to 100 answers to a prompt at temperature about 1.2, the best of
             each; winners of all versions, from the base of the fine-tuning
  PPO        KL 0.01 (0.005 at 34B and 70B); 1e-6, weight decay 0.1, gradients
             clipped at 1; 512 answers a rollout, 64 a minibatch, one epoch;
             clip 0.2; 200 to 400 rollouts
  start      each version's reward model on all batches so far

Changed: SmolLM2-135M-Instruct, which serves as base and as reward model. Every
comparison is judged by both objectives; theirs were judged by one, on prompts
of its own. Left out is the auxiliary loss of the safety model, which classifies
answers as safe or not: so 0.15 is on a scale that only comparisons made, in
deviations of the SFT policy (docs/objectives.md). PPO's critic starts as the
reward model of helpfulness. The published temperature of rejection is another
one than that of PPO; here all policies are sampled at 1.0, since a temperature
is part of what a policy is. Within a version rejection takes one round, on K =
10 answers; PPO starts from the SFT policy, as all versions do here, and not
from the last one by rejection: set --config.rounds.policy_start=last for that.
Simulated annotators, who give a strength with each preference; for people set
--config.labels.by=page.
Not yet run with these values.

Data: demonstrations {"prompt", "response"}; for the two gold models comparisons
{"prompt", "answers": [two], "objectives": {"helpful": ranks, "safe": ranks}};
prompts {"prompt", "risky": true or false}, which is their tag.

  python -m rlhf_jax.main --config=configs/papers/llama2.py \\
      --config.sft.data.source=demonstrations.jsonl \\
      --config.sft.sample_prompts.source=prompts.jsonl \\
      --config.gold.data.source=comparisons.jsonl \\
      --config.sampling.prompts.source=prompts.jsonl \\
      --config.policy.prompts.source=prompts.jsonl \\
      --config.late_policy.prompts.source=prompts.jsonl \\
      --config.evaluation.prompts.source=heldout_prompts.jsonl \\
      --workdir=runs/llama2
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

OBJECTIVES = ("helpful", "safe")
MODEL = "asset:smollm2-135m-instruct"


def reward(margins: str) -> ConfigDict:
  """Returns the reward model on pairs, with Llama 2's margins or without."""
  config = defaults.reward()
  config.model.source = MODEL
  config.trainable.mode = "full"
  config.data.update(format="comparison", chat=True, max_length=512)
  config.loss.update(margins=margins, microbatches=16)
  config.optimizer.update(
    learning_rate=1e-5,
    schedule="cosine",
    final_fraction=0.1,
    warmup_fraction=0.03,
  )
  config.schedule.update(batch_size=512, epochs=1.0, save_every=50)
  return config


def switch(policy: ConfigDict) -> ConfigDict:
  """Returns a policy stage that both reward models judge."""
  policy.judges = ConfigDict({name: {"reward": ""} for name in OBJECTIVES})
  policy.combination.name = "switch"
  policy.combination.update(
    helpfulness="helpful", safety="safe", threshold=0.15, tagged_by="risky"
  )
  return policy


def rejection() -> ConfigDict:
  """Returns a version by rejection sampling: the best of ten."""
  config = defaults.rejection()
  config.model.source = MODEL
  config.trainable.mode = "full"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.generate.num_samples = 10
  config.selection.rule = "per_prompt"
  config.rounds.update(count=1, prompts=2048, batch_size=64, start="base")
  config.optimizer.update(learning_rate=2e-5, weight_decay=0.1)
  config.schedule.update(batch_size=64, epochs=2.0, save_every=32)
  return switch(config)


def ppo() -> ConfigDict:
  """Returns the last version, by PPO."""
  config = defaults.policy()
  config.model.source = MODEL
  config.trainable.mode = "full"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.shaping.update(kl_controller="fixed", kl_coefficient=0.01, clip=None)
  config.algorithm.update(clip_ratio=0.2, value_coefficient=1.0)
  config.epochs.update(epochs=1, minibatches=8, microbatches=4)
  for optimizer in (config.policy_optimizer, config.value_optimizer):
    optimizer.update(learning_rate=1e-6, weight_decay=0.1, clip_norm=1.0)
  config.schedule.update(batch_size=512, steps=200, save_every=25)
  config.value.judge = "helpful"
  return switch(config)


def get_config() -> ConfigDict:
  """Returns four versions by rejection sampling and one by PPO."""
  config = defaults.iterate()
  config.title = "Llama 2-Chat, version by version"
  config.rounds.update(
    count=5, late_from=5, reference="first", policy_start="first"
  )
  config.comparisons.update(
    count=4000, answers=2, policies="last:2", mix="across", test=500
  )
  config.labels.update(
    by="simulated", preference="gold", objectives=OBJECTIVES, overlap=2
  )
  config.annotators.update(count=5, temperature=0.7, strengths="2,1,0.4")
  config.sft.model.source = MODEL
  config.sft.trainable.mode = "full"
  config.sft.data.update(format="demonstration", chat=True, max_length=512)
  config.sft.optimizer.update(learning_rate=2e-5, weight_decay=0.1)
  config.sft.schedule.update(batch_size=64, epochs=2.0, save_every=100)
  config.sft.samples = 256
  config.sft.sample_prompts.update(format="prompt", chat=True, max_length=512)
  config.reward, config.gold = reward("small"), reward("")
  config.gold.data.format = "ranking"
  config.policy, config.late_policy = rejection(), ppo()
  for stage in (config.sampling, config.evaluation):
    stage.model.source = MODEL
    stage.prompts.update(format="prompt", chat=True, max_length=512)
  for name in ("sft", "sampling", "policy", "late_policy", "evaluation"):
    config[name].generate.update(max_new_tokens=128, temperature=1.0)
  config.caveats = (
    "The annotators are simulated: they like what the gold reward model likes, "
    "so gold is the truth here, and no person judged an answer.",
  )
  return config
