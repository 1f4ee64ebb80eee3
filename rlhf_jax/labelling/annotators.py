"""How good each annotator is, from votes alone, and what a vote should weigh.

  Dawid-Skene   P(vote l | truth c, annotator r) = confusion[r, c, l], by EM
  noisy Bradley-Terry  P(first wins | r) = a_r s(d) + (1 - a_r) / 2,
                       d ~ N(0, spread^2) for each unit, summed over a grid

Dawid and Skene 1979; noisy Bradley-Terry is the model of Chen et al. 2013
(Crowd-BT) with d integrated out: two or three votes on a unit do not fix its
d. An annotator with skill a (0: a coin, 1: as good as anybody) gives labels
a y + noise, so a weight of a makes the sum of labels the best estimate of y;
`weights` returns that.

What this rests on: annotators err on their own. Where most share a mistake, it
is the truth here, and whoever sees better is called worse (check gold items).
Preferences differ without anybody being wrong: look at the groups first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rlhf_jax.labelling.judgements import Votes
from rlhf_jax.schema import UserError

MODELS = ("dawid-skene", "noisy-bradley-terry")
MIN_SHARED = 20  # votes on units that others judged too; fewer say too little
_FLOOR = 1e-10  # of a probability, as in crowd-kit
_STEPS = 2000
_CHANGE = 1e-9  # of a posterior probability, that counts as settled
_SKILL_CHANGE = 1e-5


@dataclasses.dataclass(frozen=True)
class DawidSkene:
  """What EM found.

  values: [C] in the order of the classes.
  posterior: [U, C] of the truth of each unit.
  prior: [C].
  confusion: [R, C, C], P(vote | truth) with the truth first.
  """

  values: np.ndarray
  posterior: np.ndarray
  prior: np.ndarray
  confusion: np.ndarray

  @property
  def accuracy(self) -> np.ndarray:
    """P(vote is the truth) [R] of each annotator."""
    return np.einsum("c,rcc->r", self.prior, self.confusion)

  @property
  def decided_accuracy(self) -> np.ndarray:
    """The same [R] where neither the vote nor the truth is a tie."""
    strict = self.values != 0
    joint = self.prior[:, None] * self.confusion
    joint = joint[:, strict][:, :, strict]
    right = np.einsum("rcc->r", joint)
    return right / np.maximum(joint.sum(axis=(1, 2)), _FLOOR)


def dawid_skene(votes: Votes) -> DawidSkene:
  """Returns truths and confusions that explain votes best, by EM.

  It starts from the shares of each unit's votes.

  Args:
    votes: of one objective.

  Raises:
    UserError: no unit has two votes.
  """
  _check_shared(votes)
  values, label = np.unique(votes.value, return_inverse=True)
  shape = (len(votes.annotators), len(values), len(values))
  posterior = np.zeros((len(votes.units), len(values)))
  np.add.at(posterior, (votes.unit, label), 1.0)
  posterior /= posterior.sum(axis=1, keepdims=True)
  for _ in range(_STEPS):
    prior = np.maximum(posterior.mean(axis=0), _FLOOR)
    confusion = np.zeros(shape).transpose(0, 2, 1)  # [R, vote, truth]
    np.add.at(confusion, (votes.annotator, label), posterior[votes.unit])
    confusion = np.maximum(confusion, _FLOOR)
    confusion = (confusion / confusion.sum(axis=1, keepdims=True)).transpose(
      0, 2, 1
    )
    log_joint = np.tile(np.log(prior), (len(posterior), 1))
    log_vote = np.log(confusion).transpose(0, 2, 1)[votes.annotator, label]
    np.add.at(log_joint, votes.unit, log_vote)
    log_joint -= log_joint.max(axis=1, keepdims=True)
    found = np.exp(log_joint)
    found /= found.sum(axis=1, keepdims=True)
    change = np.max(np.abs(found - posterior))
    posterior = found
    if change < _CHANGE:
      break
  return DawidSkene(values, posterior, prior, confusion)


def noisy_bradley_terry(votes: Votes, spread: float = 2.0) -> np.ndarray:
  """Returns the skill [R] of each annotator, in [0, 1], by EM.

  Skills and spread trade off against each other: halve all skills and the
  votes of clearer pairs look much the same. So the spread is given, and skills
  are to be read against each other. A tie is half a vote for each answer.

  Args:
    votes: of one objective.
    spread: deviation of score differences, nats.

  Raises:
    UserError: no unit has two votes, or spread is not above 0.
  """
  _check_shared(votes)
  if not spread > 0:
    raise UserError(f"spread={spread}: nats, above 0. Leave it at 2.")
  grid = np.linspace(-4, 4, 25)
  density = np.exp(-0.5 * grid**2)
  wins = 1 / (1 + np.exp(-spread * grid))  # [G]
  share = 0.5 * (1 + votes.value)[:, None]  # [V, 1], of the first answer
  skill = np.full(len(votes.annotators), 0.5)
  count = np.bincount(votes.annotator, minlength=len(skill))
  for _ in range(_STEPS):
    own = skill[votes.annotator][:, None]
    first = own * wins + (1 - own) / 2
    log_vote = share * np.log(first) + (1 - share) * np.log1p(-first)
    log_joint = np.tile(np.log(density), (len(votes.units), 1))
    np.add.at(log_joint, votes.unit, log_vote)
    joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    joint /= joint.sum(axis=1, keepdims=True)
    careful = share * own * wins / first
    careful += (1 - share) * own * (1 - wins) / (1 - first)
    expected = np.sum(joint[votes.unit] * careful, axis=1)
    found = np.bincount(votes.annotator, expected, len(skill)) / count
    change = np.max(np.abs(found - skill))
    skill = np.clip(found, _FLOOR, 1 - _FLOOR)
    if change < _SKILL_CHANGE:
      break
  return skill


def shared_votes(votes: Votes) -> np.ndarray:
  """Returns [R] how many votes each annotator has where others voted too."""
  times = np.bincount(votes.unit, minlength=len(votes.units))
  return np.bincount(
    votes.annotator,
    times[votes.unit] >= 2,
    minlength=len(votes.annotators),
  ).astype(int)


def _check_shared(votes: Votes) -> None:
  if not np.any(shared_votes(votes)):
    raise UserError(
      f"{len(votes.units)} units, and no two annotators judged the same one: "
      "nobody can be compared. Let several people judge some of the items."
    )


def skills(votes: Votes, model: str = MODELS[0]) -> np.ndarray:
  """Returns the skill [R] of each annotator: 0 a coin, below 0 against others.

  Of Dawid-Skene it is 2 P(right) - 1 where neither vote nor truth is a tie.

  Args:
    votes: of one objective.
    model: of MODELS.

  Raises:
    UserError: an unknown model, or no unit with two votes.
  """
  if model not in MODELS:
    raise UserError(f"model={model!r}: must be one of {', '.join(MODELS)}.")
  if model == MODELS[1]:
    return noisy_bradley_terry(votes)
  return 2 * dawid_skene(votes).decided_accuracy - 1


def weights(
  votes: Votes, skill: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
  """Returns the weight [R] of each annotator's labels, and what to know of it.

  The mean over votes is 1, so that learning rates keep their meaning. Who has
  too few votes beside others weighs 1; who is at or below chance weighs 0.

  Args:
    votes: of one objective.
    skill: [R] of `skills`.

  Returns:
    weights, and (level, message) with level "warn" or "note".

  Raises:
    UserError: nobody is above chance.
  """
  shared, notes = shared_votes(votes), []
  known = shared >= MIN_SHARED
  positive = np.where(known, np.maximum(skill, 0.0), 0.0)
  count = np.bincount(votes.annotator, minlength=len(skill))
  total = float(np.sum(count * known))
  if not np.any(positive > 0):
    raise UserError(
      f"no annotator with {MIN_SHARED} votes beside others is above chance: "
      "labels cannot be weighed. Collect more judgements of the same items."
    )
  scale = total / float(np.sum(count * positive))
  found = np.where(known, positive * scale, 1.0)
  for name, own, is_known, few in zip(
    votes.annotators, skill, known, shared, strict=True
  ):
    if not is_known:
      notes.append(
        (
          "note",
          f"{name}: {few} votes beside others, fewer than {MIN_SHARED}: too "
          "few to be judged by; weighs 1.",
        )
      )
    elif own <= 0:
      notes.append(
        (
          "warn",
          f"{name}: agrees with the estimated truth no more than a coin; "
          "weighs 0. Look at these judgements before you drop them.",
        )
      )
  return found, notes
