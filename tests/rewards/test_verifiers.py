"""Verifiers tell correct answers from hacked ones; the list and the sum."""

import dataclasses
import inspect

import numpy as np
import pytest

from rlhf_jax.data import parsers
from rlhf_jax.rewards import (
  math_answers,
  rows,
  text_matches,
  verifiers,
)


def one(name, text, reference, **settings):
  return float(verifiers.bind(name, **settings)([text], [reference])[0])


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("42", 42),
    ("42.", 42),
    (" +3 ", 3),
    ("$1,234.50", 1234.5),
    ("\\$5", 5),
    ("$18$", 18),
    ("-$7", -7),
    ("\u22123", -3),
    ("-3/4", -0.75),
    ("1 1/2 cups", 1.5),
    ("25%", 25),
    ("25\\%", 25),
    ("\\frac{3}{4}", 0.75),
    ("-\\dfrac12", -0.5),
    ("1\\frac{1}{2}", 1.5),
    ("1.5e3", 1500),
    ("1.5 \\times 10^{3}", 1500),
    ("2.5 \\cdot 10^-1", 0.25),
    ("1{,}000", 1000),
    ("2 dozen eggs", 24),
    ("3.5 million dollars", 3.5e6),
    ("12\\text{ cm}^2", 12),
    ("90^\\circ", 90),
    ("x = 7", 7),
    ("18 dollars per day", 18),
    (".5", 0.5),
    ("**18**", 18),
  ],
)
def test_numbers_are_read(text, value):
  parsed = math_answers.parse_quantity(text)
  assert parsed is not None and float(parsed.value) == value


@pytest.mark.parametrize(
  "text",
  [
    "",
    "1 2 3 4",
    "18 or 19",
    "5 to 10",
    "1,23",
    "3:30",
    "0x1F",
    "1_000",
    "--3",
    "2^5",
    "1/0",
    "3 and 4",
    "9 not 8",
    "18 or so",
    "18, maybe",
    "18 maybe",
    "(3, 4)",
    "nan",
    "inf",
    "\u0661\u0662",
    "5; 6",
    "5 = 6",
    "1e99999",
    "9" * 200,
  ],
)
def test_what_is_not_one_number_is_refused(text):
  assert math_answers.parse_quantity(text) is None


def test_gsm8k_solution_and_wrong_answer():
  solution = "9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
  score = verifiers.bind("number")
  texts = ["so\n#### 18", "so\n#### $18.00", "so 18", "\\boxed{18}", "#### 19"]
  found = score(texts, [solution] * 5)
  assert found.dtype == np.float32
  assert found.tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
  assert score(["#### 1,080"], [1080]).tolist() == [1.0]
  assert score(["#### 0"], [0.0]).tolist() == [1.0]  # trap 18: zero is a value


def test_gsm8k_records_of_this_package_are_references():
  answer = "She has 2+3=<<2+3=5>>5 apples.\n#### 5"
  record = parsers.parse_gsm8k(
    {"question": "How many?", "answer": answer}, "f:1"
  )
  assert one("number", "I say\n#### 5 apples", record.response) == 1.0


@pytest.mark.parametrize(
  "text",
  [
    "#### " + " ".join(map(str, range(100))),  # every number at once
    "\n".join(f"#### {i}" for i in range(100)),  # ... each as the answer
    "".join(
      f"\\boxed{{{i}}}" for i in range(43)
    ),  # ... ending in the right one
    "#### 41 or 42",
    "#### 42, 43",
    "#### 41\n#### 42",
    "42 42 42 42",
    "#### forty-two",
    "#### \\boxed{42",
    "the answer is 42",  # not the marker that was asked for
    "####",
    "#### x",
    "\\boxed{",
  ],
)
def test_answer_spam_earns_nothing(text):
  assert one("number", text, 42) == 0.0
  assert one("number", "#### 42\nYes: #### 42.0", 42) == 1.0  # control


def test_the_lenient_setting_can_be_hacked_and_says_so():
  """Controls: the settings that the docstring warns of do fall for it."""
  spam = "\n".join(f"#### {i}" for i in range(43))
  assert one("number", spam, 42, several="last") == 1.0
  guesses = " ".join(map(str, range(43)))
  assert one("number", guesses, 42, formats=("last_number",)) == 1.0
  assert one("number", guesses, 42) == 0.0


