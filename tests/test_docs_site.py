"""Pages that docs/hooks.py makes, and links between all pages.

CI builds the site itself: mkdocs build --strict.
"""

import importlib.util
import re
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def hooks():
  spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def pages(hooks):
  return hooks.pages()


def test_the_navigation_names_what_there_is(pages):
  nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
  named = set(re.findall(r"([\w./]+\.md)", nav))
  written = {
    path.relative_to(ROOT / "docs").as_posix()
    for path in (ROOT / "docs").glob("**/*.md")
  }
  made = {name for name in pages if not name.startswith("reference/rlhf")}
  assert named <= written | made and made <= named
  assert not written & pages.keys()  # a page is written or made


def test_a_page_without_a_place_is_a_how_to(hooks):
  nav = [{"How to": ["data.md"]}, {"Reference": [{"X": "METHODS.md"}]}]
  config = types.SimpleNamespace(nav=nav)
  found = hooks.on_config(config).nav[0]["How to"]
  assert found[0] == "data.md" and "export.md" in found
  assert found.count("data.md") == 1 and "METHODS.md" not in found


def test_links_lead_to_pages(pages):
  written = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text()
    for path in (ROOT / "docs").glob("**/*.md")
  }
  site = written | pages
  pictures = {
    path.relative_to(ROOT / "docs").as_posix()
    for path in (ROOT / "docs").glob("**/*.png")
  }
  for name, text in site.items():
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
      place = (Path("/") / name).parent / target
      found = Path(*place.parts[1:])
      parts = []
      for part in found.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
      assert "/".join(parts) in site.keys() | pictures, f"{name}: {target}"


def test_a_link_to_nowhere_is_refused(hooks):
  linked = hooks.linked
  assert linked("[a](docs/data.md#x)", "index.md", "README.md") == (
    "[a](data.md#x)"
  )
  assert linked("[a](../README.md)", "x.md", "docs/x.md") == "[a](index.md)"
  with pytest.raises(ValueError, match="setup.py"):
    linked("[a](setup.py)", "index.md", "README.md")


def test_what_is_made_holds_what_the_code_says(pages):
  assert "| `rollout/entropy` |" in pages["metrics.md"]
  rows = [x for x in pages["metrics.md"].splitlines() if x.startswith("| `")]
  assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
  assert "## recipes/ppo" in pages["experiments.md"]
  module = pages["reference/rlhf_jax.algorithms.policy_gradient.md"]
  assert "## rlhf_jax.algorithms.policy_gradient.ppo" in module
  assert "### Config" in module and "clip_ratio" in module
