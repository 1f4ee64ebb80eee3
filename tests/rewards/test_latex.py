r"""One spelling of answers; numbers, units and markers as they are written.

Each list holds kinds, not single cases: what a policy or a data set writes in
several ways is one value, and what differs in value is never one.
"""

from fractions import Fraction

import pytest

from rlhf_jax.rewards import (
  latex,
  marked,
  math_answers,
  text_matches,
  verifiers,
)


def one(name, text, reference, **settings):
  return float(verifiers.bind(name, **settings)([text], [reference])[0])


@pytest.mark.parametrize(
  ("text", "tidied", "plain"),
  [
    (r"\dfrac1{72}", r"\frac{1}{72}", "1/72"),
    (r"\tfrac{3}4", r"\frac{3}{4}", "3/4"),
    (r"\frac12", r"\frac{1}{2}", "1/2"),
    (r"{3 \over 4}", r"\frac{3}{4}", "3/4"),
    (r"\frac{\frac12}{x+1}", r"\frac{\frac{1}{2}}{x+1}", "(1/2)/(x+1)"),
    ("1½", r"1\frac{1}{2}", "1 1/2"),
    ("2⁄3", "2/3", "2/3"),
    ("5²", "5^{2}", "5^2"),
    ("x₁₂", "x_{12}", "x_{12}"),
    (r"10,\!000", "10000", "10000"),
    (r"1{,}000", "1000", "1000"),
    (r"1\,234\,567", "1234567", "1234567"),
    (r"\left( x,\, y \right)", "( x, y )", "( x, y )"),
    (r"\textbf{(B)}", r"\text{B}", "B"),
    ("(-5)", "-5", "-5"),
    (r"\boxed{\mathbf{73}}.", "73", "73"),
    ("$\\text{B}$", r"\text{B}", "B"),
    ("４２％", "42%", "42%"),
    ("−３", "-3", "-3"),
    (r"\sqrt2", r"\sqrt{2}", "sqrt(2)"),
    ("√(x+1)", r"\sqrt{x+1}", "sqrt(x+1)"),
    (r"\sqrt[3]2", r"\sqrt[3]{2}", "root(3,2)"),
    (r"0.1\bar6", r"0.1\overline{6}", r"0.1\overline{6}"),
    ("0.3\u0305", r"0.\overline{3}", r"0.\overline{3}"),
    (r"90^\circ", r"90^{\circ}", "90 degrees"),
    (r"2\pi r", "2πr", "2πr"),
    (r"\{1,2\}", r"\{1,2\}", "{1,2}"),
    (r"\textcolor{red}{7}", "7", "7"),
    ("a_n", "a_{n}", "a_n"),
    ("∜x", r"\sqrt[4]{x}", "root(4,x)"),
    (r"\sqrt{", r"\sqrt{", r"\sqrt{"),  # unfinished: left as it is
  ],
)
def test_one_spelling(text, tidied, plain):
  assert latex.tidy(text) == tidied
  assert latex.plain(text) == plain
  assert latex.tidy(tidied) == tidied


@pytest.mark.parametrize(
  ("text", "value"),
  [
    (r"10,\!000", 10000),
    (r"\frac1{72}", Fraction(1, 72)),
    (r"\frac{3}4", Fraction(3, 4)),
    ("(-5)", -5),
    (r"-\left(\frac{1}{2}\right)", Fraction(-1, 2)),
    (r"\frac{-1}{2}", Fraction(-1, 2)),
    (r"\frac{7}{-8}", Fraction(-7, 8)),
    (r"-1\frac12", Fraction(-3, 2)),
    (r"\mathbf{73}", 73),
    (r"1\,234", 1234),
    ("1\u202f234.5", Fraction(2469, 2)),
    ("1'234'567", 1234567),
    ("12 345", 12345),
    (r"\boxed 7", 7),
    (r"0.\overline{3}", Fraction(1, 3)),
    (r"0.1\overline{6}", Fraction(1, 6)),
    ("0.(142857)", Fraction(1, 7)),
    ("－１，０００", -1000),
    ("５／６", Fraction(5, 6)),
    (r"\$5.00", 5),
    ("5 €", 5),
    ("￥100", 100),
    (r"3\times10^5", 300000),
    ("10^{-2}", Fraction(1, 100)),
    ("5*10**3", 5000),
    (r"\theta = 30^\circ", 30),
    (r"m\angle A = 30^\circ", 30),
    ("= 5", 5),
    ("EUR 5", 5),
    ("5 PM", 5),
    ("f(2) = 5", 5),
    (r"12\text{ cm}^2", 12),
    ("9.8 m/s^2", Fraction(49, 5)),
    ("5cm", 5),
    ("5 m", 5),
    (r"5\mathrm{m}", 5),
    ("18 dollars a day", 18),
    ("5元", 5),
    (r"20^\circ\text{C}", 20),
    (r"5\text{ N}\cdot\text{m}", 5),
    (r"5\frac{\text{m}}{\text{s}^2}", 5),
    (r"5\,\mu\text{m}", 5),
  ],
)
def test_numbers_as_they_are_written(text, value):
  found = math_answers.parse_quantity(text)
  assert found is not None and found.value == value


