"""METHODS 27.9: what is labelled next, by three rules and a control.

`python -m tests.proofs.what_to_label` prints the whole.
"""

import numpy as np
import pytest

from tests.proofs import what_to_label as proof


@pytest.mark.slow
def test_unsure_pairs_teach_more_than_drawn_ones_and_sure_ones_less():
  assert proof.gain("uncertainty", 32) > 2.0
  assert proof.gain("disagreement", 32) > 1.0  # 2 with all seeds
  assert proof.gain(proof.SUREST, 32) < -2.0
  first = [proof.curves(x, 32)[:, 0] for x in (*proof.RULES, proof.SUREST)]
  assert np.ptp(first, axis=0).max() == 0.0  # the first round draws
