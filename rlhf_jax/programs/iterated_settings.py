"""What rounds of labels can be told: who answers, who judges, what goes on.

pipelines/iterate.py reads them.
"""

from __future__ import annotations

import dataclasses

from rlhf_jax import imported
from rlhf_jax.schema import FieldError, check_choice, check_least

FIRST, LAST = "first", "last"
FRESH, CONTINUED = "fresh", "continued"
SIMULATED, PAGE, FILE, JUDGE = "simulated", "page", "file", "judge"
RANDOM, UNCERTAINTY, DISAGREEMENT = "random", "uncertainty", "disagreement"
CHOICES = (RANDOM, UNCERTAINTY, DISAGREEMENT)  # as task.ORDERS calls them
ACTIONS = ("stop", "warn", "off")
GOLD, LEXICON = "gold", "lexicon"


@dataclasses.dataclass(frozen=True)
class Rounds:
  """How often, and what each round hands on to the next."""

  count: int = 3  # rounds
  reference: str = FIRST  # of each round's KL: "first", the SFT policy; "last",
  # the policy of the round before (the tilts of all rounds multiply)
  policy_start: str = FIRST  # what each round's policy starts from: "first"
  # (Bai et al. 2022), or "last" trains on
  reward_start: str = FRESH  # of each round's reward model: "fresh" weights
  # (Bai et al. 2022), or "continued" from the round before
  old_share: float = -1.0  # of the reward model's records that are of rounds
  # before; -1: all records of all rounds as they are, 0: the newest alone
  late_from: int = 0  # round from which late_policy takes the place of policy;
  # 0: never

  def __post_init__(self) -> None:
    check_least(self, count=1, late_from=0)
    check_choice("reference", self.reference, (FIRST, LAST))
    check_choice("policy_start", self.policy_start, (FIRST, LAST))
    check_choice("reward_start", self.reward_start, (FRESH, CONTINUED))
    if self.old_share != -1.0 and not 0.0 <= self.old_share < 1.0:
      raise FieldError(
        f"old_share={self.old_share}: must be in [0, 1), or -1 for all records "
        "as they are."
      )

  def is_late(self, number: int) -> bool:
    """Says whether late_policy trains in a round."""
    return 0 < self.late_from <= number


@dataclasses.dataclass(frozen=True)
class Comparisons:
  """What is compared in a round, and by whom it was written."""

  count: int = 500  # comparisons of a round
  answers: int = 2  # to a prompt that are compared
  policies: str = LAST  # who answers: "last", the policy of the round before;
  # "last:3", the newest three; "all" so far; "first", the SFT policy
  mix: str = "within"  # whether the answers of a comparison are of one policy,
  # or "across" several
  candidates: int = 1  # prompts answered for each comparison; of more than one
  # those are chosen that `choose` says
  choose: str = RANDOM  # "random"; "uncertainty": the reward model of the round
  # before thinks the answers most alike, P nearest to 1/2; "disagreement": the
  # members of that ensemble differ most in how far answers are apart (round 1
  # has none: at random)
  test: int = 0  # further comparisons in round 1 that nothing trains on, the
  # frozen test set of all reward models

  def __post_init__(self) -> None:
    check_least(self, count=1, answers=2, candidates=1, test=0)
    check_choice("mix", self.mix, ("within", "across"))
    check_choice("choose", self.choose, CHOICES)
    answering(self.policies, 1)
    if self.choose != RANDOM and self.candidates < 2:
      raise FieldError(
        f"choose={self.choose!r} with candidates=1: there is nothing to choose "
        "from. Set candidates >= 2, or choose='random'."
      )

  def prompts(self, number: int) -> int:
    """Returns how many prompts are answered in a round, counted from 1."""
    return self.candidates * self.wanted(number)

  def wanted(self, number: int) -> int:
    """Returns how many comparisons are labelled in a round."""
    return self.count + (self.test if number == 1 else 0)


