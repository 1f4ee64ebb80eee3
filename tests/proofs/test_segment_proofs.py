"""METHODS A8: labels of segments teach the reward; labels by chance do not.

`python -m tests.proofs.segments pendulum` and `cart_pole` print the whole.
"""

import pytest

from tests.proofs import segments as proof


@pytest.mark.slow
def test_a8_the_reward_of_the_pendulum_is_learned_and_not_from_coins():
  arms = {"labels": proof.MANY, "coins": proof.CHANCE}
  found = proof.run("pendulum", arms, (0,), steps=25)
  assert found["labels"].correlation[0] > 0.9
  assert found["coins"].correlation[0] < 0.5
  assert found["labels"].returns[0] > found["labels"].first[0] + 600
