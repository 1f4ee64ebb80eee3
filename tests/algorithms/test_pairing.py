"""Which two answers of one policy are compared, by hand and by naive loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.preference import pairing
from rlhf_jax.types import Rollout

SCORES = jnp.array([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [0, -1, 0, 4]])


def chosen(config, key=0, scores=SCORES):
  rows, weight = pairing.choose(
    scores.reshape(-1),
    jax.random.key(key),
    num_samples=scores.shape[1],
    config=config,
  )
  return np.asarray(rows), np.asarray(weight)


def test_best_against_worst_and_ties_by_hand():
  rows, weight = chosen(pairing.Config())
  assert rows[0].tolist() == [1, 0] and rows[2].tolist() == [11, 9]
  assert weight.tolist() == [1.0, 0.0, 1.0]


def test_a_gap_too_small_is_no_preference():
  assert chosen(pairing.Config(minimum_gap=2.0))[1].tolist() == [1, 0, 1]
  assert chosen(pairing.Config(minimum_gap=2.1))[1].tolist() == [0, 0, 1]


def test_random_pairs_are_two_answers_of_a_prompt_in_order():
  """Over many keys every pair of a prompt comes, each about as often."""
  config = pairing.Config(rule="random")
  flat, counts = np.asarray(SCORES).reshape(-1), {}
  for key in range(200):
    rows, weight = chosen(config, key)
    for prompt, (better, worse) in enumerate(rows):
      assert better != worse
      assert better // 4 == worse // 4 == prompt
      assert flat[better] >= flat[worse]
      assert weight[prompt] == float(flat[better] > flat[worse])
    pair = tuple(sorted(rows[0]))
    counts[pair] = counts.get(pair, 0) + 1
  assert len(counts) == 6  # of four answers
  assert min(counts.values()) > 200 / 6 / 2


def test_trap_33_fields_of_a_pair_are_its_rows():
  rows, length = 6, 5
  x = np.arange(rows * length, dtype=np.float32).reshape(rows, length)
  mask = (np.arange(length)[None] < np.arange(1, 7)[:, None] % 5).astype(
    np.float32
  )
  rollout = Rollout(
    tokens=jnp.asarray(x, jnp.int32),
    valid_mask=jnp.asarray(mask),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=jnp.asarray(-x),
    finish_reason=jnp.zeros(rows, jnp.int32),
    reference_logprobs=jnp.asarray(-2 * x),
    score=jnp.array([0.0, 2.0, 1.0, 4.0, 4.0, 4.0]),
  )
  batch, row = pairing.pairs_of(
    rollout, jax.random.key(0), num_samples=3, config=pairing.Config()
  )
  np.testing.assert_array_equal(batch.tokens[0], x[[1, 0]])
  np.testing.assert_array_equal(batch.reference_logprobs[0], -2 * x[[1, 0]])
  np.testing.assert_array_equal(batch.loss_mask[0], mask[[1, 0]])
  assert batch.label.tolist() == [1.0, 1.0]
  assert batch.weight.tolist() == [1.0, 0.0]
  assert float(row["pair/used_share"]) == 0.5
  assert float(row["pair/gap"]) == 2.0
  assert float(row["pair/longer_share"]) == 1.0  # 2 tokens against 1


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"rule": "best"}, "rule='best': must be"),
    ({"minimum_gap": -1.0}, "minimum_gap=-1.0"),
    ({"reference_every": -1}, "reference_every=-1"),
  ],
)
def test_settings_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    pairing.Config(**fields)
