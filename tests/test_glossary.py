"""Every metric of the code is explained, beside the code or as a remedy."""

import ast
import functools
import re
from pathlib import Path

import pytest

from rlhf_jax import glossary

PACKAGE = Path(glossary.__file__).parent
# Literals that are no names of metrics: beginnings of some, a barrier.
OTHERS = {
  "process/answer_auc_",
  "preference/logprob_",
  "preference/reward_",
  "preference/tokens_",
  "rejection/best_of_",
  "rejection/round",
  "rollout/kl_",
}
METRIC = re.compile(r"[a-z_]+/[A-Za-z0-9_]+")


@functools.cache
def known():
  return glossary.entries()


def literals():
  """Returns the strings of the code that are metrics by their area."""
  areas = {name.partition("/")[0] for name in known()}
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      value = getattr(node, "value", None)
      if isinstance(node, ast.Constant) and isinstance(value, str):
        if METRIC.fullmatch(value) and value.partition("/")[0] in areas:
          yield value, path.name


def test_every_metric_is_explained():
  found = {
    (name, file)
    for name, file in literals()
    if name not in known() and name not in OTHERS
    if not name.startswith("eval/")  # named by the user
  }
  assert not found, f"say what it means, in the docstring: {sorted(found)}"


LIMIT, DOWN = "Above 0.5 is bad: why", "Down is bad"


@pytest.mark.parametrize(
  "text, expected",
  [
    (
      "Metrics:\n  a/b, a/c: two\n    of it. Above 0.5 is bad: why.\n  a/d: x.",
      {"a/b": LIMIT, "a/c": LIMIT, "a/d": ""},
    ),
    (
      "a/b: up is bad. a/c: x.\n\nArgs:\n  y: z.",
      {"a/b": "Up is bad", "a/c": ""},
    ),
    ("a/b,\n  a/c: one. Down is bad.", {"a/b": DOWN, "a/c": DOWN}),
    ("As in http://a/b, not one.", {}),
  ],
)
def test_what_a_docstring_says(text, expected):
  found = {e.name: e.bad for e in glossary._entries_of("file.py", text)}
  assert found == expected


def test_remedies_are_of_metrics():
  assert glossary.REMEDIES.keys() <= known().keys()
  assert known()["rollout/entropy"].remedy


def test_the_command(capsys):
  assert glossary.main(["glossary", "rollout/kl_k1_sum", "eos_s"]) == 0
  said = capsys.readouterr().out
  assert "rollout/eos_share\n" in said and "rollout/kl_k1_sum\n" in said
  assert "kl_k3" not in said and max(map(len, said.splitlines())) <= 80
  assert glossary.main(["glossary", "rollout/klx"]) == 2
  assert "no metric has this" in capsys.readouterr().err
