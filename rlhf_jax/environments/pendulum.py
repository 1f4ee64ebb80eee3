"""Pendulum: swing a rod up, with a motor too weak to lift it, and hold it.

  w' = 3 g / (2 l) sin q + 3 / (m l^2) u

The numbers, Euler steps and reward of Pendulum-v1: q is the angle from upright,
w its velocity, |w| <= 8, u the torque, |u| <= 2. The true reward is
-(q^2 + 0.1 w^2 + 0.001 u^2), 0 at best and -16.3 at worst. An episode has 200
steps and begins anywhere.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rlhf_jax.environments.environment import Environment
from rlhf_jax.types import Array

GRAVITY = 10.0  # m / s^2
TORQUE = 2.0  # N m, at most
SPIN = 8.0  # radians / s, at most
SECONDS = 0.05  # of a step


def reset(key: Array) -> Array:
  """Returns [2], any angle, slowly turning."""
  most = jnp.array([math.pi, 1.0])
  return jax.random.uniform(key, (2,), minval=-most, maxval=most)


def step(state: Array, action: Array) -> Array:
  """Returns [2], the state after one step.

  Args:
    state: [2], angle and its velocity.
    action: [1], share of the largest torque, in [-1, 1].
  """
  angle, spin = state
  turn = 1.5 * GRAVITY * jnp.sin(angle) + 3.0 * TORQUE * action[0]
  spin = jnp.clip(spin + SECONDS * turn, -SPIN, SPIN)
  angle = angle + SECONDS * spin
  angle = angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
  return jnp.stack([angle, spin])


def observe(state: Array) -> Array:
  """Returns [3]: cosine and sine of the angle, velocity."""
  angle, spin = state
  return jnp.stack([jnp.cos(angle), jnp.sin(angle), spin / SPIN])


def reward(state: Array, action: Array) -> Array:
  """Returns [], minus the cost of angle, velocity and torque."""
  angle, spin = state
  torque = TORQUE * action[0]
  return -(angle**2 + 0.1 * spin**2 + 0.001 * torque**2)


def draw(state: list[float], action: list[float]) -> str:
  """Returns a rod, its hinge, and a bar as long as the torque.

  Args:
    state: 2 numbers.
    action: 1 number.
  """
  tip = (math.sin(state[0]), -math.cos(state[0]))
  return (
    f'<path d="M-.15 0H.15M0 -1.12V-1.02" class="ground"/>'
    f'<path d="M0 0L{tip[0]:.2f} {tip[1]:.2f}" class="pole"/>'
    f'<circle r=".07" class="body"/>'
    f'<path d="M0 1.2h{action[0]:.2f}" class="force"/>'
  )


PENDULUM = Environment(
  name="pendulum",
  steps=200,
  seconds=SECONDS,
  observation_size=3,
  action_size=1,
  is_discrete=False,
  reset=reset,
  step=step,
  observe=observe,
  reward=reward,
  draw=draw,
  box=(-1.25, -1.25, 2.5, 2.6),
  task="The rod should point up, and hold still there.",
)
