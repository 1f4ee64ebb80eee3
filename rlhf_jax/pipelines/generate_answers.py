"""Answers of a policy to prompts: all of them, or the best of n by a judge.

    each prompt: num_samples answers; a reward model, a verifier or a function
                 scores them; all are kept, or the one that the judge prefers

answers.jsonl is data for further stages: a line is what `format="messages"` or
"demonstration" reads, with the scores beside it. So this is best-of-n for use,
distillation from a larger policy, and one round of rejection sampling by hand.

A run that was stopped goes on behind the last batch that is done.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import dataset, formats
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import RatedText
from rlhf_jax.evaluation import win_rate
from rlhf_jax.models import roles
from rlhf_jax.models.pretrained import Base
from rlhf_jax.pipelines import evaluate_many, results
from rlhf_jax.programs import (
  answer_parts,
  answered,
  build,
  compared,
  heldout,
)
from rlhf_jax.programs.answer_numbers import SCORES
from rlhf_jax.programs.answers import Answers
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards import texts
from rlhf_jax.runs import answerers, stages
from rlhf_jax.schema import FieldError, check_choice, check_least

RESULT_FILE = "generation.json"
ANSWERS_FILE = "answers.jsonl"
NAME = "policy"


@dataclasses.dataclass(frozen=True)
class Settings(answered.Judged):
  """Answers of one policy, all of them or the best of n."""

  policy: str = stage_field(
    stages.POLICY, answers=True
  )  # folder of the finished policy run that answers; "": the model itself;
  # FOLDER@best_of=16: the best of so many answers, by `choose`, or "": by the
  # reward model, or what judges texts
  count: int = 0  # prompts that are answered, the first of all; 0: all
  skip: int = 0  # prompts that are passed over; behind the last comes the first
  choose: str = ""  # who chooses the answer to a prompt that is kept: "proxy"
  # (the reward model), "gold" or "verifier" (or function); "": all are kept

  def __post_init__(self) -> None:
    super().__post_init__()
    check_least(self, count=0, skip=0, batch_size=1)
    check_choice("choose", self.choose, ("", *SCORES))
    if not self.choose:
      return
    if self.choose not in self.judges:
      raise FieldError(
        f"choose={self.choose!r}: nobody judges so. Set "
        f"{'reward' if self.choose == 'proxy' else self.choose}, or choose=''."
      )
    if self.generate.num_samples < 2 and self.draws < 2:
      raise FieldError(
        f"choose={self.choose!r} with generate.num_samples="
        f"{self.generate.num_samples}: there is nothing to choose from. Set "
        "generate.num_samples >= 2, or choose=''."
      )

  @property
  def draws(self) -> int:
    """Answers of which the policy itself says the best; 1 for any policy."""
    return answerers.split(self.policy)[1]

  @property
  def judges(self) -> list[str]:
    """Names of SCORES that are given."""
    given = {
      "proxy": bool(self.reward),
      "gold": bool(self.gold),
      "verifier": self.text_judge is not None,
    }
    return [name for name in SCORES if given[name]]

  @property
  def answering(self) -> list[str]:
    return [self.policy] if self.policy else []

  @property
  def runs(self) -> dict[str, str]:
    """Field -> folder of a finished stage, or ""."""
    found = {n: getattr(self, n) for n in ("policy", "reward", "gold")}
    return found | {"policy": answerers.split(self.policy)[0]}


def _wire(settings: Settings, world: World, base: Base) -> compared.Compared:
  world.assume(stages.POLICY, roles.Role(model=base.config))
  policy = compared.model_policy(base)
  folder, _ = answerers.split(settings.policy)
  if folder:
    policy = stages.load(folder, stages.POLICY, base, world)
  draws = {NAME: settings.draws}
  return compared.wire(settings, world, base, {NAME: policy}, draws)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns the phase that a plan knows without data."""
  build.check_rows(world, settings.batch_size, "batch_size")
  return [_wire(settings, world, world.base(settings.model)).phase]


