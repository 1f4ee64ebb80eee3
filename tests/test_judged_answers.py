"""benchmarks/judged_answers.py: which answers become data, and as what."""

import runpy
from pathlib import Path

import numpy as np

from rlhf_jax.programs import rejection_samples

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
