"""Answers that a model criticises by a principle and writes again: SL-CAI.

  prompt -> answer -> [principle, critique, revision] x rounds -> SFT data

The first stage of Constitutional AI (Bai et al. 2022, arXiv:2212.08073, section
3): prompts that provoke bad answers, a principle drawn for each revision, and
SFT of the model before any of this on the last revisions. The second stage is
labels by principles, configs/ai_feedback.py.

revisions.jsonl has the prompt with the last revision, as SFT reads it, and in
"stages" everything on the way: the answer, and of each round the principle, the
critique and the revision. Every text is kept in judge_cache.jsonl as it comes,
so that a run that was killed goes on by the same command. A text that is empty,
does not fit into the context or is not given ends its dialogue there: it stands
in unrevised.jsonl with the reason, and in no SFT data.

Left out: revisions without critiques; few-shot examples before the requests,
which models without instructions need; helpful samples beside them, which SFT
mixes in (data.source with several files).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import schema, terminal
from rlhf_jax.data import dataset, formats, transcripts, unread
from rlhf_jax.data.dataset import Data
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results
from rlhf_jax.programs import build, speakers
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards.ai import questions
from rlhf_jax.rewards.ai.endpoint import Endpoint
from rlhf_jax.rewards.ai.judging import Judge, Judging
from rlhf_jax.rewards.ai.questions import OURS, Messages
from rlhf_jax.rewards.ai.voices import FAILED, FAILURES, Reply, Saying
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError, check_least

RESULT_FILE = "constitution.json"
REVISIONS_FILE = "revisions.jsonl"
UNREVISED_FILE = "unrevised.jsonl"
EMPTY = "empty"
CHUNK = 64  # prompts that go through all rounds together


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Answers, criticised by principles and written again."""

  seed: int = 0  # of principles and of what is sampled
  model: Model = Model()
  policy: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run that answers; "": the model itself
  critic: str = stage_field(
    stages.POLICY
  )  # folder of the one that criticises and revises; "": the same as answers
  endpoint: Endpoint = Endpoint()  # criticises and revises in its place
  prompts: Data = Data(format="prompt")  # that provoke bad answers
  principles: str = OURS  # file of principles, one a line, or "ours"
  rounds: int = 1  # critiques and revisions of each answer; Bai et al. up to 4
  answer_tokens: int = 256  # of an answer or a revision at most
  critique_tokens: int = 256  # of a critique at most
  temperature: float = 1.0  # of all of them
  count: int = 0  # prompts, the first of all; 0: all
  batch_size: int = 16  # dialogues that are answered together
  cache: str = ""  # file of texts, which runs may share; "": in the workdir
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    check_least(
      self,
      rounds=1,
      answer_tokens=1,
      critique_tokens=1,
      temperature=0,
      count=0,
      batch_size=1,
    )


def check(settings: Settings, world: World) -> None:
  """Checks who answers and who criticises."""
  del world
  build.check_needed(settings.prompts, "prompts")
  unread.check(settings.prompts, "prompts", unread.PROMPTS)
  if settings.prompts.max_length != Data().max_length:
    raise FieldError(
      f"prompts.max_length={settings.prompts.max_length}: nothing reads it. A "
      "dialogue that does not fit into the context is counted. Leave it at "
      f"{Data().max_length}."
    )
  speakers.check(settings.endpoint, settings.critic, "critic")
  questions.principles(settings.principles)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


@dataclasses.dataclass
class Talk:
  """A prompt on its way.

  messages: the dialogue that is answered.
  said: the newest answer.
  stages: what happened, for the record.
  failure: why it ended early, "" if it did not.
  """

  number: int
  prompt: Any
  messages: Messages
  said: str = ""
  stages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  failure: str = ""

  def take(self, reply: Reply) -> str:
    """Returns the text of a reply; "" ends the talk, and says why."""
    if reply.failure:
      self.failure = reply.failure
    elif not reply.value:
      self.failure = EMPTY
    return "" if self.failure else reply.value


