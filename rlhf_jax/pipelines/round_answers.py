"""The answers of a round of labels, and which of them are compared."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rlhf_jax.data import dataset
from rlhf_jax.pipelines import generate_answers
from rlhf_jax.programs import iterated, iterated_settings
from rlhf_jax.schema import FieldError


def compare(of_round: Any) -> list[dict]:
  """Returns the items of a round: policies answer, some are compared.

  Args:
    of_round: a labelled_rounds.Round.
  """
  of, how = of_round.settings.comparisons, of_round.settings.sampling.settings
  policies = iterated_settings.answering(of.policies, of_round.number)
  total = of.prompts(of_round.number)
  _check_prompts(of_round, total)
  skip = sum(of.prompts(n) for n in range(1, of_round.number))
  if of.mix == "across":
    counts = [total] * len(policies)
    each = -(-of.answers // len(policies))
  else:
    counts, each = iterated.shares(total, len(policies)), of.answers
  has_scores = (
    of.choose == iterated_settings.UNCERTAINTY and of_round.number > 1
  )
  reward = str(of_round.before.folder / "reward") if has_scores else ""
  groups = []
  for place, (number, count) in enumerate(zip(policies, counts, strict=True)):
    if not count:
      continue
    folder = of_round.folder / f"answers_{place}"
    job = of_round.settings.sampling.changed(
      policy=of_round.policy(number),
      reward=reward,
      count=count,
      skip=skip,
      seed=of_round.seed_of(of_round.settings.sampling) + place,
      generate=dataclasses.replace(how.generate, num_samples=each),
    )
    of_round.run_stage(job, folder)
    rows = iterated.read(folder / generate_answers.ANSWERS_FILE)
    name = f"round_{number}/policy" if number else "sft"
    groups.append(iterated.grouped(rows, name, each))
    skip += count if of.mix == "within" else 0
  joined = sum(groups, [])
  if of.mix == "across":
    joined = iterated.across(groups, of.answers)
  return _items(of_round, joined)


def _items(of_round: Any, groups: list[dict]) -> list[dict]:
  of = of_round.settings.comparisons
  found, lost = iterated.distinct(groups)
  if of.choose == iterated_settings.DISAGREEMENT and of_round.number > 1:
    found = _with_members(of_round, found)
  wanted = of.wanted(of_round.number)
  rng = np.random.default_rng([of_round.settings.seed, of_round.number])
  chosen = iterated.chosen(found, wanted, of.choose, rng)
  has_scores = bool(found) and ("scores" in found[0] or "members" in found[0])
  how = of.choose if has_scores else iterated_settings.RANDOM
  print(
    f"round {of_round.number}: {len(chosen)} of {wanted} comparisons, chosen "
    f"({how}) from {len(groups)} prompts; {lost} of them got no two answers "
    "that differ and are left out"
  )
  if len(chosen) < 2:
    raise FieldError(
      f"comparisons.count={of.count}: round {of_round.number} has "
      f"{len(chosen)} comparisons of answers that differ. Raise "
      "comparisons.candidates, or the temperature."
    )
  return iterated.as_items(chosen, of_round.number)


def _with_members(of_round: Any, groups: list[dict]) -> list[dict]:
  """Returns groups with what each member of the ensemble before thinks."""
  of_round.once(
    iterated.CANDIDATES,
    lambda: iterated.as_items(groups, of_round.number),
  )
  found = of_round.score(
    "candidates",
    iterated.CANDIDATES,
    of_round.before.folder / "reward",
    field="members",
  )
  members = found.values()  # in their order
  return [
    group | {"members": of_group}
    for group, of_group in zip(groups, members, strict=True)
  ]


def _check_prompts(of_round: Any, total: int) -> None:
  """Raises FieldError where there are fewer prompts than a round asks."""
  job = of_round.settings.sampling
  data = job.settings.prompts
  tokenizer = of_round.world.base(job.settings.model).tokenizer
  count = len(dataset.records(data, tokenizer)[0])
  if count < total:
    of = of_round.settings.comparisons
    test = f" + test={of.test}" if of_round.number == 1 and of.test else ""
    raise FieldError(
      f"comparisons.count={of.count}: round {of_round.number} asks (count"
      f"{test}) x candidates={of.candidates} = {total} prompts, and "
      f"{data.source} has {count}. Lower it, or give more prompts."
    )
