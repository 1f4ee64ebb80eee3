"""Rows that leave a batch, come into it and go on, against the plain way."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import generate, slots
from rlhf_jax.models import cache as cache_lib
from rlhf_jax.models import transformer
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.parallel import rules
from tests.test_generate import EOS, MODEL, SETTINGS, prompt_batch, run

SLOW = pytest.mark.slow
ENDS = (2, EOS, 7, 11, 13, 17)


@pytest.fixture(scope="module")
def params():
  found = transformer.init(MODEL, jax.random.key(0))["params"]
  found["embedding"]["embedding"] *= 6.0
  return found


@pytest.fixture(scope="module")
def plain(params):
  """All 32 rows together, none of which leaves, on one device."""
  settings = dataclasses.replace(SETTINGS, compact=False)
  found = run(params, prompt_batch(32), settings, eos=ENDS)
  assert len(set(np.sum(np.asarray(found.response_mask), 1))) > 3
  return found


@pytest.fixture
def calls(monkeypatch):
  """What is called of slots.py: [name, keywords] in order."""
  seen = []

  def watch(name):
    real = getattr(slots, name)
    monkeypatch.setattr(
      slots, name, lambda *a, **k: seen.append((name, k)) or real(*a, **k)
    )

  for name in ("grow", "refill", "shrink"):
    watch(name)
  return seen


def assert_same(found, expected):
  for name, value in vars(expected).items():
    np.testing.assert_allclose(
      getattr(found, name), value, atol=1e-5, err_msg=name
    )


def names_of(calls):
  return [name for name, _ in calls]


def stacked(params):
  layers = [params[f"layer_{i}"] for i in range(MODEL.n_layers)]
  rest = {k: v for k, v in params.items() if not k.startswith("layer_")}
  return rest | {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}


@pytest.mark.parametrize("size", [8, pytest.param(16, marks=SLOW)])
def test_waiting_prompts_take_the_place_of_done_rows(
  params, plain, calls, size
):
  """Also when the ring has gone round, several times."""
  settings = dataclasses.replace(SETTINGS, batch_size=size, refill=True)
  assert_same(run(params, prompt_batch(32), settings, eos=ENDS), plain)
  assert names_of(calls).count("refill") == (32 - size) * 8 // size


def test_a_ring_that_has_gone_round_grows(params, plain, calls, monkeypatch):
  """From 2 new tokens on, with rows of all ages, on scanned layers."""
  monkeypatch.setattr(generate, "FIRST_ROOM", 2)
  model = dataclasses.replace(MODEL, scan_layers=True)
  settings = dataclasses.replace(SETTINGS, batch_size=8, refill=True)
  found = run(stacked(params), prompt_batch(32), settings, model, eos=ENDS)
  assert_same(found, plain)
  first = names_of(calls).index("grow")
  assert "refill" in names_of(calls)[first:]


@pytest.mark.parametrize(
  ("size", "times"),  # units of 4, 4 and of 1, which share nothing
  [(8, 6), pytest.param(16, 4, marks=SLOW), pytest.param(2, 30, marks=SLOW)],
)
def test_refilled_samples_of_a_prompt_share_its_pass(
  params, calls, size, times
):
  settings = dataclasses.replace(SETTINGS, num_samples=4)
  prompts = prompt_batch(8)
  together = run(
    params, prompts, dataclasses.replace(settings, compact=False), eos=ENDS
  )
  split = dataclasses.replace(settings, batch_size=size, refill=True)
  assert_same(run(params, prompts, split, eos=ENDS), together)
  assert names_of(calls).count("refill") == times


@pytest.mark.parametrize("slot", [3, 6, 7, 9])
def test_a_prompt_ends_before_the_slot_that_is_written_next(slot):
  """Its tokens 1, 2, 3 of a cache of 3 in a ring of 5, wherever that is."""
  cache = [
    layer.write(
      jnp.broadcast_to(jnp.arange(1.0, 4)[None, None, :, None], (2, 2, 3, 4)),
      jnp.ones((2, 2, 3, 4)),
      jnp.int32(0),
    )
    for layer in cache_lib.make_cache(MODEL, 2, 3)
  ]
  turned = cache_lib.take_slots(cache, slots.turned(5, 3, slot))
  found = np.asarray(turned[0].key[0, 0, :, 0])
  assert [found[(slot - 3 + j) % 5] for j in range(3)] == [1, 2, 3]


def on_mesh(params, prompts, **axes):
  """Returns the mesh, and params and prompts as the tables split them."""
  sizes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
  mesh = mesh_lib.make_mesh(mesh_lib.Config(**sizes))
  params = jax.device_put(params, rules.sharding_tree(mesh, params))
  return mesh, params, mesh_lib.shard_batch(mesh, prompts)


@pytest.mark.parametrize(
  ("axes", "changes", "expected"),
  [
    pytest.param(
      {"data": 2, "fsdp": 2, "tensor": 2}, {}, {"shrink"}, marks=SLOW
    ),
    pytest.param(
      {"fsdp": 4, "tensor": 2},
      {"batch_size": 16, "refill": False},
      {"shrink"},
      marks=SLOW,
    ),
    (
      {"data": 2, "tensor": 4},  # more than there are key heads
      {"batch_size": 16, "refill": True},
      {"refill", "shrink"},
    ),
    pytest.param(
      {"data": 4, "fsdp": 2},
      {"batch_size": 8, "refill": True},
      {"refill"},
      marks=SLOW,
    ),
  ],
)
def test_each_shard_of_a_mesh_does_so_with_its_own_rows(
  params, plain, calls, axes, changes, expected
):
  mesh, params, prompts = on_mesh(params, prompt_batch(32), **axes)
  settings = dataclasses.replace(SETTINGS, **changes)
  with mesh_lib.current(mesh):
    found = run(params, prompts, settings, eos=ENDS)
  assert set(names_of(calls)) == expected
  assert_same(found, plain)
  whole = mesh_lib.batch_sharding(mesh)
  for leaf in jax.tree.leaves(found):
    assert leaf.sharding.is_equivalent_to(whole, leaf.ndim)


@pytest.mark.parametrize("is_current", [False, pytest.param(True, marks=SLOW)])
def test_rows_leave_by_default_where_it_is_known_whose_they_are(
  params, calls, is_current
):
  mesh, params, prompts = on_mesh(params, prompt_batch(32), data=8)
  context = mesh_lib.current(mesh) if is_current else contextlib.nullcontext()
  with context:
    run(params, prompts, eos=ENDS)
  assert ("shrink" in names_of(calls)) == is_current


def test_sizes_of_batches_and_refills():
  assert generate.smaller(64, 1) == [32, 16, 8]
  assert generate.smaller(64, 8) == [32, 16, 8]
  assert generate.smaller(24, 1) == [12]
  assert generate.smaller(16, 8) == [8]
  assert generate.smaller(24, 8) == [8]
  assert [generate.refill_rows(64, n) for n in (1, 4, 16, 64)] == [8, 8, 16, 64]
  assert [generate.refill_rows(n, 1) for n in (1, 7, 12, 17)] == [1, 1, 2, 17]
