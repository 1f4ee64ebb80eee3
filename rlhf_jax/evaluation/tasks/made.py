"""Small tasks that this package makes: templates over words, no files.

They are probes of forgetting, not measures of how good a model is: take those
that the model does well above chance, so that a loss shows (of 135 million
parameters the first three and prose). Each is the same list whoever asks.

  agreement  a verb that agrees with its subject across a noun in between
             (the form of Linzen et al. 2016, arXiv:1611.01368); 2 choices
  capitals   the capital of a country, among 4
  opposites  the opposite of a word, among 4
  series     how days, months, numbers and letters go on, among 4
  sums       the sum of two numbers below 30, among 4
  copying    the name that a sentence has said before, among 4
  prose      perplexity of paragraphs of Python's own language reference, which
             every Python has (pydoc_data; another version, other paragraphs)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pydoc_data import topics

import numpy as np

from rlhf_jax.evaluation.tasks import made_words as words
from rlhf_jax.evaluation.tasks.items import CHOICE, PERPLEXITY, Item
from rlhf_jax.evaluation.tasks.layouts import LAYOUTS, Layout
from rlhf_jax.imported import nearest
from rlhf_jax.schema import FieldError

_SEED = 0
PARAGRAPHS = 96


def _choice(
  name: str, number: int, prompt: str, right: str, wrong: Sequence[str]
) -> Item:
  """Returns an item whose right choice stands in a drawn place."""
  rng = np.random.default_rng([_SEED, number])
  choices = [right, *wrong]
  order = rng.permutation(len(choices))
  return Item(
    where=f"made:{name}:{number + 1}",
    kind=CHOICE,
    prompt=prompt,
    choices=tuple(f" {choices[i]}" for i in order),
    answer=int(np.flatnonzero(order == 0)[0]),
  )


def _others(
  known: Sequence[str], right: str, rng: np.random.Generator
) -> list[str]:
  """Returns three other words of a list."""
  rest = [word for word in dict.fromkeys(known) if word != right]
  return [rest[i] for i in rng.choice(len(rest), 3, replace=False)]


def agreement() -> list[Item]:
  """Returns sentences up to the verb, whose number is that of the subject."""
  found = []
  for i, (one, many) in enumerate(words.NOUNS):
    other = words.NOUNS[(i + 7) % len(words.NOUNS)]
    link = words.LINKS[i % len(words.LINKS)]
    for subject, between, right in (
      (one, other[1], "is"),
      (many, other[0], "are"),
    ):
      prompt = f"The {subject} {link} the {between}"
      wrong = {"is": "are", "are": "is"}[right]
      number = len(found)
      found.append(_choice("agreement", number, prompt, right, [wrong]))
  return found


def capitals() -> list[Item]:
  """Returns countries, whose capital is asked."""
  rng, every = np.random.default_rng(_SEED), list(words.CAPITALS.values())
  return [
    _choice(
      "capitals",
      i,
      f"The capital of {country} is",
      capital,
      _others(every, capital, rng),
    )
    for i, (country, capital) in enumerate(words.CAPITALS.items())
  ]


def opposites() -> list[Item]:
  """Returns words, whose opposite is asked."""
  rng, every = np.random.default_rng(_SEED), []
  for pair in words.OPPOSITES:
    every += pair
  found = []
  for a, b in words.OPPOSITES:
    for word, right in ((a, b), (b, a)):
      others = [x for x in every if x not in (a, b)]
      found.append(
        _choice(
          "opposites",
          len(found),
          f'The opposite of "{word}" is "',
          right,
          _others(others, right, rng),
        )
      )
  return [_unspaced(item) for item in found]


def _unspaced(item: Item) -> Item:
  """Returns an item whose choices go on without a space."""
  return Item(
    where=item.where,
    kind=CHOICE,
    prompt=item.prompt,
    choices=tuple(choice.strip() for choice in item.choices),
    answer=item.answer,
  )


def series() -> list[Item]:
  """Returns days, months, numbers and letters that go on."""
  rng, found = np.random.default_rng(_SEED), []
  for line in words.SERIES:
    for start in range(len(line) - 4):
      shown, right = line[start : start + 4], line[start + 4]
      known = [x for x in line if x not in shown]
      if len(known) < 4:
        known = list(line)
        known = [x for x in known if x != shown[-1]]
      found.append(
        _choice(
          "series",
          len(found),
          ", ".join(shown) + ",",
          right,
          _others(known, right, rng),
        )
      )
  return found


def sums() -> list[Item]:
  """Returns sums of two numbers below 30, with near numbers beside them."""
  rng, found = np.random.default_rng(_SEED), []
  for number in range(120):
    a, b = (int(x) for x in rng.integers(2, 30, 2))
    steps = rng.choice([-10, -3, -2, -1, 1, 2, 3, 10], 3, replace=False)
    wrong = [str(abs(a + b + int(step))) for step in steps]
    if len({*wrong, str(a + b)}) < 4:
      wrong = [str(a + b + step) for step in (1, 2, 10)]
    prompt = f"{a} + {b} ="
    found.append(_choice("sums", number, prompt, str(a + b), wrong))
  return found


def copying() -> list[Item]:
  """Returns sentences that say a name, and ask for it again."""
  rng, found = np.random.default_rng(_SEED), []
  names = list(words.NAMES)
  for number, thing in enumerate(words.THINGS * 2):
    right, *others = (names[i] for i in rng.choice(len(names), 4, False))
    prompt = (
      f"{right} lost a {thing} in the street. {others[0]} found it, and gave "
      f"the {thing} back to"
    )
    found.append(_choice("copying", number, prompt, right, others))
  return found


def paragraphs() -> list[str]:
  """Returns plain paragraphs of Python's language reference, in its order."""
  found: dict[str, None] = {}
  for name in sorted(topics.topics):
    for part in topics.topics[name].split("\n\n"):
      text = " ".join(part.split())
      letters = sum(x.isalpha() or x == " " for x in text)
      is_plain = re.fullmatch(r"[A-Z].*[a-z)][.]", text) is not None
      is_plain &= "::=" not in text and ">>>" not in text
      if is_plain and 200 <= len(text) <= 700 and letters > 0.9 * len(text):
        found[text] = None
  return list(found)


