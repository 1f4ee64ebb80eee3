"""Rounds of labels: answers, comparisons, a reward model, a policy, again.

Task: continue a movie review so that people like the sentence, as in
configs/quickstart.py, whose SFT, reward model and PPO are the stages here.
Three rounds of 400 comparisons, and 100 more in the first that all reward
models are tested on; what each round's policy writes is compared for the next
one. No prompt is asked twice. The KL of each round is measured to the first
policy, and each round's policy starts from it (Bai et al. 2022,
arXiv:2204.05862): both are choices with names, rounds.reference and
rounds.policy_start.

  iterate.py         five simulated annotators, who prefer by the gold reward
                     model (people's ratings of other sentences), some of them
                     less attentive than others
  iterate.py:page    people, on the page that the run serves: give their names,
                     --config.labels.people=anna,ben
  iterate.py:file    whoever writes round_N/labels.jsonl

Hardware: 2 CPU cores, 4 GiB, a quarter of an hour. With SFT and gold from a
finished quickstart:

  python -m rlhf_jax.main --config=configs/iterate.py \\
      --config.reuse=runs/quickstart --workdir=runs/iterate
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults

BY = ("simulated", "page", "file")


def _quickstart():
  path = Path(__file__).with_name("quickstart.py")
  spec = importlib.util.spec_from_file_location("quickstart", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(by: str = "simulated") -> ConfigDict:
  """Returns three rounds of 400 comparisons.

  Args:
    by: who judges, one of BY.
  """
  if by not in BY:
    raise ValueError(f"iterate.py:{by}: must be one of {', '.join(BY)}.")
  usual = _quickstart()
  config = defaults.iterate()
  config.title = "Movie reviews that people like, in rounds"
  config.rounds.update(count=3, reference="first", policy_start="first")
  config.comparisons.update(
    count=400,
    test=100,  # of round 1, frozen: every round's reward model is tested on it
    policies="last:2",  # two snapshots, to keep diversity
  )
  config.labels.update(by=by, overlap=2)
  if by == "page":
    config.labels.people = "anna,ben"
  if by == "simulated":
    config.labels.preference = "gold"
    config.annotators.update(
      count=5, temperature=0.3, reliability="1,1,0.9,0.9,0.7", ties=0.05
    )
  config.sft = usual.sft()
  config.gold = usual.reward("B", layer=18)
  config.reward = usual.reward("A", layer=15)
  config.reward.data.update(  # what is compared takes the place of ratings
    source="",
    format="comparison",
    prompt="",
    split="",
    splits="",
    pairs=0,
    min_words=0,
    max_text_tokens=0,
  )
  config.reward.heldout.source = ""
  # Eight times the records of the first round, less than three times those of
  # the last: a linear head on a frozen trunk takes that, its weights decayed.
  config.reward.schedule.update(batch_size=64, steps=100, save_every=100)
  config.policy = usual.policy()
  config.evaluation = usual.evaluation()
  config.evaluation.lexicon = False
  config.sampling.model.update(usual.policy_model())
  config.sampling.prompts.update(usual.ratings("A", prefix_tokens=3))
  config.sampling.generate.update(usual.sampling())
  config.facts = ConfigDict(
    {
      "config": f"configs/iterate.py:{by}",
      "model": "SmolLM2-135M-Instruct, Q4_1 weights (Apache-2.0, Hugging Face)",
    }
  )
  if by == "simulated":
    config.caveats = (
      "The annotators are simulated: they prefer what the gold reward model "
      "prefers, so gold is the truth here, and no person judged an answer.",
    )
  return config
