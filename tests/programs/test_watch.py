"""The limits of METHODS 19, on both sides of each."""

import dataclasses

import pytest

from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.programs import watch

LIMITS = shaping.Config(warn_nats=15.0, halt_nats=20.0, kl_target=6.0)
ROW = {
  "rollout/kl_k1_sum": 1.0,
  "rollout/kl_k1_standard_error": 0.1,
  "rollout/eos_share": 1.0,
  "rollout/entropy": 2.0,
  "rollout/duplicate_share": 0.0,
  "ppo/explained_variance": 0.5,
  "ppo/first_ratio_error": 0.0,
}


def rung(step=60, before=(), **changes):
  """Returns the kinds of alarms of one row, after rows with these KLs."""
  row = ROW | {name.replace("__", "/"): x for name, x in changes.items()}
  past = {
    "first": {"rollout/entropy": 2.0},
    "recent_kl": list(before),
    "alarm_kinds": [],
  }
  return [kind for kind, _ in watch.alarms(row, past, step, LIMITS, lambda: "")]


@pytest.mark.parametrize(
  ("changes", "kinds"),
  [
    ({}, []),
    ({"rollout__kl_k1_sum": 15.0}, []),
    ({"rollout__kl_k1_sum": 15.1}, ["kl"]),
    # four standard errors below 0, and a thousandth of a nat
    ({"rollout__kl_k1_sum": -0.4}, []),
    ({"rollout__kl_k1_sum": -0.41}, ["negative kl"]),
    ({"rollout__entropy": 0.21}, []),
    ({"rollout__entropy": 0.19}, ["entropy"]),
    ({"rollout__eos_share": 0.5}, []),
    ({"rollout__eos_share": 0.49}, ["eos"]),
    ({"rollout__duplicate_share": 0.5}, []),
    ({"rollout__duplicate_share": 0.51}, ["duplicates"]),
    ({"ppo__explained_variance": -0.1}, ["critic"]),
    ({"ppo__explained_variance": -0.1, "step": 50}, ["critic"]),
    ({"ppo__explained_variance": -0.1, "step": 49}, []),
    ({"ppo__first_ratio_error": 9e-4}, []),
    ({"ppo__first_ratio_error": 2e-3}, ["ratio"]),
  ],
)
def test_each_limit_from_both_sides(changes, kinds):
  assert rung(**changes) == kinds


@pytest.mark.parametrize(
  ("before", "now", "rings"),
  [
    ([3.5] * 20, 7.1, True),
    ([3.5] * 20, 6.9, False),  # not doubled
    ([1.0] * 20, 5.9, False),  # doubled, and below the target
    ([3.5] * 19, 7.1, False),  # of 19 steps nobody knows
  ],
)
def test_a_kl_that_doubles_above_its_target(before, now, rings):
  kinds = rung(before=before, rollout__kl_k1_sum=now)
  assert kinds == (["kl doubled"] if rings else [])


def test_a_run_is_halted_above_its_limit_alone(capsys):
  facts = {"alarms": []}
  for kl, halts in ((20.0, False), (20.1, True), (float("nan"), True)):
    row = ROW | {"rollout/kl_k1_sum": kl}
    found = watch.watch(facts, row, 3, LIMITS, lambda: "")
    assert ("halt" in found) == halts
    guards = watch.Guards(warn_nats=15.0, halt_nats=20.0)
    found = watch.guard(facts, row, 3, guards, "online")
    assert ("halt" in found) == halts
  assert "stopped at step 4" in capsys.readouterr().out
  never = dataclasses.replace(LIMITS, halt_nats=float("inf"))
  far = ROW | {"rollout/kl_k1_sum": 1e6}
  assert "halt" not in watch.watch(facts, far, 3, never, lambda: "")


def test_the_window_of_the_kl_is_of_20_steps():
  facts = {"alarms": []}
  for step in range(25):
    row = ROW | {"rollout/kl_k1_sum": 0.1 * step}
    facts = watch.watch(facts, row, step, LIMITS, lambda: "")
  assert facts["recent_kl"] == pytest.approx([0.1 * x for x in range(5, 25)])
