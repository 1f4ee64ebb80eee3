"""Best of n against enumeration, naive loops and the numbers of METHODS 7."""

import itertools
import math

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import best_of_n
from tests.algorithms import exact_best_of_n

select_best = jax.jit(best_of_n.select_best)
reject = jax.jit(best_of_n.rejection_sample, static_argnums=2)


def softmax_distribution(answers, seed, spread=1.0):
  logits = np.random.default_rng(seed).normal(size=answers) * spread
  return np.exp(logits) / np.exp(logits).sum()


def enumerated(pi, scores, n):
  """Plays every n-tuple of answers; ties go to a tied sample at random."""
  best = np.zeros(len(pi))
  for picks in itertools.product(range(len(pi)), repeat=n):
    top = max(scores[i] for i in picks)
    winners = [i for i in picks if scores[i] == top]
    for i in winners:
      best[i] += np.prod(pi[list(picks)]) / len(winners)
  return best


@pytest.mark.parametrize("n", [1, 2, 5])
def test_distribution_is_that_of_every_tuple(n):
  pi = np.array([0.1, 0.35, 0.2, 0.05, 0.3])
  scores = np.array([0.0, 2.0, 1.0, 2.0, -1.0])
  exact = exact_best_of_n.probabilities_of_best(pi, scores, n)
  np.testing.assert_allclose(exact, enumerated(pi, scores, n), atol=1e-12)
  kl = np.sum(exact * np.log(exact / pi))
  assert exact_best_of_n.exact_kl(pi, scores, n) == pytest.approx(kl, abs=1e-12)


def test_t12_numbers():
  assert best_of_n.kl_bound(64) == pytest.approx(3.175, abs=1e-3)
  assert best_of_n.kl_bound(1024) == pytest.approx(5.932, abs=1e-3)
  assert best_of_n.kl_bound(1) == 0.0
  # The best of four answers has probability exp(-0.888): 64 draws find it.
  top = math.exp(-0.888)
  pi = np.array([0.3, 0.2, 0.5 - top, top])
  scores = np.arange(4.0)
  assert exact_best_of_n.exact_kl(pi, scores, 64) == pytest.approx(
    0.888, abs=1e-3
  )
  best = exact_best_of_n.probabilities_of_best(pi, scores, 64)
  estimate = best @ best_of_n.kl_estimates(np.log(pi), 64)
  assert estimate == pytest.approx(0.888, abs=1e-3)


@pytest.mark.parametrize("n", [1, 4, 64])
def test_exact_bound_and_estimate_agree_without_atoms(n):
  pi = softmax_distribution(1 << 18, seed=0)
  scores = np.random.default_rng(1).normal(size=pi.size)
  exact = exact_best_of_n.exact_kl(pi, scores, n)
  best = exact_best_of_n.probabilities_of_best(pi, scores, n)
  estimate = best @ best_of_n.kl_estimates(np.log(pi), n)
  assert exact == pytest.approx(best_of_n.kl_bound(n), abs=1e-3)
  assert estimate == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("answers", [1, 3, 64])
@pytest.mark.parametrize("n", [1, 3, 64, 1024])
def test_the_bound_bounds_and_the_estimate_is_close(answers, n):
  pi = softmax_distribution(answers, seed=answers)
  scores = np.random.default_rng(n).normal(size=answers)
  exact = exact_best_of_n.exact_kl(pi, scores, n)
  best = exact_best_of_n.probabilities_of_best(pi, scores, n)
  estimate = best @ best_of_n.kl_estimates(np.log(pi), n)
  assert -1e-12 <= exact <= best_of_n.kl_bound(n) + 1e-12
  assert estimate == pytest.approx(exact, abs=0.1)
  if (answers, n) == (64, 1024):  # the bound alone would not do
    assert best_of_n.kl_bound(n) > exact + 1.0


def test_estimate_at_its_limits():
  sure, impossible = best_of_n.kl_estimates(np.array([0.0, -900.0]), 16)
  assert sure == 0.0
  assert impossible == pytest.approx(best_of_n.kl_bound(16), abs=1e-9)


