"""RLVR: reinforcement learning on rewards that a program checks.

Lambert et al. 2024, "Tulu 3", arXiv:2411.15124, section 6, names it; the method
here is the one that followed, GRPO (Shao et al. 2024, arXiv:2402.03300; Guo et
al. 2025, arXiv:2501.12948). Llama 3.1 of 8B to 405B after SFT and DPO; GSM8K,
MATH and constraints of IFEval, some 30k prompts.

  reward   10 for an answer that the program finds right, 0 else; no reward
           model beside it (it did harm)
  Tulu 3   PPO: KL 0.01 to 0.1 in the reward, critic from a reward model; low
           KL weights gain on the checked task and lose elsewhere
  GRPO     64 answers to a problem, 1,024 a rollout, one update; 1e-6; k3 in the
           loss at 0.04; 1,024 tokens; (R1: 16 answers, KL 0.001, clip 10)

Changed: SmolLM2-135M-Instruct, which solves few problems; name a larger one.
GRPO in place of PPO, so no critic. A right answer is 1, not 10: GRPO divides by
the group's deviation, which is all that the scale would move. 16 answers to
each of 16 problems. Start from a DPO run, as they do: init_from.
Not yet run with these values.

Data: problems {"question", "answer"} as GSM8K has them, or {"prompt",
"reference"} with --config.prompts.format=prompt.

  python -m rlhf_jax.main --config=configs/papers/tulu3.py \\
      --config.prompts.source=train.jsonl --config.heldout.source=test.jsonl \\
      --config.init_from=runs/dpo --workdir=runs/rlvr
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config() -> ConfigDict:
  """Returns GRPO on problems whose answers are checked."""
  config = defaults.policy("grpo")
  config.model.source = "asset:smollm2-135m-instruct"
  config.trainable.mode = "full"
  for section in (config.prompts, config.heldout):
    section.update(format="gsm8k", chat=True, max_length=1280)
  config.verifier.name = "number"
  config.verifier.settings.formats = ("gsm8k", "boxed", "phrase")
  config.generate.update(max_new_tokens=1024, num_samples=16, temperature=1.0)
  config.shaping.update(kl_coefficient=0.0, kl_controller="fixed", clip=None)
  config.algorithm.update(
    kl_loss="k3", kl_loss_coefficient=0.04, clip_ratio=0.2
  )
  config.epochs.update(epochs=1, minibatches=1, microbatches=16)
  config.policy_optimizer.update(learning_rate=1e-6, warmup_steps=10)
  config.schedule.update(
    batch_size=16, steps=1000, save_every=50, eval_every=50
  )
  return config
