"""docs/METHODS.md has what the code cites, and names what there is.

Citations are "METHODS 3.6 and 5.4", "METHODS N14", "trap 12", "DESIGN section
1" and the like, and the numbers in names of tests (test_t08_, test_trap_01_).
Entries of the page are its headings and the rows of its tables. What a line of
defaults says is compared with the dataclass.
"""

import ast
import dataclasses
import functools
import importlib
import re
import subprocess
from pathlib import Path

import pytest

from rlhf_jax.algorithms.policy_gradient import registry as policy_gradient
from rlhf_jax.algorithms.preference import registry as preference
from rlhf_jax.rewards import verifiers

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "METHODS.md"
FOLDERS = "rlhf_jax tests configs benchmarks tpu_scripts docs README.md".split()
SUFFIXES = (".py", ".md", ".sh", ".bash", ".bats")

GAP = r"[\s#]+"  # a citation may go on in the next line of a comment
ITEM = r"(?:[NTJ]\d+|A\d+[a-z]?|\d+(?:\.\d+)?[a-z]?)(?!\w)"
JOIN = rf"(?:,{GAP}(?:and{GAP})?|{GAP}and{GAP}|{GAP}to{GAP}|-)(?:annex{GAP})?"
# The last four are documents that are not in this repository.
KIND = (
  r"\b(METHODS|DESIGN|Design|[Tt]raps?|TRAPS|SYSTEMS|PERFORMANCE|STYLE)"
  rf"(?:\.md)?,?(?:{GAP}(?:sections?|annex))?"
)
CITED = re.compile(rf"{KIND}{GAP}({ITEM}(?:{JOIN}{ITEM})*)")
ROW = re.compile(r"\| (Design \d+|[A-Z]?\d+(?:\.\d+)?[a-z]?) \|")
HEADING = re.compile(r"#+ (\d+(?:\.\d+)?)\.? ")
NAMED = re.compile(r"`([\w./]+\.(?:py|md))(?:::(\w+))?`")
DEFAULT = re.compile(r"`([\w.]+)=([^`]+)`")


def citations(text):
  """Returns {(document, number)} of what a text cites."""
  found = set()
  for word, items in CITED.findall(text):
    document = word.lower().rstrip("s") if word[1:4] == "rap" else word.upper()
    numbers = re.findall(ITEM, items)
    is_range = re.fullmatch(rf"\d+(?:-|{GAP}to{GAP})\d+", items)
    if is_range:
      low, high = map(int, numbers)
      numbers = [str(number) for number in range(low, high + 1)]
    for number in numbers:  # "trap 12, T16": a letter says which table
      is_own = number[0].isdigit()
      found.add((document if is_own else "METHODS", number))
  return found


def citations_of_names(source):
  """Returns {(document, number)} of the names of the tests of a file."""
  found = set()
  for name in re.findall(r"def (test_\w+)", source):
    is_trap = False
    for word in name.split("_"):
      is_trap = word == "trap" or (is_trap and re.fullmatch(r"\d\d", word))
      if is_trap and word != "trap":
        found.add(("trap", str(int(word))))
      elif re.fullmatch(r"[tn]\d\d|a\d+[a-z]?", word):
        found.add(("METHODS", word[0].upper() + word[1:].lstrip("0")))
  return found


@dataclasses.dataclass(frozen=True)
class Line:
  """A row of a table, or a line outside; headers of its table in lower case."""

  text: str
  headers: tuple[str, ...] = ()


def lines(page):
  """Returns the lines of a page, each row with the headers of its table."""
  found, headers = [], ()
  for text in page.splitlines():
    if not text.startswith("|"):
      headers = ()
    elif not headers:
      headers = tuple(cell.strip() for cell in text.strip("|").split("|"))
      continue
    found.append(Line(text, headers))
  return found


def entries(page):
  """Returns {(document, number)} of what a page has."""
  found, section = set(), ""
  for line in lines(page):
    heading, row = HEADING.match(line.text), ROW.match(line.text)
    part = re.match(r"\(([a-z])\) ", line.text)
    if heading:
      section = heading[1]
      found.add(("METHODS", section))
    elif part:
      found.add(("METHODS", section + part[1]))
    elif row and line.headers[0] == "trap":
      found.add(("trap", row[1]))
    elif row and row[1].startswith("Design"):
      found.add(("DESIGN", row[1].split()[1]))
    elif row and line.headers[:2] != ("number", "source"):
      found.add(("METHODS", row[1]))
  return found


def files():
  """Returns the files that may cite, without this one."""
  listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  found = (ROOT / name for name in listed if name.endswith(SUFFIXES))
  return [path for path in found if path.exists() and path != Path(__file__)]


def unresolved(text, page, *, is_test=False):
  """Returns what a text cites, and the page has not, as sorted sentences."""
  cited = citations(text)
  if is_test:
    cited |= citations_of_names(text)
  return sorted(" ".join(pair) for pair in cited - entries(page))


def located(name):
  """Returns the path of a file as the page names it."""
  if Path(name).name.startswith("test_"):
    return ROOT / "tests" / name.removeprefix("tests/")
  is_rooted = name.split("/")[0] in FOLDERS
  return ROOT / name if is_rooted else ROOT / "rlhf_jax" / name


