"""Preference losses on numbers worked out by hand, and against naive loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.preference import (
  cpo,
  dpo,
  ipo,
  kto,
  orpo,
  pairs,
  registry,
  simpo,
  spin,
)
from rlhf_jax.types import PreferenceBatch

PAIRED = {
  "dpo": dpo.Config(beta=0.3),
  "cdpo": dpo.Config(beta=0.3, label_smoothing=0.2),
  "robust": dpo.Config(beta=0.3, label_smoothing=0.2, is_robust=True),
  "hinge": dpo.Config(beta=0.3, link="hinge"),
  "normalised": dpo.Config(beta=1.7, is_length_normalised=True),
  "ipo": ipo.Config(tau=0.4),
  "ipo_average": ipo.Config(tau=0.4, is_length_normalised=True),
  "orpo": orpo.Config(odds_weight=0.6),
  "simpo": simpo.Config(beta=1.5, margin_ratio=0.4),
  "cpo": cpo.Config(beta=0.3, nll_weight=0.7),
  "cpo_sum": cpo.Config(beta=0.3, nll_weight=0.7, nll="sum"),
  "spin": spin.Config(beta=0.3),
}
MODULES = {
  name: next(m for m in registry.ALGORITHMS.values() if m.Config is type(c))
  for name, c in PAIRED.items()
}


def make_batch(rng, rows=5, candidates=2, length=7, labels=None):
  """Ragged answers behind prompts of 2, padding at the end, all different."""
  shape = (rows, candidates, length)
  valid, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
  for n in range(rows):
    for k in range(candidates):
      end = int(rng.integers(3, length + 1))
      valid[n, k, :end] = 1.0
      mask[n, k, 2:end] = 1.0
  if labels is None:
    labels = np.array([1.0, 0.0, 0.5, 0.8, 1.0])[:rows]
  logprobs = -rng.exponential(1.0, shape).astype(np.float32)
  batch = PreferenceBatch(
    tokens=jnp.asarray(rng.integers(0, 11, shape), jnp.int32),
    valid_mask=jnp.asarray(valid),
    loss_mask=jnp.asarray(mask),
    label=jnp.asarray(labels, jnp.float32),
    weight=jnp.ones(rows),
    reference_logprobs=jnp.asarray(
      -rng.exponential(1.0, shape).astype(np.float32)
    ),
  )
  return jnp.asarray(logprobs), batch


def one_pair(first, second, reference=(0.0, 0.0), label=1.0, lengths=(1, 1)):
  """Answers with these sums of log-probabilities, spread over their tokens."""
  length = 1 + max(lengths)
  mask = np.zeros((1, 2, length), np.float32)
  logprobs, fixed = np.zeros_like(mask), np.zeros_like(mask)
  for k, total in enumerate((first, second)):
    mask[0, k, 1 : 1 + lengths[k]] = 1.0
    logprobs[0, k] = mask[0, k] * total / lengths[k]
    fixed[0, k] = mask[0, k] * reference[k] / lengths[k]
  batch = PreferenceBatch(
    tokens=jnp.zeros(mask.shape, jnp.int32),
    valid_mask=jnp.ones_like(mask),
    loss_mask=jnp.asarray(mask),
    label=jnp.array([label]),
    weight=jnp.ones(1),
    reference_logprobs=jnp.asarray(fixed),
  )
  return jnp.asarray(logprobs), batch


def value(name, *args, **kwargs):
  logprobs, batch = one_pair(*args, **kwargs)
  return float(MODULES[name].loss(logprobs, batch, PAIRED[name])[0][0])


def softplus(x):
  return math.log1p(math.exp(x))


def odds(a):
  return math.log(math.exp(a) / (1.0 - math.exp(a)))


# h = (-2 - -3) - (-4 - -1) = 4
ANSWERS = ((-2.0, -4.0), {"reference": (-3.0, -1.0)})


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("dpo", softplus(-1.2)),
    ("cdpo", 0.8 * softplus(-1.2) + 0.2 * softplus(1.2)),
    ("robust", (0.8 * softplus(-1.2) - 0.2 * softplus(1.2)) / 0.6),
    ("hinge", 0.0),
    ("ipo", (4.0 - 1.25) ** 2),
    ("orpo", 2.0 + 0.6 * softplus(odds(-4.0) - odds(-2.0))),
    ("simpo", softplus(-(1.5 * 2.0 - 0.6))),
    ("cpo", softplus(-0.6) + 0.7 * 2.0),
    ("spin", softplus(-1.2)),
  ],
)
def test_known_answers_of_one_token(name, expected):
  assert value(name, *ANSWERS[0], **ANSWERS[1]) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    # h / tokens: (-2 + 3) / 4 - (-4 + 1) / 2 = 1.75
    ("normalised", softplus(-1.7 * 1.75)),
    ("ipo_average", (1.75 - 1.25) ** 2),
    ("dpo", softplus(-1.2)),
    ("ipo", (4.0 - 1.25) ** 2),
    ("simpo", softplus(-(1.5 * (-0.5 + 2.0) - 0.6))),
    ("orpo", 0.5 + 0.6 * softplus(odds(-2.0) - odds(-0.5))),
    ("cpo", softplus(-0.6) + 0.7 * 0.5),
    ("cpo_sum", softplus(-0.6) + 0.7 * 2.0),
  ],
)
def test_trap_26_sums_and_averages_over_tokens(name, expected):
  found = value(name, *ANSWERS[0], **ANSWERS[1], lengths=(4, 2))
  assert found == pytest.approx(expected, 1e-5)


def test_hinge_below_its_knee():
  # h = -4: 1 + 1.2
  assert value("hinge", -4.0, -2.0, reference=(-1.0, -3.0)) == pytest.approx(
    2.2, 1e-6
  )


def test_t11_dpo_at_the_reference_is_log_2_with_slope_half_beta():
  logprobs, batch = one_pair(-2.0, -5.0, reference=(-2.0, -5.0))

  def total(x):
    return jnp.sum(dpo.loss(x, batch, PAIRED["dpo"])[0])

  found, grad = jax.value_and_grad(total)(logprobs)
  assert float(found) == pytest.approx(math.log(2.0), 1e-6)
  np.testing.assert_allclose(grad[0], [[0.0, -0.15], [0.0, 0.15]], atol=1e-7)


def test_t11_without_flips_all_three_are_dpo():
  rng = np.random.default_rng(0)
  logprobs, batch = make_batch(rng)
  expected, _ = dpo.loss(logprobs, batch, dpo.Config(beta=0.3))
  for robust in (False, True):
    config = dpo.Config(beta=0.3, label_smoothing=0.0, is_robust=robust)
    np.testing.assert_array_equal(
      dpo.loss(logprobs, batch, config)[0], expected
    )


def test_t11_ipo_has_its_minimum_at_half_over_tau():
  def slope(h):
    logprobs, batch = one_pair(h, 0.0)

    def total(x, batch=batch):
      return jnp.sum(ipo.loss(x, batch, PAIRED["ipo"])[0])

    return float(jax.grad(total)(logprobs)[0, 0, 1])

  # d/dh (h - 1.25)^2
  found = [slope(1.2), slope(1.25), slope(1.3)]
  np.testing.assert_allclose(found, [-0.1, 0.0, 0.1], atol=1e-6)


def test_t11_log_odds_against_the_formula_in_float64():
  a = -np.exp(np.linspace(math.log(1e-4), math.log(20.0), 400))
  exact = np.log(np.exp(a) / -np.expm1(a))
  found = np.asarray(orpo.log_odds(jnp.asarray(a, jnp.float32)))
  np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-6)
  slope = jax.vmap(jax.grad(orpo.log_odds))(jnp.asarray(a, jnp.float32))
  np.testing.assert_allclose(slope, -1.0 / np.expm1(a), rtol=1e-4)


def test_trap_27_certain_and_impossible_answers_are_finite():
  """Odds end at e^-1e-6 of certain answers: log 1e6 - 5e-7; no slope there."""
  a = jnp.array([0.0, -1e-9, -math.log(2.0), -200.0])
  end = math.log(1e6)
  np.testing.assert_allclose(
    orpo.log_odds(a), [end, end, 0.0, -200.0], rtol=1e-6, atol=1e-6
  )
  slope = jax.vmap(jax.grad(orpo.log_odds))(a)
  np.testing.assert_allclose(slope, [0.0, 0.0, 2.0, 1.0], rtol=1e-5)


def test_t11_simpo_without_margin_is_cpo_over_the_length():
  config = simpo.Config(beta=2.0, margin_ratio=0.0)
  logprobs, batch = one_pair(-3.0, -4.0, lengths=(5, 5))
  other = cpo.Config(beta=2.0 / 5, nll_weight=0.0)
  np.testing.assert_allclose(
    simpo.loss(logprobs, batch, config)[0],
    cpo.loss(logprobs, batch, other)[0],
    rtol=1e-6,
  )


def naive(name, logprobs, batch, n):
  """One row in float64 and plain Python."""
  config = PAIRED[name]
  total, ratio, size = [], [], []
  for k in range(2):
    kept = [t for t in range(7) if batch.loss_mask[n, k, t] > 0]
    size.append(len(kept))
    total.append(sum(float(logprobs[n, k, t]) for t in kept))
    fixed = sum(float(batch.reference_logprobs[n, k, t]) for t in kept)
    ratio.append(total[-1] - fixed)
  if getattr(config, "is_length_normalised", False):
    ratio = [r / s for r, s in zip(ratio, size, strict=True)]
  mean = [a / b for a, b in zip(total, size, strict=True)]

  def first_wins(i, j):
    h = ratio[i] - ratio[j]
    if name.startswith("ipo"):
      return (h - 1.25) ** 2
    if name == "orpo":
      return -mean[i] + 0.6 * softplus(odds(mean[j]) - odds(mean[i]))
    if name == "simpo":
      return softplus(-(1.5 * (mean[i] - mean[j]) - 0.6))
    if name.startswith("cpo"):
      nll = -mean[i] if name == "cpo" else -total[i]
      return softplus(-0.3 * (total[i] - total[j])) + 0.7 * nll
    if name == "hinge":
      return max(0.0, 1.0 - 0.3 * h)
    plain, turned = softplus(-config.beta * h), softplus(config.beta * h)
    if name == "cdpo":
      return 0.8 * plain + 0.2 * turned
    if name == "robust":
      return (0.8 * plain - 0.2 * turned) / 0.6
    return plain

  p = 1.0 if name == "spin" else float(batch.label[n])
  return p * first_wins(0, 1) + (1.0 - p) * first_wins(1, 0)


@pytest.mark.parametrize("name", PAIRED)
def test_ragged_rows_and_soft_labels_as_a_naive_loop(name):
  logprobs, batch = make_batch(np.random.default_rng(1))
  found, _ = jax.jit(MODULES[name].loss, static_argnums=2)(
    logprobs, batch, PAIRED[name]
  )
  expected = [naive(name, logprobs, batch, n) for n in range(5)]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [*PAIRED, "kto"])
def test_trap_27_prompts_and_padding_count_for_nothing(name):
  module, config = MODULES.get(name, kto), PAIRED.get(name, kto.Config())
  count = 1 if name == "kto" else 2
  labels = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
  logprobs, batch = make_batch(
    np.random.default_rng(2), candidates=count, labels=labels
  )
  batch = batch.replace(baseline=jnp.full(5, 0.2))

  def total(x, batch):
    losses, _ = module.loss(x, batch, config)
    return jnp.sum(losses), losses

  grad, losses = jax.grad(total, has_aux=True)(logprobs, batch)
  off = np.asarray(batch.loss_mask) == 0
  assert off.any() and np.all(np.asarray(grad)[off] == 0.0)
  assert np.all(np.abs(np.asarray(grad)[~off]) > 0.0) or name == "hinge"
  poisoned = batch.replace(
    reference_logprobs=jnp.where(off, jnp.inf, batch.reference_logprobs)
  )
  again, found = jax.grad(total, has_aux=True)(
    jnp.where(off, jnp.nan, logprobs), poisoned
  )
  np.testing.assert_array_equal(found, losses)
  np.testing.assert_array_equal(again, grad)


def test_metrics_leave_ties_out_and_follow_the_label():
  labels = np.array([1.0, 0.0, 0.5])
  logprobs, batch = make_batch(np.random.default_rng(3), rows=3, labels=labels)
  scores = jnp.array([[2.0, 0.5], [3.0, 1.0], [5.0, 4.0]])
  found = pairs.metrics(scores, logprobs, batch)
  x, rows = found["preference/accuracy"]
  np.testing.assert_array_equal(rows, [1.0, 1.0, 0.0])
  np.testing.assert_array_equal(x[:2], [1.0, 0.0])
  np.testing.assert_allclose(found["preference/margin"][0][:2], [1.5, -2.0])
  np.testing.assert_allclose(
    found["preference/reward_chosen"][0][:2], [2.0, 1.0]
  )
  total = pairs.sums(logprobs, batch)
  np.testing.assert_allclose(
    found["preference/logprob_chosen"][0][:2], [total[0, 0], total[1, 1]]
  )
  np.testing.assert_allclose(
    found["preference/tokens_rejected"][0][:2],
    [batch.loss_mask[0, 1].sum(), batch.loss_mask[1, 0].sum()],
  )


@pytest.mark.parametrize(
  ("config", "fields", "message"),
  [
    (dpo.Config, {"beta": 0.0}, "beta=0.0: must be > 0"),
    (dpo.Config, {"label_smoothing": 0.5}, r"label_smoothing=0.5: .*\[0, 0.5"),
    (dpo.Config, {"link": "probit"}, "link='probit': must be one of logistic"),
    (ipo.Config, {"tau": -1.0}, "tau=-1.0: must be > 0"),
    (kto.Config, {"undesirable_weight": 0.0}, "undesirable_weight=0.0"),
    (orpo.Config, {"odds_weight": -0.1}, "odds_weight=-0.1: must be >= 0"),
    (simpo.Config, {"margin_ratio": -0.1}, "margin_ratio=-0.1"),
    (cpo.Config, {"nll": "max"}, "nll='max': must be one of mean, sum"),
    (spin.Config, {"beta": float("nan")}, "beta=nan"),
  ],
)
def test_settings_out_of_range_are_refused(config, fields, message):
  with pytest.raises(ValueError, match=message):
    config(**fields)


def test_trap_18_a_weight_of_zero_is_honoured():
  logprobs, batch = one_pair(-2.0, -4.0)
  found, _ = orpo.loss(logprobs, batch, orpo.Config(odds_weight=0.0))
  np.testing.assert_allclose(found, [2.0])


def test_wrong_batches_are_refused():
  logprobs, batch = make_batch(np.random.default_rng(4))
  with pytest.raises(ValueError, match="reference_logprobs=None: .* Compute"):
    dpo.loss(logprobs, batch.replace(reference_logprobs=None), dpo.Config())
  with pytest.raises(ValueError, match="K=2 candidates and baseline is None"):
    kto.loss(logprobs, batch, kto.Config())
  three, wide = make_batch(np.random.default_rng(4), candidates=3)
  for name, config in PAIRED.items():
    with pytest.raises(ValueError, match="K=3 candidates"):
      MODULES[name].loss(three, wide, config)


@pytest.mark.parametrize(
  ("name", "labels", "message"),
  [
    ("kto", [1.0, 0.5, 0.0], "1 of 3 labels are neither 0 nor 1"),
    ("kto", [1.0, 1.0], "all 2 labels are 1"),
    ("spin", [1.0, 0.0, 0.5], "2 of 3 labels are not 1"),
  ],
)
def test_labels_that_a_method_cannot_express(name, labels, message):
  with pytest.raises(ValueError, match=message):
    registry.check_labels(name, np.array(labels))
  registry.check_labels("dpo", np.array(labels))
