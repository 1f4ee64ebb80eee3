"""benchmarks/roofline.py: shares of a limit, and tables that hold numbers."""

import pytest

from benchmarks import roofline
from rlhf_jax.programs.work import Work


@pytest.mark.parametrize(
  ("work", "bound", "share"),
  [
    (Work(flops=1e12, traffic=1e9), "FLOPs", "50%"),  # 10 s of 20
    (Work(flops=1e10, traffic=1.5e11), "bytes", "75%"),  # 15 s of 20
  ],
)
def test_the_share_is_of_the_nearer_limit(work, bound, share):
  line = roofline.share_line("SFT update", 20.0, work, flops=1e11, read=1e10)
  cells = [cell.strip() for cell in line.strip("|").split("|")]
  assert cells[0] == "SFT update" and cells[-2:] == [bound, share]


def test_the_loss_needs_no_logits_of_all_states():
  """All logits would be 512 MiB; a chunk and what is made of it is less."""
  loss, alone = roofline.Loss(2048, 32, 65_536).temporary_mib()
  assert 0 < loss < 400 and 0 < alone < 400


@pytest.mark.slow
def test_the_command_measures_each_program_and_what_grows():
  text = "\n".join(roofline.report(roofline.TINY))
  programs = "SFT update,PPO prefill,PPO decode,PPO judge,PPO update"
  for name in programs.split(","):
    assert f"| {name} |" in text
  for name in ("| rows | 4 |", "| new | 16 |", "| layers | 4 |", "| 1,024 |"):
    assert name in text
  assert "GFLOP/s; a read: " in text
