"""Imports point one way, from main down to types; no circles."""

import ast
import functools
import itertools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rlhf_jax"

# From the bottom up. A module imports what stands below its own line, and its
# own package; neighbours on one line do not know each other.
ORDER = (
  (
    *("types", "imported", "output", "child_process", "startup"),
    *("allocator", "compiling"),
  ),
  ("ops", "products", "schema"),
  (
    "strict_json",
    "experiment_file",
    "glossary",
    "moments",
    "rounding",
    "terminal",
    "trackers",
  ),
  (
    "algorithms",
    "config_tree",
    "data",
    "environments",
    "interrupt",
    "likelihood",
    "metrics",
    "optimizer",
    "parallel",
  ),
  ("distributed", "integrity", "sampling", "describe", "command"),
  ("models",),
  ("slots",),
  ("decoding",),
  ("generate", "runs"),
  ("rewards", "evaluation"),
  ("labelling",),
  ("programs",),
  ("exports",),
  ("pipelines", "notebook"),
  ("planning", "lab", "sweeps", "dashboard"),
  ("comparisons", "experiments"),
  (
    *("agreement", "catalogue", "chat", "compare", "explain", "export"),
    "frontier",
    *("label", "overoptimise", "sweep"),
    "watch",
  ),
  ("main", "plan", "__main__"),
  ("advise",),
)
LEVEL = {name: i for i, names in enumerate(ORDER) for name in names}
FORBIDDEN = ("torch", "tensorflow", "clu")


@functools.cache
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


def dotted_name(path: Path) -> str:
  """Returns the name that a file is imported by."""
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph() -> dict[str, set[str]]:
  """Returns module -> the modules of the package that it imports."""
  files = {dotted_name(path): path for path in modules()}
  found = {}
  for name, path in files.items():
    inside = f"{name}.__init__" if path.stem == "__init__" else name
    wanted = imported_names(path.read_text(), inside)
    # from a.b import c: the module a.b.c, or c of the module a.b
    owners = {x if x in files else x.rpartition(".")[0] for x in wanted}
    found[name] = owners & files.keys()
  return found


def circle(imports: dict[str, set[str]]) -> list[str]:
  """Returns modules that import each other, in a row; [] where none do.

  Args:
    imports: module -> modules that it imports.
  """
  is_clean: set[str] = set()

  def follow(name: str, trail: list[str]) -> list[str]:
    if name in trail:
      return [*trail[trail.index(name) :], name]
    if name in is_clean:
      return []
    for other in sorted(imports.get(name, ())):
      if found := follow(other, [*trail, name]):
        return found
    is_clean.add(name)
    return []

  return next((x for name in sorted(imports) if (x := follow(name, []))), [])


def test_every_module_imports_downwards():
  found = []
  for path in modules():
    relative = path.relative_to(PACKAGE)
    part = relative.with_suffix("").parts[0]
    if path.stem == "__main__":  # a command, wherever it stands
      part = "__main__"
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
    ("programs", "from rlhf_jax.runs import stages", True),
    ("programs", "from rlhf_jax.pipelines import PIPELINES", False),
    ("runs", "from rlhf_jax.programs.world import World", False),
    ("schema", "from rlhf_jax import ops", False),
    ("pipelines", "from rlhf_jax.notebook import learner", False),
    ("planning", "from rlhf_jax import lab", False),
    ("algorithms", "from rlhf_jax.schema import FieldError", False),
    ("main", "from rlhf_jax.pipelines import read", True),
    ("types", "import torch.nn", False),
    ("main", "import rlhf_jax.brand_new", False),
  ],
)
def test_the_rule_can_fail(part, source, is_allowed):
  module = f"rlhf_jax.{part}.x"
  assert is_allowed == (not complaints(part, imported_names(source, module)))


def test_no_module_imports_itself_by_way_of_others():
  found = graph()
  assert "rlhf_jax.runs.stages" in found["rlhf_jax.programs.world"]
  assert "rlhf_jax.pipelines" in found["rlhf_jax.pipelines.defaults"]
  assert circle(found) == []


def test_circles_are_found():
  chain = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}
  assert circle(chain) == []
  assert circle(chain | {"d": {"b"}}) == ["b", "d", "b"]
  assert circle(chain | {"d": {"d"}}) == ["d", "d"]


def test_the_order_names_what_is_there_and_each_once():
  names = list(itertools.chain(*ORDER))
  assert len(names) == len(set(names))
  there = {path.relative_to(PACKAGE).parts[0] for path in modules()}
  assert set(names) == {Path(part).stem for part in there}
