"""Records of annotators whose accuracy is known."""

import numpy as np


def records(
  accuracies: dict,
  items: int = 200,
  seed: int = 0,
  ties: float = 0.0,
  first_bias: float = 0.0,
  share: float = 1.0,
) -> tuple[list[dict], np.ndarray]:
  """Returns judgements of pairs of answers, and the better answer [items].

  Args:
    accuracies: annotator -> P(right).
    items: pairs.
    seed: of all draws.
    ties: share of judgements that call it a tie.
    first_bias: share of judgements that take what stands first.
    share: of items that each annotator judges.
  """
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, 2, items)
  found = []
  for item in range(items):
    for name, accuracy in accuracies.items():
      if rng.random() >= share:
        continue
      shown = rng.permutation(2).tolist()
      is_right = rng.random() < accuracy
      choice = int(truth[item] if is_right else 1 - truth[item])
      if rng.random() < first_bias:
        choice = shown[0]
      ranks = [0, 0] if rng.random() < ties else [choice, 1 - choice]
      found.append(
        {
          "prompt": f"question {item}",
          "answers": [f"one {item}", f"two {item}"],
          "ranks": ranks,
          "annotator": name,
          "shown": shown,
          "seconds": float(rng.uniform(5, 15)),
        }
      )
  return found, truth
