"""Ghost Attention: dialogues that teach to keep what was asked at first.

  sample   the instruction stands in every turn of the user's, and the policy
           itself answers, turn by turn
  write    the instruction stays in the first turn alone
  train    SFT on the last answer only (data.last_answer_only)

Touvron et al. 2023 (Llama 2), arXiv:2307.09288, section 3.3: so the tokens of
the earlier answers, which were written under the instruction, are context and
no target. Instructions are drawn from a list of attributes, combined, and in
half of the cases short (data/attributes.py).

dialogues.jsonl is data of format "messages", with what every answer held. Each
reply is kept in judge_cache.jsonl as it comes: a run that was killed goes on by
the same command. Left out: persons to act as, which need a judge.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import schema, terminal
from rlhf_jax.data import attributes, dataset, formats, unread
from rlhf_jax.data.attributes import Instruction
from rlhf_jax.data.dataset import Data
from rlhf_jax.evaluation.behaviour import persistence
from rlhf_jax.models.pretrained import Model
from rlhf_jax.parallel import mesh as mesh_lib
from rlhf_jax.pipelines import results
from rlhf_jax.programs import build, speakers
from rlhf_jax.programs.pipeline import Pipeline, stage_field
from rlhf_jax.programs.program import Phase
from rlhf_jax.programs.world import World
from rlhf_jax.rewards.ai.endpoint import Endpoint
from rlhf_jax.rewards.ai.judging import Judge, Judging
from rlhf_jax.rewards.ai.questions import Messages, assistant, user
from rlhf_jax.rewards.ai.voices import FAILURES, Saying
from rlhf_jax.runs import stages
from rlhf_jax.schema import FieldError, UserError, check_least

RESULT_FILE = "ghost_attention.json"
DIALOGUES_FILE = "dialogues.jsonl"
EMPTY = "empty"


@dataclasses.dataclass(frozen=True)
class Settings(schema.Settings):
  """Dialogues whose instruction stands in the first turn alone."""

  seed: int = 0  # of instructions, of the order of questions, of the answers
  model: Model = Model()
  policy: str = stage_field(
    stages.POLICY
  )  # folder of the finished policy run that answers; "": the model itself
  prompts: Data = Data(format="prompt")  # dialogues, whose turns of the user's
  # are asked; and single questions, which are put together
  attributes: str = attributes.OURS  # what is asked for: "ours", or a file
  combine: int = 2  # attributes of an instruction at most
  turns: int = 4  # of the user's in a dialogue
  count: int = 0  # dialogues; 0: as many as the prompts make
  least: float = 0.0  # share of the attributes that the last answer must have,
  # or the dialogue is left out; 0 keeps all, as Llama 2 does
  answer_tokens: int = 128  # of an answer at most
  temperature: float = 1.0  # of the answers
  batch_size: int = 16  # dialogues that are answered together
  cache: str = ""  # file of texts, which runs may share; "": in the workdir
  mesh: mesh_lib.Config = mesh_lib.Config()

  def __post_init__(self) -> None:
    schema.check_seed(self.seed)
    check_least(self, combine=1, turns=2, count=0, answer_tokens=1)
    check_least(self, temperature=0, batch_size=1)
    if not 0.0 <= self.least <= 1.0:
      raise FieldError(f"least={self.least}: a share, in [0, 1].")


@dataclasses.dataclass
class Talk:
  """A dialogue on its way.

  asked: turns of the user's, without the instruction.
  said: the answers so far.
  failure: why it ended early, "" if it did not.
  """

  instruction: Instruction
  asked: Sequence[str]
  said: list[str] = dataclasses.field(default_factory=list)
  failure: str = ""

  def told(self, count: int) -> Messages:
    """Returns the dialogue up to a turn of the user's; count: its number.

    The instruction is in every turn, as for sampling.
    """
    texts = [
      persistence.first_turn(self.instruction.text, text)
      for text in self.asked[:count]
    ]
    return interleaved(texts, self.said[: count - 1])

  def kept(self) -> Messages:
    """Returns the whole dialogue, the instruction in its first turn alone."""
    first = persistence.first_turn(self.instruction.text, self.asked[0])
    return interleaved([first, *self.asked[1:]], self.said)


def interleaved(asked: Sequence[str], said: Sequence[str]) -> Messages:
  """Returns turns of the user's, and the answers between or behind them."""
  messages: Messages = []
  for n, text in enumerate(asked):
    messages.append(user(text))
    if n < len(said):
      messages.append(assistant(said[n]))
  return messages


def check(settings: Settings, world: World) -> None:
  """Checks what is asked, and for what."""
  del world
  build.check_needed(settings.prompts, "prompts")
  unread.check(settings.prompts, "prompts", unread.PROMPTS)
  for name in ("max_length", "chat", "max_prompt_tokens"):
    value, usual = getattr(settings.prompts, name), getattr(Data(), name)
    if value != usual:
      raise FieldError(
        f"prompts.{name}={value!r}: nothing reads it, questions are put "
        f"together as texts. Leave it at {usual!r}."
      )
  speakers.check(Endpoint(), settings.policy, "policy")
  attributes.read(settings.attributes)


def phases(settings: Settings, world: World) -> list[Phase]:
  """Returns none: only the data tell what is read."""
  del settings, world
  return []


