"""Candidates that share rows: scores, log-probs and steps do not change."""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import reward_losses
from rlhf_jax.data import dataset, layout
from rlhf_jax.models import heads, roles, trees
from rlhf_jax.programs import features, pairs, shared_rows
from tests.data.test_layout import ragged
from tests.pipelines import tiny_runs

PAD = 2


@pytest.fixture(scope="module")
def data():
  """60 comparisons of answers of 4 to 40 tokens."""
  rows = ragged(120)
  return dataset.Comparisons(
    rows=rows,
    pairs=np.arange(120, dtype=np.int32).reshape(-1, 2),
    labels=np.ones(60, np.float32),
    groups=np.arange(60, dtype=np.int32)[:, None],
    dropped={},
    ceiling=None,
  )


@pytest.fixture(scope="module")
def base(files):
  return tiny_runs.load_base(tiny_runs.sft_config(files, "full"))


def both(data, count=8):
  """Returns the first comparisons with a row a candidate, and with few rows."""
  shape = shared_rows.choose("dpo", data, count, 1, 1)
  assert shape.counts and shape.counts[0] < 2 * count
  alone = pairs.collate_of(data, PAD)(list(range(count)))
  shared = pairs.collate_of(data, PAD, shape)(list(range(count)))
  assert alone.packing is None and shared.packing is not None
  return alone, shared, shape


def test_log_probabilities_do_not_change(data, base):
  alone, shared, shape = both(data)
  role = roles.Role(model=base.config, trainable="full")
  params, frozen = roles.split(role, {"params": base.params})
  expected = pairs.apply(params, frozen, alone, role=role)
  found = pairs.apply(params, frozen, shared, role=role, targets=shape.targets)
  assert found.shape == expected.shape and np.abs(expected).max() > 1.0
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("pooling", ["last", "mean_last"])
def test_scores_and_gradients_do_not_change(data, base, pooling):
  alone, shared, _ = both(data)
  head = heads.Config(pooling=pooling)
  role = roles.Role(model=base.config, trainable="full", head=head)
  made = heads.init(head, base.config.width, jax.random.key(0))
  variables = {"params": base.params, "head": made}
  params, frozen = roles.split(role, variables)

  def loss(params, batch):
    scores = features.apply(params, frozen, batch, role=role)
    return reward_losses.pairwise_loss(scores, batch.label).sum(), scores

  gradient = jax.jit(jax.grad(loss, has_aux=True))
  (expected, scores), (found, shared_scores) = (
    gradient(params, batch) for batch in (alone, shared)
  )
  np.testing.assert_allclose(shared_scores, scores, atol=2e-5)
  for path, x in trees.flatten(expected).items():
    np.testing.assert_allclose(trees.flatten(found)[path], x, atol=2e-5)


def test_a_batch_that_is_split_has_a_row_a_candidate(data, capsys):
  shape = shared_rows.choose("dpo", data, 8, 1, 2)
  assert shape == layout.Shape.of(data.rows)
  assert capsys.readouterr().out.startswith("dpo: 16 rows of 40 tokens, 4")


def test_rows_are_a_multiple_of_the_devices(data):
  shape = shared_rows.choose("dpo", data, 8, 4, 1)
  assert all(count % 4 == 0 for count in shape.counts)
  longest = dataclasses.replace(data, pairs=np.zeros((60, 2), np.int32))
  batch = pairs.collate_of(longest, PAD, shape)(list(range(8)))
  assert batch.packing.cell.shape[0] == 16  # always enough
