"""The engineered saturation, small, and the command that runs it."""

import pytest

from rlhf_jax import overoptimise
from rlhf_jax.experiments import curves, saturation_level


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saturation")
  size = saturation_level.Size(steps=150, samples=512, most=64)
  linear = saturation_level.conditions()[0]
  saturation_level.run(folder, [0], size, [linear])
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
  saturation_level.run(study, [0], saturation_level.SMOKE, [linear])
  line = ["overoptimise", f"--workdir={study}", "--page"]
  assert overoptimise.main(line) == 0
  assert "linear" in capsys.readouterr().out
  assert (study / overoptimise.PAGE).is_file()


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