def naive_curve(proxy, gold, n):
  """The mean over every subset of n samples, ties shared."""
  values = []
  for subset in itertools.combinations(range(len(proxy)), n):
    top = max(proxy[i] for i in subset)
    values.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
  return np.mean(values)


def test_t12_curve_is_the_mean_over_all_subsets():
  random = np.random.default_rng(0)
  proxy, gold = random.normal(size=(2, 3, 7))
  ns = [1, 2, 4, 7]
  curve = best_of_n.best_of_n_curve(proxy, gold, ns)
  wanted = [
    [naive_curve(proxy[row], gold[row], n) for n in ns] for row in range(3)
  ]
  np.testing.assert_allclose(curve, wanted, atol=1e-12)
  np.testing.assert_allclose(curve[:, 0], gold.mean(axis=1))
  winners = proxy.argmax(axis=1)
  np.testing.assert_allclose(curve[:, -1], gold[np.arange(3), winners])
  # Control: draws with replacement, (i/N)^n - ((i-1)/N)^n, are another curve.
  i = np.arange(1, 8)
  biased = np.sort(proxy[0]) @ ((i / 7) ** 4 - ((i - 1) / 7) ** 4)
  own = best_of_n.best_of_n_curve(proxy, proxy, [4])[0, 0]
  assert abs(biased - own) > 0.05


def test_curve_does_not_depend_on_the_order_of_ties():
  proxy = np.array([[1.0, 1.0, 0.0, 1.0, 2.0]])
  gold = np.array([[5.0, 1.0, 0.0, 3.0, 4.0]])
  order = [3, 1, 4, 0, 2]
  curve = best_of_n.best_of_n_curve(proxy, gold, [2, 3])
  swapped = best_of_n.best_of_n_curve(proxy[:, order], gold[:, order], [2, 3])
  np.testing.assert_allclose(curve, swapped, atol=1e-12)
  # With each sample of a level equally likely, as when chosen at random.
  assert best_of_n.best_of_n_curve(proxy, gold, [4])[0, 0] == pytest.approx(
    0.8 * 4.0 + 0.2 * 3.0
  )


def test_weights_sum_to_one_for_many_samples():
  for n in (1, 17, 20_000):
    assert best_of_n.curve_weights(20_000, n).sum() == pytest.approx(1.0)


def test_pass_at_k_is_the_formula():
  correct = np.array([[1, 0, 0, 1, 0, 0], [0] * 6, [1] * 6])
  for k in (1, 3, 5):
    wanted = [
      1 - math.comb(6 - c, k) / math.comb(6, k) for c in correct.sum(axis=1)
    ]
    found = best_of_n.best_of_n_curve(correct, correct, [k])[:, 0]
    np.testing.assert_allclose(found, wanted)


def test_select_takes_the_first_of_ties_and_no_nan():
  nan = math.nan
  scores = np.array([[1.0, 3.0, 3.0], [nan, -5.0, -9.0], [2.0, 1.0, 0.0]])
  assert select_best(scores).tolist() == [1, 1, 0]
  valid = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]])
  assert select_best(scores, valid).tolist() == [2, 1, 1]


def test_trap_33_prompts_permute_their_winners():
  scores = np.random.default_rng(3).normal(size=(5, 4))
  order = np.array([3, 0, 4, 1, 2])

  def winners(rows):
    return np.array(select_best(rows.reshape(-1, 4)))

  found = winners(scores.reshape(-1))
  permuted = winners(scores[order].reshape(-1))
  assert permuted.tolist() == found[order].tolist()
  interleaved = winners(scores.T.reshape(-1))  # control
  assert interleaved.tolist() != found.tolist()


def naive_rejection(scores, valid, rule, share, minimum):
  rounds, prompts, _ = scores.shape
  kept = np.zeros(scores.shape, bool)
  if rule == "global":
    cells = sorted(
      zip(*np.nonzero(valid[-1]), strict=True), key=lambda c: -scores[-1][c]
    )
    for cell in cells[: math.ceil(share * len(cells))]:
      kept[-1][cell] = True
  elif rule == "all":
    kept[-1] = valid[-1]
  else:
    for r in range(rounds) if rule == "pooled" else [rounds - 1]:
      for b in range(prompts):
        candidates = np.flatnonzero(valid[r, b])
        if candidates.size:
          kept[r, b, max(candidates, key=lambda k: scores[r, b, k])] = True
  return kept & (scores >= minimum)