@pytest.mark.parametrize(
  "text",
  "2x|2 x|2y|3i|3 i|5n|n = 2k|2xy|2 ab|5m|2k|7t|1.5x|3abc|x^2|5 x^2|5x^2|2mn|"
  "2 m n|4s|2e|3cos|2sinx|2 sin x|3 log x|2 pi|2π|2\\pi|2\\theta|2\\text{x}|"
  "\\frac{1}{2}x|\\frac{x}{2}|2\\sqrt{3}|√2|5²|5!|2(3)|2+3|5-3|1–5|5±1|\\pm 5|"
  "5 squared|3 halves|1 5/2|(1,234)|[5,6)|{1,2}|\\infty|101_2|0.333...|3:4|"
  "2x = 6|x+1=7|x<5|5 \\text{ or } 6|5 if x|5i+3|10^5x|nan".split("|"),
)
def test_a_letter_is_no_unit(text):
  """As an answer it scores nothing, and as a reference it stops the run."""
  assert math_answers.parse_quantity(text) is None
  digits = "".join(c for c in text if c in "0123456789") or "5"
  assert one("number", f"\\boxed{{{text}}}", digits) == 0.0
  with pytest.raises(ValueError, match="single number.*'math'"):
    one("number", "\\boxed{2}", text)


def test_before_and_after_noon_differ():
  assert one("number", "#### 5 p.m.", "5 a.m.") == 0.0
  assert one("number", "#### 5 PM", "5 p.m.") == 1.0
  assert one("number", "#### 5", "5 p.m.") == 1.0


def test_names_of_variables_count():
  assert one("number", r"\boxed{x = 7}", "x=7") == 1.0
  assert one("number", r"\boxed{7}", "x=7") == 1.0
  assert one("number", r"\boxed{y = 7}", "x=7") == 0.0
  assert one("number", r"\boxed{total = 7}", "x=7") == 1.0  # a word
  assert one("number", r"\boxed{x=7}\boxed{7}", 7) == 1.0
  assert one("number", r"\boxed{x=7}\boxed{y=7}", 7) == 0.0


def test_units_in_singular():
  match = {"units": "match"}
  assert one("number", "#### 3 inches", "1 inch", **match) == 0.0
  assert one("number", "#### 3 inches", "3 inch", **match) == 1.0
  assert one("number", "#### 3 square feet", "3 square foot", **match) == 1.0
  assert one("number", r"\boxed{3\text{ cm}^2}", "3 cm^2", **match) == 1.0
  assert one("number", r"\boxed{3\text{ cm}}", "3 cm^2", **match) == 0.0
  assert one("number", "#### 5 mW", "5 MW", **match) == 0.0


@pytest.mark.parametrize(
  ("text", "score"),
  [
    ("####\n5", 1),
    ("#### \n\n5\nis it", 1),
    ("＃＃＃＃ 5", 1),
    ("\\boxed{\n5\n}", 1),
    ("$\\boxed 5$", 1),
    ("\\boxed\\frac{10}{2} is it", 1),
    ("\\fbox{5}", 1),
    ("\\framebox{5}", 1),
    ("\\boxed{\\boxed{5}}", 1),
    ("\\boxed{\\frac{10}{\\sqrt{4}}}", 0),
    ("\\boxed{5", 0),
    ("\\boxed{4}\\boxed{5}", 0),
    ("#### \\boxed{5}", 1),
    ("<think>\\boxed{3}</think>\\boxed{5}", 1),
    ("perhaps \\boxed{3}</think>\\boxed{5}", 1),  # the prompt opened it
    ("<think>\\boxed{5}</think> done", 0),
    ("<think>\\boxed{5}", 0),
    ("\\boxed{4}<think>no</think>\\boxed{5}", 0),
  ],
)
def test_where_an_answer_stands(text, score):
  assert one("number", text, 5) == score


def test_thoughts_are_read_where_that_is_set():
  text = "<think>\\boxed{5}</think> done"
  assert one("number", text, 5, thought_tag=None) == 1.0
  assert one("number", text, 5, inside_tag="think") == 1.0
  thought = "<think>say <answer>4</answer></think><answer>5</answer>"
  assert one("number", thought, 5, inside_tag="answer") == 1.0
  boxed = {"formats": ("boxed",)}
  both = "<think>\\boxed{A}</think>\\boxed{\\text{B}}"
  assert one("exact", both, "B", **boxed) == 1.0
  assert one("exact", both, "B", thought_tag=None, **boxed) == 0.0
  assert marked.spoken("a<t>b</t>c<t>d</t>e", "t") == "ace"


