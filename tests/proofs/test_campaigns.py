"""Short forms of the campaigns against kills, damage and faults."""

import pytest

from tests.proofs import (
  corruption_campaign,
  fault_campaign,
  mutation_campaign,
  second_starts,
)


@pytest.mark.slow
def test_trap_23_damage_is_always_noticed(tmp_path):
  seen = corruption_campaign.campaign(0, tmp_path)
  assert min(seen.values()) >= 20


@pytest.mark.slow
def test_t20_trap_23_kills_at_random_moments_lose_nothing(tmp_path):
  tally = fault_campaign.campaign(5, 1, 1, tmp_path)
  assert sum(tally.kills.values()) >= 5


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
  second_starts.campaign(3)
  assert "3 second starts in" in capsys.readouterr().out
