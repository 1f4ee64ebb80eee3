"""Best-of-n distillation (BOND, J-BOND) on your own prompts.

Data: one JSON object a line, {"prompt": ...}. Needs a finished SFT run and a
finished reward run (configs/sft.py, configs/reward.py), or a verifier: set
verifier.name and put {"prompt", "reference"} on each line.
Method: Sessa et al. 2024 (arXiv:2407.14622). bond.py:j_bond: two answers of an
anchor that follows the policy at 0.02 a step, Jeffreys weight 1/2. bond.py:bond
distils the best of 8 of the SFT model, its quantiles from 32 answers.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/bond.py:j_bond \\
      --config.prompts.source=prompts.jsonl --config.init_from=runs/sft \\
      --config.reward=runs/reward --workdir=runs/bond
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

# name -> (n, answers of the anchor, rate of the anchor)
METHODS = {"j_bond": (2, 2, 0.02), "bond": (8, 32, 0.0)}


def get_config(name: str = "j_bond") -> ConfigDict:
  """Returns a method on SmolLM2-135M-Instruct and a file of prompts."""
  if name not in METHODS:
    known = ", ".join(METHODS)
    raise ValueError(f"bond.py:{name}: must be one of {known}.")
  n, samples, rate = METHODS[name]
  config = defaults.bond()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.heldout.update(format="prompt", chat=True, max_length=512)
  config.generate.update(max_new_tokens=128, num_samples=samples)
  config.target.update(kind=name, n=n)
  config.distillation.update(backward_weight=0.5, anchor_rate=rate)
  config.optimizer.warmup_steps = 50
  config.schedule.update(batch_size=32, steps=500, save_every=50)
  return config
