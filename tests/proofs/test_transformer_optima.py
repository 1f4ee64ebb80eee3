"""METHODS A1: the known optimum, here through the transformer.

`python -m tests.proofs.transformer_optima` prints the table.
"""

import numpy as np
import pytest

from tests.proofs import transformer_optima as proof


@pytest.mark.slow
def test_every_answer_is_enumerated_once():
  table = proof.token_logprobs(proof.start(0)).sum(axis=-1)
  total = np.exp(np.asarray(table, np.float64)).reshape(2, 64).sum(axis=1)
  np.testing.assert_allclose(total, 1.0, atol=1e-5)
  assert len(np.unique(proof.SEQUENCES, axis=0)) == 128


@pytest.mark.slow
@pytest.mark.parametrize("name", proof.METHODS)
def test_a1_policy_gradients_through_a_transformer(name):
  row = proof.policy_row(name)
  assert row.holds, row


@pytest.mark.slow
def test_a1_dpo_through_a_transformer():
  row = proof.dpo_row()
  assert row.holds, row
