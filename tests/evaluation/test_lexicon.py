"""VADER scores through the package."""

import sys

import numpy as np
import pytest

from rlhf_jax.evaluation import lexicon


def test_vader_scores_known_answers():
  pytest.importorskip("vaderSentiment")
  scores = lexicon.vader_scores(["good", "not good", "zxqv", "good"])
  # "good" has valence 1.9: 1.9 / sqrt(1.9^2 + 15)
  assert scores[0] == pytest.approx(1.9 / np.sqrt(1.9**2 + 15), abs=1e-4)
  assert scores[1] < 0 == scores[2]
  assert scores[0] == scores[3]
  assert scores.shape == (4,)


def test_missing_package_names_the_remedy(monkeypatch):
  monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
  with pytest.raises(ImportError, match="pip install"):
    lexicon.vader_scores(["good"])
