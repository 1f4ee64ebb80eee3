"""Constitutional AI: revised answers, preferences by principles, then PPO.

Bai et al. 2022, arXiv:2212.08073. A 52B model.

  first    answers to prompts that provoke, criticised and revised up to 4
           times by one of 16 principles, drawn each time; SFT of the pretrained
           model on the last revisions, with helpful samples; temperature 1
  labels   pairs of answers of that model; a model says which is better by one
           principle, drawn for each pair; its probability is the label, with
           thoughts first clamped to 0.4 to 0.6
  RL       a preference model on these labels and on people's, of helpfulness;
           PPO

Changed: SmolLM2-135M-Instruct answers and judges, in place of a 52B model that
was trained to be helpful, without few-shot examples. So small a one is no
judge: name another, --config.judge.model.source, or an endpoint. Principles are
our own. The labels are of both orders, averaged, as in Lee et al. 2023.
People's comparisons of helpfulness are mixed in where they are named
(--config.reward.data.source). PPO has InstructGPT's settings; the paper gives
none. No agreement is measured, since one judge labels.
Not yet run with these values.

Data: red_team.jsonl and prompts.jsonl, {"prompt"}. SFT learns from the
revisions; name helpful samples ({"messages"}) beside them as sft.data.source.
Without constitution.prompts.source there is no first stage, and SFT reads what
it names.

  python -m rlhf_jax.main --config=configs/papers/constitutional.py \\
      --config.constitution.prompts.source=red_team.jsonl \\
      --config.sft.sample_prompts.source=prompts.jsonl \\
      --config.sampling.prompts.source=prompts.jsonl \\
      --config.policy.prompts.source=prompts.jsonl \\
      --config.evaluation.prompts.source=heldout_prompts.jsonl \\
      --workdir=runs/constitutional
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

MODEL = "asset:smollm2-135m-instruct"


def get_config() -> ConfigDict:
  """Returns revisions, a round of labels by a model, and a policy."""
  config = defaults.iterate()
  config.title = "Constitutional AI"
  config.rounds.update(count=1, reference="first", policy_start="first")
  config.comparisons.update(count=4000, answers=2, test=400)
  config.labels.update(by="judge", overlap=1)
  config.agreement.action = "off"
  config.judge.model.source = MODEL
  config.judge.principles = "ours"
  config.constitution.model.source = MODEL
  config.constitution.prompts.update(format="prompt", chat=True)
  config.constitution.update(rounds=4, temperature=1.0, principles="ours")
  config.constitution.update(answer_tokens=128, critique_tokens=128)
  config.sft.model.source = MODEL
  config.sft.trainable.mode = "full"
  config.sft.data.update(format="messages", chat=True, max_length=512)
  config.sft.schedule.update(batch_size=32, epochs=1.0, save_every=100)
  config.sft.samples = 256
  config.sft.sample_prompts.update(format="prompt", chat=True, max_length=512)
  reward = config.reward
  reward.model.source = MODEL
  reward.trainable.mode = "full"
  reward.data.update(format="comparison", chat=True, max_length=512)
  reward.loss.microbatches = 4
  reward.optimizer.update(learning_rate=9e-6, schedule="cosine")
  reward.schedule.update(batch_size=64, epochs=1.0, save_every=100)
  policy = config.policy
  policy.model.source = MODEL
  policy.trainable.mode = "full"
  policy.prompts.update(format="prompt", chat=True, max_length=512)
  policy.shaping.update(kl_controller="fixed", kl_coefficient=0.02, clip=None)
  policy.algorithm.update(value_coefficient=1.0, discount=1.0, gae_lambda=0.95)
  policy.epochs.update(epochs=1, minibatches=8, microbatches=4)
  policy.policy_optimizer.update(learning_rate=1e-6, warmup_steps=80)
  policy.value_optimizer.update(learning_rate=5e-6, warmup_steps=80)
  policy.schedule.update(batch_size=512, steps=200, save_every=25)
  for stage in (config.sampling, config.evaluation):
    stage.model.source = MODEL
    stage.prompts.update(format="prompt", chat=True, max_length=512)
  for stage in (config.sft, config.sampling, policy, config.evaluation):
    stage.generate.update(max_new_tokens=128, temperature=1.0)
  config.caveats = ("A language model judged; no person did.",)
  return config