def _turns(settings: Settings) -> list[list[str]]:
  """Returns the turns of the user's of each dialogue.

  First of the dialogues that have enough, then of single questions, in an order
  drawn at random. What makes none is counted and printed.

  Raises:
    UserError: too few questions, or dialogues of too few turns.
  """
  found, dropped = dataset.records(settings.prompts, None)
  source = settings.prompts.source
  turns = settings.turns
  given = [
    [m["content"] for m in formats.prompt_messages(x) if m["role"] == "user"]
    for x in found
  ]
  asked = [x[:turns] for x in given if len(x) >= turns]
  single = [x[0] for x in given if len(x) == 1]
  short = len(given) - len(asked) - len(single)
  order = np.random.default_rng(settings.seed).permutation(len(single))
  texts = [single[i] for i in order]
  starts = range(0, len(texts) - turns + 1, turns)
  asked += [texts[n : n + turns] for n in starts]
  lost = {
    f"dialogues of fewer than turns={turns} of the user's": short,
    "single questions left over": len(single) % turns,
  }
  dropped += Counter(lost)  # without those of 0
  left = len(found) - sum(lost.values())
  dataset.report_dropped("ghost attention", source, left, dropped)
  if not asked or len(asked) < settings.count:
    raise UserError(
      f"{source}: makes {len(asked)} dialogues of turns={turns}, and count="
      f"{settings.count}; {short} dialogues have fewer turns, and "
      f"{len(single) % turns} single questions are left over. Give more "
      "questions, or lower turns or count."
    )
  return asked[: settings.count] if settings.count else asked


def run(settings: Settings, world: World) -> dict:
  """Samples dialogues; returns what ghost_attention.json holds."""
  path = world.workdir / RESULT_FILE
  runs = {"policy": settings.policy}
  origins = results.origins(runs, {})
  if path.is_file():
    results.check(path, origins, runs)
    return results.numbers(path)
  world.workdir.mkdir(parents=True, exist_ok=True)
  asked = _turns(settings)
  instructions = attributes.drawn(
    attributes.read(settings.attributes),
    len(asked),
    settings.combine,
    settings.seed,
  )
  talks = [Talk(*x) for x in zip(instructions, asked, strict=True)]
  cache = speakers.cache_of(settings.cache, world)
  try:
    _answer(settings, world, cache, talks)
  finally:
    cache.close()
  done = [talk for talk in talks if not talk.failure]
  held = np.array([[t.instruction.holds(x) for x in t.said] for t in done])
  kept = [
    (talk, row)
    for talk, row in zip(done, held, strict=True)
    if row[-1] >= settings.least
  ]
  if not kept:
    raise UserError(
      f"none of {len(talks)} dialogues is left: {_failures(talks)}, and the "
      f"last answer of {len(done)} is below least={settings.least}. Lower it, "
      "raise answer_tokens, or take a policy that follows instructions."
    )
  facts = {"dialogues": len(talks), "kept": len(kept)} | _failures(talks)
  facts["held"] = held.mean(axis=0).tolist()
  rows = [
    {"messages": talk.kept(), "instruction": talk.instruction.text}
    | {"attributes": [[x.kind, x.value] for x in talk.instruction.attributes]}
    | {"held": row.tolist()}
    for talk, row in kept
  ]
  results.write(path, facts, origins, rows, DIALOGUES_FILE)
  return facts


def _answer(
  settings: Settings, world: World, cache: Any, talks: list[Talk]
) -> None:
  """Lets the policy answer all turns of all dialogues."""
  voice = speakers.open_voice(
    Endpoint(), settings.policy, settings.model, world, settings.batch_size
  )
  judge = Judge(
    voice, Judging(batch_size=settings.batch_size), cache, settings.seed
  )
  how = Saying(settings.answer_tokens, settings.temperature, settings.seed)
  total = len(talks) * settings.turns
  with terminal.Progress("ghost attention", total, unit="answer") as progress:
    judge.tell(lambda done: progress.update(min(done, total)))
    for turn in range(1, settings.turns + 1):
      going = [talk for talk in talks if not talk.failure]
      replies = judge.texts([talk.told(turn) for talk in going], how)
      for talk, reply in zip(going, replies, strict=True):
        if reply.failure or not reply.value:
          talk.failure = reply.failure if reply.failure else EMPTY
        else:
          talk.said.append(reply.value)
    progress.update(total)


def _failures(talks: Sequence[Talk]) -> dict[str, int]:
  return {
    name: sum(talk.failure == name for talk in talks)
    for name in (*FAILURES, EMPTY)
  }


def tell(settings: Settings, workdir: Path) -> None:
  """Prints what was made, and how it is trained on."""
  facts = results.numbers(workdir / RESULT_FILE)
  rows = [[f"held in turn {n}", x] for n, x in enumerate(facts["held"], 1)]
  print(
    terminal.format_table(
      ["", "share"], [[name, terminal.decimal(x, 3)] for name, x in rows]
    )
  )
  lost = {name: facts[name] for name in (*FAILURES, EMPTY) if facts[name]}
  print(f"\n{facts['kept']} of {facts['dialogues']} dialogues {lost or ''}")
  print(
    f"SFT data: {workdir / DIALOGUES_FILE} (format='messages', chat=True, "
    "last_answer_only=True)\n"
  )


PIPELINE = Pipeline(
  name="ghost_attention",
  Settings=Settings,
  run=run,
  phases=phases,
  check=check,
  result=RESULT_FILE,
  describe=lambda settings: f"dialogues of {settings.turns} turns",
  tell=tell,
)
