"""METHODS A8: labels of segments teach the reward; labels by chance do not.

`python -m tests.proofs.segments pendulum`, `cart_pole` and `labels` print the
whole.
"""

import numpy as np
import pytest

from tests.proofs import segments as proof


@pytest.mark.slow
def test_a8_the_reward_of_the_pendulum_is_learned_and_not_from_coins():
  arms = {"labels": proof.MANY, "coins": proof.CHANCE}
  found = proof.run("pendulum", arms, (0,), steps=25)
  assert found["labels"].correlation[0] > 0.9
  assert found["coins"].correlation[0] < 0.5
  assert found["labels"].returns[0] > found["labels"].first[0] + 600


def test_returns_that_do_not_grow_with_labels_fail():
  grows = np.tile(np.arange(6.0)[:, None], (1, 6))  # counts, seeds
  assert proof.label_row("pendulum", grows, 0.0).holds
  assert not proof.label_row("pendulum", grows[::-1], 0.0).holds
  assert not proof.label_row("pendulum", np.roll(grows, 3, axis=0), 0.0).holds
