"""A reward run that judges texts on disk, as the notebook's does."""

import json

import numpy as np

from rlhf_jax import lab
from rlhf_jax.comparisons import judges, sources
from tests.pipelines import tiny_runs


def test_a_reward_run_judges_what_is_on_disk(reward_full, tmp_path):
  prompts = [" the cat", " sat on", " is a"]
  texts = {"one": f" {tiny_runs.PLANTED}", "two": " sat"}
  rows = [
    {"prompt": prompt, "policy": name, "response": text}
    for name, text in texts.items()
    for prompt in prompts
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "texts.jsonl").write_text(lines)
  policies, found = sources.together(sources.read([tmp_path]))
  scores = judges.named(str(reward_full), policies, found, {})
  model = lab.load(reward_full)
  for row, text in zip(scores, texts.values(), strict=True):
    wanted = model.score(prompts, [text] * 3)
    np.testing.assert_allclose(row, wanted, atol=1e-5)
  assert (scores[0] > scores[1]).all()  # the planted word is liked
