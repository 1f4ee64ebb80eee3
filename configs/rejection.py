"""Rejection-sampling fine-tuning on your own prompts and reward model.

Data: one JSON object a line, {"prompt": ...}. Needs a finished SFT run and a
finished reward run (configs/sft.py, configs/reward.py), or a verifier: set
verifier.name and put {"prompt", "reference"} on each line.
Method: rejection.py:llama2 (Touvron et al. 2023, section 3.2.3): 10 samples a
prompt at temperature 1.2, the best of each prompt, winners of all rounds
pooled, each round from the SFT model. rejection.py:raft (Dong et al. 2023): 8
samples, the global top eighth, each round from the one before.
rejection.py:rest_em (Singh et al. 2023): 32 samples, all that a verifier calls
right, each round from the SFT model; it wants verifier.name.
Not yet run with these values; on the quickstart: benchmarks/RESULTS.md.

  python -m rlhf_jax.main --config=configs/rejection.py:llama2 \\
      --config.prompts.source=prompts.jsonl --config.init_from=runs/sft \\
      --config.reward=runs/reward --workdir=runs/rejection
"""

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

# name -> (K, temperature, selection, rounds)
METHODS = {
  "llama2": (10, 1.2, {"rule": "per_prompt"}, {"count": 4, "pool": True}),
  "raft": (
    8,
    1.0,
    {"rule": "global", "share": 0.125},
    {"count": 8, "start": "previous"},
  ),
  "rest_em": (32, 0.7, {"rule": "all", "minimum_score": 1.0}, {"count": 2}),
}


def get_config(name: str = "llama2") -> ConfigDict:
  """Returns a method on SmolLM2-135M-Instruct and a file of prompts."""
  if name not in METHODS:
    known = ", ".join(METHODS)
    raise ValueError(f"rejection.py:{name}: must be one of {known}.")
  samples, temperature, selection, rounds = METHODS[name]
  config = defaults.rejection()
  config.model.source = "asset:smollm2-135m-instruct"
  config.prompts.update(format="prompt", chat=True, max_length=512)
  config.heldout.update(format="prompt", chat=True, max_length=512)
  config.generate.update(
    max_new_tokens=128, num_samples=samples, temperature=temperature
  )
  config.selection.update(**selection)
  config.rounds.update(prompts=512, batch_size=16, **rounds)
  config.schedule.update(batch_size=32, epochs=2.0, save_every=50)
  config.loss.microbatches = 4
  config.optimizer.warmup_steps = 5
  return config
