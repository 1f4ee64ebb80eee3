"""Short forms of the campaigns against kills, damage and faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import (
  corruption_campaign,
  fault_campaign,
  fuzz_cases,
  mutation_campaign,
  second_starts,
  signal_campaign,
)


@pytest.mark.slow
def test_trap_23_damage_is_always_noticed(tmp_path):
  seen = corruption_campaign.campaign(0, tmp_path)
  assert min(seen.values()) >= 20


@pytest.mark.slow
def test_t20_trap_23_kills_at_random_moments_lose_nothing(tmp_path):
  tally = fault_campaign.campaign(3, 1, 1, tmp_path)
  assert sum(tally.kills.values()) >= 3


@pytest.mark.slow
def test_planted_faults_are_noticed():
  """Every hundredth of them."""
  faults = mutation_campaign.chosen("", "7/100")
  verdicts = mutation_campaign.campaign(faults, jobs=2, is_whole=False)
  assert len(verdicts) >= 3
  assert all(verdict.killer for verdict in verdicts), mutation_campaign.table(
    verdicts
  )


@pytest.mark.slow
def test_trap_44_second_starts_at_random_moments_change_nothing(capsys):
  second_starts.campaign(2)
  assert "2 second starts in" in capsys.readouterr().out


@pytest.mark.slow
def test_t20_trap_23_signals_at_random_moments_lose_nothing(tmp_path):
  tally = signal_campaign.campaign(2, 0, tmp_path, ("sft", "reward"))
  assert sum(tally.values()) >= 4


@pytest.mark.slow
def test_odd_inputs_end_with_one_message():
  """Every 120th case of all kinds, in processes of their own."""
  names = [case.name for case in fuzz_cases.cases()]
  assert len(names) >= 300
  result = subprocess.run(
    [sys.executable, "-m", "tests.proofs.fuzz_campaign", "--every=120"],
    cwd=Path(__file__).parents[2],
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout
  assert " cases, 0 of them wrong" in result.stdout
