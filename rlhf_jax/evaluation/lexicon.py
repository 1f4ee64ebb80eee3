"""VADER: sentiment of a text by a lexicon and rules, no model.

  compound = s / sqrt(s^2 + 15),  s = sum of the words' valences, with rules
  for negation, degree words, capitals and punctuation

Hutto & Gilbert 2014 (ICWSM), through the `vaderSentiment` package. It is a
third opinion beside two reward models, and a weak one: a policy that piles up
praise words fools it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def vader_scores(texts: Sequence[str]) -> np.ndarray:
  """Returns the compound scores [n] float64 in [-1, 1]; 0 for no known word.

  Raises:
    ImportError: the package is missing; the message says how to install it.
  """
  try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
  except ImportError as error:
    raise ImportError(
      "vader_scores needs the package vaderSentiment. Run "
      "`pip install 'vaderSentiment>=3.3.2'`."
    ) from error
  analyzer = SentimentIntensityAnalyzer()
  return np.array(
    [analyzer.polarity_scores(text)["compound"] for text in texts], np.float64
  )
