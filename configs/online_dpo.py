"""Online preference optimisation: pairs of the policy's own answers.

Data: one JSON object a line, {"prompt": ...}. Needs a finished SFT run and a
finished reward run (configs/sft.py, configs/reward.py), or a verifier: set
verifier.name and put {"prompt", "reference"} on each line.
Method: online_dpo.py:dpo, :ipo or :slic (Guo et al. 2024, arXiv:2402.04792),
the reference fixed at the SFT model: two answers at temperature 0.9, Adam at
5e-7 after 150 steps, batch 128 (here 32); beta 0.1 for DPO, tau 1.0 for IPO,
beta 0.002 for SLiC. In the paper an AI judges. :iterative takes the best and
the worst of 8 answers (Xiong et al. 2023, arXiv:2312.11456). To move the
reference: --config.pairing.reference_every=100.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/online_dpo.py:dpo \\
      --config.prompts.source=prompts.jsonl --config.init_from=runs/sft \\
      --config.reward=runs/reward --workdir=runs/online_dpo
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

# name -> (loss, its settings, answers to a prompt)
METHODS = {
  "dpo": ("dpo", {"beta": 0.1}, 2),
  "ipo": ("ipo", {"tau": 1.0}, 2),
  "slic": ("dpo", {"beta": 0.002, "link": "hinge"}, 2),
  "iterative": ("dpo", {"beta": 0.1}, 8),
}


def get_config(name: str = "dpo") -> ConfigDict:
  """Returns a method on SmolLM2-135M-Instruct and a file of prompts."""
  if name not in METHODS:
    known = ", ".join(METHODS)
    raise ValueError(f"online_dpo.py:{name}: must be one of {known}.")
  loss, fields, samples = METHODS[name]
  config = defaults.online_preference(loss)
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.heldout.update(format="prompt", chat=True, max_length=512)
  config.generate.update(
    max_new_tokens=128, num_samples=samples, temperature=0.9
  )
  config.algorithm.update(**fields)
  config.accumulation.microbatches = 4
  config.optimizer.warmup_steps = 150
  config.schedule.update(batch_size=32, steps=1000, save_every=50)
  return config
