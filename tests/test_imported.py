"""Import paths: what they name, and what is said of one that names nothing."""

import functools
import os
import pickle
import sys
import textwrap
from pathlib import Path

import pytest

from rlhf_jax import imported


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Returns a function that writes a file of the working folder."""
  monkeypatch.chdir(tmp_path)

  def one(name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path

  return one


def refused(path):
  with pytest.raises(ValueError) as caught:
    imported.load(path, "verifier.name")
  start = f"verifier.name={path!r}: "
  assert str(caught.value).startswith(start)
  return str(caught.value)[len(start) :]


def test_what_is_an_import_path():
  for text in ("a.py", "a/b.py:c", "a.b:c", "a:"):
    assert imported.is_path(text)
  for text in ("number", "sum", "", "a.b", "apy"):
    assert not imported.is_path(text)


def test_a_name_of_a_file_or_module_and_a_whole_file(write):
  write("mine.py", "value = 3\ndef double(x):\n  return 2 * x")
  write("folder/other.py", "value = 4")
  assert imported.load("mine.py:double", "f")(5) == 10
  assert imported.load("folder/other.py:value", "f") == 4
  assert imported.load(str(Path("mine.py").absolute()), "f").value == 3
  assert imported.load("os.path:join", "f") is os.path.join


def test_a_file_runs_once_until_it_changes(write):
  path = write("once.py", "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1")
  try:
    first = imported.load("once.py", "f")
    assert imported.load(str(path), "f") is first and sys.runs == 1
    # As long as before and within the second: bytecode would not notice.
    write("once.py", "import sys\nsys.runs = getattr(sys, 'runs', 0) + 9")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))
    assert imported.load("once.py", "f") is not first and sys.runs == 10
  finally:
    del sys.runs
  assert not (path.parent / "__pycache__").exists()


def test_a_name_of_a_table_or_a_path_is_found_or_refused(write):
  write("mine.py", "half = 0.5\nword = 'half'")
  table = {"one": 1.0, "two": 2.0}

  def find(name):
    return imported.find(name, table, float, "number", "Write a number.")

  assert (find("two"), find("mine.py:half")) == (2.0, 0.5)
  for name, message in (
    (
      "onee",
      "must be one of one, two, or the import path of a float. Did you mean "
      "'one'?",
    ),
    (3, "must be one of one, two, or the import path of a float."),
    ("mine.py:word", "is a str, not a float. Write a number."),
  ):
    with pytest.raises(ValueError) as caught:
      find(name)
    assert str(caught.value) == f"number={name!r}: {message}"


def test_dataclasses_and_pickles_work(write):
  write(
    "with-data.py",
    """
    from __future__ import annotations
    import dataclasses
    @dataclasses.dataclass(frozen=True)
    class Point:
      x: int
    def score(texts): return [1.0]
    """,
  )
  point = imported.load("with-data.py:Point", "f")(3)
  assert pickle.loads(pickle.dumps(point)) == point
  score = imported.load("with-data.py:score", "f")
  assert pickle.loads(pickle.dumps(score)) is score
  assert score.__module__.startswith("with_data_")


def test_two_files_of_one_name_are_two_modules(write):
  write("a/mine.py", "value = 1")
  write("b/mine.py", "value = 2")
  assert imported.load("a/mine.py:value", "f") == 1
  assert imported.load("b/mine.py:value", "f") == 2


@pytest.mark.parametrize("path", [":name", "mine.py:", "a.b", "mine.py:3", ""])
def test_another_form_is_refused(path):
  assert refused(path) == (
    "no import path. Write FILE.py:NAME or package.module:NAME."
  )


def test_a_missing_file_is_named_with_a_near_one(write):
  place = write("rewards.py", "").parent
  assert refused("reward.py:score") == (
    f"{place}/reward.py: no such file. Did you mean 'rewards.py'? Give the "
    "path of a Python file; a relative one starts in the working folder."
  )
  assert refused("gone/x.py:score") == (
    f"{place}/gone/x.py: no such file. Give the path of a Python file; a "
    "relative one starts in the working folder."
  )
  (place / "dir.py").mkdir()
  assert refused("dir.py").startswith(f"{place}/dir.py: is a folder.")


def test_a_missing_name_is_named_with_a_near_one(write):
  write("mine.py", "import os\ndef score(): pass\ndef _hidden(): pass\nb = 1")
  assert refused("mine.py:scores") == (
    "mine.py has no 'scores'. Did you mean 'score'? It has score, b. Give one "
    "of its names, or define this one there."
  )
  write("empty.py", "")
  assert refused("empty.py:score") == (
    "empty.py has no 'score'. It has no names at all. Give one of its names, "
    "or define this one there."
  )


def test_a_file_that_raises_is_named_with_its_line(write):
  path = write("bad.py", "x = 1\ndef f():\n  return 1 / 0\nf()\n")
  assert refused("bad.py:x") == (
    f"{path}:3: ZeroDivisionError: division by zero. Correct it there."
  )
  path = write("bad.py", "x = 1\n\ny = = 2\n")
  assert refused("bad.py:x").startswith(f"{path}:3: SyntaxError: invalid")
  path = write("bad.py", "import json\n\njson.loads('{')\n")
  assert refused("bad.py").startswith(f"{path}:3: JSONDecodeError: ")
  path = write("bad.py", "raise SystemExit(2)\n")
  assert refused("bad.py") == f"{path}:1: SystemExit: 2. Correct it there."
  path = write("bad.py", "\nimport rlhf_jax_is_no_such_module\n")
  assert refused("bad.py") == (
    f"{path}:2: ModuleNotFoundError: No module named "
    "'rlhf_jax_is_no_such_module'. Install it, or put the folder that holds "
    "it on PYTHONPATH."
  )
  path = write("bad.py", "")
  path.write_bytes(b"x = '\xff'\n")
  assert refused("bad.py").startswith(f"{path}")
  assert not [name for name in sys.modules if name.startswith("bad_")]


def test_a_file_that_breaks_keeps_its_last_state(write):
  write("state.py", "class A: pass")
  good = imported.load("state.py:A", "f")
  write("state.py", "class A: pass\n1 / 0")
  refused("state.py:A")
  assert pickle.loads(pickle.dumps(good)) is good


def test_a_missing_module_is_named_with_a_near_one(write, monkeypatch):
  folder = write("rlhf_toys/__init__.py", "").parent.parent
  write("rlhf_toys/rewards.py", "def score(): pass")
  path = write("rlhf_toys/broken.py", "1 / 0")
  needy = write("rlhf_toys/needy.py", "import rlhf_toys.missing.part")
  monkeypatch.syspath_prepend(folder)
  try:
    imported.load("rlhf_toys.rewards:score", "f")
    remedy = (
      "Install it or put its folder on PYTHONPATH; for a file write "
      "FILE.py:NAME."
    )
    assert refused("rlhf_toy.rewards:score") == (
      f"no module 'rlhf_toy'. Did you mean 'rlhf_toys'? {remedy}"
    )
    assert refused("rlhf_toys.reward:score") == (
      "no module 'rlhf_toys.reward' in 'rlhf_toys'. Did you mean 'rewards'? "
      f"{remedy}"
    )
    assert refused("rlhf_toys.rewards:scor").startswith(
      "rlhf_toys.rewards has no 'scor'. Did you mean 'score'?"
    )
    assert refused("rlhf_toys.rewards.x:y").startswith(
      "no module 'rlhf_toys.rewards.x' in 'rlhf_toys.rewards'. Install it"
    )
    assert refused("rlhf_toys.broken:x") == (
      f"{path}:1: ZeroDivisionError: division by zero. Correct it there."
    )
    assert refused("rlhf_toys.needy:x") == (
      f"{needy}:1: ModuleNotFoundError: No module named 'rlhf_toys.missing'. "
      "Install it, or put the folder that holds it on PYTHONPATH."
    )
    assert refused("rlhf-toys:score") == (
      "'rlhf-toys' is no module's name. Write FILE.py:NAME or "
      "package.module:NAME."
    )
  finally:
    for name in [name for name in sys.modules if name.startswith("rlhf_toys")]:
      del sys.modules[name]


def check(function, allowed=("texts", "records"), required=("texts",)):
  return imported.check_call(function, allowed, required, "verifier", "m.py:f")


def both(records, texts):
  return texts, records


class Callable:
  def __call__(self, texts, weight=1.0):
    return texts


def test_a_call_by_keywords_is_allowed():
  assert check(both) == ("texts", "records")  # in the order of allowed
  assert check(lambda texts: texts) == ("texts",)
  assert check(lambda texts, scale=2.0: texts) == ("texts",)
  assert check(lambda *, texts, records=None: texts) == ("texts", "records")
  assert check(Callable()) == ("texts",)
  assert check(functools.partial(both, records=None)) == ("texts", "records")
  assert check(lambda records: 0, required=()) == ("records",)

  @functools.wraps(both)
  def wrapped(*args, **kwargs):
    return both(*args, **kwargs)

  assert check(wrapped) == ("texts", "records")


@pytest.mark.parametrize(
  "function, message",
  [
    (
      3,
      "is a int, not a function. Name a function whose parameters are among "
      "texts, records.",
    ),
    (
      lambda texts, recods: 0,
      "nothing fills its parameter 'recods'. Did you mean 'records'? Name it "
      "one of texts, records, or give it a default.",
    ),
    (
      lambda texts, weight: 0,
      "nothing fills its parameter 'weight'. Name it one of texts, records, or "
      "give it a default.",
    ),
    (
      lambda texts, /: 0,
      "takes 'texts' by position only, and arguments are filled by their "
      "names. Remove the '/' from its parameters.",
    ),
    (
      lambda texts, *more: 0,
      "takes *more, and arguments are filled by their names. Name the "
      "parameters it reads, among texts, records.",
    ),
    (
      lambda texts, **more: 0,
      "takes **more, and arguments are filled by their names. Name the "
      "parameters it reads, among texts, records.",
    ),
    (
      lambda records: 0,
      "lacks the parameter 'texts'. Add it; the names that are filled are "
      "texts, records.",
    ),
  ],
)
def test_a_call_that_cannot_be_made_is_refused(function, message):
  with pytest.raises(ValueError) as caught:
    check(function)
  assert str(caught.value) == f"verifier='m.py:f': {message}"


def test_a_function_without_a_signature_is_refused():
  with pytest.raises(ValueError, match="its parameters cannot be read .*a def"):
    check(min)


def test_a_fingerprint_is_of_the_file_and_nothing_else(write):
  path = write("judge.py", "def score(texts):\n  return [1.0 for _ in texts]\n")
  first = imported.fingerprint(f"{path}:score")
  assert len(first) == 16 and first == imported.fingerprint(f"{path}:other")
  assert imported.fingerprint(str(path)) == first
  write("judge.py", "def score(texts):\n  return [2.0 for _ in texts]\n")
  assert imported.fingerprint(f"{path}:score") != first
  module = imported.fingerprint("rlhf_jax.ops:whiten")
  assert len(module) == 16 and module != first
  assert imported.fingerprint("") == imported.fingerprint("sys:exit") == ""
