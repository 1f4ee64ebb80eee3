"""What generation compiles is in a plan: growing caches, waiting prompts."""

import pytest

from rlhf_jax import generate
from rlhf_jax.planning import report
from tests.planning.tiny_plans import EIGHT, policy_config

pytestmark = pytest.mark.usefixtures("tiny_shape")


def lines_of(compiles=False, **how):
  config = policy_config("lora")
  config.generate.update(**how)
  found = report.make(config, EIGHT, compiles=compiles)
  return {line.program: line for line in found.lines}


@pytest.mark.slow
def test_prompts_that_wait_are_planned():
  usual = lines_of()
  assert not {"next prefill", "refill", "grow"} & set(usual)
  waiting = lines_of(batch_size=8)
  assert list(waiting)[1:5] == ["prefill", "decode", "next prefill", "refill"]
  assert "refill" not in lines_of(batch_size=8, refill=False)
  assert waiting["decode"].cache == usual["decode"].cache / 2


def test_a_cache_that_grows_is_planned_at_its_last_length(monkeypatch):
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  whole, grown = lines_of(compact=False), lines_of()
  assert "grow" in grown and "grow" not in whole
  assert grown["decode"].cache == whole["decode"].cache == grown["grow"].cache
  assert grown["prefill"].cache < whole["prefill"].cache


def test_int8_is_planned():
  config = policy_config("lora")
  config.model.dtype = "bfloat16"
  config.generate.cache_dtype = "int8"
  found = report.make(config, EIGHT, compiles=False)
  (line,) = [line for line in found.lines if line.program == "decode"]
  whole = lines_of()["decode"]
  assert 0 < line.cache < whole.cache


@pytest.mark.slow
def test_it_compiles_on_a_mesh(monkeypatch):
  """Through the shardings of what comes before, on 2 x 2 x 2."""
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  lines = lines_of(compiles=True, batch_size=8)
  for name in ("prefill", "grow", "decode", "next prefill", "refill"):
    assert lines[name].is_compiled, name
