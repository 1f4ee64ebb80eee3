"""Options for the TPU compiler: added once, beside what is given, or not."""

import pytest

from rlhf_jax.parallel import overlap
from rlhf_jax.schema import UserError


def test_options_are_added_once_and_a_given_one_stays():
  given = "--xla_tpu_overlap_compute_collective_tc=false --other=1"
  environment = {overlap.READ_BY_LIBTPU: given}
  overlap.set_options(environment)
  overlap.set_options(environment)
  found = environment[overlap.READ_BY_LIBTPU].split()
  assert found == [*given.split(), *overlap.OPTIONS[:-1]]


def test_the_switch():
  environment = {overlap.SWITCH: "off"}
  overlap.set_options(environment)
  assert overlap.READ_BY_LIBTPU not in environment
  with pytest.raises(UserError, match="write on or off"):
    overlap.set_options({overlap.SWITCH: "no"})
