"""Diversity by hand, against naive loops, and by simulation."""

import math
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.evaluation import diversity


def test_t19_distinct_1_and_self_bleu_of_identical_texts():
  assert diversity.distinct_n(["a a b"], 1) == pytest.approx(2 / 3)
  assert diversity.self_bleu(["a b c d e f"] * 3) == pytest.approx(1.0)


def test_self_bleu_of_identical_short_texts_is_one():
  assert diversity.self_bleu(["so good"] * 4) == pytest.approx(1.0)
  assert diversity.self_bleu(["", ""]) == 1.0


def test_words_are_lower_case_and_cut_at_spaces():
  assert diversity.words("It's GOOD,  really!") == ("it's", "good,", "really!")


def test_distinct_n_does_not_cross_texts_and_cuts():
  # bigrams: ab, ba | ab  -> 2 of 3; crossing would add "a a".
  assert diversity.distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)
  assert diversity.distinct_n(["a b a", "a b"], 2, max_words=2) == 0.5
  assert math.isnan(diversity.distinct_n(["a", ""], 2))


def naive_self_bleu(texts):
  rows = [text.split() for text in texts]
  scores = []
  for i, row in enumerate(rows):
    others = [other for j, other in enumerate(rows) if j != i]
    logs = []
    for n in range(1, min(4, len(row)) + 1):
      grams = Counter(tuple(row[k : k + n]) for k in range(len(row) - n + 1))
      hit = 0
      for gram, count in grams.items():
        most = 0
        for other in others:
          seen = 0
          for k in range(len(other) - n + 1):
            seen += tuple(other[k : k + n]) == gram
          most = max(most, seen)
        hit += min(count, most)
      logs.append(math.log((hit if hit else 0.1) / sum(grams.values())))
      if n == 1 and hit == 0:
        logs = [-math.inf]
        break
    closest = min((abs(len(o) - len(row)), len(o)) for o in others)[1]
    penalty = 1.0
    if closest > len(row):
      penalty = math.exp(1 - closest / len(row))
    scores.append(penalty * math.exp(sum(logs) / len(logs)))
  return sum(scores) / len(scores)


def test_self_bleu_against_naive_loops():
  rng = np.random.default_rng(1)
  texts = [
    " ".join(rng.choice(list("abcde"), rng.integers(1, 11))) for _ in range(12)
  ]
  texts += ["x y", texts[0]]
  assert diversity.self_bleu(texts) == pytest.approx(naive_self_bleu(texts))
  assert diversity.self_bleu(["a b", "c d", "e f"]) == 0.0


def test_self_bleu_punishes_texts_shorter_than_all_others():
  # "a" is found, but is half as long; of "a b" and "c d" one word of two is
  # found at most, and no bigram.
  half = math.sqrt(1 / 2 * 0.1)
  found = diversity.self_bleu(["a", "a b", "c d"])
  assert found == pytest.approx((math.exp(1 - 2) + half + 0.0) / 3)


def test_self_bleu_needs_two_texts():
  with pytest.raises(ValueError, match="at least 2"):
    diversity.self_bleu(["alone"])


def test_duplicates_and_repetition():
  texts = ["Good film", "good  film", "bad film", "good film"]
  assert diversity.duplicate_share(texts) == 0.5
  assert diversity.duplicate_share(texts[1:]) == pytest.approx(1 / 3)
  # abab: bigrams ab, ba, ab -> 1 of 3; cd -> 0 of 1
  assert diversity.repeated_ngram_rate(["a b a b", "c d"], 2) == 0.25
  assert math.isnan(diversity.repeated_ngram_rate(["a b"], 3))


def test_one_string_is_refused():
  with pytest.raises(ValueError, match="not a list of texts"):
    diversity.distinct_n("a a b", 1)


def test_ead_is_unique_over_expected():
  # 4 unigrams of which 3 are unique; of V = 10 equally likely words 4 draws
  # find 10 (1 - 0.9^4) = 3.439.
  found = diversity.expectation_adjusted_distinct(
    ["a b", "a c"], (1,), vocabulary=10
  )
  assert found == pytest.approx(3 / 3.439)
  # Orders that no text is long enough for do not count.
  same = diversity.expectation_adjusted_distinct(
    ["a b", "a c"], (1, 3), vocabulary=10
  )
  assert same == pytest.approx(found)
  assert math.isnan(diversity.expectation_adjusted_distinct(["", ""]))


def test_ead_of_equally_likely_words_does_not_move_with_length():
  """What distinct-1 does, and Liu et al. 2022 mend."""
  rng = np.random.default_rng(0)
  found, plain = [], []
  for length in (20, 2000):
    texts = [" ".join(map(str, rng.integers(0, 500, length))) for _ in range(8)]
    found.append(
      diversity.expectation_adjusted_distinct(texts, (1,), vocabulary=500)
    )
    plain.append(diversity.distinct_n(texts, 1))
  assert found == pytest.approx([1.0, 1.0], abs=0.05)
  assert plain[1] < 0.1 * plain[0]


def test_entropy_and_jaccard_by_hand():
  # ab, bc, ab: shares 2/3 and 1/3
  expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
  assert diversity.ngram_entropy(["a b c", "a b"], 2) == pytest.approx(expected)
  assert diversity.ngram_entropy(["a b", "A b"], 2) == 0.0
  assert math.isnan(diversity.ngram_entropy(["a"], 2))
  # {a, b} and {b, c}: 1 - 1/3; both against {}: 1
  found = diversity.jaccard_distance(["a b b", "b c", ""])
  assert found == pytest.approx((2 / 3 + 1 + 1) / 3)
  assert diversity.jaccard_distance(["", ""]) == 0.0


def test_ead_refuses_a_vocabulary_of_one():
  with pytest.raises(ValueError, match="vocabulary=1"):
    diversity.expectation_adjusted_distinct(["a"], vocabulary=1)


def test_nearly_the_same_across_prompts_by_hand():
  prompts = ["a", "a", "b", "b"]
  same = "one two three four five"
  texts = [same, same, f"{same} six", "nothing like it"]
  # The first two share a prompt; both are near the third: J = 5/6.
  assert diversity.near_identical_share(texts, prompts) == 3 / 4
  assert diversity.near_identical_share(texts, prompts, least=0.9) == 0.0
  assert diversity.near_identical_share(["", "", "x"], ["a", "b", "c"]) == 2 / 3
  assert np.isnan(diversity.near_identical_share(texts, ["a"] * 4))
  with pytest.raises(ValueError, match="3 prompts for 4"):
    diversity.near_identical_share(texts, prompts[:3])
