"""Cart-pole: keep a pole upright by pushing its cart left or right.

  a   = (F + m l w^2 sin q) / M_all
  w'  = (g sin q - a cos q) / (l (4/3 - m cos^2 q / M_all))
  v'  = a - m l w' cos q / M_all

Barto, Sutton and Anderson 1983, with the numbers and the Euler steps of
CartPole-v1. The state is (x, v, q, w): cart, its velocity, angle of the pole
from upright, its velocity. There an episode ends when the pole falls or the
cart is at an end of its track, so that its length alone tells the reward; here
it goes on: a fallen pole swings freely, and a cart stops at an end of its track
until it is pushed away, while pushes swing the pole as if the cart moved. The
true reward has a shape, so that who compares two segments of fallen poles can
tell them apart:

  r = (1 + cos q) / 2 (1 - (x / 2.4)^2)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rlhf_jax.environments.environment import Environment
from rlhf_jax.types import Array

GRAVITY = 9.8  # m / s^2
CART, POLE = 1.0, 0.1  # kg
HALF_LENGTH = 0.5  # of the pole, m
FORCE = 10.0  # N, to either side
SECONDS = 0.02  # of a step
TRACK = 2.4  # m, from the middle to an end
START = 0.05  # every number of the first state is within


def reset(key: Array) -> Array:
  """Returns [4], a pole that stands almost upright in the middle."""
  return jax.random.uniform(key, (4,), minval=-START, maxval=START)


def step(state: Array, action: Array) -> Array:
  """Returns [4], the state after one push.

  Args:
    state: [4].
    action: [2], one-hot: to the left, to the right.
  """
  x, velocity, angle, spin = state
  force = FORCE * (action[1] - action[0])
  mass = CART + POLE
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  pull = (force + POLE * HALF_LENGTH * spin**2 * sine) / mass
  turn = (GRAVITY * sine - cosine * pull) / (
    HALF_LENGTH * (4.0 / 3.0 - POLE * cosine**2 / mass)
  )
  push = pull - POLE * HALF_LENGTH * turn * cosine / mass
  moved = x + SECONDS * velocity
  velocity = velocity + SECONDS * push
  is_stopped = (jnp.abs(moved) >= TRACK) & (velocity * moved > 0.0)
  velocity = jnp.where(is_stopped, 0.0, velocity)
  angle = angle + SECONDS * spin
  angle = angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
  spin = jnp.clip(spin + SECONDS * turn, -20.0, 20.0)
  return jnp.stack([jnp.clip(moved, -TRACK, TRACK), velocity, angle, spin])


def observe(state: Array) -> Array:
  """Returns [5]: place, velocity, sine and cosine of the angle, spin."""
  x, velocity, angle, spin = state
  return jnp.stack(
    [x / TRACK, velocity / 2.0, jnp.sin(angle), jnp.cos(angle), spin / 4.0]
  )


def reward(state: Array, action: Array) -> Array:
  """Returns [], from 1.0 for a pole that stands on the middle of the track to
  0.0 for one that hangs, or a cart at an end.
  """
  del action
  height = 0.5 * (1.0 + jnp.cos(state[2]))
  return height * (1.0 - jnp.square(state[0] / TRACK))


def draw(state: list[float], action: list[float]) -> str:
  """Returns a track, a cart, its pole, and a mark on the side that is pushed.

  Args:
    state: 4 numbers.
    action: 2 numbers, one-hot.
  """
  x, _, angle, _ = state
  tip = (x + 2 * HALF_LENGTH * math.sin(angle), -math.cos(angle))
  side = -1 if action[0] > action[1] else 1
  push = x - 0.42 * side
  return (
    f'<path d="M-2.4 .2H2.4M-2.4 .1V.3M2.4 .1V.3" class="ground"/>'
    f'<rect x="{x - 0.3:.2f}" y="-.1" width=".6" height=".24" class="body"/>'
    f'<path d="M{x:.2f} 0L{tip[0]:.2f} {tip[1]:.2f}" class="pole"/>'
    f'<path d="M{push:.2f} .02l{-0.22 * side:.2f} -.1v.2z" class="push"/>'
  )


CART_POLE = Environment(
  name="cart_pole",
  steps=500,
  seconds=SECONDS,
  observation_size=5,
  action_size=2,
  is_discrete=True,
  reset=reset,
  step=step,
  observe=observe,
  reward=reward,
  draw=draw,
  box=(-2.7, -1.15, 5.4, 2.3),
  task="The pole should stand upright, and the cart stay off the ends.",
)