@pytest.mark.parametrize("rule", best_of_n.RULES)
@pytest.mark.parametrize("minimum", [-math.inf, 0.0])
def test_rejection_sampling_is_the_naive_one(rule, minimum):
  random = np.random.default_rng(7)
  scores = random.normal(size=(2, 3, 4)).astype(np.float32)
  valid = random.random((2, 3, 4)) < 0.8
  valid[1, 2] = False
  if (rule, minimum) == ("all", -math.inf):
    minimum = -1.0  # without one nothing would be rejected, so it is refused
  share = {"share": 0.3} if rule == "global" else {}
  config = best_of_n.Config(rule=rule, minimum_score=minimum, **share)
  wanted = naive_rejection(scores, valid, rule, 0.3, minimum)
  np.testing.assert_array_equal(reject(scores, valid, config), wanted)


def test_pooling_keeps_what_the_last_round_lost():
  scores = np.array([[[9.0, 1.0], [0.0, 2.0]], [[3.0, 4.0], [5.0, 1.0]]])
  valid = np.ones_like(scores)
  pooled = best_of_n.Config(rule="pooled")
  kept = reject(scores, valid, pooled)
  assert kept.sum() == 4 and bool(kept[0, 0, 0])
  last = reject(scores, valid, best_of_n.Config())
  assert last.sum() == 2 and not last[0].any()


def test_trap_18_a_minimum_of_zero_is_honoured():
  scores = np.array([[[-1.0, -2.0], [0.0, -1.0]]])
  config = best_of_n.Config(minimum_score=0.0)
  kept = reject(scores, np.ones_like(scores), config)
  assert kept.tolist() == [[[False, False], [True, False]]]


def test_duplicates_are_read_on_the_response_only():
  tokens = np.array([[[7, 1, 2], [8, 1, 2], [7, 1, 3]]])
  mask = np.array([[[0, 1, 1], [0, 1, 1], [0, 1, 1]]])
  first = best_of_n.first_of_its_kind(tokens, mask)
  assert first.tolist() == [[True, False, True]]
  mask[0, 2] = [0, 1, 0]
  mask[0, 1] = [0, 1, 0]
  first = best_of_n.first_of_its_kind(tokens, mask)
  assert first.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: best_of_n.Config(rule="best"), "per_prompt, global, pooled"),
    (lambda: best_of_n.Config(share=0.0), "0 < share <= 1"),
    (lambda: best_of_n.Config(share=0.5), "only rule='global' keeps a share"),
    (lambda: best_of_n.Config(minimum_score=math.nan), "minimum_score=nan"),
    (lambda: best_of_n.kl_bound(0), "n=0"),
    (lambda: best_of_n.curve_weights(3, 4), "n <= 3"),
    (lambda: best_of_n.kl_estimates(np.array([0.5]), 2), "are <= 0"),
    (lambda: exact_best_of_n.exact_kl([0.5, 0.4], [0, 1], 2), "Normalise"),
    (lambda: exact_best_of_n.exact_kl([1.0], [0, 1], 2), r"scores \(2,\)"),
    (
      lambda: best_of_n.rejection_sample(
        np.zeros((2, 3)), np.ones((2, 3)), best_of_n.Config()
      ),
      "scores\\[None\\]",
    ),
    (
      lambda: best_of_n.best_of_n_curve(
        np.array([[math.nan, 1.0]]), np.zeros((1, 2)), [1]
      ),
      "NaN or inf",
    ),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_it_beats_one_sample_n_times_in_n_plus_1_without_ties():
  pi = np.full(50, 0.02)
  scores = np.arange(50.0)
  best = exact_best_of_n.probabilities_of_best(pi, scores, 3)
  cumulative = np.cumsum(pi) - pi / 2
  assert best @ cumulative == pytest.approx(3 / 4, abs=1e-3)