def run(settings: Settings, world: World) -> dict:
  """Answers, criticises, revises; returns what constitution.json holds."""
  path = world.workdir / RESULT_FILE
  runs = {"policy": settings.policy, "critic": settings.critic}
  origins = results.origins(runs, {})
  if path.is_file():
    results.check(path, origins, runs)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  talks = _talks(settings)
  cache = speakers.cache_of(settings.cache, world)
  answerer, critic = _speakers(settings, world, cache)
  known = questions.principles(settings.principles)
  total = len(talks) * (1 + 2 * settings.rounds)
  try:
    with terminal.Progress("revise", total, unit="text") as progress:
      _tell(progress, (answerer, critic))
      for first in range(0, len(talks), CHUNK):
        part = talks[first : first + CHUNK]
        _answer(settings, answerer, part)
        for n in range(settings.rounds):
          _revise(settings, critic, part, known, n)
      progress.update(total)
  finally:
    cache.close()
  chat = settings.prompts.chat
  kept = [_row(talk, chat) for talk in talks if not talk.failure]
  left = [
    {"prompt": t.prompt, "stages": t.stages, "failure": t.failure}
    for t in talks
    if t.failure
  ]
  if not kept:
    raise UserError(
      f"none of {len(talks)} prompts got through: "
      f"{_failures(talks)}. See judge_cache.jsonl; raise the tokens, or take "
      "a model that follows instructions."
    )
  if left:
    results.write_rows(world.workdir / UNREVISED_FILE, left)
  judges = {id(judge): judge for judge in (answerer, critic)}.values()
  costs = [judge.cost for judge in judges]
  facts = _numbers(talks) | {
    name: sum(cost[name] for cost in costs) for name in costs[0]
  }
  results.write(path, facts, origins, kept, REVISIONS_FILE)
  return facts


def _tell(progress: terminal.Progress, judges: Sequence[Judge]) -> None:
  """Has the texts of all judges shown."""
  done: dict[int, int] = {}

  def told(name: int, count: int) -> None:
    done[name] = count
    progress.update(sum(done.values()))

  for judge in judges:
    judge.tell(functools.partial(told, id(judge)))


def _talks(settings: Settings) -> list[Talk]:
  """Returns the prompts, as dialogues."""
  found, dropped = dataset.records(settings.prompts, None)
  dataset.report_dropped(
    "constitution", settings.prompts.source, len(found), dropped
  )
  found = found[: settings.count] if settings.count else found
  for record in found:
    if not hasattr(record, "prompt"):
      raise UserError(
        f"{record.where}: prompts.format={settings.prompts.format!r} has no "
        "prompts. Use 'prompt'."
      )
  talks = []
  for number, record in enumerate(found):
    messages = list(formats.prompt_messages(record))
    try:
      transcripts.write(messages)
    except ValueError as error:
      raise UserError(f"{record.where}: {error}") from error
    talks.append(Talk(number, record.prompt, messages))
  return talks


def _speakers(
  settings: Settings, world: World, cache: Any
) -> tuple[Judge, Judge]:
  """Returns who answers, and who criticises: often the same."""
  how, seed = Judging(batch_size=settings.batch_size), settings.seed

  def speaker(endpoint: Endpoint, folder: str) -> Judge:
    voice = speakers.open_voice(
      endpoint,
      folder,
      settings.model,
      world,
      settings.batch_size,
      settings.prompts.chat,
    )
    return Judge(voice, how, cache, seed)

  answerer = speaker(Endpoint(), settings.policy)
  if settings.endpoint.url or settings.critic not in ("", settings.policy):
    return answerer, speaker(settings.endpoint, settings.critic)
  return answerer, answerer


def _answer(settings: Settings, judge: Judge, talks: Sequence[Talk]) -> None:
  """Lets the policy answer."""
  how = Saying(settings.answer_tokens, settings.temperature, settings.seed)
  replies = judge.texts([talk.messages for talk in talks], how)
  for talk, reply in zip(talks, replies, strict=True):
    talk.said = talk.take(reply)
    talk.stages.append(
      {"answer": talk.said, "has_ended": reply.has_ended}
      if talk.said
      else {"failure": talk.failure}
    )


