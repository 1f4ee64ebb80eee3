"""The shape "tiny", and compilers that do not optimise."""

import jax
import pytest

from rlhf_jax.models import shapes
from tests.planning.tiny_plans import TINY


@pytest.fixture
def tiny_shape(monkeypatch):
  monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


@pytest.fixture(scope="module")
def quick_compiles():
  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)
