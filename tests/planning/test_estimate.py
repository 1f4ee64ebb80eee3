"""A program is estimated where nothing compiles."""

import types

import jax
import jax.numpy as jnp

from rlhf_jax import compiling
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.planning import compiled
from rlhf_jax.programs.program import Program


def test_a_step_with_options_of_the_compiler_is_estimated():
  """jax refuses such a function inside another transformation."""
  options = compiling.for_training()
  assert options is not None  # of a CPU
  double = jax.jit(
    lambda x, *, by: x * by,
    static_argnames="by",
    compiler_options=options,
  )
  mesh = mesh_lib.make_mesh(mesh_lib.Config(devices=1))
  rows = jax.ShapeDtypeStruct(
    (4, 2), jnp.float32, sharding=mesh_lib.replicated(mesh)
  )
  program = Program("update", double, lambda flow: ((rows,), {"by": 2}), rows=4)
  phase = types.SimpleNamespace(mesh=mesh)
  found, result = compiled.measure(phase, program, {}, compiles=False)
  assert result.shape == (4, 2)
  assert found.arguments == found.outputs == 4 * 2 * 4  # bytes of float32