@functools.cache
def definitions(path):
  """Returns the names of the functions and classes of a Python file."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  nodes = ast.walk(ast.parse(path.read_text()))
  return {node.name for node in nodes if isinstance(node, kinds)}


def missing(page):
  """Returns the files and names that a page speaks of and that are not."""
  found = []
  for name, inner in NAMED.findall(page):
    path = located(name)
    if not path.is_file():
      found.append(name)
    elif inner and inner not in definitions(path):
      found.append(f"{name}::{inner}")
  return found


def wrong_defaults(page):
  """Returns what the tables of defaults say, and the code does not."""
  found = []
  for line in lines(page):
    if line.headers != ("class", "defaults") or "::" not in line.text:
      continue
    [(name, inner)] = NAMED.findall(line.text)
    module = "rlhf_jax." + name.removesuffix(".py").replace("/", ".")
    cls = getattr(importlib.import_module(module), inner)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for path, said in DEFAULT.findall(line.text):
      first, *rest = path.split(".")
      value = fields[first].default if first in fields else "no such field"
      for attribute in rest:
        value = getattr(value, attribute)
      if value != ast.literal_eval(said):
        found.append(f"{name}::{inner}.{path} is {value!r}, not {said}")
  return found


def test_every_citation_has_its_entry():
  page, found = PAGE.read_text(), []
  for path in files():
    is_test = path.name.startswith("test_")
    for citation in unresolved(path.read_text(), page, is_test=is_test):
      found.append(f"{path.relative_to(ROOT)} cites {citation}")
  assert not found, "\n".join(found)


def test_citations_are_found_all_over():
  found = {}
  for path in files():
    for citation in citations(path.read_text()):
      found.setdefault(citation, []).append(path)
  assert len(found) > 30
  assert {("METHODS", "N9"), ("METHODS", "A12"), ("trap", "12")} <= set(found)
  assert len(found["METHODS", "3.6"]) > 3


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("(METHODS 3.6 and 5.4), with", "METHODS 3.6, METHODS 5.4"),
    ("batch (METHODS\n      N9: a mean", "METHODS N9"),
    ("(METHODS 3.5, 13,\n# annex A2a, A6)", "METHODS 3.5, 13, A2a, A6"),
    ("the numbers of METHODS 7.", "METHODS 7"),
    ("see docs/METHODS.md 4.10", "METHODS 4.10"),
    ("(METHODS N12, trap 26).", "METHODS N12, trap 26"),
    ("Trap 12, T16: a run", "trap 12, METHODS T16"),
    ("traps 3 to 5", "trap 3, trap 4, trap 5"),
    ("DESIGN section 1, kept", "DESIGN 1"),
    ("(METHODS 1; Krell et al. 2021)", "METHODS 1"),
    ("METHODS = {'a': 1}; len(METHODS) 2", ""),
    ("the order of SYSTEMS 4", "SYSTEMS 4"),
  ],
)
def test_what_a_citation_is(text, wanted):
  pairs, document = set(), ""
  for part in filter(None, wanted.split(", ")):
    *name, number = part.split()
    document = name[0] if name else document
    pairs.add((document, number))
  assert citations(text) == pairs


def test_names_of_tests_cite():
  source = "def test_t03_n11_trap_08_24_x_100(): pass\ndef test_a2a_y(): pass"
  assert citations_of_names(source) == {
    ("METHODS", "T3"),
    ("METHODS", "N11"),
    ("METHODS", "A2a"),
    ("trap", "8"),
    ("trap", "24"),
  }


@pytest.mark.parametrize(
  "text",
  ["METHODS 99.1", "METHODS N15", "METHODS 2.5c", "trap 999", "DESIGN 40"],
)
def test_a_bad_citation_is_noticed(text):
  assert unresolved(f"as before ({text}).", PAGE.read_text()) == [text]
  assert unresolved("as before (METHODS 3.6).", "# Methods\n") == [
    "METHODS 3.6"
  ]


def test_a_bad_number_in_the_name_of_a_test_is_noticed():
  source = "def test_t99_trap_77_nothing(): pass"
  found = unresolved(source, PAGE.read_text(), is_test=True)
  assert found == ["METHODS T99", "trap 77"]


def test_every_file_and_name_of_the_page_exists():
  page = PAGE.read_text()
  assert missing(page) == []
  assert len(NAMED.findall(page)) > 200


def test_a_file_or_name_that_is_not_there_is_noticed():
  page = (
    "`ops.py` `ops.py::whiten` `test_ops.py::test_gone` `nowhere.py` "
    "`test_ops.py::whiten` `tests/proofs/table.py::MODULES`"
  )
  assert missing(page) == [
    "test_ops.py::test_gone",
    "nowhere.py",
    "test_ops.py::whiten",
    "tests/proofs/table.py::MODULES",  # neither a function nor a class
  ]


def test_every_default_of_the_page_is_that_of_the_code():
  assert wrong_defaults(PAGE.read_text()) == []


def test_a_wrong_default_is_noticed():
  head = "| class | defaults |\n|---|---|\n"
  row = "| `algorithms/preference/ipo.py::Config` | `tau=0.2`, `beta=0.1` |"
  assert wrong_defaults(head + row) == [
    "algorithms/preference/ipo.py::Config.tau is 0.1, not 0.2",
    "algorithms/preference/ipo.py::Config.beta is 'no such field', not 0.1",
  ]


def test_every_trap_rule_and_section_names_a_test():
  found = [
    line.text[:20]
    for line in lines(PAGE.read_text())
    if ROW.match(line.text)
    and line.headers[-1] in ("test", "tests", "code and test")
    and "::test_" not in line.text
    and "as there" not in line.text
  ]
  assert found == []


def test_every_method_and_verifier_is_on_the_page():
  page = PAGE.read_text()
  modules = {**policy_gradient.ALGORITHMS, **preference.ALGORITHMS}
  for name, module in modules.items():
    file = Path(module.__file__).relative_to(ROOT / "rlhf_jax").as_posix()
    assert f"`{file}`" in page, name
  for name in verifiers.VERIFIERS:
    assert f"| `{name}` |" in page, name
