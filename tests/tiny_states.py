"""A tiny state that trains, and what compares two of them bit by bit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import integrity, optimizer
from rlhf_jax.types import TrainState

WIDTH, OUT = 6, 3
OPTIMIZER = optimizer.make_labelled(
  {
    "policy": optimizer.Config(learning_rate=0.1, clip_norm=None),
    "value": optimizer.Config(learning_rate=0.3),
  }
)


def fresh(seed: int = 0, width: int = WIDTH) -> dict:
  """Returns {"train": TrainState, "key": typed key}."""
  draw = jax.random.normal(jax.random.key(seed), (width, OUT))
  params = {
    "policy": {"proj": {"kernel": draw, "bias": jnp.arange(3.0)}},
    "value": {"output": {"kernel": draw[:, :1].astype(jnp.bfloat16)}},
  }
  train = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=OPTIMIZER.init(params),
    skipped=jnp.int32(0),
  )
  return {"train": train, "key": jax.random.key(seed + 1)}


@jax.jit
def one_update(state: dict) -> dict:
  """Returns the state after a step on data drawn from its key."""
  train, (key, data_key) = state["train"], jax.random.split(state["key"])
  x = jax.random.normal(data_key, (5, WIDTH))

  def loss(params):
    y = x @ params["policy"]["proj"]["kernel"]
    y = y + params["policy"]["proj"]["bias"][None]
    v = x @ params["value"]["output"]["kernel"].astype(jnp.float32)
    return jnp.mean(jnp.square(y)) + jnp.mean(jnp.square(v - 1.0))

  grads = jax.grad(loss)(train.params)
  updates, opt_state = OPTIMIZER.update(grads, train.opt_state, train.params)
  train = train.replace(
    step=train.step + 1,
    params=optax.apply_updates(train.params, updates),
    opt_state=opt_state,
  )
  return {"train": train, "key": key}


def bits(tree) -> dict[str, bytes]:
  leaves = integrity.named_leaves(tree)
  for path, x in leaves.items():
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      leaves[path] = jax.random.key_data(x)
  return {path: np.asarray(x).tobytes() for path, x in leaves.items()}


def abstract(tree):
  return jax.eval_shape(lambda: tree)


def files_of(step_directory: Path) -> list[Path]:
  return [
    path
    for path in sorted(step_directory.rglob("*"))
    if path.is_file() and path.name != integrity.MANIFEST
  ]


def flip_bit(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(bytes(content))
