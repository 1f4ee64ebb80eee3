"""Potential-based shaping keeps the optimum; rewards that are none move it.

`python -m tests.proofs.token_rewards` prints the whole table. METHODS 27.3.
"""

import pytest

from tests.proofs import token_rewards


@pytest.mark.slow
def test_a_potential_keeps_the_optimum_and_raw_rewards_do_not():
  """Short, one seed: the same optimum as without, and a control that misses."""
  how = {"seeds": (0,), "steps": 300, "count": 512}
  found = {
    mode: token_rewards.distances("reinforce_pp", "prefixes", mode, **how)[0]
    for mode in ("none", "potential", "raw")
  }
  assert found["none"] < 0.02 and found["potential"] < 0.02, found
  assert found["raw"] > token_rewards.FLOOR, found


@pytest.mark.slow
def test_every_method_and_judge():
  for row in token_rewards.rows():
    assert row.holds, row
