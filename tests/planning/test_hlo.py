"""Collectives and FLOPs of HLO text, against programs counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rlhf_jax.planning import hlo

TEXT = """HloModule jit_f, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %arg = (s32[], bf16[16,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %w = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}
  %y = f32[16,32]{1,0} dot(%h, %w), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  %h = bf16[16,64]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %r = f32[16,32]{1,0} all-reduce(%y), replica_groups={{0,4},{1,5}}, \
to_apply=%add
}

%cond (arg: (s32[], bf16[16,64])) -> pred[] {
  %arg.1 = (s32[], bf16[16,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg.1), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[16,64]) -> f32[] {
  %p = bf16[16,64]{1,0} parameter(0)
  %loop = (s32[], bf16[16,64]) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %s = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]) all-gather-start(%q), \
replica_groups=[1,4]<=[4], dimensions={0}
  %d = bf16[16,8]{1,0} all-gather-done(%s)
  ROOT %c = f32[2,7]{1,0} convolution(%u, %v), dim_labels=bf_io->bf
  %u = f32[2,11]{1,0} parameter(1)
  %v = f32[11,7]{1,0} parameter(2)
}
"""


def test_counts_by_hand():
  found = hlo.count(TEXT, devices=8)
  gathered = 3 * (64 * 32 * 2) * 3 / 4 + 16 * 8 * 2 * 3 / 4
  assert found.sent["all-gather"] == gathered
  assert found.calls["all-gather"] == 4
  assert found.sent["all-reduce"] == 3 * 2 * (16 * 32 * 4) / 2
  assert found.flops == 3 * 2 * 16 * 32 * 64 + 2 * 2 * 7 * 11
  assert found.loops == 0
  assert (found.asynchronous, found.hidden) == (1, 16 * 8 * 2 * 3 / 4)


# What the TPU compiler makes of one all-gather beside a matrix product.
FUSED = """HloModule jit_f

%started (p: bf16[4,8]) -> (bf16[4,8], bf16[16,8], u32[]) {
  %g.1 = bf16[16,8]{1,0} all-gather(%p), replica_groups=[1,4]<=[4]
  ROOT %k.1 = (bf16[4,8], bf16[16,8], u32[]) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: bf16[4,8]) -> (f32[2,7], u32[]) {
  %u = f32[2,11]{1,0} parameter(1)
  %v = f32[11,7]{1,0} parameter(2)
  %c = f32[2,7]{1,0} convolution(%u, %v), dim_labels=bf_io->bf
  %g.2 = bf16[16,8]{1,0} all-gather(%p), replica_groups=[1,4]<=[4]
  ROOT %t = (f32[2,7], u32[]) tuple(%c, %g.2)
}

%ended (p: bf16[4,8]) -> bf16[16,8] {
  %g.3 = bf16[16,8]{1,0} all-gather(%p), replica_groups=[1,4]<=[4]
  ROOT %k.2 = bf16[16,8]{1,0} custom-call(%p, %g.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %s = (bf16[4,8], bf16[16,8], u32[]) fusion(%p), kind=kCustom, calls=%started
  %m = (f32[2,7], u32[]) fusion(%s), calls=%async_collective_fusion.1
  %l = bf16[16,8]{1,0} all-gather(%p), replica_groups=[1,4]<=[4]
  ROOT %e = bf16[16,8]{1,0} fusion(%s, %m), kind=kCustom, calls=%ended
}
"""


def test_a_fused_asynchronous_collective_counts_once():
  found = hlo.count(FUSED, devices=4)
  one = 16 * 8 * 2 * 3 / 4
  assert (found.calls["all-gather"], found.sent["all-gather"]) == (2, 2 * one)
  assert (found.asynchronous, found.hidden) == (1, one)
  assert found.flops == 2 * 2 * 7 * 11


def test_a_batched_product_in_the_form_of_a_convolution():
  """Its window slides over the batch and meets one element at each place."""
  text = """ENTRY %main (p: f32[3,5,256,64]) -> f32[3,5,256,384] {
  %q = bf16[3,5,256,64]{3,2,1,0} parameter(0)
  %k = bf16[3,5,384,64]{3,2,1,0} parameter(1)
  ROOT %c = f32[3,5,256,384]{3,2,1,0} convolution(%q, %k), \
window={size=3x5 stride=2x4 lhs_dilate=3x5}, dim_labels=01bf_01oi->01bf
}
"""
  assert hlo.count(text, devices=1).flops == 2 * 3 * 5 * 256 * 384 * 64


def test_a_convolution_that_slides():
  """Kernel 3, padded by 1: the two outer places meet two elements."""
  text = """ENTRY %main (p: f32[2,7,5]) -> f32[2,7,11] {
  %x = f32[2,7,5]{2,1,0} parameter(0)
  %w = f32[3,5,11]{2,1,0} parameter(1)
  ROOT %c = f32[2,7,11]{2,1,0} convolution(%x, %w), \
window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
"""
  assert hlo.count(text, devices=1).flops == 2 * 2 * 11 * 5 * (7 * 3 - 2)


def test_loops_without_a_note():
  """A bare comparison tells the length; anything else is the caller's."""
  noted = ', \\\nbackend_config={"known_trip_count":{"n":"3"}}'
  bare = TEXT.replace(noted.replace("\\\n", ""), "")
  assert hlo.count(bare, 8, trips=9).calls["all-reduce"] == 5
  data_dependent = bare.replace("%n = s32[] constant(5)", "%n = s32[] add(%i)")
  found = hlo.count(data_dependent, 8, trips=9)
  assert found.calls["all-reduce"] == 9
  assert found.loops == 1


def test_a_real_program():
  """Layers scanned, batch and weights split: gathers and FLOPs of each."""
  mesh = jax.make_mesh(
    (8,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8]
  )
  layers, rows, width = 5, 32, 24
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  inner = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

  def forward(weights, x):
    def layer(x, w):
      x = jax.lax.with_sharding_constraint(jnp.tanh(x @ w), split)
      return x, None

    return jax.lax.scan(layer, x, weights)[0]

  arguments = (
    jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=inner),
    jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=split),
  )
  text = jax.jit(forward).lower(*arguments).compile().as_text()
  found = hlo.count(text, devices=8)
  assert found.flops == pytest.approx(2 * rows / 8 * width**2 * layers)
  whole = layers * width**2 * 4
  np.testing.assert_allclose(found.sent["all-gather"], whole * 7 / 8)
