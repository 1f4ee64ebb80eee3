"""Which comparisons there are, and how often each side does what."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What two sides do, and how often."""

  work: str  # the function or pipeline of both sides
  steps: int
  skipped: int  # first steps that are left out
  ours: tuple[str, ...]  # variants; ratios are to the first
  theirs: tuple[str, ...]
  peer: str = "trl"  # whose Python and side
  shape: str = "17m"
  is_sampled: bool = False  # marks are tokens, and random


PLAIN = ("defaults", "plain")
COMPARISONS = {
  "generate": Comparison(
    "generate", 6, 2, PLAIN, ("float32", "bfloat16"), is_sampled=True
  ),
  "generate_135m": Comparison(
    "generate",
    3,
    1,
    ("defaults",),
    ("float32",),
    shape="135m",
    is_sampled=True,
  ),
  "sft": Comparison("sft", 16, 6, PLAIN, ("padded", "packed")),
  "reward": Comparison("reward", 14, 5, ("defaults",), ("padded",)),
  "dpo": Comparison("dpo", 12, 4, ("defaults",), ("precomputed", "usual")),
  "dpo_epoch": Comparison(
    "dpo_epoch", 24, 4, ("defaults",), ("precomputed", "usual")
  ),
  "grpo": Comparison("grpo", 7, 3, PLAIN, ("usual",), is_sampled=True),
  "ppo": Comparison(
    "ppo",
    6,
    3,
    (*PLAIN, "shared_trunk"),
    ("usual",),
    peer="ppo",
    is_sampled=True,
  ),
  "ppo_lora": Comparison(
    "ppo", 6, 3, ("lora",), ("lora",), peer="ppo", is_sampled=True
  ),
}
TUNIX = {
  f"tunix_{name}": Comparison(
    work, steps, skipped, ("defaults",), ("usual",), "tunix", is_sampled=sampled
  )
  for name, work, steps, skipped, sampled in (
    ("generate", "generate", 6, 2, True),
    ("sft", "sft", 12, 4, False),
    ("dpo", "dpo", 10, 4, False),
    ("grpo", "grpo", 7, 3, True),
    ("ppo", "judged_ppo", 6, 3, True),
  )
}
COMPARISONS |= TUNIX
SIDES = {"trl": "theirs", "ppo": "theirs", "tunix": "theirs_tunix"}
FLAGS = {"trl": "--peer", "ppo": "--ppo-peer", "tunix": "--tunix-peer"}
