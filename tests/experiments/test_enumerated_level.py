"""Over-optimisation on enumerated answers: exact, small."""

import numpy as np
import pytest

from rlhf_jax import overoptimise
from rlhf_jax.experiments import curves, enumerated_level


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("exact")
  enumerated_level.run(folder, [0, 1], (0, 8), length=6)
  return folder


def test_the_space_is_what_it_says():
  space = enumerated_level.make(0, length=4)
  p = np.exp(space.log_ref)
  assert space.features.shape == (4**4, 16)
  assert (space.features.sum(1) == 4).all()
  assert p.sum() == pytest.approx(1.0)
  assert p @ space.gold == pytest.approx(0.0, abs=1e-12)
  assert p @ space.gold**2 == pytest.approx(1.0)


def test_a_linear_judge_falls_and_the_laws_hold(study):
  table = curves.rows(curves.read(study))
  by = {(x.judge, x.method): x for x in table}
  linear, wide = by["linear", "rl"], by["width 8", "rl"]
  assert linear.mean("kept") < wide.mean("kept")
  assert linear.mean("end") < linear.mean("gold") - 0.1
  assert all(x.holds for x in enumerated_level.laws(table))
  for row in table:
    for curve in row.curves:
      assert (np.diff(curve.proxy) >= -1e-9).all()
      assert curve.distance[0] == pytest.approx(0.0, abs=1e-6)


def test_the_page_has_the_laws(study, capsys):
  line = ["x", f"--workdir={study}", "--level=exact", "--page", "--seeds=2"]
  assert overoptimise.main(line) == 0
  assert "sqrt(2) d" in (study / overoptimise.PAGE).read_text()


def test_a_wrong_law_is_seen(study):
  table = curves.rows(curves.read(study))
  for row in table:
    for curve in row.curves:
      curve.proxy[:] = [1.1 * x for x in curve.proxy]
      curve.distance[:] = [1.2 * x for x in curve.distance]
  assert not any(x.holds for x in enumerated_level.laws(table))