def run(settings: Settings, world: World) -> dict:
  """Answers prompts; returns what generation.json holds."""
  path = world.workdir / RESULT_FILE
  origins = results.origins(settings.runs, settings.code())
  if path.is_file():
    results.check(path, origins, settings.runs)
    return results.numbers(path)
  base = world.base(settings.model)
  world.workdir.mkdir(parents=True, exist_ok=True)
  wired = _wire(settings, world, base)
  records, _ = dataset.records(settings.prompts, base.tokenizer)
  count = settings.count if settings.count else len(records)
  prompts = heldout.prompt_batches(
    settings.prompts,
    settings.generate.max_new_tokens,
    count,
    settings.batch_size,
    base,
    "count",
    "generate",
    settings.skip,
  )
  records = [records[(settings.skip + i) % len(records)] for i in range(count)]
  content = [*answer_parts.content_of(prompts), *records]
  parts = answer_parts.Parts(
    world.workdir, answer_parts.identity(settings, origins, content)
  )
  found = answered.answer(settings, wired, prompts, base, world.mesh, parts)
  said = found[NAME].first(count)
  kept = chosen(said, settings.choose)
  rows = [_row(settings.prompts, records, said, i) for i in kept]
  right = texts.correct_above(settings.text_judge)
  facts = _numbers(said, kept, right)
  results.write(path, facts, origins, rows, ANSWERS_FILE)
  parts.done()
  return facts


def chosen(said: Answers, judge: str) -> np.ndarray:
  """Returns the numbers of the answers that are kept.

  Args:
    said: all of them.
    judge: a name of SCORES, whose best answer to each prompt is kept, the first
      of equals; "" for all.
  """
  if not judge:
    return np.arange(len(said.texts))
  scores = said.by_prompt(said.scores[SCORES[judge]])
  first = np.arange(len(scores)) * said.group
  return first + np.argmax(scores, axis=1)


def _row(data: Data, records: list, said: Answers, i: int) -> dict[str, Any]:
  """Returns an answer as a record of data, with its scores."""
  record, text = records[i // said.group], said.texts[i]
  if isinstance(record, RatedText):
    row: dict[str, Any] = {"prompt": said.prompts[i], "response": text}
  elif data.chat and _is_dialogue(record):
    answer = {"role": "assistant", "content": text}
    row = {"messages": [*formats.prompt_messages(record), answer]}
  else:
    row = {"prompt": formats.prompt_text(record), "response": text}
  reference = getattr(record, "reference", None)
  if reference is not None:
    row["reference"] = reference
  row |= {
    shown: float(said.scores[name][i])
    for shown, name in SCORES.items()
    if name in said.scores
  }
  return row | {
    "sample": int(i % said.group),
    "length": int(said.lengths[i]),
    "has_ended": bool(said.ended[i]),
  }


def _is_dialogue(record: Any) -> bool:
  """Says whether a prompt is messages, and no text."""
  if getattr(record, "messages", None) is not None:
    return True
  return not isinstance(record.prompt, str)


def _numbers(
  said: Answers, kept: np.ndarray, correct_above: float | None
) -> dict[str, Any]:
  """Returns what the answers are worth.

  The numbers of evaluate_many.numbers_of, of all answers; answers: how many
  were kept; kept_JUDGE: their mean score.
  """
  facts = evaluate_many.numbers_of({NAME: said}, False, correct_above)
  found = {
    "prompts": facts["evaluation_prompts"],
    "samples": facts["evaluation_samples"],
    "answers": len(kept),
  } | facts["policies"][NAME]
  if len(kept) < len(said.texts):
    for shown, name in SCORES.items():
      if name in said.scores:
        scores = np.asarray(said.scores[name], np.float64)[kept]
        mean = win_rate.mean_with_error(scores)
        found[f"kept_{shown}"] = mean.value
        found[f"kept_{shown}_standard_error"] = mean.standard_error
  return found


def tell(settings: Settings, workdir: Path) -> None:
  """Prints the numbers, and how an SFT run reads the answers."""
  del settings
  evaluate_many.show({NAME: results.numbers(workdir / RESULT_FILE)})


def check(settings: Settings, world: World) -> None:
  """Checks settings together and against the devices."""
  answered.check(settings, world)
  if settings.draws > 1:
    answered.check_draws(settings, {settings.policy: settings.draws})


PIPELINE = Pipeline(
  name="generate_answers",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: (
    f"{settings.count if settings.count else 'all'} prompts, "
    f"{settings.generate.num_samples} answers to each"
  ),
  tell=tell,
)
