"""The reward-KL frontier: known points of it, and methods below it."""

import math

import numpy as np
import pytest

from rlhf_jax import frontier as command
from rlhf_jax.experiments import bandit, frontier
from rlhf_jax.experiments.frontier import Point
from tests.algorithms import exact_best_of_n


def test_the_frontier_of_two_answers_is_known():
  """Rewards +-1, p_ref 1/2: the best policy at a KL has P(first) = p."""
  reward, log_ref = np.array([1.0, -1.0]), np.log([0.5, 0.5])
  for p in (0.6, 0.8, 0.95):
    kl = math.log(2.0) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert frontier.frontier(reward, log_ref, kl) == pytest.approx(2 * p - 1)
  assert frontier.frontier(reward, log_ref, 0.0) == pytest.approx(0.0, abs=1e-6)
  assert frontier.frontier(reward, log_ref, 5.0) == pytest.approx(1.0)


def test_no_distribution_is_above_it():
  reward, log_ref = bandit.problem(0, 8)
  p = np.exp(log_ref)
  assert p @ reward == pytest.approx(0.0)
  assert p @ reward**2 == pytest.approx(1.0)
  rng = np.random.default_rng(1)
  for _ in range(50):
    table = bandit.log_softmax(log_ref + rng.normal(0.0, 2.0, 8))
    kl, gained = frontier.measures(table, reward, log_ref)
    assert gained <= frontier.frontier(reward, log_ref, kl) + 1e-9


@pytest.mark.parametrize("n", [1, 3, 16])
def test_best_of_n_against_the_oracle(n):
  reward, log_ref = bandit.problem(2, 16)
  reward[3] = reward[5]  # a tie
  found = bandit.exact_best_of_n(reward, log_ref, n)
  wanted = exact_best_of_n.probabilities_of_best(np.exp(log_ref), reward, n)
  np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_comparisons_teach_the_reward():
  reward, log_ref = bandit.problem(0, 8)
  wins = bandit.comparisons(reward, log_ref, 200_000, 0)
  assert np.trace(wins) == 0.0
  found = bandit.learnt_reward(wins, log_ref)
  np.testing.assert_allclose(found, reward, atol=0.1)
  nobody = bandit.learnt_reward(np.zeros((8, 8)), log_ref)
  np.testing.assert_allclose(nobody, 0.0)


def test_claims_can_fail():
  good = Point("PPO", "beta 1", 0, 1.0, 0.95, 1.0)
  assert all(x.holds for x in frontier.claims([good]))
  above = Point("DPO", "beta 1", 0, 1.0, 1.01, 1.0)
  assert [x.holds for x in frontier.claims([good, above])] == [False, True]
  poor = Point("PPO", "beta 1", 0, 1.0, 0.8, 1.0)
  assert [x.holds for x in frontier.claims([poor])] == [True, False]


@pytest.mark.slow
def test_methods_end_below_it_and_ppo_near(tmp_path, capsys, monkeypatch):
  """The command, in its very short form, on one problem."""
  small = frontier.Size(steps=150, betas=(0.6,))
  monkeypatch.setattr(frontier, "SMOKE", small)
  monkeypatch.setattr(bandit, "ANSWERS", 512)
  line = ["frontier", "--smoke", "--seeds=1", f"--workdir={tmp_path}"]
  assert command.main(line) == 0, capsys.readouterr().out
  lines = (tmp_path / "points.jsonl").read_text().splitlines()
  assert len(lines) == 1 + 1 + 1 + 1 + 3 + 2 + 5
  assert (tmp_path / "figures" / "frontier_0.png").is_file()
  assert "frontier" in (tmp_path / command.PAGE).read_text()
  assert command.main(["frontier", "--seeds=0", "--workdir=x"]) == 2
