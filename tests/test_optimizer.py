"""Adam by hand, both epsilons; clipping, decay and schedules as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optimizer

PARAMS = {
  "proj": {
    "kernel": jnp.array([[0.5, -2.0, 1.0], [3.0, 0.1, -0.7]]),
    "bias": jnp.array([1.0, -1.0, 2.0]),
  },
  "layers": {"norm": {"scale": jnp.full((4, 2), 1.5)}},
}


def gradients(step: int) -> dict:
  generator = np.random.default_rng(step)
  return jax.tree.map(
    lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32), PARAMS
  )


def run(config: optimizer.Config, steps: int) -> dict:
  transformation = optimizer.make_optimizer(config)
  params, state = PARAMS, transformation.init(PARAMS)
  for step in range(steps):
    updates, state = transformation.update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def by_hand(config: optimizer.Config, steps: int, path: tuple, *, decays: bool):
  """Returns one leaf after float64 Adam, written from the formulas."""

  def leaf(tree):
    for key in path:
      tree = tree[key]
    return np.asarray(tree, np.float64)

  w, m, v = leaf(PARAMS), 0.0, 0.0
  for t in range(1, steps + 1):
    everything = gradients(t - 1)
    g = leaf(everything)
    if config.clip_norm is not None:
      squares = [np.sum(np.square(x)) for x in jax.tree.leaves(everything)]
      norm = np.sqrt(np.sum(squares))
      g = g * min(1.0, config.clip_norm / norm)
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g**2
    if config.adam_tf_style:
      factor = np.sqrt(1 - config.beta2**t) / (1 - config.beta1**t)
      direction = factor * m / (np.sqrt(v) + config.epsilon)
    else:
      m_hat = m / (1 - config.beta1**t)
      v_hat = v / (1 - config.beta2**t)
      direction = m_hat / (np.sqrt(v_hat) + config.epsilon)
    if decays:
      direction = direction + config.weight_decay * w
    w = w - config.learning_rate * direction
  return w


@pytest.mark.parametrize("tf_style", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_three_steps_by_hand(tf_style, clip_norm):
  config = optimizer.Config(
    learning_rate=0.05,
    beta2=0.99,
    epsilon=0.01,  # large, so that its place matters
    weight_decay=0.3,
    clip_norm=clip_norm,
    adam_tf_style=tf_style,
  )
  params = run(config, 3)
  for path, decays in (
    (("proj", "kernel"), True),
    (("proj", "bias"), False),
    (("layers", "norm", "scale"), False),  # stacked by a scan, but a norm
  ):
    found = params
    for key in path:
      found = found[key]
    expected = by_hand(config, 3, path, decays=decays)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_epsilon_position_is_what_tells_the_two_apart():
  config = {"learning_rate": 0.1, "epsilon": 0.1, "clip_norm": None}
  plain = run(optimizer.Config(**config), 1)
  tf_style = run(optimizer.Config(**config, adam_tf_style=True), 1)
  g = float(gradients(0)["proj"]["bias"][0])

  def step(p):
    return 1.0 - float(p["proj"]["bias"][0])

  # first step: m / (1 - b1) = g, sqrt(v / (1 - b2)) = |g|
  assert step(plain) == pytest.approx(0.1 * g / (abs(g) + 0.1), rel=1e-5)
  root = np.sqrt(1 - 0.95)
  expected = 0.1 * root * g / (root * abs(g) + 0.1)
  assert step(tf_style) == pytest.approx(expected, rel=1e-5)


def test_clip_leaves_small_gradients_alone():
  config = {"learning_rate": 0.1, "epsilon": 0.1}
  off = run(optimizer.Config(**config, clip_norm=None), 1)
  loose = run(optimizer.Config(**config, clip_norm=1e3), 1)
  tight = run(optimizer.Config(**config, clip_norm=1e-3), 1)
  kernels = [np.asarray(p["proj"]["kernel"]) for p in (off, loose, tight)]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  moved = [np.abs(k - PARAMS["proj"]["kernel"]).max() for k in kernels]
  assert moved[2] < 0.02 * moved[0]


@pytest.mark.parametrize("norm", [1e-3, 2.0, 1e3])
def test_clip_is_that_of_optax(norm):
  grads = gradients(0)
  found, _ = optimizer.clip_by_global_norm(norm).update(grads, ())
  expected, _ = optax.clip_by_global_norm(norm).update(grads, ())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), found, expected
  )
  zero = jax.tree.map(jnp.zeros_like, grads)
  found, _ = optimizer.clip_by_global_norm(norm).update(zero, ())
  jax.tree.map(np.testing.assert_array_equal, found, zero)


def test_constant_schedule_with_warm_up():
  rate = optimizer.schedule(
    optimizer.Config(
      learning_rate=2.0, warmup_steps=4, warmup_initial_fraction=0.1
    )
  )
  found = [float(rate(step)) for step in (0, 1, 2, 4, 5, 1000)]
  np.testing.assert_allclose(found, [0.2, 0.65, 1.1, 2.0, 2.0, 2.0], rtol=1e-6)
  rate = optimizer.schedule(optimizer.Config(learning_rate=0.0))
  assert float(rate(3)) == 0.0


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    # steps 0, 2 (peak), 6 (half way), 10 (end), 50
    ({"schedule": "cosine"}, [0.0, 1.0, 0.55, 0.1, 0.1]),
    ({"schedule": "cosine", "final_fraction": 0.0}, [0, 1, 0.5, 0, 0]),
    ({"schedule": "linear"}, [0.0, 1.0, 0.5, 0.0, 0.0]),
    ({"schedule": "linear", "final_fraction": 0.2}, [0, 1, 0.6, 0.2, 0.2]),
    (
      {"schedule": "inverse_sqrt"},
      [0, 1, (2 / 6) ** 0.5, (2 / 10) ** 0.5, (2 / 50) ** 0.5],
    ),
  ],
)
def test_decaying_schedules(settings, expected):
  config = optimizer.Config(
    learning_rate=3.0, warmup_steps=2, total_steps=10, **settings
  )
  rate = optimizer.schedule(config)
  found = [float(rate(step)) / 3.0 for step in (0, 2, 6, 10, 50)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  ("settings", "updates", "expected"),
  [
    ({"warmup_steps": 5}, 50, 5),
    ({"warmup_steps": 16}, 84, 16),  # the quickstart's policy
    ({"warmup_steps": 5}, 4, 0),
    ({"warmup_steps": 150, "schedule": "constant"}, 100, 20),
    ({"warmup_steps": 9, "warmup_max_fraction": 0.07}, 100, 7),
    ({"warmup_steps": 9, "warmup_max_fraction": 0.0}, 100, 0),
    ({"warmup_steps": 3, "warmup_max_fraction": 1.0}, 4, 3),
    ({"warmup_fraction": 0.03}, 1000, 30),
    ({"warmup_fraction": 0.03, "warmup_steps": 5}, 100, 5),  # Llama-2's
    ({"warmup_fraction": 0.03}, 10, 1),
  ],
)
def test_the_warm_up_scales_with_the_run(settings, updates, expected):
  settings = {"learning_rate": 1.0, "schedule": "cosine"} | settings
  found = optimizer.of_run(optimizer.Config(**settings), updates)
  assert (found.warmup_steps, found.total_steps) == (expected, updates)
  rates = [float(optimizer.schedule(found)(step)) for step in range(updates)]
  assert max(rates) == pytest.approx(1.0)


def test_what_nobody_may_cut():
  whole = optimizer.Config(
    learning_rate=1.0, schedule="cosine", warmup_steps=5, total_steps=50
  )
  assert optimizer.of_run(whole, 4) == whole
  within = optimizer.Config(
    learning_rate=1.0,
    schedule="cosine",
    warmup_steps=5,
    warmup_max_fraction=1.0,
  )
  with pytest.raises(ValueError, match="warmup_steps=5: the run has 4 updates"):
    optimizer.of_run(within, 4)


def test_first_update_uses_step_zero_of_the_schedule():
  config = optimizer.Config(learning_rate=1.0, warmup_steps=5)
  first, second = run(config, 1), run(config, 2)
  for before, after in zip(
    jax.tree.leaves(PARAMS), jax.tree.leaves(first), strict=True
  ):
    np.testing.assert_array_equal(before, after)
  assert not np.array_equal(second["proj"]["bias"], PARAMS["proj"]["bias"])


def test_labels_have_their_own_clip_schedule_and_moments():
  configs = {
    "policy": optimizer.Config(learning_rate=0.1, epsilon=0.1, clip_norm=0.5),
    "value": optimizer.Config(
      learning_rate=0.5, epsilon=0.1, clip_norm=None, warmup_steps=3
    ),
  }
  params = {"policy": PARAMS, "value": {"output": jnp.ones((2, 5))}}
  joint = optimizer.make_labelled(configs)
  state = joint.init(params)
  alone = {name: optimizer.make_optimizer(c) for name, c in configs.items()}
  states = {name: alone[name].init(params[name]) for name in configs}
  separate = params
  for step in range(3):
    grads = {
      "policy": gradients(step),
      "value": {"output": jnp.full((2, 5), 1e4)},  # must not clip the policy
    }
    updates, state = joint.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for name in configs:
      updates, states[name] = alone[name].update(
        grads[name], states[name], separate[name]
      )
      moved = optax.apply_updates(separate[name], updates)
      separate = separate | {name: moved}
  for found, expected in zip(
    jax.tree.leaves(params), jax.tree.leaves(separate), strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def test_labels_must_be_the_parts_of_the_params():
  joint = optimizer.make_labelled(
    {"policy": optimizer.Config(1e-3), "critic": optimizer.Config(1e-3)}
  )
  with pytest.raises(ValueError, match=r"\['policy', 'value'\].*\['critic'"):
    joint.init({"policy": PARAMS, "value": PARAMS})


def test_trap_31_no_state_for_what_is_not_trained():
  trainable = {"policy": {"lora_a": jnp.ones((3, 2))}}
  joint = optimizer.make_labelled({"policy": optimizer.Config(1e-3)})
  sizes = sum(x.size for x in jax.tree.leaves(joint.init(trainable)))
  assert sizes == 2 * 6 + 2  # two moments, the counts of Adam and schedule


@pytest.mark.parametrize(
  "settings",
  [
    {"learning_rate": -1e-6},
    {"learning_rate": np.inf},
    {"learning_rate": 1e39},  # infinite in float32
    {"weight_decay": np.inf},
    {"epsilon": np.inf},
    {"clip_norm": np.inf},
    {"warmup_steps": -1},
    {"warmup_fraction": 1.0},
    {"warmup_fraction": 0.3},  # above warmup_max_fraction
    {"warmup_initial_fraction": 1.5},
    {"beta1": 1.0},
    {"beta2": -0.1},
    {"epsilon": 0.0},
    {"weight_decay": -0.1},
    {"clip_norm": 0.0},
    {"final_fraction": -0.1},
    {"schedule": "cosinus"},
    {"schedule": "linear", "total_steps": 5, "warmup_steps": 5},
    {"final_fraction": 0.1},
  ],
)
def test_bad_settings_are_refused_by_name(settings):
  name = list(settings)[0]
  wanted = "total_steps" if settings.get("schedule") in (
    "cosine", "linear"
  ) else name  # fmt: skip
  with pytest.raises(ValueError, match=f"optimizer.{wanted}="):
    optimizer.Config(**({"learning_rate": 1e-3} | settings))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_decay_needs_an_end_when_it_is_made(schedule):
  """Until then None stands for the length of the run."""
  open_ended = optimizer.Config(1e-3, schedule=schedule)
  with pytest.raises(ValueError, match="optimizer.total_steps=None.*an end"):
    optimizer.make_optimizer(open_ended)
