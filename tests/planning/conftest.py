"""The shape "tiny"."""

import pytest

from rlhf_jax.models import shapes
from tests.planning.tiny_plans import TINY


@pytest.fixture
def tiny_shape(monkeypatch):
  monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
