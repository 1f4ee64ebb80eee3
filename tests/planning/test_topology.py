"""Names of slices, and what a device of one may use."""

import pytest

from rlhf_jax.models import model_sources, shapes, transformer
from rlhf_jax.planning import topology
from rlhf_jax.schema import UserError


@pytest.mark.parametrize(
  ("name", "chips", "devices", "cloud"),
  [
    ("v5e:8x8", 64, 64, "v5e-64"),
    ("v5p:4x4x4", 64, 64, "v5p-128"),
    ("v6e:2x4", 8, 8, "v6e-8"),
    ("v4:2x2x1", 4, 4, "v4-8"),
    ("tpu7x:2x2x1", 4, 8, "tpu7x-4"),
    ("cpu:8", 8, 8, "cpu-8"),
  ],
)
def test_names(name, chips, devices, cloud):
  slice_ = topology.parse(name)
  assert (slice_.chips, slice_.devices) == (chips, devices)
  assert (slice_.name, slice_.cloud_name) == (name, cloud)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("v5x:8x8", "no such generation"),
    ("v5e", "are no sizes"),
    ("v5e:8", "has 2 sizes"),
    ("v5p:8x8", "has 3 sizes"),
    ("v5e:0x4", "each >= 1"),
  ],
)
def test_names_that_are_wrong(name, says):
  with pytest.raises(topology.TopologyError, match=says):
    topology.parse(name)


def test_a_device_has_its_part_of_the_chip():
  chip = topology.CHIPS["tpu7x"]
  own = topology.parse("tpu7x:2x2x1").device_bytes
  assert own == chip.usable * 2**29 < chip.hbm * 2**29


@pytest.mark.parametrize(
  ("name", "billions"),
  [
    ("smollm2_135m", 0.1345),
    ("llama32_1b", 1.2358),
    ("gemma_2b", 2.506),
    ("llama3_8b", 8.030),
    ("llama3_70b", 70.55),
  ],
)
def test_shapes_have_the_published_number_of_parameters(name, billions):
  """From the layer sizes, without the code that makes parameters."""
  c = shapes.named(name)
  attention = 2 * c.width * c.head_dim * (c.n_heads + c.n_kv_heads)
  layer = attention + 3 * c.width * c.mlp_width + 2 * c.width
  embeddings = c.vocab_size * c.width * (1 if c.tie_embeddings else 2)
  total = c.n_layers * layer + embeddings + c.width
  assert total / 1e9 == pytest.approx(billions, rel=1e-3)


def test_a_shape_is_planned_and_not_trained():
  found = model_sources.read_architecture("shape:llama3_8b")
  assert isinstance(found, transformer.Config)
  known = model_sources.read_architecture("asset:smollm2-135m-instruct")
  assert known.width == 576
  with pytest.raises(UserError, match="rlhf_jax.plan only"):
    model_sources.locate("shape:llama3_8b")
  with pytest.raises(ValueError, match="no such shape"):
    model_sources.read_architecture("shape:llama9")
