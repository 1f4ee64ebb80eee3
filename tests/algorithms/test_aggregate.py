"""The four averages, on rows and on packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import aggregate

# Three answers of 1, 2 and 4 tokens, and one that does not count at all.
MASK = np.array(
  [[0, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]],
  np.float32,
)
X = np.where(MASK > 0, [[1.0], [2.0], [4.0], [0.0]], np.nan).astype(np.float32)
EXPECTED = {
  "token-mean": (1 + 2 * 2 + 4 * 4) / 7,
  "seq-mean-token-mean": (1 + 2 + 4) / 3,
  "seq-mean-token-sum": (1 + 2 * 2 + 4 * 4) / 3,
  "seq-sum-const": (1 + 2 * 2 + 4 * 4) / (3 * 10),
}
# The same answers in two rows: 1 and 2 share one, with segment ids that are
# neither small nor ordered; the row's tail is padding.
PACKED_MASK = np.array(
  [[0, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0]], np.float32
)
PACKED_X = np.array([[9, 1, 9, 2, 2, 9, 9], [9, 4, 4, 4, 4, 9, 9]], np.float32)
SEGMENTS = np.array([[50, 50, 3, 3, 3, 0, 0], [8, 8, 8, 8, 8, 0, 0]], np.int32)


def run(x, mask, mode, segment_ids=None):
  constant = 10 if mode == "seq-sum-const" else None
  below = aggregate.denominator(
    mask, mode, constant_tokens=constant, segment_ids=segment_ids
  )
  return aggregate.aggregate(x, mask, mode, below, segment_ids=segment_ids)


@pytest.mark.parametrize("mode", aggregate.MODES)
def test_trap_34_each_average_is_a_named_choice(mode):
  np.testing.assert_allclose(run(X, MASK, mode), EXPECTED[mode], rtol=1e-6)
  assert len({round(float(v), 4) for v in EXPECTED.values()}) == 4


@pytest.mark.parametrize("mode", aggregate.MODES)
def test_packing_does_not_change_an_average(mode):
  np.testing.assert_allclose(
    run(PACKED_X, PACKED_MASK, mode, jnp.asarray(SEGMENTS)),
    EXPECTED[mode],
    rtol=1e-6,
  )


def test_sequence_lengths_of_packed_rows():
  found = aggregate.sequence_lengths(PACKED_MASK, jnp.asarray(SEGMENTS))
  np.testing.assert_array_equal(found[0], [1, 1, 2, 2, 2, 0, 0])
  np.testing.assert_array_equal(found[1], [4, 4, 4, 4, 4, 0, 0])


def test_nothing_counted_gives_0():
  for mode in aggregate.MODES:
    assert run(X, np.zeros_like(MASK), mode) == 0.0


@pytest.mark.parametrize(
  ("mode", "tokens", "message"),
  [
    ("mean", None, "aggregation='mean'"),
    ("seq-sum-const", None, "aggregation_tokens=None"),
    ("token-mean", 7, "aggregation_tokens=7"),
  ],
)
def test_unusable_modes_are_refused(mode, tokens, message):
  with pytest.raises(ValueError, match=message):
    aggregate.check_mode("aggregation", mode, tokens)


@pytest.mark.parametrize("mode", aggregate.MODES[:2])
def test_weights_are_the_gradient_of_the_average(mode):
  """Of packed rows, one of them without a counted token."""
  mask = jnp.asarray([[0, 1, 1, 0, 1, 0], [0.0] * 6])
  segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [0] * 6])
  of = {"segment_ids": segments}
  count = aggregate.denominator(mask, mode, **of)
  found = aggregate.weights(mask, mode, count, **of)
  average = jax.grad(lambda x: aggregate.aggregate(x, mask, mode, count, **of))(
    mask
  )
  np.testing.assert_allclose(found, average, rtol=1e-6)
