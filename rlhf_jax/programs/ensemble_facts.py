"""What a reward run finds out about the members of its ensemble.

Each member's held-out diagnosis beside that of all together (the mean of raw
scores, whose differences are nats as those of one model are), how far members
agree on the ranks of held-out answers, each one's scale, and by how much they
deviate on the reference's samples: what later stages measure a policy's
samples against (METHODS 2.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.algorithms import ensemble
from rlhf_jax.data import dataset
from rlhf_jax.models import roles
from rlhf_jax.programs import reward_facts, several_objectives
from rlhf_jax.rewards import model as reward_model
from rlhf_jax.runs import finite
from rlhf_jax.types import PyTree


def together(scores: np.ndarray, data: dataset.Comparisons) -> np.ndarray:
  """Returns [U], the mean of raw scores [U, M], or scores [U] as they are.

  Of several objectives each row has the score of its own.

  Args:
    scores: of data.rows.
    data: comparisons.
  """
  if data.members is not None:
    return several_objectives.own_scores(scores, data)
  return scores if scores.ndim == 1 else scores.mean(axis=1)


def diagnose(
  scores: Callable[..., np.ndarray],
  held: dataset.Comparisons,
  features: np.ndarray | None,
  name: str,
  objectives: Sequence[str] = (),
) -> dict:
  """Returns reward_facts.diagnose of all together, and "members", "agreement".

  members: the diagnosis of each, in order. agreement: Spearman's correlation of
  two members' scores of held-out answers, the mean over pairs. Outputs of
  several objectives are members that judge their own comparisons; their
  agreement near 1 is halo: one impression under several names.

  Args:
    scores: (rows, features) -> [U, M] raw.
    held: held-out comparisons.
    features: of held.rows, where the trunk is frozen.
    name: of the stage, for messages.
    objectives: names of the outputs, () of members.
  """
  found = scores(held.rows, features)
  if found.ndim == 1:
    return reward_facts.diagnose(lambda *_: found, held, features, name)
  facts = reward_facts.diagnose(
    lambda *_: together(found, held), held, features, name
  )
  members = []
  for i, column in enumerate(found.T):
    own = held.take(held.members == i) if objectives else held
    who = objectives[i] if objectives else f"member {i}"
    members.append(
      finite.or_none(reward_facts.diagnosis_of(column, own, f"{name}, {who}"))
    )
  agreement = float(ensemble.agreement(found))
  each = ", ".join(f"{x['reward_model/accuracy']:.3f}" for x in members)
  print(
    f"{name}: held-out accuracy of "
    f"{', '.join(objectives) if objectives else 'members'} {each}; agreement "
    "of their ranks "
    f"{agreement:.3f}"
  )
  return facts | {"members": members, "agreement": agreement}


def normalise(
  settings: Any,
  role: roles.Role,
  variables: PyTree,
  training_scores: Callable[[], np.ndarray],
  row_scores: Callable[[list], np.ndarray] | None = None,
) -> dict:
  """Returns "normalisation" and, of an ensemble, "outputs" of stage.json.

  Args:
    settings, role, variables, training_scores, row_scores: see
      reward_facts.normalise; scores are [N, M] of an ensemble.
  """
  parts = settings, role, variables, training_scores, row_scores
  if role.members == 1:
    return {"normalisation": reward_facts.normalise(*parts)}
  scores, facts = reward_facts.reference_scores(
    *parts, make_score=reward_model.make_member_scores
  )
  objectives = getattr(settings, "objectives", ())
  outputs, columns = [], []
  for i, column in enumerate(np.asarray(scores, np.float64).T):
    who = objectives[i] if objectives else f"member {i}"
    mean, std = reward_facts.scale_of(column, who)
    outputs.append({"name": who, "mean": mean, "std": std})
    columns.append((column - mean) / std)
  if objectives:  # what they differ in is no doubt
    return {"normalisation": facts, "outputs": outputs}
  deviation = np.mean(np.std(np.stack(columns, axis=1), axis=1))
  return {
    "normalisation": facts | {"deviation": float(deviation)},
    "outputs": outputs,
  }
