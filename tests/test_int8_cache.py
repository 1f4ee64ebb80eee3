"""Keys and values in int8: what is rounded, what it weighs, who may not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import answers, sampled_settings
from rlhf_jax.programs.work import Passes
from tests.test_generate import MODEL, SETTINGS, prompt_batch, run
from tests.test_generate import teacher_forced as forced

ENDS = (2, 5, 7, 11, 13, 17)
INT8 = dataclasses.replace(SETTINGS, cache_dtype="int8")


def test_a_scale_for_each_token_and_head():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))
  x = x * jnp.asarray([1e-3, 1.0, 50.0])[None, :, None, None]
  x = x.at[1, 2, 3].set(0.0)
  whole, scale = cache_lib.quantise(x)
  assert whole.dtype == jnp.int8 and scale.shape == (2, 3, 4)
  assert int(jnp.max(jnp.abs(whole))) == 127
  error = np.abs(whole * scale[..., None] - x)
  assert np.all(error <= 0.5001 * np.asarray(scale)[..., None])
  np.testing.assert_array_equal(whole[1, 2, 3], np.zeros(8))


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("scans", [False, True])
def test_bytes_are_those_that_the_plan_counts(dtype, scans):
  model = dataclasses.replace(MODEL, scan_layers=scans)
  made = jax.eval_shape(lambda: cache_lib.make_cache(model, 6, 10, dtype))
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made))
  one = mesh_lib.make_mesh(mesh_lib.Config(data=1, fsdp=1, devices=1))
  assert held == Passes(one).cache_bytes(model, 6, 10, dtype)


def test_heads_of_64_take_little_more_than_a_quarter():
  model = dataclasses.replace(MODEL, head_dim=64)
  small, whole = (cache_lib.token_bytes(model, x) for x in ("int8", None))
  assert small / whole == 68 / 256


@pytest.fixture(scope="module")
def params():
  found = transformer.init(MODEL, jax.random.key(0))["params"]
  found["embedding"]["embedding"] *= 6.0
  return found


@pytest.mark.slow
def test_log_probabilities_are_near_and_rows_may_leave_and_come(
  params, monkeypatch
):
  plain = dataclasses.replace(INT8, compact=False)
  expected = run(params, prompt_batch(32), plain, eos=ENDS)
  trained = forced(params, expected, SETTINGS.temperature)
  mask = np.asarray(expected.response_mask) > 0
  gap = np.abs(np.asarray(expected.behaviour_logprobs) - trained)[mask]
  assert 1e-4 < gap.mean() < 0.01 and gap.max() < 0.1
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  refilled = dataclasses.replace(INT8, batch_size=8)
  found = run(params, prompt_batch(32), refilled, eos=ENDS)
  for name, value in vars(expected).items():
    np.testing.assert_allclose(
      getattr(found, name), value, atol=1e-5, err_msg=name
    )


def test_another_number_is_refused():
  with pytest.raises(ValueError, match="cache_dtype='int4'.*'int8'"):
    generate.Config(cache_dtype="int4")


def test_where_nothing_makes_up_for_it_it_is_refused():
  with pytest.raises(ValueError, match="model.dtype='float32'.*bfloat16"):
    sampled_settings.check_cache(INT8, "float32")
  sampled_settings.check_cache(INT8, "bfloat16")
  sampled_settings.check_cache(SETTINGS, "float32")
  how = dataclasses.replace(INT8, temperature=1.0)
  with pytest.raises(ValueError, match="cache_dtype='int8'.*the KL"):
    answers.check_sampling(how)
