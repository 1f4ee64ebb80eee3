"""The list of faults never goes stale, and the campaign judges rightly."""

import ast
import collections
import functools

import pytest

from tests.proofs import mutation_campaign, mutations
from tests.proofs.mutation_campaign import ROOT, Verdict

ALL = mutations.everything()
AREAS = {
  "losses",
  "masks",
  "returns",
  "sampling",
  "evaluation",
  "selection",
  "resume",
  "stages",
  "verifiers",
  "data",
  "optimizer",
  "sharding",
  "metrics",
  "export",
}


@functools.cache
def statements(source):
  """Returns the texts of the statements of a module, with decorators."""
  lines, found = source.splitlines(), []
  for node in ast.parse(source).body:
    first = min(x.lineno for x in (node, *getattr(node, "decorator_list", ())))
    found.append("\n".join(lines[first - 1 : node.end_lineno]))
  return found


def is_same_program(source, changed):
  """Says whether two sources differ in comments and lines alone."""
  old, new = statements(source), statements(changed)
  only_old = "\n".join(text for text in old if text not in new)
  only_new = "\n".join(text for text in new if text not in old)
  return ast.dump(ast.parse(only_old)) == ast.dump(ast.parse(only_new))


def test_every_fault_stands_once_changes_its_file_and_parses():
  stale = []
  for fault in ALL:
    try:
      source = mutations.place(fault, ROOT).read_text()
      changed = mutations.mutated(fault, source)
      is_idle = is_same_program(source, changed)
      assert mutations.test_files(fault, ROOT)
    except (mutations.StaleError, SyntaxError) as error:
      stale.append(f"{fault.name}: {error}")
      continue
    if is_idle:
      stale.append(f"{fault.name}: changes no program")
  assert not stale, "\n".join(stale)


def test_a_fault_in_a_comment_changes_no_program():
  source = "@a\ndef f():\n  return 1  # one\n\n\nx = 2\n"
  assert is_same_program(source, source.replace("# one", "# two"))
  for old, new in (("return 1", "return 2"), ("@a", "@b"), ("x = 2", "x = 1")):
    assert not is_same_program(source, source.replace(old, new))


def test_faults_have_names_of_their_own_and_cover_every_area():
  counts = collections.Counter(fault.name for fault in ALL)
  assert [name for name, count in counts.items() if count > 1] == []
  assert {fault.area for fault in ALL} == AREAS
  assert len(ALL) >= 70


def fault(before, file="a.py", tests=("test_a.py",)):
  return mutations.Mutation("losses", "x", file, before, "1 + 1", tests)


@pytest.fixture
def tree(tmp_path):
  """Returns a tree of two modules and a test."""
  for folder in ("rlhf_jax/new", "tests/new"):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / "rlhf_jax" / "a.py").write_text("x = 2 * 2\ny = 3\nz = 3\n")
  (tmp_path / "rlhf_jax" / "new" / "b.py").write_text("w = 4 * 4\n")
  (tmp_path / "tests" / "new" / "test_a.py").write_text("")
  return tmp_path


def test_moved_files_and_tests_are_found(tree):
  assert mutations.place(fault("2 * 2"), tree).name == "a.py"
  moved = mutations.place(fault("4 * 4"), tree)
  assert moved == tree / "rlhf_jax" / "new" / "b.py"
  assert mutations.place(fault("4 * 4", "gone.py"), tree) == moved
  assert mutations.test_files(fault("2 * 2"), tree) == ["tests/new/test_a.py"]


@pytest.mark.parametrize(
  ("before", "message"),
  [("= 3", "holds '= 3' 2 times"), ("5 * 5", "stands in \\[\\]")],
)
def test_texts_that_are_not_there_once_are_stale(tree, before, message):
  with pytest.raises(mutations.StaleError, match=message):
    mutations.place(fault(before), tree)


def test_tests_that_are_gone_or_double_are_stale(tree):
  (tree / "tests" / "test_a.py").write_text("")
  for name, count in (("test_a.py", 2), ("test_b.py", 0)):
    with pytest.raises(mutations.StaleError, match=f"{count} files are called"):
      mutations.test_files(fault("2 * 2", tests=(name,)), tree)