def _revise(
  settings: Settings,
  judge: Judge,
  talks: Sequence[Talk],
  known: list[str],
  number: int,
) -> None:
  """Lets the critic criticise and revise every answer once more.

  Args:
    settings: how.
    judge: the critic.
    talks: those that go on are changed.
    known: principles.
    number: of the round.
  """
  talks = [talk for talk in talks if not talk.failure]
  if not talks:
    return
  drawn = [
    questions.drawn(len(known), 1, settings.seed + number, talk.number)[0]
    for talk in talks
  ]
  asked = [
    [
      *talk.messages,
      questions.assistant(talk.said),
      questions.user(questions.filled(questions.CRITIQUE, principle=known[n])),
    ]
    for talk, n in zip(talks, drawn, strict=True)
  ]
  seed = settings.seed
  how = Saying(settings.critique_tokens, settings.temperature, seed)
  critiques = judge.texts(asked, how)
  for talk, n, reply in zip(talks, drawn, critiques, strict=True):
    stage = {"principle": n, "principle_text": known[n]}
    stage["critique"] = talk.take(reply)
    stage["critique_has_ended"] = reply.has_ended
    talk.stages.append(stage)
  going = [
    (talk, messages)
    for talk, messages in zip(talks, asked, strict=True)
    if not talk.failure
  ]
  how = Saying(settings.answer_tokens, settings.temperature, seed)
  requests = [
    [
      *messages,
      questions.assistant(talk.stages[-1]["critique"]),
      questions.user(questions.REVISION),
    ]
    for talk, messages in going
  ]
  revisions = judge.texts(requests, how) if requests else []
  for (talk, _), reply in zip(going, revisions, strict=True):
    text = talk.take(reply)
    talk.stages[-1] |= {"revision": text, "has_ended": reply.has_ended}
    talk.said = text if text else talk.said


def _row(talk: Talk, chat: bool) -> dict[str, Any]:
  """Returns a record of SFT data: a dialogue, or a transcript's two parts."""
  if chat:
    row: dict[str, Any] = {
      "messages": [*talk.messages, questions.assistant(talk.said)]
    }
  else:
    prompt = transcripts.write(talk.messages).lstrip()
    row = {"prompt": prompt, "response": f" {talk.said}"}
  return row | {"stages": talk.stages}


def _failures(talks: Sequence[Talk]) -> dict[str, int]:
  return {
    name: sum(talk.failure == name for talk in talks)
    for name in (*FAILURES, EMPTY)
  }


def _numbers(talks: Sequence[Talk]) -> dict[str, Any]:
  """Returns what happened.

  prompts; revised: those that got through; failures by name. changed: share of
  these whose last text is not the first answer. repeated: share whose last text
  is the critique itself, word for word. ended: share of last texts that ended
  before the limit. answer_characters, revision_characters: means. Few changed,
  or many repeated, say that the critic does not criticise.
  """
  done = [talk for talk in talks if not talk.failure]
  found = {"prompts": len(talks), "revised": len(done)} | _failures(talks)
  first = [talk.stages[0]["answer"] for talk in done]
  return found | {
    "changed": _mean(t.said != x for t, x in zip(done, first, strict=True)),
    "repeated": _mean(t.said == t.stages[-1]["critique"] for t in done),
    "ended": _mean(talk.stages[-1]["has_ended"] for talk in done),
    "answer_characters": _mean(map(len, first)),
    "revision_characters": _mean(len(talk.said) for talk in done),
  }


def _mean(values: Any) -> float:
  return float(np.mean([float(x) for x in values]))


def tell(settings: Settings, workdir: Path) -> None:
  """Prints what happened and what it cost."""
  facts = results.numbers(workdir / RESULT_FILE)
  rows = [
    [
      name.replace("_", " "),
      f"{x:,}" if isinstance(x, int) else terminal.decimal(x, 2),
    ]
    for name, x in facts.items()
  ]
  print(terminal.format_table(["", ""], rows))
  if facts[FAILED]:
    print(
      f"{facts[FAILED]} were not answered by the endpoint: delete "
      f"{workdir / RESULT_FILE} and give the same command to ask again."
    )
  kind = "messages" if settings.prompts.chat else "demonstration"
  print(f"\nSFT data: {workdir / REVISIONS_FILE} (format={kind!r})\n")


PIPELINE = Pipeline(
  name="constitution",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: f"answers, revised {settings.rounds} times",
  tell=tell,
)
