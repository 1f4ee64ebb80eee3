"""The verifier "math": equal formulas, different ones, and those that hang."""

import importlib.util
import os
import threading
import time

import numpy as np
import pytest

from rlhf_jax.data import formats
from rlhf_jax.rewards import (
  expressions,
  formula_process,
  formulas,
  math_formulas,
  texts,
  verifiers,
)

needs_sympy = pytest.mark.skipif(
  importlib.util.find_spec("sympy") is None,
  reason="sympy comes with pip install 'rlhf_jax[math]'",
)


def one(text, reference, **settings):
  score = verifiers.bind("math", **settings)
  return float(score([f"\\boxed{{{text}}}"], [reference])[0])


EQUAL = [
  ("x+1", "1+x"),
  ("(x+1)^2", "x^2+2x+1"),
  (r"\frac{x^2-1}{x-1}", "x+1"),
  ("2(x+1)", "2x+2"),
  ("x**2", "x^2"),
  ("1/(2x)", r"\frac{1}{2x}"),
  ("abc", "bca"),
  (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
  ("sqrt(8)", r"2\sqrt2"),
  (r"\sqrt[3]{8}", "2"),
  (r"\sqrt{3}i", r"i\sqrt3"),
  ("(1+i)^2", "2i"),
  (r"e^{i\pi}", "-1"),
  (r"e^{i\pi/3}", r"\frac12+\frac{\sqrt3}{2}i"),
  (r"\cos\frac\pi5", r"\frac{1+\sqrt5}{4}"),
  (r"2x\cos 36^\circ", r"\frac{1+\sqrt5}{2}x"),
  ("∛8", "2"),
  (r"\vec v", r"\vec{v}"),
  ("2pi", r"2\pi"),
  (r"\frac23\pi", r"\frac{2\pi}{3}"),
  (r"\sin^2 x + \cos^2 x", "1"),
  (r"\sin 2x", r"2\sin x\cos x"),
  (r"\sin^{-1} 1", r"\frac\pi2"),
  (r"\tan 45^\circ", "1"),
  (r"\ln x^2", r"2\ln x"),
  (r"\log_2 8", "3"),
  (r"\log 100", "2"),
  ("2^{x+1}", r"2\cdot 2^x"),
  ("9^{99}", "3^{198}"),
  ("5!", "120"),
  (r"\frac{10!}{5!5!}", "252"),
  (r"\binom{5}{2}", "10"),
  (r"\dbinom52", "10"),
  (r"{5\choose 2}", r"\tbinom{5}2"),
  (r"\operatorname{arcsin} x", r"\arcsin x"),
  (r"\left|-3\right|", "3"),
  (r"\lfloor 2.5 \rfloor", "2"),
  (r"0.\overline{3}", r"\frac13"),
  (r"1\frac12", "1.5"),
  (r"1+\frac{1}{1+\frac12}", r"\frac53"),
  ("1.4142135", r"\sqrt2"),
  (r"10,\!000", "10000"),
  (r"\$5.00", "5"),
  (r"2\sqrt{3}\text{ cm}", r"\sqrt{12}"),
  (r"3 \sqrt{3} \text{ square units}", r"\sqrt{27}"),
  ("2x", "2x"),
  ("3i", "3i"),
  # choices and words
  (r"\text{B}", "(B)"),
  (r"\textbf{(B)}", "B"),
  (r"\textbf{(D)}\ 12", "D"),
  ("(D) 12", r"\textbf{(D)}\ 12"),
  ("12", r"\textbf{(D)}\ 12"),
  ("B)", "B"),
  ("B:", "B"),
  ("B) 12", "B"),
  ("B. 12", "B"),
  ("12", "B) 12"),
  (r"\text{B) 12}", "B"),
  (r"\text{(B) } 12", "B"),
  (r"\text{B. }12\text{ cm}", "B"),
  ("Option B", "B"),
  (r"\text{Option B}", "B"),
  (r"\text{choice (B)}", "(B)"),
  ("Option (B) 12", "B"),
  (r"\text{A, B}", "B,A"),
  (r"\textbf{(A)}, \textbf{(B)}", "A,B"),
  (r"\text{A}\text{ and }\text{B}", "B,A"),
  (r"\text{no solution}", "No solution"),
  (r"\text{June 20}", "June 20"),
  # equations and relations
  ("x=5", "5"),
  ("5", "x=5"),
  ("n = 2k", "2k"),
  ("f(x)=x^2", "x^2"),
  (r"f^{-1}(x)=\frac{x-1}{2}", r"\frac{x-1}{2}"),
  ("a_n=2n+1", "2n+1"),
  ("3{:}4", "3:4"),
  (r"x=\frac{10}{2}=5", "5"),
  ("y=2x+1", "2x - y + 1 = 0"),
  ("4x+6y=12", "2x+3y=6"),
  ("2<x", "x>2"),
  (r"x\neq 2", r"2\ne x"),
  ("x=1, y=2", "y=2, x=1"),
  ("x >= 2", r"x\ge 2"),
  ("1<=x<=2", "[1,2]"),
  ("x != 2", r"x\ne2"),
  ("n!=24", "n! = 24"),  # no space: a factorial
  ("x == 5", "5"),
  ("x &= 5", "5"),
  ("x&=5", "x=5"),
  # several values, sets, intervals, tuples
  ("5,-1", "-1, 5"),
  (r"x=5 \text{ or } x=-1", "-1, 5"),
  (r"x \in \{5,-1\}", "-1, 5"),
  (r"1\pm\sqrt2", r"1-\sqrt{2}, 1+\sqrt{2}"),
  (r"\{1,2\}", r"\{2,1\}"),
  ("x>2", r"(2,\infty)"),
  (r"0<x\le 1", "(0,1]"),
  (r"\{x \mid x>2\}", r"(2,\infty)"),
  ("x<1 or x>3", r"(-\infty,1)\cup(3,\infty)"),
  (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}"),
  (r"\left(3,\frac{\pi}2\right)", r"(3, \frac{\pi}{2})"),
  (
    r"\begin{pmatrix} 1 & \frac24 \\ 3 & 4\end{pmatrix}",
    r"\begin{bmatrix}1&\frac12\\3&4\end{bmatrix}",
  ),
  (
    r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
  ),
  (
    r"\left(\begin{smallmatrix}1\\2\end{smallmatrix}\right)",
    r"\begin{Bmatrix}1\\2\end{Bmatrix}",
  ),
  (r"x\in\mathbb R", r"\Bbb{R}"),
  # money and times of day
  ("USD 5", "5"),
  ("Rs. 50", "50"),
  ("5 PM", "5 p.m."),
  (r"12:30\text{ p.m.}", "12:30 PM"),
]

DIFFERENT = [
  ("2", "2x"),
  ("2y", "2x"),
  ("3", "3i"),
  ("5", "5n"),
  ("2", "n=2k"),
  ("2", r"2\pi"),
  ("X", "x"),
  ("x+y", "x-y"),
  (r"\sqrt{x^2}", "x"),
  ("1.414", r"\sqrt2"),
  ("x+1+10^{-50}", "x+1"),  # no point of 30 digits tells them apart
  (r"\sin(x)(1+10^{-90})", r"\sin x"),
  (r"\sqrt{2}+10^{-60}", r"\sqrt2"),
  ("x=5", "y=5"),
  ("x=5", "x^2=25"),
  ("x=4=5", "5"),
  ("2x>4", "x<2"),
  ("x>2", r"x\ge2"),
  ("y=1, x=2", "x=1, y=2"),
  ("1, 2", "x=1, y=2"),
  ("5, 6", "5"),
  ("5 or 6", "5"),
  ("2", "2, 2"),
  ("(2,1)", "(1,2)"),
  (r"\{1,2\}", "(1,2)"),
  ("(1,2)", "(1,2]"),
  ("B", "A"),
  (r"\textbf{(C)}\ 12", r"\textbf{(D)}\ 12"),
  ("C", r"\textbf{(D)}\ 12"),
  ("(A)+1", "1"),
  ("B) 12", "C"),
  (r"\textbf{(A)}, \textbf{(C)}", "A,B"),
  (r"e^{i\pi/3}", r"\frac12-\frac{\sqrt3}{2}i"),
  (r"\cos\frac\pi5", r"\frac{1+\sqrt3}{4}"),
  (r"\vec v", "v"),
  ("A) 12", "B) 12"),
  ("B. 13", "B) 12"),
  ("Option B", "C"),
  ("5 p.m.", "5 a.m."),
  (r"12:30\text{ a.m.}", "12:30 p.m."),
  ("x >= 2", "x>2"),
  ("x != 2", "2"),
  ("n!=24", "4"),
  ("no solution", "one solution"),
  (r"\frac10", r"\frac20"),
  (r"\infty", r"-\infty"),
  ("0", r"\infty"),
  ("1/2x", r"\frac{x}{2}"),  # two readings
  ("x2", "2x"),
  ("2:3", "4:7"),
  ("x x x x", "5"),
  ("", "5"),
]


@needs_sympy
@pytest.mark.parametrize(("answers", "score"), [(EQUAL, 1), (DIFFERENT, 0)])
def test_equal_and_different_formulas(answers, score):
  texts_, references = zip(*answers, strict=True)
  found = verifiers.bind("math", seconds=60.0)(
    [f"so \\boxed{{{text}}}." for text in texts_], list(references)
  )
  wrong = [answers[i] for i in np.flatnonzero(found != score)]
  assert wrong == []


@needs_sympy
def test_every_marked_answer_must_be_right():
  score = verifiers.bind("math")
  answers = [
    r"\boxed{x+1}\boxed{1+x}",
    r"\boxed{x+1}\boxed{x}",
    r"\boxed{x}\boxed{x+1}",
    "x+1",
    r"<think>\boxed{x}</think>\boxed{x+1}",
  ]
  assert score(answers, ["1+x"] * 5).tolist() == [1, 0, 0, 0, 1]
  last = verifiers.bind("math", several="last")
  assert last(answers, ["1+x"] * 5).tolist() == [1, 0, 1, 0, 1]
  solution = r"It is \boxed{x} + 1 = \boxed{x+1}."  # the last of a reference
  assert score([r"\boxed{1+x}"], [solution]).tolist() == [1]


@needs_sympy
def test_units_and_numbers_are_those_of_number():
  match = {"units": "match"}
  assert one(r"2\sqrt3\text{ cm}", r"\sqrt{12}\text{ m}", **match) == 0.0
  assert one(r"2\sqrt3\text{ m}", r"\sqrt{12}\text{ m}", **match) == 1.0
  assert one(r"25\%", "0.25", percent="divide") == 1.0
  assert one(r"25\%", "0.25") == 0.0
  assert one("10000001", 10000000) == 0.0


HANGING = r"\boxed{9^{9^{9^{9}}}}"  # a tower that no memory holds


@needs_sympy
def test_what_hangs_is_stopped_and_logged():
  """From a thread, and with the next comparison undisturbed."""
  config = math_formulas.Config(seconds=0.5, workers=1)
  found = {}

  def judge():
    begun = time.monotonic()
    found["scores"], found["logged"] = math_formulas.score(
      [HANGING, r"\boxed{1+x}", HANGING], ["x+1"] * 3, config
    )
    found["seconds"] = time.monotonic() - begun

  thread = threading.Thread(target=judge)
  thread.start()
  thread.join(60)
  assert found["scores"].tolist() == [0, 1, 0]
  assert found["logged"]["timeout"].tolist() == [1, 0, 1]
  assert found["seconds"] < 30


@needs_sympy
def test_a_process_that_died_is_replaced():
  request = {
    "answer": formulas.read("1+x")[0],
    "reference": formulas.read("x+1")[0],
    "tolerance": 0.0,
  }
  memory = 1 << 30
  assert formula_process.compare(request, 20.0, memory) is True
  with formula_process.borrowed(memory) as [worker]:
    worker.process.kill()
    worker.process.wait()
  assert formula_process.compare(request, 20.0, memory) is None
  assert formula_process.compare(request, 20.0, memory) is True
  with formula_process.borrowed(memory) as held:
    pid = held[0].process.pid
    formula_process.close(held)
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


@needs_sympy
@pytest.mark.parametrize(
  ("reference", "message"),
  [
    ("1/2x", "two readings"),
    ("x +", "it breaks off"),
    ("", "it is empty"),
    (r"\sum_{i=1}^n i", "has no place"),
    ("2x because", "'because' is a word"),
    (True, "neither a text nor a number"),
    (None, "neither a text nor a number"),
    ([1, 2], "neither a text nor a number"),
    ("x" * 500, "too long"),
  ],
)
def test_a_reference_that_cannot_be_read_stops_the_run(reference, message):
  with pytest.raises(ValueError, match=rf"references\[1\].*{message}.*'exact'"):
    verifiers.bind("math")(["", ""], ["x", reference])


class Ends:
  """The one thing that judge_of wants of a tokenizer."""

  eos_id = 0


@needs_sympy
def test_an_unreadable_reference_is_named_by_its_line():
  prompts = [
    formats.Prompt(prompt="a", where=f"prompts.jsonl:{line}", reference=text)
    for line, text in enumerate([r"\frac12", "1/2x"], 1)
  ]
  with pytest.raises(ValueError, match="prompts.jsonl:2: reference='1/2x'"):
    texts.judge_of(verifiers.bind_parts("math"), prompts, Ends())


def test_without_sympy_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'rlhf_jax\[math\]'"):
    verifiers.bind("math")([], [])


def test_what_is_read_by_hand():
  x, one_ = ["v", "x"], ["n", "1"]
  assert expressions.read("x+1") == ["+", x, one_]
  assert expressions.read("-x^{2}") == ["-", ["^", x, ["n", "2"]]]
  assert expressions.read("2x/3") == ["/", ["*", ["n", "2"], x], ["n", "3"]]
  assert expressions.read("1.50") == ["d", "3/2"]
  assert formulas.read("x>1")[0] == formulas.read(r"1 < x")[0]
  assert formulas.read(r"5\text{ cm}") == (["n", "5"], "cm")
  assert formulas.read("x_1 = 2")[0] == ["named", "x_1", ["n", "2"]]


@pytest.mark.parametrize(
  "text",
  ["(" * 200, "{" * 200, r"\frac{" * 60, "|" * 50, r"\sqrt" * 80, "^" * 9]
  + ["__import__('os')", "x=", "2 3", "x2", r"2\frac53", "2^3^4", r"\foo x"]
  + ["< 5", r"5 \text{ or }", "(1, )", "nan", "5 > "],
)
def test_what_is_no_formula_is_refused(text):
  with pytest.raises(formulas.Unreadable):
    formulas.read(text)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"seconds": 0.0}, "seconds=0.0"),
    ({"memory_bytes": 1}, "memory_bytes=1"),
    ({"workers": 0}, "workers=0"),
    ({"formats": ()}, "at least one known marker"),
  ],
)
def test_mistakes_in_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    verifiers.bind("math", **settings)