@pytest.mark.parametrize(
  "text",
  [
    "The answer is:\n5",
    "**Answer:** 5",
    "The final answer is $5$.",
    "Answer：5",
    "the answer is: \\[\n5\n\\]",
    "the answer is \\( 5 \\). So",
    "Final Answer: The final answer is $5$. I hope it is correct.",
    "Answer: answer is 5",
    "The answer is 5. So the answer is 5.0",
  ],
)
def test_phrases(text):
  assert one("number", text, 5, formats=("phrase",)) == 1.0
  assert one("number", text.replace("5", "5x"), 5, formats=("phrase",)) == 0.0


@pytest.mark.parametrize(
  "text",
  ["The answer is 5. The answer is 4.", "Answer: 4. No, the answer is 5"],
)
def test_phrases_in_one_line_all_count(text):
  assert one("number", text, 5, formats=("phrase",)) == 0.0
  assert one("number", text, 4, formats=("phrase",)) == 0.0


@pytest.mark.parametrize(
  ("text", "reference", "score"),
  [
    ("so 3.5x", 3, 0),
    ("it is \\frac{3}{4}", "3/4", 1),
    ("it is \\frac{3}{4}", 4, 0),
    ("we get 10,\\!000.", 10000, 1),
    ("x^5", 5, 0),
    ("it is −3", -3, 1),
  ],
)
def test_the_last_number_is_whole(text, reference, score):
  assert one("number", text, reference, formats=("last_number",)) == score


@pytest.mark.parametrize(
  ("text", "reference"),
  [
    (r"\text{B}", "B"),
    ("(B)", "B"),
    (r"\textbf{(B)}", "B"),
    (r"\mathbf{73}", "73"),
    (r"10,\!000", "10,000"),
    (r"\dfrac12", "1/2"),
    ("$x + 1$", "x+1"),
    ("√2", r"\sqrt{2}"),
    (r"2\pi", "2π"),
    ("−３", "-3"),
    ("well-known", "well known"),
    ("covid-19", "covid 19"),
    ("New York (NY)", "New York NY"),
    (r"\{1,2\}", "{1, 2}"),
    ("3:4", "3 : 4"),
    (r"\emptyset", r"\varnothing"),
    ("x >= 2", r"x\ge2"),
    ("B)", "B"),
  ],
)
def test_exact_reads_one_spelling(text, reference):
  assert one("exact", text, reference) == 1.0


@pytest.mark.parametrize(
  ("text", "reference"),
  [
    pair.split("~")
    for pair in "x+y~x-y|-x~x|√2~2|5²~52|1½~11/2|(1,2)~[1,2]|[0,1)~(0,1)|5!~5|"
    "n!~n|--5~-5|-(-5)~-5|0.(3)~0 3|x^2~x2|"
    "a<b~a>b|1:2~1 2|{1,2}~(1,2)|a=b~a b|x'~x|2x~2|3·4~34".split("|")
  ]
  + [("|x|", "x")],
)
def test_signs_of_a_formula_are_no_punctuation(text, reference):
  assert one("exact", text, reference) == 0.0
  assert one("exact", reference, text) == 0.0
  assert one("exact", text, text) == 1.0


def test_long_texts_are_compared_as_they_are():
  config = text_matches.ExactConfig()
  text = "The (long) text. " * 50
  assert text_matches.normalise(text, config) == " ".join(
    ["the long text"] * 50
  )


@pytest.mark.parametrize(
  ("text", "opened", "free", "both"),
  [
    ("<think>a</think>b", 0, 1, 0),
    ("a</think>b", 0, 0, 1),
    ("a</think>", 1, 0, 0),
    ("<think>a</think>", 0, 0, 0),
    ("<think>a</think>  \n", 0, 0, 0),
    ("<think>a</think>\u200b", 0, 0, 0),
    ("<think>\ufeff</think>b", 0, 0, 0),
    ("</think>b", 0, 0, 0),
    ("a</think>b</think>c", 0, 0, 0),
    ("<think>a</think>b<think>c</think>d", 0, 0, 0),
    ("b<think>a</think>c", 0, 0, 0),
    ("a", 0, 0, 0),
  ],
)
def test_tags_that_the_prompt_opened_and_free_ends(text, opened, free, both):
  think = {"tags": ("think",)}
  is_opened = {"is_opened_by_prompt": True}
  has_end = {"has_free_end": True}
  assert one("tags", text, None, **think, **is_opened) == opened
  assert one("tags", text, None, **think, **has_end) == free
  assert one("tags", text, None, **think, **is_opened, **has_end) == both


def test_tags_that_the_prompt_opened_before_others():
  opened = {"is_opened_by_prompt": True}
  text = "a</think>\n<answer>b</answer>"
  assert one("tags", text, None, **opened) == 1.0
  assert one("tags", f"<think>{text}", None, **opened) == 0.0
  assert one("tags", f"<think>{text}", None) == 1.0
  assert one("tags", text, None) == 0.0