def test_one_test_of_a_file_may_be_named(tree):
  path = "tests/new/test_a.py"
  (tree / path).write_text("def test_it(x):\n  assert x\n")
  [one, own] = mutations.of(
    "losses", "a.py", "a", ("x", "= 2", "= 3"), ("y", "= 3", "= 4", "a::it")
  )
  assert mutations.test_files(one, tree) == [path]
  assert mutations.test_files(own, tree) == [f"{path}::test_it"]
  with pytest.raises(mutations.StaleError, match="has no test_i."):
    mutations.test_files(fault("2 * 2", tests=("test_a.py::test_i",)), tree)


def test_faults_are_chosen_by_area_name_and_part():
  choose = mutation_campaign.chosen
  assert choose("", "1/1") == list(ALL)
  optimizer = choose("optimizer", "1/1")
  assert {found.area for found in optimizer} == {"optimizer"}
  assert choose("ppo: returns of white", "1/1")[0].area == "returns"
  parts = [choose("losses", f"{k}/3") for k in (1, 2, 3)]
  assert sum(map(len, parts)) == len(choose("losses", "1/1"))
  assert parts[1] == choose("losses", "1/1")[1::3]
  with pytest.raises(SystemExit, match="no such fault"):
    choose("nothing of this name", "1/1")


def test_the_table_counts_what_was_killed():
  verdicts = [
    Verdict(fault("x"), "tests/algorithms/test_a.py::test_b[c/d]", 2.4),
    Verdict(fault("y"), "", 33.6),
  ]
  killed, survived, total = mutation_campaign.table(verdicts).splitlines()
  assert "  test_a.py::test_b[c/d]  2 s" in killed
  assert "SURVIVED  34 s" in survived
  assert total == "killed 1 of 2, 0.6 minutes of tests"


def test_a_copy_is_whole(tmp_path):
  """Else what is missing would be imported from an installed package."""
  mutation_campaign.copy_tree(tmp_path / "tree")
  for folder in ("rlhf_jax", "tests"):
    wanted, found = (
      {path.relative_to(root) for path in (root / folder).rglob("*.py")}
      for root in (ROOT, tmp_path / "tree")
    )
    assert found == wanted
  assert (tmp_path / "tree" / "pyproject.toml").is_file()


def test_a_fault_is_taken_out_again(tree):
  path = tree / "rlhf_jax" / "a.py"
  before, times = path.read_text(), path.stat().st_mtime_ns
  with mutation_campaign.planted(fault("2 * 2"), tree):
    assert path.read_text() == before.replace("2 * 2", "1 + 1")
  assert path.read_text() == before and path.stat().st_mtime_ns == times


def test_a_test_that_fails_anyway_kills_nothing(tmp_path):
  """Of three killers one fails without a fault too."""
  broken = "tests/test_b.py::test_b"
  asked = []

  class Crafted:
    def run(self, root, tests):
      del root
      asked.append(list(tests))
      failed = [test for test in tests if test == broken]
      return not failed, failed

  killers = ["tests/test_a.py", broken, broken, "", "time"]
  verdicts = [Verdict(fault("x"), killer, 1.0) for killer in killers]
  found = mutation_campaign.discounted(verdicts, tmp_path, Crafted())
  assert [v.killer for v in found] == [killers[0], "", "", "", "time"]
  assert asked == [sorted({killers[0], broken}), [killers[0]]]


BODIES = (
  ("assert 1 == 1", (True, [])),
  ("assert 1 == 2", (False, ["test_x.py::test_x"])),
  ("import os; os.kill(os.getpid(), 9)", (False, ["signal 9"])),
  ("import time; time.sleep(60)", (False, ["time"])),
  ("import a; assert a.x == 4", (True, [])),  # of its own tree
)


def test_what_pytest_says_is_understood(tmp_path, monkeypatch):
  with mutation_campaign.Tests(tmp_path, ["pytest"]) as tests:
    for number, (body, expected) in enumerate(BODIES):
      root = tmp_path / str(number)
      root.mkdir()
      (root / "a.py").write_text(f"x = {number}")
      (root / "test_x.py").write_text(f"def test_x():\n  {body}\n")
      patience = 0.5 if "sleep" in body else 60.0
      monkeypatch.setattr(mutation_campaign, "PATIENCE", patience)
      assert tests.run(root, ["test_x.py"]) == expected, body
    with pytest.raises(RuntimeError, match="test_gone.py"):
      tests.run(root, ["test_gone.py"])
