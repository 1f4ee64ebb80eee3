"""benchmarks/judged_answers.py: which answers become data, and as what."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhf_jax.pipelines import defaults
from rlhf_jax.programs import rejection_samples
from tests.planning import same_settings

FILE = Path(__file__).parent.parent / "benchmarks" / "judged_answers.py"
WORDS = ["<pad>", "ask", " bad", " good", " best", " ", " cut"]


class Tokenizer:
  """Numbers of WORDS."""

  vocab_size = len(WORDS)

  def decode(self, ids):
    return "".join(WORDS[i] for i in ids)


def test_the_best_ended_answer_against_the_worst():
  answers = np.array([[2, 3, 4, 6], [3, 3, 5, 6], [2, 6, 6, 6]])
  ended = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)
  tokens = np.stack([np.ones_like(answers), answers], axis=-1)
  pool = rejection_samples.Pool(
    tokens=tokens,
    valid_mask=np.ones_like(tokens),
    response_mask=np.stack(
      [np.zeros(answers.shape), np.ones(answers.shape)], -1
    ),
    score=np.array(
      [[-1.0, 0.5, 2.0, 9.0], [1.0, 1.0, 7.0, 9.0], [0, 1, 2, 3.0]]
    ),
    logprob=np.zeros(answers.shape),
    kl=np.zeros(answers.shape),
    ended=ended,
  )
  comparisons, labelled, cut = runpy.run_path(str(FILE))["judged"](
    pool, Tokenizer()
  )
  # The second prompt's answers tie once the empty one is gone, the third has
  # one that ends.
  assert comparisons == [
    {"prompt": "ask", "chosen": " best", "rejected": " bad"}
  ]
  assert [(row["response"], row["label"]) for row in labelled] == [
    (" bad", False),
    (" good", False),
    (" best", True),
  ]
  assert cut == 1 + 2 + 3


@pytest.mark.slow
def test_answers_are_drawn_from_the_policy_that_the_run_started_from(
  tmp_path, monkeypatch
):
  """On the tiny model, in place of the quickstart's."""
  files = same_settings.make_files(tmp_path)
  made = same_settings.make_stages(files)
  (tmp_path / "run").mkdir()
  for name, folder in (("sft", "sft_lora"), ("reward", "head")):
    (tmp_path / "run" / name).symlink_to(made[folder])
  config = ConfigDict({"policy": defaults.rejection()})
  config.policy.update(
    same_settings.sampled_config(files, "rejection", "", "").to_dict()
  )
  draw = runpy.run_path(str(FILE))["draw"]
  method = {"get_config": lambda name: config, "ANSWERS": 16}
  monkeypatch.setattr(runpy, "run_path", lambda path: method)
  pool, tokenizer = draw(tmp_path / "run", 1, 3)
  assert pool.score.shape == (3 * 8, 2)  # 3 rollouts of 8 prompts
  assert np.isfinite(pool.score).all()
  np.testing.assert_allclose(pool.kl, 0.0, atol=1e-4)  # it is the start
  assert tokenizer.vocab_size == 340
