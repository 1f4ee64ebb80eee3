"""Imports point one way: the order of DESIGN section 1, kept by machine."""

import ast
import itertools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlhf_jax"

# From the bottom up. A module imports what stands below its own line, and its
# own package; neighbours on one line do not know each other.
ORDER = (
  ("types",),
  ("ops",),
  ("algorithms", "parallel", "data", "optimizer", "metrics", "interrupt"),
  ("distributed",),
  ("models", "integrity", "sampling"),
  ("generate",),
  ("rewards",),
  ("checkpoint",),
  ("evaluation",),
  ("pipelines",),
  ("planning",),
  ("command",),
  ("main", "plan"),
)
LEVEL = {name: i for i, names in enumerate(ORDER) for name in names}
FORBIDDEN = ("torch", "tensorflow", "clu")


def imported_names(source: str, module: str) -> set[str]:
  """Returns full dotted names that a module's source imports, anywhere.

  Args:
    source: Python.
    module: its own dotted name, for relative imports.
  """
  names: set[str] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = [] if node.module is None else [node.module]
      if node.level:
        base = [*module.split(".")[: -node.level], *base]
      names |= {".".join([*base, alias.name]) for alias in node.names}
  return names


def complaints(part: str, imported: set[str]) -> list[str]:
  """Returns what is wrong with the imports of a file of rlhf_jax/<part>."""
  found = []
  for name in sorted(imported):
    root, *rest = name.split(".")
    if root in FORBIDDEN:
      found.append(f"imports {root}")
    if root != "rlhf_jax" or not rest or rest[0] in (part, "__version__"):
      continue
    if rest[0] not in LEVEL:
      found.append(f"imports {name}, which has no place in ORDER")
    elif part == "algorithms" and rest[0] not in ("types", "ops"):
      found.append(f"imports {name}; algorithms know types and ops only")
    elif LEVEL[rest[0]] >= LEVEL[part]:
      found.append(f"imports {name}, which is not below {part}")
  return found


def modules() -> list[Path]:
  return sorted(
    path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
  )


def test_every_module_imports_downwards():
  found = []
  for path in modules():
    relative = path.relative_to(PACKAGE)
    part = relative.with_suffix("").parts[0]
    assert part in LEVEL, f"{relative} has no place in ORDER; add it"
    dotted = ".".join(("rlhf_jax", *relative.with_suffix("").parts))
    for complaint in complaints(part, imported_names(path.read_text(), dotted)):
      found.append(f"{relative} {complaint}")
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("part", "source", "is_allowed"),
  [
    ("algorithms", "from rlhf_jax import ops", True),
    ("algorithms", "from rlhf_jax.algorithms.policy_gradient import ppo", True),
    ("algorithms", "import rlhf_jax.models.lora", False),
    ("algorithms", "from rlhf_jax import metrics", False),
    ("data", "from rlhf_jax.optimizer import Config", False),
    ("models", "def f():\n  from rlhf_jax import pipelines", False),
    ("models", "from .. import generate", False),
    ("pipelines", "from rlhf_jax import generate, rewards, metrics", True),
    ("pipelines", "from rlhf_jax import main", False),
    ("main", "from rlhf_jax.pipelines import RUN", True),
    ("types", "import torch.nn", False),
    ("main", "import rlhf_jax.brand_new", False),
  ],
)
def test_the_rule_can_fail(part, source, is_allowed):
  module = f"rlhf_jax.{part}.x"
  assert is_allowed == (not complaints(part, imported_names(source, module)))


def ghosts(names: list[str], package: Path) -> list[str]:
  """Returns names that are neither a module nor a package of modules."""
  return [
    name
    for name in names
    if not (package / f"{name}.py").is_file()
    and not any((package / name).glob("*.py"))
  ]


def test_each_name_stands_once_in_the_order_and_exists():
  names = list(itertools.chain(*ORDER))
  assert len(names) == len(set(names))
  assert ghosts(names, PACKAGE) == []


def test_a_name_without_a_file_is_noticed(tmp_path):
  (tmp_path / "module.py").write_text("")
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "inside.py").write_text("")
  (tmp_path / "empty").mkdir()
  names = ["module", "folder", "empty", "sweep"]
  assert ghosts(names, tmp_path) == ["empty", "sweep"]
