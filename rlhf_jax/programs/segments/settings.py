"""What a run on preferences between segments can be told."""

from __future__ import annotations

import dataclasses

from rlhf_jax.schema import FieldError, check_choice, check_least

LEARNED, TRUE = "learned", "true"
REWARDS = (LEARNED, TRUE)
VARIANCE, RANDOM = "variance", "random"
QUERIES = (VARIANCE, RANDOM)
SIMULATED, PAGE = "simulated", "page"
BY = (SIMULATED, PAGE)


@dataclasses.dataclass(frozen=True)
class Agent:
  """The policy and its critic, and what they learn from."""

  hidden: int = 64  # units of each of two layers of tanh
  test_episodes: int = 32  # of the greedy policy, where it is measured
  reward: str = LEARNED  # what trains it: "learned" from labels, or "true", the
  # control, which asks nobody

  def __post_init__(self) -> None:
    check_choice("reward", self.reward, REWARDS)
    check_least(self, hidden=1, test_episodes=1)


@dataclasses.dataclass(frozen=True)
class Predictor:
  """The ensemble that learns what people prefer; segments.py has its maths."""

  members: int = 3  # Christiano et al. 2017, appendix A
  hidden: int = 64  # units of each of two layers of leaky ReLUs; appendix A.1
  learning_rate: float = 1e-3  # of Adam
  batch_size: int = 32  # labels of an optimizer step, of each member
  steps: int = 60  # optimizer steps after each rollout; L2 is tuned after them
  first_fits: int = 5  # times as many after the first, before the agent trains
  error: float = 0.1  # share of answers that are given by chance, in P

  def __post_init__(self) -> None:
    check_least(self, members=1, hidden=1, batch_size=1, steps=1, first_fits=1)
    if not 0.0 <= self.error < 1.0:
      raise FieldError(f"error={self.error}: must be in [0, 1).")
    if self.learning_rate <= 0.0:
      raise FieldError(f"learning_rate={self.learning_rate}: must be > 0.")


@dataclasses.dataclass(frozen=True)
class Queries:
  """Which segments are compared."""

  length: int = 25  # steps of a segment; Christiano et al. 2017: 15 on MuJoCo,
  # 25 on Atari, 1 to 2 seconds
  choose: str = VARIANCE  # pairs on which members disagree most, or "random"
  candidates: int = (
    10  # pairs drawn for each one that is asked in the turn that
  )
  # asks the most, the first aside: others choose among as many
  first_share: float = 0.25  # of all labels, asked of the first rollout
  half_rollouts: float = 20.0  # after which labels come at half the rate

  def __post_init__(self) -> None:
    check_choice("choose", self.choose, QUERIES)
    check_least(self, length=1, candidates=1)
    if not 0.0 < self.first_share <= 1.0:
      raise FieldError(
        f"first_share={self.first_share}: must be in (0, 1], so that the agent "
        "does not begin on rewards that nobody taught."
      )
    usual = type(self).candidates
    if self.choose == RANDOM and self.candidates != usual:
      raise FieldError(
        f"candidates={self.candidates} with choose={RANDOM!r}: pairs are taken "
        f"as they come, so nothing reads it. Leave it at {usual}."
      )
    if self.half_rollouts <= 0.0:
      raise FieldError(f"half_rollouts={self.half_rollouts}: must be > 0.")


@dataclasses.dataclass(frozen=True)
class Labels:
  """Who compares segments, and how many."""

  count: int = 700  # of the whole run; what people skip is among them
  by: str = SIMULATED  # who sees the true reward, or people at the "page"
  noise: float = 0.0  # simulated: share of answers given by chance
  ties: float = 0.0  # simulated: returns that differ by no more are equal
  incomparable: float = 0.0  # simulated: share of pairs that are not judged
  people: str = "me"  # page: names with commas between
  port: int = 8766  # page: where it is served, on this machine; 0: any

  def __post_init__(self) -> None:
    check_choice("by", self.by, BY)
    check_least(self, count=1, ties=0.0, port=0)
    for name in ("noise", "incomparable"):
      if not 0.0 <= getattr(self, name) < 1.0:
        raise FieldError(f"{name}={getattr(self, name)}: must be in [0, 1).")
    if self.by == PAGE:
      for name in ("noise", "ties", "incomparable"):
        if getattr(self, name):
          raise FieldError(
            f"{name}={getattr(self, name)} with by='page': is of simulated "
            "annotators. Set it to 0."
          )
      if not self.names:
        raise FieldError(f"people={self.people!r}: names nobody.")
      return
    for name in ("people", "port"):
      value, usual = getattr(self, name), getattr(type(self), name)
      if value != usual:
        raise FieldError(
          f"{name}={value!r} with by={self.by!r}: it is of the page. Leave it "
          f"at {usual!r}, or set by={PAGE!r}."
        )

  @property
  def names(self) -> tuple[str, ...]:
    """Of the people."""
    return tuple(x.strip() for x in self.people.split(",") if x.strip())
