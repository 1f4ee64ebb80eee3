"""Instruction constraints: what meets them and what only looks like it."""

import pytest

from rlhf_jax.rewards import constraints, verifiers


def holds(text, kind, **settings):
  return constraints.holds(text, {"kind": kind, **settings})


CASES = [
  # kind, settings, meets it, does not (hacks among them)
  ("words", {"at_least": 3}, "one two three", "- * - . one ..."),
  ("words", {"at_most": 2}, "one two", "one two three"),
  ("characters", {"at_least": 5}, "abcde", "a   \u200b\u200b\u200b\u200b"),
  ("sentences", {"at_least": 2}, "Yes. No!", "Yes... ... ! ?"),
  ("paragraphs", {"at_least": 2}, "a\n\nb", "a\n\n\n\n---"),
  ("bullets", {"at_least": 2}, "- a\n* b", "- \n-\n- ...\n- a"),
  ("bullets", {"at_least": 1, "at_most": 1}, "* a", "* a\n* b"),
  ("numbered", {"at_least": 2}, "1. a\n2) b", "1.\n2.\n3. c"),
  ("headings", {"at_least": 1}, "# Title", "#\n##"),
  ("placeholders", {"at_least": 1}, "at [address]", "at [ ] [] ["),
  ("capital_words", {"at_most": 1}, "NASA flew", "NASA AND ESA"),
  ("capital_words", {"at_least": 1}, "НАСА летит", "привет мир 你好"),
  ("different_words", {"at_least": 3}, "a b c", "a a a a A"),
  (
    "keywords",
    {"words": ["art", "new york"]},
    "Art in New  York",
    "party york",
  ),
  ("keywords", {"words": ["go"], "at_least": 2}, "go, go", "go google"),
  ("forbidden", {"words": ["bad"]}, "badly done", "not BAD"),
  ("forbidden", {"words": ["bad"]}, "good", "b\u200bad"),
  ("occurrences", {"word": "so", "at_most": 1}, "so also", "so so"),
  ("letters", {"letter": ",", "at_most": 0}, "no comma", "a, b"),
  ("starts_with", {"phrase": "Dear"}, " Dear you", "Oh Dear"),
  ("ends_with", {"phrase": "Bye."}, "So, Bye.\n", "Bye. Or not"),
  ("ends_with", {"phrase": "你好！"}, "我说：你好！", "你好！我说"),
  ("starts_with", {"phrase": "Merci\u00a0!"}, "Merci\u00a0! Oui", "Oui"),
  ("letters", {"letter": "，", "at_most": 0}, "没有", "有，的"),
  ("json", {}, '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
  ("json", {}, "[1]", "12"),
  ("title", {}, "<<My day>>\ntext", "<<>> << ! >> text"),
  ("quoted", {}, '"yes"', '"yes" he said'),
  ("lower_case", {}, "all low 1", "One"),
  ("upper_case", {}, "ALL UP 1", "123 !"),
]


@pytest.mark.parametrize(("kind", "settings", "good", "bad"), CASES)
def test_each_kind(kind, settings, good, bad):
  assert holds(good, kind, **settings)
  assert not holds(bad, kind, **settings)


def test_every_kind_has_a_case():
  assert {case[0] for case in CASES} == set(constraints.CHECKS)


def test_trap_18_a_bound_of_zero_is_a_bound():
  assert holds("plain", "bullets", at_most=0)
  assert not holds("- a", "bullets", at_most=0)


def test_an_empty_answer_meets_nothing():
  assert not holds("", "forbidden", words=["bad"])
  assert not holds("\u200b", "words", at_most=10)


def test_credit_is_all_or_the_share():
  wanted = [
    {"kind": "words", "at_most": 3},
    {"kind": "forbidden", "words": ["x"]},
    {"kind": "bullets", "at_least": 1},
    {"kind": "lower_case"},
  ]
  texts, references = ["- a b", "a b c x"], [wanted, wanted]
  strict = verifiers.bind("constraints")(texts, references)
  share = verifiers.bind("constraints", credit="share")(texts, references)
  assert strict.tolist() == [1.0, 0.0]
  assert share.tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
  ("constraint", "message"),
  [
    ({"kind": "length"}, "no known 'kind'"),
    ("words", "no known 'kind'"),
    ({"kind": "words"}, "neither 'at_least' nor 'at_most'"),
    ({"kind": "words", "most": 3}, "unexpected keyword argument 'most'"),
    ({"kind": "words", "at_most": "3"}, "is no number"),
    ({"kind": "words", "at_least": 3, "at_most": 2}, "swap them"),
    ({"kind": "keywords", "words": "art"}, "is no list"),
    ({"kind": "keywords", "words": []}, "is no list"),
    ({"kind": "occurrences", "word": "", "at_least": 1}, "is no text"),
    ({"kind": "letters", "letter": "ab", "at_least": 1}, "not one character"),
    ({"kind": "starts_with", "phrase": 5}, "phrase=5 is no text"),
    ({"kind": "ends_with", "phrase": ""}, "phrase='' is no text"),
  ],
)
def test_a_constraint_that_cannot_be_checked_is_named(constraint, message):
  with pytest.raises(ValueError, match=rf"references\[0\].*{message}"):
    verifiers.bind("constraints")(["text"], [[constraint]])


def test_no_constraint_is_no_reward():
  with pytest.raises(ValueError, match="any response would do"):
    verifiers.bind("constraints")(["text"], [[]])
