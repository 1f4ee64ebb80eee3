"""Answers to held-out prompts while a policy trains: what they are worth.

    every schedule.eval_every steps: answer the same prompts, judge the answers

They are judged by what judges in training, with the references that held-out
prompts bring. The random keys are the same each time and of no step, so a
policy that stands still gives the same numbers, and what trains does not depend
on whether it is measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from rlhf_jax import distributed, metrics
from rlhf_jax.algorithms.policy_gradient import groups_in_rows, packing
from rlhf_jax.data import batches, dataset, overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.models.pretrained import Base
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.programs import abstract, rollouts, text_readers
from rlhf_jax.programs.heldout_settings import rows_of, sampling
from rlhf_jax.programs.program import Flow, Program, prompt_width
from rlhf_jax.programs.sampler import Sampler
from rlhf_jax.programs.work import Passes
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import combination, judge, texts
from rlhf_jax.schema import FieldError
from rlhf_jax.types import FINISH_EOS, PromptBatch, PyTree

KEY = 2**31 - 2  # folded into the key of a run; no step has this number
LABEL = "heldout "  # before the names of programs


def prompt_batches(
  data: Data,
  new_tokens: int,
  count: int,
  size: int,
  base: Base,
  field: str,
  name: str = "held out",
  skip: int = 0,
) -> list[PromptBatch]:
  """Returns `count` prompts in batches, on the host: the first after `skip`.

  The list goes round: behind the last prompt comes the first.

  The last batch is filled up with its last prompt.

  Args:
    data: the section.
    new_tokens: of an answer at most.
    count: prompts; 0 for all.
    size: of a batch.
    base: whose tokenizer.
    field: that says `count`, for the message.
    name: of what asks, for the line that says how many there are.
    skip: prompts that are passed over.

  Raises:
    FieldError: fewer prompts than wanted.
  """
  room = data.max_length - new_tokens
  ids, dropped = dataset.prompts(data, base.tokenizer, room)
  lengths = {"prompt": [len(row) for row in ids]}
  dataset.report_dropped(name, data.source, len(ids), dropped, lengths)
  count = count if count else len(ids)
  if len(ids) < count:
    raise FieldError(
      f"{field}={count}: only {len(ids)} prompts in {data.source}. Lower "
      f"{field.rpartition('.')[2]}, or give more prompts; a prompt is not used "
      "twice."
    )
  places = [(skip + i) % len(ids) for i in range(count)]
  width = max(len(ids[i]) for i in places)
  found = []
  for first in range(0, count, size):
    index = [places[min(first + i, count - 1)] for i in range(size)]
    rows = [ids[i] for i in index]
    found.append(
      batches.collate_prompts(rows, base.tokenizer.pad_id, width, index=index)
    )
  return found


def judge_plan(plan: judge.Plan, new_tokens: int) -> judge.Plan:
  """Returns what judges held-out answers: a row each, and no critic.

  Args:
    plan: of training.
    new_tokens: of an answer at most.
  """
  return dataclasses.replace(
    plan,
    value=None,
    is_value_on_policy=False,
    shared=plan.shared - {"value"},
    own=plan.own - {"value"},
    row_targets=new_tokens,
  )


@dataclasses.dataclass(frozen=True)
class Heldout:
  """Held-out prompts that a policy is asked: trained tree -> metrics.

  source: of judged answers; its loader is not read.
  batches: the prompts, on the host.
  count: of prompts, without what fills the last batch.
  monitors: names of reward models that only watch.
  correct_above: a score above it is a right answer; None: nobody knows.
  has_kl: whether the log-probabilities of sampler and reference compare.
  key: of all answers.
  """

  source: rollouts.Source
  batches: list[PromptBatch]
  count: int
  monitors: tuple[str, ...]
  correct_above: float | None
  has_kl: bool
  key: jax.Array

  @staticmethod
  def of(settings: Any, source: rollouts.Source, name: str) -> Heldout | None:
    """Returns the held-out prompts of a run, None where nothing is measured.

    Args:
      settings: of a pipeline that samples.
      source: of the answers that train.
      name: of the run, for messages.

    Raises:
      UserError: prompts that cannot be answered or judged.
    """
    if not settings.schedule.eval_every:
      return None
    sampler, actors, data = source.sampler, source.actors, settings.heldout
    rows = rows_of(settings, mesh_lib.row_ways(source.mesh))
    how, base = sampling(settings, rows), sampler.base
    plan = judge_plan(actors.plan, how.max_new_tokens)
    sampler = dataclasses.replace(sampler, config=how, taps=plan.taps())
    overlap.say_shared(name, settings.prompts, data, base.tokenizer)
    asked = dataclasses.replace(
      source,
      sampler=sampler,
      judge=judge.make_judge(plan),
      verifier=texts.load(settings.text_judge, data, base.tokenizer),
      packing=packing.Config(row_tokens=0),
      groups=groups_in_rows.ALONE,
      further={},
      timer=metrics.Timer(),
      readers=text_readers.open_readers(
        actors.readers, data, sampler, source.mesh
      ),
      panel=combination.open_panel(
        settings.named_judges,
        settings.combination,
        data,
        base.tokenizer,
        source.mesh,
        is_whole=False,
      ),
    )
    count = settings.evaluation.count
    is_same = how.temperature == settings.generate.temperature
    return Heldout(
      source=asked,
      batches=prompt_batches(
        data, how.max_new_tokens, count, rows, base, "evaluation.count"
      ),
      count=count,
      monitors=tuple(settings.monitors),
      correct_above=texts.correct_above(settings.text_judge),
      has_kl=is_same and how.cache_dtype is None,
      key=jax.random.fold_in(jax.random.key(settings.seed), KEY),
    )

  def __call__(self, policy: PyTree, state: PyTree = None) -> dict[str, float]:
    """Returns the metrics of `measured` of a policy's trained tree.

    Args:
      policy: its trained tree.
      state: of what combines several judges; None with one.
    """
    parts = [self._answered(policy, batch, state) for batch in self.batches]
    group = self.source.sampler.config.num_samples
    joined = {
      name: np.concatenate([part[name] for part in parts])[: self.count * group]
      for name in parts[0]
    }
    columns = {name: x.reshape(-1, group) for name, x in joined.items()}
    panel = self.source.panel
    told = () if panel is None else ("score", *panel.components)
    return measured(columns, self.correct_above, told)

  def _answered(
    self, policy: PyTree, prompts: PromptBatch, state: PyTree
  ) -> dict[str, np.ndarray]:
    """Returns column -> [N] of the answers to a batch of prompts."""
    placed = mesh_lib.spread_batch(self.source.mesh, prompts)
    found = self.source.answer(
      policy, {}, placed, self.key, state=state, observes=False
    )
    rollout, scores = found.rollout, found.scores
    mask, reason, ours, theirs, score, scores = distributed.fetch(
      (
        rollout.response_mask,
        rollout.finish_reason,
        rollout.behaviour_logprobs,
        rollout.reference_logprobs,
        rollout.score,
        scores,
      )
    )
    columns = {
      "score": score,
      "length": np.sum(mask, axis=1),
      "eos_share": np.float64(reason == FINISH_EOS),
    }
    if self.has_kl:
      ratio = np.where(mask > 0, np.float64(ours) - theirs, 0.0)
      columns["kl"] = np.sum(ratio, axis=1)
    for name, values in scores.items():
      if name in self.monitors:
        columns[f"{name}_score"] = values
      elif name.startswith((texts.COMPONENT, combination.COMBINATION)):
        columns[name] = values
    return columns


def measured(
  columns: dict[str, np.ndarray],
  correct_above: float | None,
  told: Collection[str] = (),
) -> dict[str, float]:
  """Returns what answers to held-out prompts are worth.

  Metrics:
    heldout/score: mean score of the answers. Falling is bad; falling while
      that of training rises is overoptimisation, or learning by heart.
    heldout/score_best: mean over prompts of the best of several answers.
    heldout/pass1, heldout/passG: share of right answers, and of prompts with
      one, where the judge says what is right. Falling is bad.
    heldout/NAME_score: mean score of a monitor. Falling is bad.
    heldout/component/NAME: mean of a part of the score, as reward/component.
    heldout/combination/NAME: as combination/NAME.
    heldout/score_standard_error, heldout/component/NAME_standard_error: of
      these means over prompts, where several judge.
    heldout/kl: nats an answer to the reference. Up is drift.
    heldout/length, heldout/eos_share: tokens, and share that ends by itself.

  Args:
    columns: name -> [P, G].
    correct_above: a score above it is a right answer; None: nobody knows.
    told: columns whose mean has its standard error beside it.
  """
  columns = {name: np.asarray(x, np.float64) for name, x in columns.items()}
  found = {}
  for name, x in columns.items():
    is_part = name.startswith(texts.COMPONENT)
    mean, error = combination.mean_and_error(x)
    if is_part and mean is None:  # no prompt is of a kind that it judges
      continue
    found[f"heldout/{name}"] = mean if is_part else float(np.mean(x))
    if name in told and error is not None:
      found[f"heldout/{name}_standard_error"] = error
  score = columns["score"]
  if score.shape[1] > 1:
    found["heldout/score_best"] = float(np.mean(np.max(score, axis=1)))
  if correct_above is not None:
    is_right = score > correct_above
    found["heldout/pass1"] = float(np.mean(is_right))
    if score.shape[1] > 1:
      found["heldout/passG"] = float(np.mean(np.any(is_right, axis=1)))
  return found


def of_arrays(
  heldout: Heldout | None, policy: Callable[[PyTree], PyTree]
) -> Callable[[PyTree], dict[str, float]] | None:
  """Returns what loop.run_steps measures, None for nothing.

  Args:
    heldout: see Heldout.of.
    policy: arrays of the run -> the policy's trained tree.
  """
  if heldout is None:
    return None
  return lambda x: heldout(policy(x), x.get("combination"))


def programs(
  settings: Any,
  world: World,
  sampler: Sampler,
  actors: Any,
  params: PyTree,
  steps: float | None,
) -> list[Program]:
  """Returns what answers and judges held-out prompts; [] where nothing does.

  Args:
    settings: of a pipeline that samples.
    world: where it runs, or is planned.
    sampler: of the answers that train.
    actors: everyone.
    params: trained tree of the policy.
    steps: of the run; None where only the data tell.
  """
  every = settings.schedule.eval_every
  if not every:
    return []
  mesh, data = world.mesh, settings.heldout
  count = rows_of(settings, world.ways)
  how = sampling(settings, count)
  plan, new = judge_plan(actors.plan, how.max_new_tokens), how.max_new_tokens
  sampler = dataclasses.replace(sampler, config=how, taps=plan.taps())
  rows = count * how.num_samples
  length = prompt_width(data, how, sampler.base) + new
  calls = None
  if steps is not None:
    calls = math.ceil(steps / every) * math.ceil(
      settings.evaluation.count / count
    )

  def judged(flow: Flow) -> tuple[tuple, dict]:
    drawn = flow[f"{LABEL}decoded"], mesh, rows
    samples, streams = abstract.samples_of(*drawn), abstract.streams_of(*drawn)
    return (actors.weights, {}, samples, None, streams), {}

  return [
    *sampler.programs(mesh, params, data, count, LABEL, calls),
    Program(
      name=f"{LABEL}judge",
      function=judge.make_judge(plan),
      arguments=judged,
      rows=rows,
      work=lambda: Passes(mesh).judge(plan, rows, length, new, plan.taps()),
      calls=calls,
    ),
    *text_readers.programs(actors.readers, world, rows, length, LABEL, calls),
  ]
