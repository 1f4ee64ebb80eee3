"""Planted series with known causes; a clean run has no finding."""

import numpy as np
import pytest

from rlhf_jax.evaluation import diagnosis

STEPS = 60
SCORE, KL = "rollout/score_mean", "rollout/kl_k1_sum"
EXPLAINED, LOSS = "ppo/explained_variance", "ppo/value_loss"
BETA = "ppo/kl_coefficient"


def run(seed=0, **changes):
  """Returns the rows of a clean run with some columns replaced.

  Args:
    seed: of the noise.
    **changes: metric, "/" as "__" -> i, done -> value.
  """
  rng = np.random.default_rng(seed)
  usual = {
    SCORE: lambda i, done: 1.5 * done + 0.1 * rng.standard_normal(),
    "rollout/score_std": lambda i, done: 1.0 + 0.05 * rng.standard_normal(),
    KL: lambda i, done: 6 * done + 0.2 * rng.standard_normal(),
    EXPLAINED: lambda i, done: (
      0.5 * min(4 * done, 1) + 0.1 * rng.standard_normal()
    ),
    LOSS: lambda i, done: 0.4 - 0.1 * done + 0.02 * rng.standard_normal(),
    BETA: lambda i, done: 0.09 + 0.02 * done,
    "ppo/clip_fraction_high": lambda i, done: 0.01,
    "ppo/clip_fraction_low": lambda i, done: 0.01,
    "ppo/approximate_kl": lambda i, done: 0.002,
    "sys/skipped_updates": lambda i, done: 0.0,
  } | {name.replace("__", "/"): made for name, made in changes.items()}
  return [
    {"step": i + 1} | {name: f(i, i / STEPS) for name, f in usual.items()}
    for i in range(STEPS)
  ]


def wave(every, height, middle):
  return lambda i, done: middle + height * np.sin(2 * np.pi * i / every)


RATES = diagnosis.Rates(policy=1e-4, value=4e-3)
CASES = {
  "critic diverges": {
    "ppo__explained_variance": lambda i, done: 0.3 - 2.0 * done,
    "ppo__value_loss": lambda i, done: 0.4 + 2.0 * done,
  },
  "critic behind": {
    "ppo__explained_variance": lambda i, done: 0.5 - 1.2 * (done > 0.5),
    "rollout__score_mean": lambda i, done: 0.5 * max(i - 30, 0),
  },
  "critic idle": {
    "ppo__explained_variance": lambda i, done: 0.3 * (done < 0.2),
    "ppo__value_loss": lambda i, done: 0.4,
  },
  "oscillation of the KL": {
    "rollout__kl_k1_sum": wave(10, 3.0, 6.0),
    "ppo__kl_coefficient": wave(10, 0.05, 0.1),
  },
  "oscillation of the score": {"rollout__score_mean": wave(8, 0.8, 1.0)},
  "divergence": {
    "rollout__score_mean": lambda i, done: 3 * min(done, 1 - done),
    "rollout__kl_k1_sum": lambda i, done: 30 * done**2,
  },
  "large updates": {"ppo__clip_fraction_low": lambda i, done: 0.5},
  "refused updates": {"sys__skipped_updates": lambda i, done: 1.0 * (i == 9)},
}


@pytest.mark.parametrize("name", CASES)
def test_a_planted_cause_is_named_alone(name):
  (found,) = diagnosis.findings(run(**CASES[name]), RATES)
  assert found.name == name
  assert all(x.endswith(".") for x in (found.evidence, found.remedy))
  assert str(found).startswith(f"{name}: ")


def test_clean_runs_have_no_finding():
  for seed in range(20):
    assert diagnosis.findings(run(seed), RATES) == []


