"""Notebooks: pairs agree, no outputs in git, the installation, every cell."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COLAB = ROOT / "colab"
NAMES = sorted(path.stem for path in COLAB.glob("[0-9][0-9]_*.py"))


def tool():
  """Returns colab/notebooks.py as a module."""
  spec = importlib.util.spec_from_file_location(
    "notebooks", COLAB / "notebooks.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def copied(tmp_path):
  """The tool, on a copy of colab/ that may be changed."""
  shutil.copytree(COLAB, tmp_path / "colab")
  shutil.copytree(ROOT / "docs" / "tutorials", tmp_path / "docs" / "tutorials")
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  module = tool()
  module.HERE, module.ROOT = tmp_path / "colab", tmp_path
  module.PAGES = tmp_path / "docs" / "tutorials"
  return module


def test_pairs_agree():
  assert len(NAMES) >= 8
  assert tool().complaints() == []


def test_what_does_not_agree_is_named(copied):
  here, name = copied.HERE, NAMES[1]
  source = here / f"{name}.py"
  source.write_text(source.read_text() + "\n# %%\nprint(1)\n")
  (here / f"{NAMES[2]}.py").unlink()
  page = copied.PAGES / f"{NAMES[3]}.md"
  page.write_text(page.read_text().replace("import os", "import sys"))
  said = "\n".join(copied.complaints())
  assert f"{name}.ipynb" in said and f"{name}.md" in said
  assert f"{NAMES[2]}.ipynb: has no .py" in said
  assert f"{NAMES[3]}.md" in said and NAMES[0] not in said
  copied.pair([name[:2]])
  assert f"{name}.ipynb" not in "\n".join(copied.complaints())


def test_the_address_stands_in_one_place(copied):
  settings = copied.ROOT / "pyproject.toml"
  address = copied.repository()
  settings.write_text(settings.read_text().replace(address, f"{address}-fork"))
  assert len(copied.complaints()) >= len(NAMES)
  copied.pair()
  text = (copied.HERE / f"{NAMES[0]}.py").read_text()
  path = f"{address}-fork".removeprefix("https://github.com/")
  assert f"github/{path}/blob/main/colab/{NAMES[0]}.ipynb" in text
  assert f"git+{address}-fork" in text


def test_a_placeholder_says_what_to_do(copied):
  """The address as it stands here, and a real one."""
  settings = copied.ROOT / "pyproject.toml"
  text, address = settings.read_text(), copied.repository()
  for owner, words in (("OWNER", "Set [tool.rlhf_jax] repository"), ("us", "")):
    real = re.sub("github.com/[^/]+/", f"github.com/{owner}/", address)
    settings.write_text(text.replace(address, real))
    found = copied.placeholder()
    assert words in found and bool(found) == bool(words)


@pytest.mark.parametrize("name", NAMES)
def test_git_holds_no_output_and_every_size_is_there(name):
  notebook = json.loads((COLAB / f"{name}.ipynb").read_text())
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert all(not cell["outputs"] for cell in code)
  assert all(cell["execution_count"] is None for cell in code)
  sizes = set(re.findall(r'^  "([\w-]+)": {', "".join(code[1]["source"]), re.M))
  assert {"ci", "cpu"} < sizes


def test_the_installation_keeps_jax(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ran = []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(subprocess, "run", lambda line, check: ran.append(line))
  exec((COLAB / "install.txt").read_text(), {})
  [line] = ran
  assert line[line.index("-c") + 1] == "kept.txt"
  kept = (tmp_path / "kept.txt").read_text().splitlines()
  for name in ("jax", "jaxlib", "numpy"):
    version = importlib.metadata.version(name)
    assert f"{name}=={version}" in kept


def test_of_progress_the_last_line_stays():
  printed = [
    "\x1b[31msft 0/4  compiling the first step\x1b[0m\n",
    "\nsft 1/4  25%  loss 2\n",
    "sft 4/4  100%  loss 1\nother 1/2  50%\n",
    "once\rtwice\n\n",
  ]
  expected = "sft 4/4  100%  loss 1\nother 1/2  50%\ntwice"
  assert tool()._block(printed) == f"```text\n{expected}\n```"
  assert tool()._block(["\n", ""]) == ""


def test_a_page_names_no_folder_of_the_machine_it_was_made_on():
  root, place = Path(__file__).parents[2], f"{tempfile.gettempdir()}/tmp1x"
  said = tool()._block([f"in {place}/runs/x, of {root}/configs/sft.py"])
  assert said == "```text\nin runs/x, of configs/sft.py\n```"
  pages = root.glob("docs/tutorials/*.md")
  assert not [p for p in pages if re.search("/tmp/|/home/", p.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name):
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, COLAB / "notebooks.py", "run", "--size=ci", name],
    env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert re.search(rf"^{name}: \d+ s at size ci$", done.stdout, re.M)
