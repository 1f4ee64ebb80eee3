"""Verifiers where they just still, or just no longer, give a reward."""

import pytest

from rlhf_jax.rewards import marked, math_answers, verifiers


def score(name, text, reference, **settings):
  return float(verifiers.bind(name, **settings)([text], [reference])[0])


@pytest.mark.parametrize("length, expected", [(4, 1.0), (5, 1.0), (6, 0.0)])
def test_a_text_may_be_as_long_as_it_may_be(length, expected):
  settings = {"pattern": "a+", "max_characters": 5}
  assert score("pattern", "a" * length, "", **settings) == expected


@pytest.mark.parametrize(
  "text, value", [("$-5", -5), ("-$5", -5), ("$ - 5", -5), ("+$5", 5)]
)
def test_a_sign_counts_on_either_side_of_a_currency(text, value):
  assert math_answers.parse_quantity(text).value == value


def test_a_number_has_one_sign():
  assert math_answers.parse_quantity("-$-5") is None


def test_a_tag_comes_once():
  assert marked.tagged("x <a>1</a> y", "a") == "1"
  twice = "<a>3</a> or <a>4</a>"
  for text in (twice, "<a>3</a></a>", "<a><a>3</a>", "</a>3<a>", "3"):
    assert marked.tagged(text, "a") is None, text
  assert score("number", "<a>3</a>", 3, inside_tag="a") == 1.0
  assert score("number", twice, 3, inside_tag="a") == 0.0


def test_one_forbidden_word_of_several_is_one_too_many():
  wanted = [{"kind": "forbidden", "words": ["very", "really"]}]
  assert score("constraints", "good", wanted) == 1.0
  assert score("constraints", "really good", wanted) == 0.0
  both = [{"kind": "keywords", "words": ["cat", "mat"]}]
  assert score("constraints", "a cat on a mat", both) == 1.0
  assert score("constraints", "a cat", both) == 0.0
