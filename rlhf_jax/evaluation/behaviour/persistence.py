"""Is what was asked for at first still done after n turns?

    turn_k   share of the attributes that the k-th answer has
    kept     of dialogues whose first answer has all, the share whose last has

The instruction stands in the first turn of the user's alone ("Always answer in
French."), and ordinary questions follow. Touvron et al. 2023
(arXiv:2307.09288, section 3.3 and appendix A.3.5) report 100 % over 20 turns
for Ghost Attention. Attributes are checked by words (data/attributes.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.attributes import Instruction
from rlhf_jax.evaluation.behaviour.suites import (
  HIGH,
  NAN,
  Found,
  Measure,
  Messages,
  Say,
  Suite,
  assistant,
  user,
)

PERSISTENCE = "persistence"
SMALL_TALK = (
  "What is a good breakfast?",
  "How do I sleep better?",
  "What should I do on a rainy day?",
  "How do I learn a new language?",
  "What is a nice present for a friend?",
  "Tell me something about the sea.",
  "How do I keep plants alive?",
  "What makes a good book?",
  "Where should I go on holiday?",
  "How do I make new friends?",
  "What is a good name for a dog?",
  "How do I cook rice?",
)


def first_turn(instruction: str, question: str) -> str:
  """Returns the user's first turn: an instruction, and a question."""
  return f"{instruction}\n\n{question}"


def questions(number: int, turns: int) -> list[str]:
  """Returns the questions of a dialogue, others for each number."""
  start = (5 * number) % len(SMALL_TALK)
  return list(
    itertools.islice(itertools.cycle(SMALL_TALK), start, start + turns)
  )


def persistence(found: Sequence[Instruction], turns: int) -> Suite:
  """Talks through so many turns.

  Args:
    found: an instruction for each dialogue.
    turns: of the user's, in each.
  """
  asked = [questions(number, turns) for number in range(len(found))]
  talks: list[Messages] = [[] for _ in found]
  held = np.full((len(found), turns), NAN)
  for turn in range(turns):
    for talk, item, of in zip(talks, found, asked, strict=True):
      text = of[turn]
      talk.append(user(text if turn else first_turn(item.text, text)))
    said = yield [Say(list(talk)) for talk in talks]
    for n, text in enumerate(said):
      talks[n].append(assistant("..." if text is None else text))
      if text is not None:
        held[n, turn] = found[n].holds(text)
  groups = [item.attributes[0].kind for item in found]
  measures = [
    Measure(
      PERSISTENCE,
      f"turn_{turn + 1}",
      f"attributes that answer {turn + 1} has",
      held[:, turn],
      HIGH,
      groups,
    )
    for turn in range(turns)
  ]
  begun = held[:, 0] == 1.0
  kept = np.where(begun & ~np.isnan(held[:, -1]), held[:, -1] == 1.0, NAN)
  measures.append(
    Measure(
      PERSISTENCE,
      "kept",
      "begun well, and still so at last",
      kept,
      HIGH,
      groups,
    )
  )
  rows = [
    {"suite": PERSISTENCE, "instruction": item.text, "messages": talk}
    | {"holds": [None if np.isnan(x) else float(x) for x in row]}
    for item, talk, row in zip(found, talks, held, strict=True)
  ]
  return Found(measures, rows)
