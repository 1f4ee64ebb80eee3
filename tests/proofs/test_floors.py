"""The oldest stack is read from setup.py."""

import pytest

from tests.proofs import floors


def test_floors_become_equalities_without_extras():
  asked = ["b[x,y]>=2.6.2.1", "a-c>=1.0", "b>=2.6.2.1"]
  assert floors.constraints(asked) == ["a-c==1.0", "b==2.6.2.1"]


@pytest.mark.parametrize(
  "asked, words",
  [
    (["a"], "no floor"),
    (["a>=1,<2"], "no floor"),
    (["a>=1", "a[x]>=2"], "two floors"),
  ],
)
def test_what_is_no_single_floor_is_an_error(asked, words):
  with pytest.raises(ValueError, match=words):
    floors.constraints(asked)


def test_every_requirement_of_setup_has_one():
  found = floors.constraints(floors.requirements())
  assert {"jax==0.7.2", "flax==0.11.2", "pytest-xdist==3.8"} <= set(found)