@dataclasses.dataclass(frozen=True)
class Labels:
  """Who judges the comparisons."""

  by: str = SIMULATED  # "simulated" annotators, people on the "page", a
  # language model ("judge"), a "file" that somebody writes, or a function's
  # import path, FILE.py:NAME: (items, folder, seed) -> records
  overlap: int = 2  # annotators who judge each comparison
  objectives: tuple = ()  # names of what answers are judged by, each for
  # itself, with a reward model of its own, a judge of that name in policy; ()
  # for one judgement of the whole
  preference: str = GOLD  # what simulated annotators prefer: the "gold" reward
  # model, VADER's "lexicon", or a reward function's import path; of several
  # objectives one for all, or such as "helpful=gold,short=FILE.py:NAME"
  people: str = ""  # who labels on the page: names, with commas between
  port: int = 8766  # of the page, on this machine; 0: any

  def __post_init__(self) -> None:
    check_least(self, overlap=1, port=0)
    if not imported.is_path(self.by):
      check_choice("by", self.by, (SIMULATED, PAGE, FILE, JUDGE))
    object.__setattr__(self, "objectives", tuple(self.objectives))
    names = self.objectives
    if len(names) == 1 or len(set(names)) < len(names):
      raise FieldError(
        f"objectives={names}: are two or more, each once. Leave it empty for "
        "one judgement of the whole."
      )
    if names and self.by == JUDGE:
      raise FieldError(
        f"objectives={names}: a language model judges by its principles, the "
        "answer as a whole. Leave it empty, or set another by."
      )
    if self.by == JUDGE and self.overlap != 1:
      raise FieldError(
        f"overlap={self.overlap}: a language model judges each comparison "
        "once, so nothing is known of agreement. Set labels.overlap=1 and "
        "agreement.action='off'."
      )
    if "=" in self.preference and set(self.preferences) != set(names):
      raise FieldError(
        f"preference={self.preference!r}: names a preference for each of "
        f"objectives={names}. Correct one of them."
      )
    field = next(f for f in self.__dataclass_fields__ if f.startswith("pref"))
    for preference in self.preferences.values():
      if not imported.is_path(preference):
        check_choice(field, preference, (GOLD, LEXICON))
    if self.people and self.by != PAGE:
      raise FieldError(
        f"people={self.people!r}: nothing reads it with by={self.by!r}. Set "
        "by='page', or people=''."
      )
    if self.by == PAGE and len(self.names) < self.overlap:
      raise FieldError(
        f"people={self.people!r}: {len(self.names)} names, and overlap="
        f"{self.overlap} of them judge each comparison. Name more, such as "
        "'anna,ben', or lower overlap."
      )

  @property
  def preferences(self) -> dict[str, str]:
    """Objective -> what simulated annotators prefer; "" where there is one."""
    if "=" not in self.preference:
      return dict.fromkeys(self.objectives or ("",), self.preference)
    parts = (part.partition("=") for part in self.preference.split(","))
    return {name.strip(): preference.strip() for name, _, preference in parts}

  @property
  def names(self) -> tuple[str, ...]:
    """Of the people who label on the page."""
    found = (name.strip() for name in self.people.split(","))
    return tuple(dict.fromkeys(name for name in found if name))


@dataclasses.dataclass(frozen=True)
class Agreement:
  """What becomes of a round whose annotators do not agree."""

  threshold: float = 0.7  # share of pairs of answers on which two annotators
  # agree; below it (METHODS 19)
  action: str = "warn"  # "stop" before the reward model, "warn", or "off"

  def __post_init__(self) -> None:
    check_choice("action", self.action, ACTIONS)
    if not 0.0 <= self.threshold <= 1.0:
      raise FieldError(f"threshold={self.threshold}: must be in [0, 1].")


def answering(policies: str, number: int) -> list[int]:
  """Returns the policies that answer in a round: 0 the SFT's, k of round k.

  Args:
    policies: as Comparisons says.
    number: of the round, counted from 1.

  Raises:
    FieldError: another text.
  """
  name, colon, size = policies.partition(":")
  if policies == "all":
    return list(range(number))
  if policies == FIRST:
    return [0]
  if name == LAST and (not colon or (size.isdigit() and int(size) > 0)):
    newest = int(size) if colon else 1
    return list(range(max(0, number - newest), number))
  raise FieldError(
    f"policies={policies!r}: must be 'last', 'last:3' (the newest three), "
    "'all' or 'first'."
  )
