"""Cart-pole and pendulum: numbers of the published ones, and no early end."""

import math
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import environments
from rlhf_jax.environments import cart_pole, drawing, pendulum
from rlhf_jax.schema import FieldError

LEFT, RIGHT = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])


def gym_cart_pole(state, force):
  """CartPole-v1's step, as its authors wrote it (masses, half length, tau)."""
  x, v, q, w = state
  pull = (force + 0.05 * w**2 * math.sin(q)) / 1.1
  turn = (9.8 * math.sin(q) - math.cos(q) * pull) / (
    0.5 * (4 / 3 - 0.1 * math.cos(q) ** 2 / 1.1)
  )
  push = pull - 0.05 * turn * math.cos(q) / 1.1
  return x + 0.02 * v, v + 0.02 * push, q + 0.02 * w, w + 0.02 * turn


def test_cart_pole_moves_as_the_published_one():
  found = cart_pole.step(jnp.zeros(4), RIGHT)
  np.testing.assert_allclose(found, [0, 0.195122, 0, -0.292683], atol=1e-6)
  state = (0.3, -0.7, 0.15, 0.9)
  for action, force in ((LEFT, -10.0), (RIGHT, 10.0)):
    found = cart_pole.step(jnp.array(state), action)
    np.testing.assert_allclose(found, gym_cart_pole(state, force), rtol=1e-5)


def test_a_fallen_pole_swings_on_and_the_cart_stops_at_the_end():
  state = jnp.array([2.39, 3.0, 3.1, 4.0])
  assert cart_pole.reward(state, LEFT) < 1e-5
  found = cart_pole.step(state, RIGHT)
  assert found[0] == pytest.approx(cart_pole.TRACK) and found[1] == 0.0
  assert found[2] == pytest.approx(3.18 - 2 * math.pi, abs=1e-5)
  held = cart_pole.step(found, RIGHT)
  assert held[0] == pytest.approx(cart_pole.TRACK) and held[1] == 0.0
  left = cart_pole.step(cart_pole.step(found, LEFT), LEFT)
  assert left[0] < cart_pole.TRACK and left[1] < 0.0  # no trap
  states = jax.lax.scan(
    lambda s, _: (cart_pole.step(s, LEFT),) * 2, jnp.zeros(4), length=500
  )[1]
  assert bool(jnp.isfinite(states).all())
  assert float(jnp.abs(states[:, 2]).max()) <= math.pi + 1e-5


def test_the_true_reward_of_cart_pole_by_hand():
  standing = jnp.array([0.0, 5.0, 0.0, 5.0])
  states = {
    1.0: standing,
    0.5: standing.at[2].set(math.pi / 2),
    0.0: standing.at[2].set(math.pi),
    0.75: standing.at[0].set(-cart_pole.TRACK / 2),
  }
  for expected, state in states.items():
    assert cart_pole.reward(state, LEFT) == pytest.approx(expected, abs=1e-6)
  off = standing.at[0].set(cart_pole.TRACK)
  assert cart_pole.reward(off, LEFT) == 0.0


def test_pendulum_by_hand():
  found = pendulum.step(jnp.array([math.pi / 2, 0.0]), jnp.zeros(1))
  np.testing.assert_allclose(found, [math.pi / 2 + 0.0375, 0.75], rtol=1e-6)
  found = pendulum.step(jnp.zeros(2), jnp.ones(1))  # 2 N m: 6 / s^2
  np.testing.assert_allclose(found, [0.015, 0.3], rtol=1e-6)
  fast = pendulum.step(jnp.array([0.5, 8.0]), jnp.ones(1))
  assert fast[1] == 8.0
  hanging = pendulum.reward(jnp.array([math.pi, 1.0]), jnp.ones(1))
  assert hanging == pytest.approx(-(math.pi**2 + 0.1 + 0.004))
  assert pendulum.reward(jnp.zeros(2), jnp.zeros(1)) == 0.0


@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_sizes_are_what_they_say(name):
  found = environments.find(name)
  state = found.reset(jax.random.key(0))
  action = jnp.zeros(found.action_size)
  assert found.observe(state).shape == (found.observation_size,)
  assert found.step(state, action).shape == state.shape
  assert found.reward(state, action).shape == ()


@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_a_segment_is_drawn_whole_and_loads_nothing(name):
  environment = environments.find(name)
  rng = np.random.default_rng(0)
  size = len(environment.reset(jax.random.key(0)))
  states = rng.normal(size=(25, size)).tolist()
  actions = rng.uniform(-1, 1, (25, environment.action_size)).tolist()
  text = drawing.segment(environment, states, actions)
  assert text.startswith("<svg ") and len(text) < 40_000
  root = ElementTree.fromstring(text)
  tags = [node.tag.rpartition("}")[2] for node in root.iter()]
  assert tags.count("animate") == 25 and "script" not in tags
  links = {v for n in root.iter() for k, v in n.items() if k.endswith("href")}
  assert links == {f"#f{i}" for i in range(25)}
  times = [node.text for node in root.iter() if node.tag.endswith("}text")]
  assert times[0] == "0.00 s" and len(times) == drawing.FRAMES
  assert times[-1] == f"{24 * environment.seconds:.2f} s"


def test_the_drawn_pole_points_where_the_state_says():
  upright = cart_pole.draw([0.0, 0, 0.0, 0], [0, 1])
  assert "M0.00 0L0.00 -1.00" in upright
  right = cart_pole.draw([1.0, 0, math.pi / 2, 0], [0, 1])
  assert "M1.00 0L2.00 -0.00" in right and 'x="0.70"' in right
  assert drawing.frames_of(3) == [0, 1, 2]
  assert drawing.frames_of(25)[::7] == [0, 24]


def test_names_and_import_paths(tmp_path):
  with pytest.raises(FieldError, match="'pendulun': must be.*pendulum"):
    environments.find("pendulun")
  path = tmp_path / "mine.py"
  path.write_text(
    "import dataclasses\n"
    "from rlhf_jax.environments import PENDULUM\n"
    "SHORT = dataclasses.replace(PENDULUM, name='short', steps=30)\n"
    "OTHER = 3\n"
  )
  assert environments.find(f"{path}:SHORT").steps == 30
  with pytest.raises(FieldError, match="is a int, not an Environment"):
    environments.find(f"{path}:OTHER")
