"""GRPO with a verifier on GSM8K: grade-school problems, checked by the answer.

Data: question and answer a line (Cobbe et al. 2021, arXiv:2110.14168; MIT),
the config's argument. An answer scores 1 if what it marks as its result
("#### 42" or \\\\boxed{42}) equals the reference, else 0.
Method: GRPO (Shao et al. 2024, arXiv:2402.03300): eight answers to a problem,
k3 in the loss. Hardware: an accelerator; a model of 135M parameters solves few
of the problems, so start from a larger one with --config.model.source.

  python -m rlhf_jax.main --config=configs/grpo_gsm8k.py:path=train.jsonl \\
      --workdir=runs/grpo_gsm8k
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults


def get_config(argument: str = "") -> ConfigDict:
  """Returns the config; argument is "path=FILE" or FILE."""
  config = defaults.policy()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(
    source=argument.removeprefix("path="),
    format="gsm8k",
    chat=True,
    max_length=640,
  )
  config.heldout.update(format="gsm8k", chat=True, max_length=640)
  config.generate.update(max_new_tokens=256, num_samples=8)
  config.algorithm.name = "grpo"
  config.verifier.name = "number"
  config.verifier.settings.formats = ("gsm8k", "boxed", "phrase")
  config.shaping.update(
    kl_coefficient=0.0, kl_controller="fixed", missing_eos="keep", clip=None
  )
  config.epochs.update(epochs=1, minibatches=2, microbatches=4)
  config.policy_optimizer.update(warmup_steps=10)
  config.schedule.update(batch_size=16, steps=500, save_every=25)
  return config