def test_the_bounds_of_each_cause():
  """A little beside a cause is none, or another one."""

  def names(**changes):
    return [x.name for x in diagnosis.findings(run(**changes), RATES)]

  worse = {"ppo__explained_variance": lambda i, done: 0.3 - 0.42 * done}
  grown = {"ppo__value_loss": lambda i, done: 0.4 + 0.6 * done}
  assert names(**worse, **grown) == ["critic diverges"]  # -0.05, loss doubled
  idle = CASES["critic idle"]
  fallen = {"ppo__value_loss": lambda i, done: 0.4 - 0.3 * done}
  assert names(**idle) and not names(**idle | fallen)
  fall, drift = CASES["divergence"].values()
  assert not names(  # half of the way back
    rollout__score_mean=lambda i, done: 3 * min(done, 0.75 - 0.5 * done),
    rollout__kl_k1_sum=drift,
  )
  assert not names(  # the KL came back too
    rollout__score_mean=fall,
    rollout__kl_k1_sum=lambda i, done: 30 * min(done, 1 - done),
  )


def test_what_rates_and_the_controller_have_to_do_with_it():
  (found,) = diagnosis.findings(run(**CASES["critic diverges"]), RATES)
  assert "40 times the policy's" in found.cause
  (found,) = diagnosis.findings(run(**CASES["critic diverges"]))
  assert "times" not in found.cause
  (found,) = diagnosis.findings(run(**CASES["critic idle"]), RATES)
  assert "is not low" in found.cause  # 40 times the policy's
  low = diagnosis.Rates(policy=1e-3, value=1e-4)
  (found,) = diagnosis.findings(run(**CASES["critic idle"]), low)
  assert "too low. It is 0.1 times" in found.cause
  (found,) = diagnosis.findings(run(**CASES["oscillation of the KL"]))
  assert "controller" in found.cause and "kl_horizon" in found.remedy
  (found,) = diagnosis.findings(run(rollout__kl_k1_sum=wave(10, 3.0, 6.0)))
  assert "controller" not in found.cause


def test_numbers_by_hand():
  values = wave(8, 2.0, 5.0)
  x = np.array([values(i, 0) for i in range(40)])
  assert diagnosis.period(x) == 8
  assert diagnosis.period(x + np.arange(40)) == 8  # a trend is taken off
  assert diagnosis.period(np.arange(40.0)) is None
  assert diagnosis.period(x[:20]) is None  # too short to tell
  _, share = diagnosis._swing(np.tile(x, 3), 5.0)
  assert share == pytest.approx(2.0 / 5.0, rel=0.05)
  rows = run(rollout__score_mean=lambda i, done: 0.3 * i)
  series = diagnosis.Series(rows)
  assert diagnosis.speed(series) == pytest.approx(0.3, rel=0.05)
  first, last = series.thirds(SCORE)
  assert (first, last) == (
    pytest.approx(0.3 * 9.5),
    pytest.approx(0.3 * 49.5),
  )


def test_scores_in_units_that_move_are_no_divergence():
  """Two judges on running scales: one of them is at its best at the end."""
  names = ("reward/component/a", "reward/component/b")
  rows = run(**CASES["divergence"])
  for i, row in enumerate(rows):
    row |= {names[0]: 0.1 * i, names[1]: -0.1 * i}
    row |= {f"{name}_standard_error": 0.1 for name in names}
  assert diagnosis.findings(rows) == []
  for row in rows:
    row[names[0]] = row[SCORE]
  assert [x.name for x in diagnosis.findings(rows)] == ["divergence"]


def test_short_runs_and_runs_without_a_critic_say_nothing():
  rows = run(**CASES["critic diverges"])
  assert diagnosis.findings(rows[: diagnosis.LEAST_STEPS - 1]) == []
  bare = [{SCORE: row[SCORE]} for row in rows]
  assert diagnosis.findings(bare) == []
  assert diagnosis.findings([]) == []


def test_rows_of_every_tenth_step_are_ten_steps():
  """A score that moves by 0.5 a row moves by 0.05 a step."""
  rows = [
    row | {"step": 10 * row["step"]} for row in run(**CASES["critic behind"])
  ]
  names = [x.name for x in diagnosis.findings(rows)]
  assert "critic behind" not in names
  rows = [
    row | {"step": 10 * row["step"]}
    for row in run(**CASES["oscillation of the KL"])
  ]
  (found,) = diagnosis.findings(rows)
  assert "every 100 steps" in found.evidence
  rows[7]["step"] += 3  # a row of its own between others: no period
  assert diagnosis.findings(rows) == []
