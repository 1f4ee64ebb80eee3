"""What is counted and said of a run's start."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax import startup
from tests import compile_cache

COMPILED = "/jax/core/compile/backend_compile_duration"
LATER = ("matplotlib", "tensorboardX", "sympy", "torch", "pandas", "scipy")
TRACED = "/jax/core/compile/jaxpr_trace_duration"


def add_one(x):
  return x + 1


@pytest.fixture
def stage(monkeypatch):
  """No stage is under way, and the clock says what the test wants."""
  now = [0.0]
  monkeypatch.setattr(startup, "_open", None)
  monkeypatch.setattr(startup.time, "perf_counter", lambda: now[0])
  return now


def compile_anew(size):
  """Compiles a program of its own; returns what was added to COMPILES."""
  before = startup.COMPILES.count
  jax.clear_caches()
  jax.jit(add_one)(np.zeros(size, np.float32))
  return startup.COMPILES.programs[before:]


def test_programs_are_counted_by_name_when_they_compile_and_not_after():
  function = jax.jit(add_one)
  before = startup.COMPILES.count
  for _ in range(3):
    function(np.zeros(3, np.float32))
  (program,) = startup.COMPILES.programs[before:]
  assert "add_one" in program.name and program.seconds > 0
  function(np.zeros(4, np.float32))
  assert startup.COMPILES.count == before + 2


def test_programs_that_were_kept_are_told_from_new_ones(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  with compile_cache.kept(tmp_path):
    found = [compile_anew(5)[0].is_kept for _ in range(2)]
    found.append(compile_anew(6)[0].is_kept)
  assert found == [False, True, False]


def test_seconds_inside_others_count_once():
  counted = startup.Compiles()
  counted._add(TRACED, 2.0, 3.0)
  counted._add(TRACED, 4.0, 5.0)
  assert counted.seconds == 2.0
  counted._add(TRACED, 1.0, 6.0)  # around both
  counted._add(COMPILED, 6.0, 7.5, fun_name="jit(f)")
  counted._add("/jax/elsewhere", 8.0, 9.0)
  assert counted.seconds == 6.5
  assert counted.programs == [startup.Compiled("jit(f)", 1.5, False)]


def test_the_line_says_what_took_how_long(stage, monkeypatch):
  counted = startup.Compiles()
  monkeypatch.setattr(startup, "COMPILES", counted)
  stage[0] = 10.0
  startup.begin(imports_seconds=2.0)
  startup.begin()  # a stage inside it
  counted._add(COMPILED, 0.0, 1.0)
  stage[0] = 14.0
  startup.loaded()
  counted._note("/jax/compilation_cache/cache_hits")
  counted._add(COMPILED, 1.0, 3.0)
  stage[0] = 16.5
  assert startup.first_step() == (
    "first step after 8.5 s: imports 2.0, loading 3.0, compiling 3.0 "
    "(2 programs, 1 of them kept), the step 0.5"
  )
  assert startup.first_step() == ""
  startup.loaded()  # the loop of a second round
  startup.begin()
  startup.loaded()
  stage[0] = 17.0
  assert startup.first_step() == (
    "first step after 0.5 s: loading 0.0, compiling 0.0 (0 programs, 0 of "
    "them kept), the step 0.5"
  )


def test_pipelines_import_nothing_that_only_a_report_needs():
  code = "import sys, rlhf_jax.main, rlhf_jax.pipelines; print(*sys.modules)"
  found = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  loaded = {name.partition(".")[0] for name in found.stdout.split()}
  assert {"jax", "rlhf_jax"} <= loaded
  assert not loaded & set(LATER)


IMPORT = """
import sys, time
begun = time.perf_counter()
import rlhf_jax
seconds = time.perf_counter() - begun
loaded = {name.partition(".")[0] for name in sys.modules}
print(seconds, *loaded & {"jax", "numpy", "flax", "tensorflow_datasets"})
"""


def test_importing_the_package_takes_no_time():
  done = subprocess.run(
    [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
  )
  seconds, *loaded = done.stdout.split()
  assert float(seconds) < 0.5 and not loaded


KEPT = """
import jax
from rlhf_jax.data import caches
folder = caches.keep_compiled()
print(folder)
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x + 3)(1.0)
"""


LAB = """
import jax, warnings
from rlhf_jax.data import caches
with warnings.catch_warnings(record=True) as said:
  warnings.simplefilter("always")
  caches.keep_by_default()
print(jax.config.jax_compilation_cache_dir)
print(len(said))
"""


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, "xla 0"),
    ({"JAX_ENABLE_COMPILATION_CACHE": "0"}, "None 0"),
    ({"RLHF_JAX_CACHE": "/dev/null/nowhere"}, "None 1"),
  ],
)
def test_a_notebook_keeps_programs_without_being_told(
  tmp_path, changes, expected
):
  environment = {**os.environ, "RLHF_JAX_CACHE": str(tmp_path), **changes}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  done = subprocess.run(
    [sys.executable, "-c", LAB],
    capture_output=True,
    text=True,
    check=True,
    env=environment,
  )
  folder, warned = done.stdout.split()
  assert f"{Path(folder).name} {warned}" == expected


@pytest.mark.parametrize("own", ["", "own"])
def test_compiled_programs_are_kept_by_default(tmp_path, own):
  environment = {**os.environ, "RLHF_JAX_CACHE": str(tmp_path)}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  if own:  # what a user has set stays
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / own)
  done = subprocess.run(
    [sys.executable, "-c", KEPT],
    capture_output=True,
    text=True,
    check=True,
    env=environment,
  )
  wanted = tmp_path / (own or "xla")
  assert done.stdout.split() == [str(wanted)] * 2
  assert own or any(wanted.iterdir())


def test_the_table_of_starts_counts_programs_and_those_kept():
  path = Path(__file__).parent.parent / "benchmarks" / "startup.py"
  spec = importlib.util.spec_from_file_location("start_table", path)
  table = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(table)
  found = {"whole": 9.04, "first": 4.25, "told": "a: b 1.0"}
  found["programs"] = [["jit(f)", 0.5, True], ["jit(g)", 0.2, False]]
  expected = "| sft | warm | 4.2 | 9.0 | 2 | 1 | b 1.0 |"
  assert table.row("sft", "warm", found) == expected
  found.update(first=None, told="")  # an evaluation has no steps
  assert table.row("sft", "warm", found).endswith("| - | 9.0 | 2 | 1 |  |")


def test_a_stage_that_ended_before_its_first_step_disturbs_no_other():
  startup.begin(imports_seconds=100.0)
  startup.loaded()  # and then it is refused, or diverges
  startup.begin()
  startup.begin()  # of the first stage of a whole job
  startup.loaded()
  startup.loaded()
  assert "imports" not in startup.first_step()
  assert startup.first_step() == ""
  startup.begin()
  assert startup.first_step().startswith("first step after")
