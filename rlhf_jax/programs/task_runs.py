"""A policy does tasks: it reads choices and texts, and answers greedily.

Choices and texts of all tasks are read together, in rows of one shape
(likelihoods.py); answers are sampled by the sampler of training, at temperature
0, and scored by the verifiers of training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, generate
from rlhf_jax.data import batches
from rlhf_jax.evaluation.tasks import outcomes
from rlhf_jax.evaluation.tasks.items import CHOICE, GENERATE, Outcome
from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import likelihoods, task_suites
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.task_suites import Suite
from rlhf_jax.rewards import texts
from rlhf_jax.rewards.rows import Answers
from rlhf_jax.schema import UserError
from rlhf_jax.types import FINISH_EOS, PyTree

Outcomes = dict[str, list[Outcome]]


@dataclasses.dataclass(frozen=True)
class Runner:
  """A policy that does tasks.

  role, frozen: of the policy.
  base: the model underneath.
  mesh: where it is.
  rows: read, or prompts answered, together.
  """

  role: roles.Role
  frozen: PyTree
  base: Base
  mesh: Any
  rows: int = 8

  def __call__(self, params: PyTree, suite: Suite) -> Outcomes:
    """Returns the outcome of each item, by the name of its task.

    Args:
      params: trained tree of the policy.
      suite: encoded for this model.
    """
    reader = likelihoods.Reader(
      self.role, self.frozen, self.base, self.mesh, self.rows
    )
    read = reader(params, suite.pairs)
    answered = {
      name: self._answers(params, suite, name) for name in suite.prompts
    }
    parts: dict[tuple[str, int], dict[int, likelihoods.Read]] = {}
    for (name, n, k), one in zip(suite.owners, read, strict=True):
      parts.setdefault((name, n), {})[k] = one
    found: Outcomes = {}
    for name, task in suite.tasks.items():
      found[name] = [
        answered[name][n]
        if item.kind == GENERATE
        else _read_outcome(item, parts[name, n])
        for n, item in enumerate(task.items)
      ]
    return found

  def _answers(
    self, params: PyTree, suite: Suite, name: str
  ) -> dict[int, Outcome]:
    """Returns the outcomes of the answered items of a task, by place."""
    task, places = suite.tasks[name], suite.numbers[name]
    said = self.generate(
      params,
      suite.prompts[name],
      task.new_tokens,
      tuple(task.stops),
    )
    items = [task.items[i] for i in places]
    answers = Answers(
      texts=[text for text, _, _ in said],
      references=[item.answer for item in items],
      prompts=[
        item.prompt if isinstance(item.prompt, str) else str(item.prompt)
        for item in items
      ],
      records=[dict(item.fields) for item in items],
      token_ids=[ids for _, ids, _ in said],
      has_ended=[ended for _, _, ended in said],
    )
    try:
      scores, _ = suite.scorers[name](answers)
    except ValueError as error:
      raise UserError(f"task {name!r}: {error}") from error
    return {
      i: Outcome(item, text=text, score=float(score))
      for i, item, text, score in zip(
        places, items, answers.texts, scores, strict=True
      )
    }

  def generate(
    self,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stops: tuple[str, ...] = (),
  ) -> list[tuple[str, list[int], bool]]:
    """Returns the greedy answer to each prompt: text, ids, did it end itself.

    Args:
      params: trained tree of the policy.
      prompts: ids, at least one each.
      new_tokens: of an answer at most.
      stops: texts that end an answer, and are cut off it.
    """
    how = generate.Config(
      max_new_tokens=new_tokens, temperature=0.0, stop_strings=stops
    )
    sampler = Sampler(self.role, self.frozen, self.base, how)
    tokenizer = self.base.tokenizer
    width = batches.bucket_length(max(len(row) for row in prompts))
    width = min(width, self.base.config.max_length - new_tokens)
    found: list[tuple[str, list[int], bool]] = []
    for start in range(0, len(prompts), self.rows):
      chosen = [
        prompts[min(start + i, len(prompts) - 1)] for i in range(self.rows)
      ]
      batch = batches.collate_prompts(
        chosen,
        tokenizer.pad_id,
        width,
        index=range(start, start + self.rows),
      )
      placed = mesh_lib.spread_batch(self.mesh, batch)
      with mesh_lib.current(self.mesh):
        drawn = sampler(params, placed, jax.random.key(0))
      samples = distributed.fetch(drawn)
      said = texts.sample_texts(tokenizer, samples)
      rows = zip(
        said,
        samples.tokens,
        samples.response_mask,
        samples.finish_reason,
        strict=True,
      )
      found += [
        (
          cut(text, stops),
          np.asarray(tokens)[mask > 0].tolist(),
          bool(reason == FINISH_EOS),
        )
        for (_, text), tokens, mask, reason in rows
      ]
    return found[: len(prompts)]


def cut(text: str, stops: Sequence[str]) -> str:
  """Returns a text up to the first of some texts in it."""
  ends = [text.find(stop) for stop in stops if stop in text]
  return text[: min(ends)] if ends else text


def _read_outcome(item: Any, parts: dict[int, likelihoods.Read]) -> Outcome:
  """Returns the outcome of choices, or of the windows of a text."""
  reads = [parts[k] for k in sorted(parts)]
  texts_ = task_suites.texts_of(item)
  totals = [read.total for read in reads]
  counts = [len(read.logprobs) for read in reads]
  if item.kind != CHOICE:
    totals, counts = [sum(totals)], [sum(counts)]
  return Outcome(
    item,
    logprobs=tuple(totals),
    tokens=tuple(counts),
    sizes=outcomes.sizes(texts_),
  )
