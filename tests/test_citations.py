"""docs/METHODS.md holds what the code cites, and names what there is."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "METHODS.md"
FOLDERS = ("rlhf_jax", "tests", "configs", "benchmarks", "tpu_scripts", "docs")
_NUMBER = r"N?\d+(?:\.\d+[a-z]?)?"
_CITED = re.compile(
  rf"(METHODS|DESIGN|[Tt]raps?|SYSTEMS)(?:\.md)?(?: sections?)? ({_NUMBER})"
  rf"(?:(?: and|,| to) ({_NUMBER}))?"
)


def cited(text):
  """Returns (document, number) of all that a text cites."""
  found = set()
  for document, first, second in _CITED.findall(text):
    name = document.upper().rstrip("S") if "rap" in document else document
    found |= {(name, number) for number in (first, second) if number}
  return found


@cache
def entries():
  """Returns (document, number) of all that the page has."""
  text = PAGE.read_text()
  numbers = re.findall(rf"^(?:#+ )?({_NUMBER})\.? ", text, re.MULTILINE)
  numbers += re.findall(rf"^\| ({_NUMBER}) \|", text, re.MULTILINE)
  numbers += re.findall(r"\b(2\.5[ab]|4\.9|4\.10) ", text)
  traps = re.findall(r"^- trap (\d+):", text, re.MULTILINE)
  designs = re.findall(r"^DESIGN (\d+)\.", text, re.MULTILINE)
  return (
    {("METHODS", number) for number in numbers}
    | {("TRAP", number) for number in traps}
    | {("DESIGN", number) for number in designs}
  )


def files():
  """Returns every text file that may cite, but for frozen numbers."""
  listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  return [
    ROOT / name
    for name in listed
    if name.endswith((".py", ".md", ".sh", ".bats"))
    and (ROOT / name) not in (PAGE, Path(__file__))
  ]


def test_every_citation_has_its_entry():
  missing = {
    f"{path.relative_to(ROOT)}: {document} {number}"
    for path in files()
    if path.exists()
    for document, number in cited(path.read_text())
    if (document, number) not in entries()
  }
  assert not missing, "\n".join(sorted(missing))


def test_the_code_cites_the_page_at_all():
  everything = set().union(*(cited(path.read_text()) for path in files()))
  assert {("METHODS", "3.6"), ("METHODS", "N14"), ("TRAP", "12")} <= everything


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("(METHODS 3.6 and 5.4)", {("METHODS", "3.6"), ("METHODS", "5.4")}),
    ("see METHODS N14.", {("METHODS", "N14")}),
    ("Trap 12, T16: a run", {("TRAP", "12")}),
    ("DESIGN section 1, kept", {("DESIGN", "1")}),
    ("METHODS 99.1", {("METHODS", "99.1")}),
  ],
)
def test_what_a_citation_is(text, wanted):
  assert cited(text) == wanted


def test_a_citation_of_nothing_is_noticed():
  assert ("METHODS", "99.1") not in entries()
  assert ("TRAP", "99") not in entries()


def named():
  """Returns what the page names in backquotes."""
  return re.findall(r"`([\w/.]+(?:::\w+)?)`", PAGE.read_text())


def test_every_file_and_test_that_the_page_names_is_there():
  missing = []
  for name in named():
    file, _, function = name.partition("::")
    if "/" not in file and not file.endswith(".py"):
      continue
    places = [
      ROOT / file,
      ROOT / "rlhf_jax" / file,
      ROOT / "tests" / file,
      *(ROOT / "rlhf_jax" / "algorithms").glob(f"*/{file}"),
    ]
    found = [path for path in places if path.exists()]
    if not found:
      missing.append(name)
    elif function and function not in functions(found[0]):
      missing.append(name)
  assert not missing, missing
  assert sum("::" in name for name in named()) > 25


def functions(path):
  """Returns the names of the functions of a file."""
  tree = ast.parse(path.read_text())
  return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
