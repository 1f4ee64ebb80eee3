"""What people are asked, how often, and who labels what next."""

from __future__ import annotations

import dataclasses
import hashlib

from rlhf_jax.schema import FieldError, check_choice, check_least

# Llama-2's four words, the strongest first (Touvron et al. 2023,
# arXiv:2307.09288, section 3.2.1).
STRENGTHS = ("significantly", "better", "slightly", "negligibly")
ASKS = ("ranks", "choice")
ORDERS = {
  "random": "as drawn by the seed",
  "given": "as they were put in",
  "uncertainty": "their field `probability` nearest to 1/2 first",
  "disagreement": "their field `deviation` largest first",
}
REASONS = ("no", "optional", "required")
# Field that an order reads -> the order.
NEEDS = {"uncertainty": "probability", "disagreement": "deviation"}
MOST_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class Task:
  """What people are asked.

  It is kept in the store; where one is given again, its values hold from then
  on. Every judgement records the guidelines that stood beside it.
  """

  title: str = "Which answer is better?"
  question: str = ""  # asked of the whole; "": the title
  ask: str = "ranks"  # "ranks": all answers, ties too; "choice": the best one
  dimensions: tuple[str, ...] = ()  # asked one by one beside the whole, such as
  # ("helpful", "harmless")
  strengths: bool = False  # how much better, of two answers: Llama-2's words
  ties: bool = True  # whether answers may be equally good
  both_bad: bool = True  # whether a key says that no answer is acceptable
  reasons: str = "optional"  # a sentence why: "no", "optional", "required"
  overlap: int = 1  # people who judge each item
  order: str = "random"  # who labels what next: a name of ORDERS
  random_share: float = 0.0  # of the items, drawn at random beside `order`
  # (a baseline: records say in `chosen_by` how each was found)
  gold_share: float = 0.1  # of what a person sees: items with a known answer
  check_share: float = 0.05  # and earlier ones again, in reversed order
  qualification_pass: float = 0.8  # share of the qualification items that must
  # be right before a person labels
  claim_minutes: float = 30.0  # that an item waits for who opened it
  seed: int = 0  # of orders and draws

  def __post_init__(self) -> None:
    check_choice("ask", self.ask, ASKS)
    check_choice("order", self.order, ORDERS)
    check_choice("reasons", self.reasons, REASONS)
    check_least(self, overlap=1, claim_minutes=0.0, seed=0)
    for name in ("random_share", "gold_share", "check_share"):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise FieldError(f"{name}={getattr(self, name)}: must be in [0, 1].")
    if self.gold_share + self.check_share > 0.5:
      raise FieldError(
        f"gold_share={self.gold_share}: with check_share={self.check_share} "
        "more than half of what people see would be no new item. Lower one."
      )
    if not 0.0 <= self.qualification_pass <= 1.0:
      raise FieldError(
        f"qualification_pass={self.qualification_pass}: must be in [0, 1]."
      )
    if self.random_share and self.order in ("random", "given"):
      raise FieldError(
        f"random_share={self.random_share}: order={self.order!r} asks no model "
        f"what to label. Set random_share=0, or order={' or '.join(NEEDS)}."
      )
    if self.ask == "choice" and (self.dimensions or self.strengths):
      raise FieldError(
        "ask='choice': asks for the best answer alone. Set ask='ranks' for "
        "dimensions or strengths."
      )
    object.__setattr__(self, "dimensions", tuple(self.dimensions))
    names = self.dimensions
    if len(set(names)) < len(names) or not all(x.strip() for x in names):
      raise FieldError(f"dimensions={names}: must be names, each once.")
    if len(names) > MOST_DIMENSIONS:
      raise FieldError(
        f"dimensions: {len(names)} of them; at most {MOST_DIMENSIONS}."
      )


def draw(seed: int, *parts: object) -> float:
  """Returns a number in [0, 1) that the seed and some names determine.

  The same on every machine, and after a restart.
  """
  text = "\x1f".join(str(part) for part in (seed, *parts))
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def shuffled(count: int, seed: int, *parts: object) -> list[int]:
  """Returns 0 .. count-1 in an order that the seed and names determine."""
  return sorted(range(count), key=lambda i: draw(seed, *parts, "place", i))
