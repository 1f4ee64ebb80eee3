"""Experiments of the package are found from anywhere; a wheel has them."""

import os
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import rlhf_jax.__main__ as commands
from rlhf_jax import command, experiment_file

ROOT = Path(__file__).parent.parent


def test_all_of_configs_have_names():
  found = experiment_file.shipped()
  assert {"quickstart", "sft", "recipes/ppo"} <= found.keys()
  assert set(found.values()) == set((ROOT / "configs").glob("**/*.py"))


def test_a_name_that_is_not_here_is_that_of_the_package(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  place = experiment_file.place
  assert place("configs/sft.py") == str(ROOT / "configs" / "sft.py")
  assert place("configs/recipes/ppo.py:a=b").endswith("recipes/ppo.py:a=b")
  for name in ("sft.py", "configs/none.py", "other/configs/sft.py", ""):
    assert place(name) == name
  values = command.parse(["x", "--config=configs/sft.py"], {}, "")
  assert values.config.pipeline == "sft"
  assert "configs/sft.py: that of the package" in capsys.readouterr().err
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "sft.py").write_text("")
  assert place("configs/sft.py") == "configs/sft.py"  # what is here is meant


def test_a_misspelt_one_gets_the_nearest(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit):
    command.parse(["x", "--config=configs/rewards.py"], {}, "")
  assert "Did you mean configs/reward.py?" in capsys.readouterr().err


@pytest.mark.parametrize(
  "given, expected",
  [
    (
      ["quickstart:int8", "--smoke"],
      [
        "--config=configs/quickstart.py:int8",
        "--smoke",
        "--workdir=runs/quickstart",
      ],
    ),
    (["sft", "--workdir=x"], ["--config=configs/sft.py", "--workdir=x"]),
  ],
)
def test_an_experiment_runs_by_its_name(given, expected, monkeypatch):
  ran = []
  monkeypatch.setattr(commands, "_run", lambda *line: ran.append(line) or 0)
  assert commands.main(["rlhf-jax", *given]) == 0
  assert ran == [("main", expected)]


def run(*line, **options):
  """Runs a command; returns what it printed."""
  done = subprocess.run(
    [str(word) for word in line], capture_output=True, text=True, **options
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def test_an_editable_install_is_a_line_of_sys_path(monkeypatch):
  """Beside a clone called rlhf_jax with runs/ in it a finder comes too late."""
  setuptools = pytest.importorskip("setuptools")
  given = {}
  monkeypatch.setattr(setuptools, "setup", lambda **all: given.update(all))
  monkeypatch.chdir(ROOT)
  runpy.run_path("setup.py")
  assert given["package_dir"] == {"": "."}


@pytest.mark.slow
def test_a_wheel_is_used_without_the_repository(tmp_path):
  """Its requirements are those of this environment, by a path file."""
  source = tmp_path / "source"  # a build leaves files beside setup.py
  for name in ("rlhf_jax", "configs"):
    shutil.copytree(ROOT / name, source / name)
  for path in ROOT.iterdir():
    if path.is_file():
      shutil.copy(path, source)
  clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  here = {"cwd": tmp_path, "env": clean}
  run(sys.executable, "-m", "build", "--outdir", "dist", source, **here)
  [wheel] = (tmp_path / "dist").glob("*.whl")  # made from the source package
  names = zipfile.ZipFile(wheel).namelist()
  inside = {f"rlhf_jax/configs/{x}.py" for x in experiment_file.shipped()}
  inside |= {"rlhf_jax/py.typed", "rlhf_jax/rewards/ai/principles.txt"}
  assert inside <= set(names)
  assert not any(name.startswith(("tests/", "configs/")) for name in names)
  venv.create(tmp_path / "bare", with_pip=True)
  programs = tmp_path / "bare" / "bin"
  [site] = (tmp_path / "bare" / "lib").glob("*/site-packages")
  run(programs / "pip", "install", "-q", "--no-deps", wheel, **here)
  libraries = next(x for x in sys.path if x.endswith("site-packages"))
  (site / "requirements.pth").write_text(libraries + "\n")
  place = run(
    programs / "python",
    "-c",
    "import rlhf_jax; print(rlhf_jax.__file__)",
    **here,
  )
  assert place.startswith(str(site))
  assert "quickstart" in run(programs / "rlhf-jax", **here)
  said = run(
    programs / "rlhf-jax", "explain", "--config=configs/ppo.py", **here
  )
  assert "policy_optimizer" in said
  # Floors are met by what is there: pip would change none of it.
  again = run(programs / "pip", "install", "--dry-run", wheel, **here)
  assert "Would install" not in again, again
