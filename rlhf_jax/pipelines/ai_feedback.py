"""A language model judges answers: labels for a reward model, and its audit.

  pairs    "which is better, A or B?" in both orders; label = sigma(s), soft
  scores   "from 1 to 10?" of every answer, in [-1, 1]

Constitutional AI's labels (Bai et al. 2022, arXiv:2212.08073) draw a principle
a comparison; RLAIF (Lee et al. 2023, arXiv:2309.00267) asks in both orders.
feedback.jsonl is data of format "ranking": a reward run on it is RLAIF. Where
the records have people's labels the judge is audited against them: agreement,
kappa, what position, length and its own answers are worth to it
(labelling/judge_audit.py). People's labels are never shown to the judge.

Every reply is kept in judge_cache.jsonl: a run that was killed goes on by the
same command and asks no question twice. Replies out of form leave no label; the
comparisons that have none stand in unlabelled.jsonl with the reason.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import schema, terminal
from rlhf_jax.data import dataset
from rlhf_jax.data.dataset import Data
from rlhf_jax.labelling import judge_audit
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results
from rlhf_jax.programs import build, judge_facts, judged_items, speakers
from rlhf_jax.programs.judged_items import Item
from rlhf_jax.programs.pipeline import Pipeline, optional_model, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards.ai import direct, questions
from rlhf_jax.rewards.ai.endpoint import Endpoint
from rlhf_jax.rewards.ai.judging import (
  BOTH,
  Judge,
  Judging,
  Mark,
  Pair,
  Verdict,
)
from rlhf_jax.rewards.ai.voices import FAILED, FAILURES
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError, check_choice, check_least

RESULT_FILE = "ai_feedback.json"
FEEDBACK_FILE = "feedback.jsonl"
UNLABELLED_FILE = "unlabelled.jsonl"
PAIRS, SCORES = "pairs", "scores"
_COUNTED = (
  *FAILURES,
  *("equal_answers", "calls", "paid_now", "prompt_tokens", "answer_tokens"),
)
CHUNK = 64  # items that are asked together


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """A language model judges answers that are there already."""

  seed: int = 0  # of the order of pairs, of principles and of reasons
  model: Model = optional_model()  # that judges; none where an endpoint does
  policy: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run that judges; "": the model itself
  endpoint: Endpoint = Endpoint()  # judges in the place of a model
  judging: Judging = Judging()
  kind: str = PAIRS  # what is asked: "pairs" or "scores"
  principles: str = (
    ""  # file of principles, one a line, or "ours": one is drawn
  )
  # for each comparison, in place of judging.rubric; "": the rubric
  principles_drawn: int = 1  # of them for each, over which logits are averaged
  pairs_of_prompt: int = 1  # compared pairs of answers to one prompt at most,
  # drawn; 0: all of them
  own: str = ""  # what records call the judge itself in "policies" or "policy",
  # for its preference for itself
  data: Data = Data()  # prompts with answers
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    check_choice("kind", self.kind, (PAIRS, SCORES))
    check_least(self, principles_drawn=1, pairs_of_prompt=0)
    if bool(self.model.source) == bool(self.endpoint.url):
      raise FieldError(
        f"model.source={self.model.source!r}, endpoint.url="
        f"{self.endpoint.url!r}: one of them judges. Set one, and leave the "
        "other ''."
      )
    if self.endpoint.url:
      direct.check_unread(self.judging, "judging.")
    if self.principles and self.judging.rubric != questions.RUBRIC:
      raise FieldError(
        f"judging.rubric={self.judging.rubric[:30]!r}... with principles="
        f"{self.principles!r}: the principles stand in its place. Set one."
      )
    if self.principles_drawn > 1 and not self.principles:
      raise FieldError(
        f"principles_drawn={self.principles_drawn} with principles='': there "
        "is the rubric alone. Set principles='ours', or a file."
      )
    if self.kind == SCORES:
      usual = {f.name: f.default for f in dataclasses.fields(Judging)}
      for name in ("orders", "reasoning"):
        if getattr(self.judging, name) != usual[name]:
          raise FieldError(
            f"judging.{name}={getattr(self.judging, name)!r} with kind="
            f"'scores': is of pairs. Leave it at {usual[name]!r}."
          )
      for name, value in (
        ("principles_drawn", 1),
        ("pairs_of_prompt", 1),
        ("own", ""),
      ):
        if getattr(self, name) != value:
          raise FieldError(
            f"{name}={getattr(self, name)!r} with kind='scores': is of pairs. "
            f"Leave it at {value!r}."
          )


def check(settings: Settings, world: World) -> None:
  """Checks who judges, and what is judged."""
  del world
  build.check_needed(settings.data, "data")
  speakers.check(settings.endpoint, settings.policy, "policy")
  questions.template(settings.judging.template, settings.kind)
  _principles(settings)
  unread = {
    f.name: f.default
    for f in dataclasses.fields(Data)
    if f.name in ("chat", "end_token", "train_on_prompt", "pack", "max_length")
  }
  for name, usual in unread.items():
    if getattr(settings.data, name) != usual:
      raise FieldError(
        f"data.{name}={getattr(settings.data, name)!r}: nothing reads it, the "
        f"judge is shown texts. Leave it at {usual!r}."
      )


def _principles(settings: Settings) -> list[str]:
  """Returns what is judged by.

  Raises:
    FieldError: fewer principles than are drawn, or no such file.
  """
  if not settings.principles:
    return [settings.judging.rubric]
  found = questions.principles(settings.principles)
  if len(found) < settings.principles_drawn:
    raise FieldError(
      f"principles_drawn={settings.principles_drawn}: {settings.principles} "
      f"has {len(found)}. Lower it, or write more."
    )
  return found


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def run(settings: Settings, world: World) -> dict:
  """Judges answers; returns what ai_feedback.json holds."""
  path = world.workdir / RESULT_FILE
  runs = {"policy": settings.policy}
  origins = results.origins(runs, {})
  if path.is_file():
    results.check(path, origins, runs)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  found, dropped = dataset.records(settings.data, None)
  dataset.report_dropped("judge", settings.data.source, len(found), dropped)
  items, equal = judged_items.items_of(found, settings.data), 0
  if settings.kind == SCORES:
    items = judged_items.shuffled(items, settings.seed)
  else:
    items, equal = judged_items.pairs_of(
      items, settings.pairs_of_prompt, settings.seed
    )
    if not items:
      raise UserError(
        f"{settings.data.source}: all pairs are of equal answers. Give others."
      )
  voice = speakers.open_voice(
    settings.endpoint,
    settings.policy,
    settings.model,
    world,
    settings.judging.batch_size,
  )
  cache = speakers.cache_of(settings.judging.cache, world)
  judge = Judge(voice, settings.judging, cache, settings.seed)
  try:
    rows, told = _judged(settings, judge, items)
  finally:
    cache.close()
  facts = {"judge": voice.name, "kind": settings.kind, "equal_answers": equal}
  facts |= (
    judge_facts.counts(told)
    | judge.cost
    | judge_facts.audit(
      items, rows, told, orders=settings.judging.orders, own=settings.own
    )
  )
  labelled = [row for row, x in zip(rows, told, strict=True) if not x.failure]
  left = [
    row | {"failure": x.failure}
    for row, x in zip(rows, told, strict=True)
    if x.failure
  ]
  if not labelled:
    raise UserError(
      f"{voice.name}: none of {len(items)} replies was in form "
      f"({judge_facts.counts(told)}). Lower judging.least_mass, or take a "
      "judge that follows instructions."
    )
  if left:
    results.write_rows(world.workdir / UNLABELLED_FILE, left)
  results.write(path, facts, origins, labelled, FEEDBACK_FILE)
  return facts


def _judged(
  settings: Settings, judge: Judge, items: list[Item]
) -> tuple[list[dict], list[Verdict | Mark]]:
  """Returns records and what was said, an item each; asked in chunks."""
  known = _principles(settings)
  judge_part = _pairs if settings.kind == PAIRS else _scores
  rows, told = [], []
  total = _questions(settings, items)
  with terminal.Progress("judge", total, unit="question") as progress:
    judge.tell(lambda done: progress.update(min(done, total)))
    for first in range(0, len(items), CHUNK):
      part = items[first : first + CHUNK]
      drawn = [
        questions.drawn(
          len(known), settings.principles_drawn, settings.seed, first + n
        )
        for n in range(len(part))
      ]
      found = judge_part(judge, part, drawn, known)
      for item, numbers, (said, row) in zip(part, drawn, found, strict=True):
        more = {"principles": numbers} if settings.principles else {}
        named = {"annotator": f"ai:{judge.voice.name}"} | more
        rows.append(item.row() | named | row)
        told.append(said)
    progress.update(total)
  return rows, told


def _questions(settings: Settings, items: list[Item]) -> int:
  """Returns how many questions are asked, those with equal texts too."""
  if settings.kind == SCORES:
    return sum(len(item.answers) for item in items)
  times = (1 + (settings.judging.orders == BOTH)) * settings.principles_drawn
  return len(items) * times * (1 + settings.judging.reasoning)


def _pairs(
  judge: Judge, items: list[Item], drawn: list[list[int]], known: list[str]
) -> list[tuple[Verdict, dict]]:
  """Returns (verdict, fields of the record) of pairs."""
  verdicts = judge.pairs(
    [
      Pair(item.text, item.answers, tuple(known[n] for n in numbers))
      for item, numbers in zip(items, drawn, strict=True)
    ]
  )
  return [
    (verdict, _pair_row(item, verdict, judge.settings.orders))
    for item, verdict in zip(items, verdicts, strict=True)
  ]


def _pair_row(item: Item, verdict: Verdict, orders: str) -> dict[str, Any]:
  row: dict[str, Any] = {}
  if verdict.label is not None:
    p = verdict.label
    row = {"label": p, "ranks": [int(p < 0.5), int(p > 0.5)]}
    row["votes"], row["mass"] = list(verdict.votes), verdict.mass
  if verdict.first is not None:
    row["logits"] = [
      x for x in (verdict.first, verdict.swapped) if x is not None
    ]
  if orders != BOTH:
    row["shown"] = [0, 1]
  if any(verdict.reasons):
    row["reason"] = "\n\n".join(verdict.reasons)
  if item.label is not None:
    row["people_label"] = item.label
  return row


def _scores(
  judge: Judge, items: list[Item], drawn: list[list[int]], known: list[str]
) -> list[tuple[Mark, dict]]:
  """Returns (the worst mark of its answers, fields of the record) of items."""
  asked = [
    (item.text, answer, known[number])
    for item, (number,) in zip(items, drawn, strict=True)
    for answer in item.answers
  ]
  marks = iter(judge.scores(*map(list, zip(*asked, strict=True))))
  result = []
  for item in items:
    own = [next(marks) for _ in item.answers]
    failed = next((mark for mark in own if mark.failure), None)
    mass = float(np.mean([mark.mass for mark in own]))
    said = failed if failed else Mark(own[0].score, mass)
    row = {"scores": [mark.score for mark in own]}
    if len(own) == 2 and item.label is not None:
      row["people_label"] = item.label
    result.append((said, row))
  return result


def tell(settings: Settings, workdir: Path) -> None:
  """Prints what the judge did, what it cost, and its audit."""
  del settings
  facts = results.numbers(workdir / RESULT_FILE)
  print(f"\n{facts['judge']} judged {facts['labelled']} of {facts['items']}")
  print(
    terminal.format_table(
      ["", "", "95 % or error"], judge_audit.table(facts, _COUNTED)
    )
  )
  if facts[FAILED]:
    print(
      f"{facts[FAILED]} were not answered by the endpoint: delete "
      f"{workdir / RESULT_FILE} and give the same command to ask again."
    )
  data = workdir / FEEDBACK_FILE
  print(f"labels: {data} (format='ranking')\n")


PIPELINE = Pipeline(
  name="ai_feedback",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: f"a model judges {settings.kind}",
  tell=tell,
)
