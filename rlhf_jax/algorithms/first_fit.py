"""Items into bins of equal size: first-fit decreasing, on the host.

Each item has a size in every dimension, such as tokens and targets, and a bin
holds as much of each. The largest item goes first, into the first bin with
room; at most 11/9 of the fewest possible bins and one are opened in one
dimension (Johnson 1973).
"""

from __future__ import annotations

import numpy as np


def first_fit(sizes: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
  """Returns the numbers of the items in each bin, none empty.

  Args:
    sizes: [N, D] int; the first dimension says which item is larger. Ties keep
      their order.
    capacity: [D] int, at least every item's.
  """
  free = np.tile(np.asarray(capacity), (len(sizes), 1))
  bins: list[list[int]] = []
  for n in np.argsort(-sizes[:, 0], kind="stable"):
    place = int(np.argmax((free >= sizes[n]).all(1)))
    if place == len(bins):
      bins.append([])
    bins[place].append(int(n))
    free[place] -= sizes[n]
  return bins
