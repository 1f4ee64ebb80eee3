"""Notebooks: pair them, check that pairs agree, run them, render them.

    python colab/notebooks.py pair [NAME ...]
    python colab/notebooks.py check
    python colab/notebooks.py run --size=ci [NAME ...]
    python colab/notebooks.py render --size=cpu [NAME ...]

The source of a notebook is NAME.py (jupytext, percent format); NAME.ipynb is
made from it by `pair` and holds no outputs. The first two cells of each, the
badge and the installation, are the same everywhere and are written by `pair`:
the address in them stands in pyproject.toml ([tool.rlhf_jax] repository), and
while that is a placeholder `pair` and `check` say what to do. `run`
executes every cell in a new kernel and folder, an error fails, and leaves the
executed notebook where --output says. `render` runs too, and writes pages with
texts and pictures into docs/tutorials. NAME may be short: 02. Needs the extra
"notebooks".
"""

from __future__ import annotations

import argparse
import base64
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = ROOT / "docs" / "tutorials"
SIZE = "RLHF_JAX_NOTEBOOK_SIZE"
CELL_SECONDS = 3600  # a cell may take so long
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
INSTALL = HERE / "install.txt"  # the cell that installs, with REPOSITORY in it
_HEAD = re.compile(r"\A.*?^# %% \[markdown\]\n# (?=# )", re.DOTALL | re.M)
_CODE = re.compile(r"^```python\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
_PROGRESS = re.compile(r"(.+) \d+/\d+  \S")  # "sft 3/40  8%"
# Folders of the machine that a notebook ran on.
_PLACES = re.compile(
  f"{re.escape(str(ROOT))}/|{re.escape(tempfile.gettempdir())}/tmp[^/]+/"
)
_COLOURS = re.compile("\x1b\\[[0-9;]*[A-Za-z]")
KERNEL = {
  "jupytext": {"cell_metadata_filter": "-all", "main_language": "python"},
  "kernelspec": {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
  },
  "language_info": {"name": "python"},
  "colab": {"provenance": []},
}


def repository() -> str:
  """Returns the address of the repository, the only place that says it."""
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  return settings["tool"]["rlhf_jax"]["repository"]


def placeholder() -> str:
  """Returns what to do while the address is a placeholder, or ""."""
  address = repository()
  if "/OWNER/" not in address:
    return ""
  return (
    f"note: the address is a placeholder, {address}: the badges lead nowhere, "
    "and a notebook cannot install the library. Set [tool.rlhf_jax] repository "
    "in pyproject.toml to where this repository is, then run: "
    "python colab/notebooks.py pair"
  )


def head(name: str) -> str:
  """Returns the first cells of a notebook: its badge and its installation."""
  address = repository()
  path = address.removeprefix("https://github.com/")
  link = f"https://colab.research.google.com/github/{path}/blob/main/colab"
  install = INSTALL.read_text().replace("REPOSITORY", address)
  return (
    f"# %% [markdown]\n# [![Open in Colab]({BADGE})]({link}/{name}.ipynb)\n\n"
    f"# %%\n{install}\n"
  )


def sources(names: Sequence[str] = ()) -> list[Path]:
  """Returns the .py of notebooks, all or those whose names begin so."""
  found = sorted(HERE.glob("[0-9][0-9]_*.py"))
  chosen = [p for p in found if not names or p.stem.startswith(tuple(names))]
  if not chosen:
    sys.exit(f"{' '.join(names)}: no such notebook in {HERE}.")
  return chosen


def with_head(source: Path) -> str:
  """Returns the text of a .py whose first cells are those of `head`."""
  text = source.read_text()
  if not _HEAD.search(text):
    sys.exit(f"{source}: needs a markdown cell that begins with a title.")
  return _HEAD.sub(
    lambda _: f"{head(source.stem)}# %% [markdown]\n# ", text, count=1
  )


def notebook_of(text: str) -> Any:
  """Returns the notebook of a .py, the same for the same text."""
  import jupytext

  notebook = jupytext.reads(text, fmt="py:percent")
  for number, cell in enumerate(notebook.cells):
    cell.id = f"cell-{number}"
    cell.metadata = {}
  notebook.metadata = KERNEL
  notebook.nbformat, notebook.nbformat_minor = 4, 5
  return notebook


def as_json(notebook: Any) -> str:
  """Returns what an .ipynb holds."""
  import nbformat

  return nbformat.writes(notebook, indent=1) + "\n"


def pair(names: Sequence[str] = ()) -> None:
  """Writes the first cells of each .py, and its .ipynb."""
  for source in sources(names):
    text = with_head(source)
    source.write_text(text)
    source.with_suffix(".ipynb").write_text(as_json(notebook_of(text)))


def complaints() -> list[str]:
  """Returns what is wrong between .py, .ipynb and rendered pages."""
  found = []
  for source in sources():
    text, twin = source.read_text(), source.with_suffix(".ipynb")
    if text != with_head(source):
      found.append(f"{source.name}: its first cells are not those of `head`")
    if not twin.is_file() or twin.read_text() != as_json(notebook_of(text)):
      found.append(f"{twin.name}: is not that of {source.name}")
    page = PAGES / f"{source.stem}.md"
    shown = _CODE.findall(page.read_text()) if page.is_file() else []
    if shown != [cell.source for cell in _shown_cells(notebook_of(text))]:
      found.append(f"{page.name}: its code is not that of {source.name}")
  known = {source.stem for source in sources()}
  for twin in HERE.glob("*.ipynb"):
    if twin.stem not in known:
      found.append(f"{twin.name}: has no .py")
  return found


def _shown_cells(notebook: Any) -> list[Any]:
  """Returns the cells of code that a page shows: all but the installation."""
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  return code[1:]


def execute(source: Path, size: str, folder: Path) -> tuple[Any, float]:
  """Runs every cell of a notebook; returns it with outputs, and seconds.

  Args:
    source: its .py.
    size: for $RLHF_JAX_NOTEBOOK_SIZE.
    folder: that it works in.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell raised.
  """
  import nbclient

  os.environ[SIZE] = size
  path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
  notebook = notebook_of(source.read_text())
  begun = time.perf_counter()
  nbclient.NotebookClient(
    notebook,
    timeout=CELL_SECONDS,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()
  return notebook, time.perf_counter() - begun


def run(
  names: Sequence[str], size: str, output: str
) -> dict[str, tuple[Any, float]]:
  """Runs notebooks and says their seconds; returns (executed, seconds) of each.

  Args:
    names: as for `sources`.
    size: for $RLHF_JAX_NOTEBOOK_SIZE.
    output: folder that executed notebooks are written to, or "".
  """
  found = {}
  for source in sources(names):
    with tempfile.TemporaryDirectory() as folder:
      notebook, seconds = execute(source, size, Path(folder))
    found[source.stem] = notebook, seconds
    print(f"{source.stem}: {seconds:.0f} s at size {size}", flush=True)
    if output:
      path = Path(output) / f"{source.stem}.ipynb"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(as_json(notebook))
  return found


def render(names: Sequence[str], size: str, output: str) -> None:
  """Runs notebooks and writes a page of each, with pictures, into PAGES."""
  for name, (notebook, seconds) in run(names, size, output).items():
    pictures = PAGES / name
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    (PAGES / f"{name}.md").write_text(page_of(notebook, name, size, seconds))


def page_of(notebook: Any, name: str, size: str, seconds: float) -> str:
  """Returns a notebook as Markdown; its pictures go into PAGES/name."""
  versions = [f"{x} {metadata.version(x)}" for x in ("jax", "flax", "numpy")]
  made = (
    f"*Run in {seconds:.0f} s at size `{size}` on {os.cpu_count()} CPU cores, "
    f"Python {platform.python_version()}, {', '.join(versions)}. The notebook "
    f"is `colab/{name}.ipynb`.*"
  )
  _, _, first, *cells = notebook.cells  # badge and installation are left out
  title, _, text = first.source.partition("\n")
  parts, count = [title, made, text.strip()], 0
  for cell in cells:
    if cell.cell_type == "markdown":
      parts.append(cell.source)
      continue
    parts.append(f"```python\n{cell.source}\n```")
    printed: list[str] = []
    for output in cell.outputs:
      data = output.get("data", {})
      if "image/png" in data:
        count += 1
        path = PAGES / name / f"{count}.png"
        path.write_bytes(base64.b64decode(data["image/png"]))
        parts += [
          _block(printed),
          f"![What this cell draws]({name}/{count}.png)",
        ]
        printed = []
      else:
        printed.append(output.get("text", data.get("text/plain", "")))
    parts.append(_block(printed))
  return "\n\n".join(filter(None, parts)) + "\n"


def _block(printed: Sequence[str]) -> str:
  """Returns what a cell printed; of lines of progress the last one stays.

  Places are those within the repository, or the folder that it ran in.
  """
  lines: list[str] = []
  for line in _COLOURS.sub("", "\n".join(printed)).split("\n"):
    line = _PLACES.sub("", line.rpartition("\r")[2].rstrip())
    step = _PROGRESS.match(line)
    before = _PROGRESS.match(lines[-1]) if lines else None
    if step and before and step[1] == before[1]:
      lines.pop()
    if line:
      lines.append(line)
  return "```text\n" + "\n".join(lines) + "\n```" if lines else ""


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("what", choices=("pair", "check", "run", "render"))
  parser.add_argument("names", nargs="*", help="notebooks; all by default")
  parser.add_argument(
    "--size", default="ci", help="a key of SIZES in the notebook; ci"
  )
  parser.add_argument("--output", default="", help="folder of executed ones")
  given = parser.parse_intermixed_args(argv[1:])
  note = placeholder()
  if note and given.what in ("pair", "check"):
    print(note)
  if given.what == "pair":
    pair(given.names)
  elif given.what == "check":
    found = complaints()
    print("\n".join(found) if found else "all notebooks agree with their .py")
    return 1 if found else 0
  elif given.what == "run":
    run(given.names, given.size, given.output)
  else:
    render(given.names, given.size, given.output)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