def test_markers_in_order_of_preference():
  text = "\\boxed{7} then #### 8"
  assert one("number", text, 8) == 1.0
  assert one("number", text, 7, formats=("boxed",)) == 1.0
  assert one("number", "\\boxed{\\frac{1}{4}}", 0.25) == 1.0
  phrase = "Hence the final answer is: $1,000. Done"
  assert one("number", phrase, 1000, formats=("phrase",)) == 1.0


def test_answers_are_read_inside_the_tag_only():
  settings = {"inside_tag": "answer"}
  assert one("number", "<answer>42</answer>", 42, **settings) == 1.0
  assert one("number", "<answer>#### 42</answer>", 42, **settings) == 1.0
  assert one("number", "#### 42 <answer>41</answer>", 42, **settings) == 0.0
  twice = "<answer>41</answer><answer>42</answer>"
  assert one("number", twice, 42, **settings) == 0.0
  assert one("number", "</answer>42<answer>", 42, **settings) == 0.0


def test_tolerance_is_for_decimals_only():
  third = "#### 0.33333333"
  assert one("number", third, "1/3") == 1.0
  assert one("number", third, "1/3", relative_tolerance=0.0) == 0.0
  assert one("number", "#### 10000001", 10000000) == 0.0
  loose = {"relative_tolerance": 0.05}
  assert one("number", "#### 101", 100, **loose) == 0.0
  assert one("number", "#### 100.5", 100, **loose) == 1.0
  assert one("number", "#### 0.004", 0, absolute_tolerance=0.01) == 1.0


def test_percent_and_units():
  assert one("number", "#### 25%", 25) == 1.0
  assert one("number", "#### 25%", 0.25) == 0.0
  assert one("number", "#### 25%", 0.25, percent="divide") == 1.0
  match = {"units": "match"}
  assert one("number", "#### $5", "5 dollars", **match) == 1.0
  assert one("number", "#### 5 km", "5 m", **match) == 0.0
  assert one("number", "#### 5 km", "5 m") == 1.0
  assert one("number", "#### 5 km", "5", **match) == 1.0


def test_exact_is_not_contains():
  score = verifiers.bind("exact")
  texts = ["Paris", " paris. ", "Paris, London, Rome", "The capital is Paris"]
  assert score(texts, ["Paris"] * 4).tolist() == [1.0, 1.0, 0.0, 0.0]
  assert one("exact", "NYC", ["New York", "nyc"]) == 1.0
  assert one("exact", "pa\u200bris", "Paris") == 1.0
  assert one("exact", "paris", "Paris", is_case_sensitive=True) == 0.0
  assert one("exact", "3.5", "35") == 0.0
  assert one("exact", "-1", "1") == 0.0
  boxed = {"formats": ("boxed",)}
  assert one("exact", "so \\boxed{x+1}", "x+1", **boxed) == 1.0
  assert one("exact", "\\boxed{a}\\boxed{b}", "b", **boxed) == 0.0
  assert one("exact", "b", "b", **boxed) == 0.0
  with pytest.raises(ValueError, match=r"references\[0\].*silence"):
    one("exact", "", "?!")


def test_a_reference_never_becomes_a_pattern():
  settings = {"pattern": "Answer: {reference}"}
  assert one("pattern", "Answer: 3.5", "3.5", **settings) == 1.0
  assert one("pattern", "Answer: 345", "3.5", **settings) == 0.0
  assert one("pattern", "Answer: anything", ".*", **settings) == 0.0
  assert one("pattern", "Answer: .*", "3.5", **settings) == 0.0  # injected
  assert one("pattern", "Answer: 3.5|.*", "3.5", **settings) == 0.0
  spam = "Answer: 1 Answer: 2 Answer: 3"
  assert one("pattern", spam, "3", **settings) == 0.0
  assert one("pattern", spam, "3", mode="search", **settings) == 1.0  # control


def test_patterns_match_all_of_the_text():
  assert one("pattern", "12", None, pattern=r"\d+$") == 1.0
  assert one("pattern", "12\n", None, pattern=r"\d+$") == 0.0
  assert one("pattern", "a\nb", None, pattern="a.b") == 0.0
  assert one("pattern", "a\nb", None, pattern="a.b", spans_lines=True) == 1.0
  assert one("pattern", "1" * 9, None, pattern="1+", max_characters=8) == 0.0