def prose() -> list[Item]:
  """Returns every other paragraph of Python's language reference, the first."""
  return [
    Item(f"made:prose:{n + 1}", PERPLEXITY, "", answer=text)
    for n, text in enumerate(paragraphs()[::2][:PARAGRAPHS])
  ]


MADE: dict[str, Callable[[], list[Item]]] = {
  "agreement": agreement,
  "capitals": capitals,
  "opposites": opposites,
  "series": series,
  "sums": sums,
  "copying": copying,
  "prose": prose,
}


def check(name: str, field: str) -> None:
  """Raises FieldError unless there is a task of this name."""
  if name not in MADE:
    raise FieldError(
      f"{field}='made:{name}': there are {', '.join(MADE)}."
      f"{nearest(name, MADE)}"
    )


def items(name: str) -> list[Item]:
  """Returns the items of a task that is made, the same each time.

  They stand in a drawn order, so that the first of them are of all sorts.
  """
  check(name, "tasks")
  found = MADE[name]()
  order = np.random.default_rng(_SEED).permutation(len(found))
  return [found[i] for i in order]


def layout(name: str) -> Layout:
  """Returns the layout of a task that is made, for its worked examples."""
  return LAYOUTS["text" if name == "prose" else "choice"]


def about(name: str) -> str:
  """Returns what a task that is made asks, in a line."""
  text = (MADE[name].__doc__ or "").removeprefix("Returns ")
  return f"made here: {text.rstrip('.')}"
