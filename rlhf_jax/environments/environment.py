"""What an environment is: pure functions of one state, and how it is drawn.

Episodes have one length: they neither end early nor say that they could have.
Where an end depends on what happened, the end itself tells what is good, and
nobody needs to be asked (Christiano et al. 2017, section 3.1: variable lengths
are removed). The true reward is for the simulated annotator, for the control
that trains on it, and for the page; the agent does not see it.

A state is one vector, so that segments can be kept, and drawn much later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Environment:
  """One environment; every function is of a single state, to be vmapped.

  steps: of every episode.
  seconds: of one step, for who watches.
  observation_size: O.
  action_size: A: values that a discrete action may have, or the numbers of a
    continuous one, each in [-1, 1].
  reset: key -> state [S].
  step: (state [S], action [A]) -> state [S]; a discrete action is one-hot.
  observe: state [S] -> [O], each number of about unit size.
  reward: (state, action) -> [] true reward of doing that in that state.
  draw: (state, action) as lists of numbers -> SVG elements within `box`.
  box: (left, top, width, height) of the drawing, units of the environment.
  task: what people are asked to prefer.
  """

  name: str
  steps: int
  seconds: float
  observation_size: int
  action_size: int
  is_discrete: bool
  reset: Callable[[Array], Array]
  step: Callable[[Array, Array], Array]
  observe: Callable[[Array], Array]
  reward: Callable[[Array, Array], Array]
  draw: Callable[[list[float], list[float]], str]
  box: tuple[float, float, float, float]
  task: str
