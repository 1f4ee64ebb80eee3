"""Short forms of the campaigns against kills and damage."""

import pytest

from tests.proofs import corruption_campaign, fault_campaign


@pytest.mark.slow
def test_trap_23_damage_is_always_noticed(tmp_path):
  seen = corruption_campaign.campaign(0, tmp_path)
  assert min(seen.values()) >= 20


@pytest.mark.slow
def test_t20_trap_23_kills_at_random_moments_lose_nothing(tmp_path):
  tally = fault_campaign.campaign(5, 1, 1, tmp_path)
  assert sum(tally.kills.values()) >= 5
