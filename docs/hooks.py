"""Pages of the site that are made and not written (mkdocs.yml, hooks).

  index.md, RESULTS.md, tpu.md ...   pages of the repository outside docs/
  metrics.md                         rlhf_jax/glossary.py
  experiments.md                     the docstrings of configs/
  reference/*.md                     docstrings and signatures of rlhf_jax

Nothing of the package is imported but its glossary, which reads sources.
"""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_jax"
COPIED = {  # page -> file of the repository
  "index.md": "README.md",
  "RESULTS.md": "benchmarks/RESULTS.md",
  "tpu.md": "tpu_scripts/README.md",
  "contributing.md": "CONTRIBUTING.md",
  "changes.md": "CHANGELOG.md",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def on_config(config: Any) -> Any:
  """Puts the pages of the reference where the navigation names their index.

  A page of docs/ that it does not name becomes the last of "How to". The
  address of the repository is that of pyproject.toml, none while it is a
  placeholder.
  """
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  address = settings["tool"]["rlhf_jax"]["repository"]
  if "/OWNER/" not in address:
    config.repo_url = address
  named = set(_named(config.nav))
  further = [
    path.relative_to(ROOT / "docs").as_posix()
    for path in sorted((ROOT / "docs").glob("**/*.md"))
  ]
  for section in config.nav:
    if "How to" in section:
      section["How to"] += [page for page in further if page not in named]
  index = "reference/index.md"
  made = [name for name, _ in reference() if name != index]
  for section in config.nav:
    for title, entries in section.items():
      section[title] = [
        {"Modules": [index, *made]} if x == {"Modules": index} else x
        for x in entries
      ]
  return config


def _named(nav: Any) -> Iterator[str]:
  """Yields the pages that a navigation names."""
  if isinstance(nav, str):
    yield nav
    return
  for item in nav.values() if isinstance(nav, dict) else nav:
    yield from _named(item)


def on_files(files: Any, config: Any) -> Any:
  """Adds the pages that are made."""
  from mkdocs.structure.files import File

  for name, text in pages().items():
    files.append(File.generated(config, name, content=text))
  return files


def pages() -> dict[str, str]:
  """Returns the text of every page that is made, by its place in the site."""
  copied = {
    name: linked((ROOT / file).read_text(), name, file)
    for name, file in COPIED.items()
  }
  made = {"metrics.md": metrics(), "experiments.md": experiments()}
  return copied | made | dict(reference())


def linked(text: str, name: str, file: str) -> str:
  """Returns a page whose links to files are links of the site, or plain text.

  Args:
    text: of the page.
    name: its place in the site.
    file: where it stands in the repository.
  """
  places = {ROOT / other: page for page, other in COPIED.items()}

  def replaced(match: re.Match) -> str:
    target = ((ROOT / file).parent / match[1]).resolve()
    anchor = match[2] or ""
    if target in places:
      return f"]({places[target]}{anchor})"
    if target.is_relative_to(ROOT / "docs"):
      return f"]({target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
    raise ValueError(
      f"{file}: links to {match[1]}, which is on no page of the site. Write it "
      "as code, or add it to COPIED of docs/hooks.py."
    )

  return _LINK.sub(replaced, text)


def metrics() -> str:
  """Returns the glossary of metrics as tables, one an area."""
  glossary = runpy.run_path(str(PACKAGE / "glossary.py"))
  areas: dict[str, list[str]] = {}
  for name, entry in glossary["entries"]().items():
    cells = (f"`{name}`", entry.meaning, entry.bad, entry.remedy)
    line = " | ".join(_cell(text) for text in cells)
    areas.setdefault(name.partition("/")[0], []).append(f"| {line} |")
  parts = [
    "# Metrics\n\nWhat `metrics.jsonl`, TensorBoard and the numbers of `learn` "
    "in a notebook mean. In a terminal: `python -m rlhf_jax.glossary NAME`. "
    "NAME in a metric stands for any name."
  ]
  for area, lines in areas.items():
    head = "| metric | meaning | bad | what to do |\n|---|---|---|---|"
    parts.append("\n".join([f"## {area}\n", head, *lines]))
  return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
  """Returns a text as a cell of a table; a name in it stays what it is."""
  plain = text.replace("\\", "\\\\").replace("|", "\\|")
  if plain.startswith("`"):
    return plain
  return re.sub(r"(?<![`\w])([\w./]*[_*<][\w./*<]*)", r"`\1`", plain)


def experiments() -> str:
  """Returns the docstring of every file of configs/."""
  parts = ["# Experiments\n\nFiles of `configs/`: `rlhf-jax NAME` runs one."]
  for path in sorted((ROOT / "configs").glob("**/*.py")):
    name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    first, rest = _docstring(ast.parse(path.read_text()))
    parts.append(f"## {name}\n\n{first}\n\n{rest}".rstrip())
  return "\n\n".join(parts) + "\n"


def _docstring(node: Any) -> tuple[str, str]:
  """Returns the first paragraph as text, and what follows as a block."""
  first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
  parts = " ".join(first.split()).split("`")
  for i in range(0, len(parts), 2):  # outside of what is code
    parts[i] = re.sub(r"([*_<>\[\]])", r"\\\1", parts[i])
  return "`".join(parts), f"```text\n{rest}\n```" if rest else ""


def reference() -> Iterator[tuple[str, str]]:
  """Yields (place, text) of a page for each folder of the package."""
  folders = [PACKAGE, *(x for x in sorted(PACKAGE.rglob("*")) if x.is_dir())]
  listed = []
  for folder in folders:
    files = sorted(x for x in folder.glob("*.py") if not _is_empty(x))
    if not files or folder.name.startswith(("_", ".")):
      continue
    name = ".".join(folder.relative_to(ROOT).parts)
    place = f"{name}.md"
    modules = [_module(path) for path in files]
    listed.append(f"- [{name}]({place}): {len(files)} modules")
    yield f"reference/{place}", "\n\n".join([f"# {name}", *modules]) + "\n"
  text = (
    "# Modules\n\nEvery public function and class with what it says of itself, "
    "made from the docstrings. How the folders build on each other stands in "
    "the tree of [the first page](../index.md).\n\n"
  )
  yield "reference/index.md", text + "\n".join(listed) + "\n"


def _is_empty(path: Path) -> bool:
  return path.name.startswith("__") and not path.read_text().strip()


def _module(path: Path) -> str:
  """Returns the section of a module."""
  tree = ast.parse(path.read_text())
  name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
  first, rest = _docstring(tree)
  parts = [f"## {name.removesuffix('.__init__')}", first, rest]
  for node in tree.body:
    if isinstance(node, _DEFINED) and not node.name.startswith("_"):
      parts.append(_definition(node))
  return "\n\n".join(filter(None, parts))


def _definition(node: Any) -> str:
  """Returns signature and docstring of a function, or a class and its own."""
  first, rest = _docstring(node)
  signature = ast.unparse(_without_body(node)).removesuffix(":\n    pass")
  parts = [f"### {node.name}", f"```python\n{signature}\n```", first, rest]
  if isinstance(node, ast.ClassDef):
    fields = [ast.unparse(x) for x in node.body if isinstance(x, ast.AnnAssign)]
    if fields:
      parts.insert(2, "```python\n" + "\n".join(fields) + "\n```")
    for inner in node.body:
      if isinstance(inner, _DEFINED) and not inner.name.startswith("_"):
        inner.name = f"{node.name}.{inner.name}"
        parts.append(_definition(inner))
  return "\n\n".join(filter(None, parts))


def _without_body(node: Any) -> Any:
  """Returns a copy of a definition that does nothing."""
  copy = ast.parse(ast.unparse(node)).body[0] if "." not in node.name else None
  if copy is None:  # a method, whose name is Class.method here
    name, node.name = node.name, node.name.rpartition(".")[2]
    copy = ast.parse(ast.unparse(node)).body[0]
    node.name = name
  copy.body = [ast.Pass()]
  copy.decorator_list = []
  return copy