@pytest.mark.parametrize(
  ("text", "score"),
  [
    ("<think>a</think><answer>b</answer>", 1.0),
    ("<think>a b</think>\n<answer>b</answer>\n", 1.0),
    ("<think></think><answer>b</answer>", 0.0),
    ("<answer>b</answer><think>a</think>", 0.0),
    ("<think>a</think><answer>b</answer> and more", 0.0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
    ("<think>a<answer>b</answer></think>", 0.0),
    ("<think>a</think>", 0.0),
    ("think answer", 0.0),
  ],
)
def test_tags_once_in_order_and_nothing_else(text, score):
  assert one("tags", text, None) == score


PARTS = (
  {"verifier": "number", "weight": 1.0, "settings": {"inside_tag": "answer"}},
  {"verifier": "tags", "weight": 0.25},
)


def test_sum_is_weighted_and_gated():
  right = "<think>a</think><answer>5</answer>"
  wrong = "<think>a</think><answer>6</answer>"
  bare = "<answer>5</answer>"
  texts, references = [right, wrong, bare], [5, 5, 5]
  plain = verifiers.bind("sum", parts=PARTS)(texts, references)
  np.testing.assert_allclose(plain, [1.25, 0.25, 1.0])
  gated = verifiers.bind("sum", parts=PARTS, gate=0)(texts, references)
  np.testing.assert_allclose(gated, [1.25, 0.0, 1.0])  # no pay for form only
  config = verifiers.SumConfig(PARTS)
  answers = rows.Answers(texts, references)
  total, by_part = verifiers.score_sum(answers, config)
  np.testing.assert_allclose(total, [1.25, 0.25, 1.0])
  names = [part["verifier"] for part in PARTS]
  assert verifiers.part_names(config) == names == list(by_part)
  np.testing.assert_allclose(by_part[names[0]], [1, 0, 1])
  np.testing.assert_allclose(by_part[names[1]], [1, 1, 0])
  twice = verifiers.SumConfig((*PARTS, PARTS[0]))
  assert verifiers.part_names(twice)[-1] == f"{names[0]}_2"


def test_full_marks_are_those_of_the_parts():
  def marks(name, **settings):
    return verifiers.bind_parts(name, **settings).full_marks

  assert marks("sum", parts=PARTS) == 1.25
  for name in ("exact", "number", "tags", "constraints", "code"):
    assert marks(name) == 1.0
  inner = {"verifier": "sum", "weight": 2.0, "settings": {"parts": PARTS}}
  penalty = {"verifier": "tags", "weight": -1.0}
  assert marks("sum", parts=(inner, penalty)) == 2.5


def test_a_registered_verifier_may_ask_for_anything(monkeypatch):
  @dataclasses.dataclass(frozen=True)
  class Config:
    per_token: float = 1.0

  def score(token_ids, config):
    return [config.per_token * len(ids) for ids in token_ids], {"one": [1, 1]}

  tokens = verifiers.Verifier(Config, score)
  monkeypatch.setitem(verifiers.VERIFIERS, "tokens", tokens)
  judge = verifiers.bind_parts("tokens", per_token=-0.5)
  answers = rows.Answers(["a", "b"], [None, None], token_ids=[[1], [2, 3]])
  scores, logged = judge(answers)
  assert scores.tolist() == [-0.5, -1.0] and logged["one"].tolist() == [1, 1]
  assert judge.needs == {"token_ids"}
  with pytest.raises(ValueError, match="verifier='tokens': reads token_ids"):
    verifiers.bind("tokens")(["a"], [None])


def test_parts_of_one_name_are_numbered():
  parts = tuple(
    {"verifier": n, "weight": 1.0} for n in ("tags", "exact", "tags")
  )
  config = verifiers.SumConfig((*parts, parts[0]))
  assert verifiers.part_names(config) == ["tags", "exact", "tags_2", "tags_3"]


def test_trap_18_a_weight_of_zero_only_reports():
  parts = ({"verifier": "tags", "weight": 0.0}, PARTS[0])
  text = "<think>a</think><answer>5</answer>"
  assert one("sum", text, 5, parts=parts) == 1.0


def test_sum_routes_references_by_name():
  parts = (
    verifiers.Part("exact", 1.0, reference="text"),
    verifiers.Part("constraints", -0.5, reference="rules"),
  )
  row = {"text": "yes", "rules": [{"kind": "words", "at_most": 3}]}
  assert one("sum", "yes", row, parts=parts) == 0.5
  with pytest.raises(ValueError, match=r"references\[0\].*no field 'text'"):
    one("sum", "yes", {"rules": []}, parts=parts)


def test_trap_33_rows_keep_their_references():
  score = verifiers.bind("number")
  texts = [f"#### {i % 4}" for i in range(12)]
  references = np.repeat([0, 1, 2], 4).tolist()
  found = score(texts, references)
  order = np.random.default_rng(0).permutation(12)
  moved = score([texts[i] for i in order], [references[i] for i in order])
  np.testing.assert_array_equal(moved, found[order])
  naive = [
    float(t == f"#### {r}") for t, r in zip(texts, references, strict=True)
  ]
  np.testing.assert_array_equal(found, naive)


def test_every_verifier_has_the_same_form():
  for name, verifier in verifiers.VERIFIERS.items():
    assert dataclasses.is_dataclass(verifier.Config), name
    assert verifier.Config.__dataclass_params__.frozen, name
    needed = {
      "pattern": {"pattern": "a"},
      "sum": {"parts": PARTS},
      "ai_judge": {"endpoint": {"url": "http://127.0.0.1:9", "model": "m"}},
    }
    empty = verifiers.bind(name, **needed.get(name, {}))
    with pytest.raises(ValueError, match="1 texts, 2 references"):
      empty(["a"], [1, 2])
    with pytest.raises(ValueError, match=r"lists of equal length"):
      empty("a", [1])
    parameters = list(inspect.signature(verifier.score).parameters)
    judge = verifiers.bind_parts(name, **needed.get(name, {}))
    if name == "ai_judge":  # knows no right answer
      assert parameters == ["texts", "prompts", "config", "records"]
      assert judge.needs == {"texts", "prompts"}
      continue
    given = ["answers"] if name == "sum" else ["texts", "references"]
    assert parameters == [*given, "config"], name
    assert "references" in judge.needs, name


def test_no_rows_give_no_scores():
  assert verifiers.bind("number")([], []).shape == (0,)
  assert verifiers.bind("code")([], []).shape == (0,)


@pytest.mark.parametrize(
  ("name", "settings", "message"),
  [
    ("numbers", {}, r"Choose one of exact, number.*\(my_file.py:score\)"),
    ("number", {"tolerance": 1}, "tolerance is no setting"),
    ("number", {"relative_tolerence": 1}, "Did you mean 'relative_tolerance'"),
    ("number", {"relative_tolerance": 0.5}, "relative_tolerance=0.5"),
    ("number", {"absolute_tolerance": -1.0}, "absolute_tolerance=-1.0"),
    ("number", {"formats": ()}, "at least one known marker"),
    ("number", {"several": "any"}, "refuse, last"),
    ("number", {"inside_tag": "<a>"}, "inside_tag='<a>'.*Drop the brackets"),
    ("exact", {"thought_tag": ""}, "thought_tag=''.*or set it to None"),
    ("exact", {"formats": ("box",)}, "'box' is unknown"),
    ("pattern", {}, "without a default"),
    ("pattern", {"pattern": "("}, "does not compile"),
    ("pattern", {"pattern": "a", "mode": "match"}, "'search'"),
    ("tags", {"tags": ("a", "a")}, "none twice"),
    ("tags", {"tags": ("<a>",)}, "Drop the brackets"),
    ("constraints", {"credit": "most"}, "'all' or 'share'"),
    ("code", {"seconds": 0.0}, "seconds=0.0"),
    ("code", {"memory_bytes": 1}, "memory_bytes=1"),
    ("sum", {"parts": ()}, "empty sum"),
    ("sum", {"parts": PARTS, "gate": 2}, "gate=2"),
    ("sum", {"parts": PARTS, "judges": ()}, "judges is no setting"),
    ("sum", {"parts": ({"verifier": "x", "weight": 1.0},)}, "'x' is unknown"),
  ],
)
def test_mistakes_in_settings_are_named(name, settings, message):
  with pytest.raises(ValueError, match=message):
    verifiers.bind(name, **settings)


@pytest.mark.parametrize("reference", ["x + 1", "", None, True, [1, 2]])
def test_a_reference_that_is_no_number_stops_the_run(reference):
  with pytest.raises(ValueError, match=r"references\[1\].*single number"):
    verifiers.bind("number")(["#### 1", "#### 1"], [1, reference])


def test_invisible_characters_are_removed():
  assert text_matches.visible("a\u200bb\u00ad\ufb01") == "abfi"
