"""transformers and peft read what is exported: benchmarks/exports.py, asserted.

RLHF_JAX_PEER names a Python with torch, transformers and peft.
"""

import os

import pytest

from benchmarks import exports

PEER = os.environ.get("RLHF_JAX_PEER", "")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not PEER, reason="RLHF_JAX_PEER names no Python with transformers and peft"
  ),
]


def test_every_family_reads_back_in_transformers(tmp_path):
  for name, row in exports.families(PEER, tmp_path).items():
    assert max(row["logits"], row["padded"]) < 2e-5, name
    assert row["greedy"], name


@pytest.mark.parametrize("name", ["phi3", "gpt_neox"])
def test_an_adapter_loads_in_peft(name, tmp_path):
  worst = exports.adapter(PEER, name, tmp_path)
  assert max(worst.values()) < 1e-4


def test_a_reward_model_scores_equally(tmp_path):
  assert exports.reward(PEER, "gemma3", tmp_path) < 1e-4
