"""METHODS 27.9: what is labelled next, by three rules and a control.

`python -m tests.proofs.what_to_label` prints the whole.
"""

import numpy as np
import pytest

from tests.proofs import what_to_label as proof


@pytest.mark.slow
def test_unsure_pairs_teach_more_than_drawn_ones_and_sure_ones_less():
  for rule in proof.RULES[1:]:
    assert proof.gain(rule, 16) > 2.0
  assert proof.gain(proof.SUREST, 16) < -2.0
  first = [proof.curves(x, 16)[:, 0] for x in (*proof.RULES, proof.SUREST)]
  assert np.ptp(first, axis=0).max() == 0.0  # the first round draws
