"""The engineered saturation, small, and the command that runs it."""

import pytest

from rlhf_jax import overoptimise
from rlhf_jax.experiments import curves, enumerated_level, saturation_level
from rlhf_jax.experiments import study as study_lib
from rlhf_jax.schema import UserError

SIZE = saturation_level.Size(steps=150, samples=512, most=64)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saturation")
  linear = saturation_level.conditions()[0]
  saturation_level.run(folder, [0], SIZE, [linear])
  return folder


def test_a_linear_judge_is_over_optimised(study):
  rl, bon = sorted(curves.read(study), key=lambda x: x.method, reverse=True)
  [row] = curves.rows([rl])
  assert row.mean("gold") > 1.5
  assert row.mean("end") < -5.0
  assert 2.0 < row.mean("distance") < 6.0
  assert rl.proxy[-1] == max(rl.proxy) or rl.proxy[-1] > 8.0
  assert bon.gold[0] == pytest.approx(0.0, abs=1e-6)
  assert bon.gold[-1] > 1.0  # best of 64 does not turn
  assert rl.facts["accuracy"] > 0.75


def test_the_same_command_runs_nothing_again(study, monkeypatch, capsys):
  def never(*_):
    raise AssertionError

  monkeypatch.setattr(saturation_level, "_curves", never)
  linear = saturation_level.conditions()[0]
  saturation_level.run(study, [0], SIZE, [linear])
  line = ["overoptimise", f"--workdir={study}", "--page"]
  assert overoptimise.main(line) == 0
  assert "linear" in capsys.readouterr().out
  assert (study / overoptimise.PAGE).is_file()


def test_a_kill_between_two_curves_loses_neither(tmp_path, monkeypatch):
  both = [
    curves.Curve("linear", how, 0, [0.0], [0.0], [0.0])
    for how in ("rl", "best_of_n")
  ]
  monkeypatch.setattr(saturation_level, "_curves", lambda *_: both)
  linear = saturation_level.conditions()[:1]

  def killed(workdir, curve):
    if curve.method == "rl":
      raise KeyboardInterrupt
    curves.write(workdir, curve)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(saturation_level, "write", killed)
    saturation_level.run(tmp_path, [0], SIZE, linear)
  assert len(curves.read(tmp_path)) == 1
  saturation_level.run(tmp_path, [0], SIZE, linear)
  assert [x.method for x in curves.read(tmp_path)] == ["best_of_n", "rl"]


def test_a_folder_is_of_one_level_and_size(tmp_path, capsys):
  curves.write(tmp_path, curves.Curve("x", "rl", 0, [0.0], [0.0], [0.0]))
  saturation_level.run(tmp_path, [], SIZE)  # taken as it is
  assert (tmp_path / study_lib.FILE).is_file()
  saturation_level.run(tmp_path, [], SIZE)
  with pytest.raises(UserError, match="steps=150, .*for with 60.*Give another"):
    saturation_level.run(tmp_path, [], saturation_level.SMOKE)
  with pytest.raises(UserError, match="level='saturation', .*with 'exact'"):
    enumerated_level.run(tmp_path, [])
  line = ["overoptimise", f"--workdir={tmp_path}", "--level=exact", "--page"]
  assert overoptimise.main(line) == 2
  assert "level='saturation'" in capsys.readouterr().err
  enumerated_level.run(tmp_path / "other", [], length=5)
  with pytest.raises(UserError, match="length=5"):
    enumerated_level.run(tmp_path / "other", [])


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (["--level=real"], "must be one of"),
    (["--seeds=0"], "must be >= 1"),
    (["--runs=x"], "does not read it"),
    (["--level=pipeline"], "--runs=DIR missing"),
    (["--level=pipeline", "--runs=nowhere"], "is not finished"),
    (["--page"], "no trial is there"),
  ],
)
def test_mistakes_are_told(options, said, tmp_path, capsys):
  line = ["overoptimise", f"--workdir={tmp_path}", *options]
  assert overoptimise.main(line) == 2
  assert said in capsys.readouterr().err
