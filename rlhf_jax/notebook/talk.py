"""A talk with one policy, or with two side by side: lines in, answers out.

Two policies answer the same dialogue with the same random key. It goes on with
the first one's answer, or with the one that /better names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from rlhf_jax import generate
from rlhf_jax.data import pieces, rendering, retold, streams
from rlhf_jax.data.examples import Prompt
from rlhf_jax.imported import nearest
from rlhf_jax.notebook import streaming
from rlhf_jax.notebook.dialogue import Dialogue, append, fitted
from rlhf_jax.notebook.models import Policy, RewardModel
from rlhf_jax.notebook.typed import Stopping, visible
from rlhf_jax.rewards.reader import Reader
from rlhf_jax.schema import UserError, check_seed

COMMANDS = {
  "/reset": "begin a new dialogue",
  "/undo": "take back the last turn",
  "/better": "1 or 2: that answer is better; the dialogue goes on with it",
  "/save": "[FILE]: add the dialogue to a file of JSON lines",
  "/seed": "N: begin a new dialogue with another seed",
  "/help": "this list; a line that begins with // begins with /",
  "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclasses.dataclass(frozen=True, eq=False)
class Speaker:
  """A policy that answers.

  name: as it was given.
  around: what its chat template writes around an answer.
  draws: answers of which it says the one that the reward model prefers.
  """

  name: str
  streamer: streaming.Streamer
  around: tuple[str, str]
  draws: int = 1

  @property
  def tokenizer(self) -> Any:
    """Of the policy."""
    return self.streamer.policy.base.tokenizer


@dataclasses.dataclass(eq=False)
class Talk:
  """A talk, under way.

  speakers: one or two.
  reader: the reward model that scores, or None.
  seed: of the dialogue.
  save, pairs: files, "" for none.
  is_one_dialogue: each line is a turn, and not a prompt on its own.
  is_terminal: a person types.
  has_colours: what is shown may be coloured.
  answers: of all speakers to the last turn.
  """

  speakers: list[Speaker]
  dialogue: Dialogue
  reader: Reader | None
  seed: int
  save: str
  pairs: str
  is_one_dialogue: bool
  is_terminal: bool
  has_colours: bool
  answers: list[retold.Said] = dataclasses.field(default_factory=list)
  _saved: Any = None

  @staticmethod
  def of(
    policies: Sequence[tuple[str, Any]],
    config: generate.Config,
    *,
    reward: Any = None,
    draws: Mapping[str, int] | None = None,
    system: str = "",
    is_plain: bool = False,
    **how: Any,
  ) -> Talk:
    """Returns a talk with policies by name.

    Args:
      policies: one or two.
      config: how they are sampled.
      reward: a RewardModel of any tokenizer, or None.
      draws: of each policy, answers of which it says the best; needs a reward.
      system: prompt, "" for none.
      is_plain: no chat template.
      **how: further fields of Talk.

    Raises:
      UserError: one is no policy, or cannot be asked so.
    """
    check_seed(how["seed"])
    for name, policy in policies:
      if not isinstance(policy, Policy):
        raise UserError(
          f"{name}: a reward model, which says nothing. Name it as --reward, "
          "and a policy to talk to."
        )
    if reward is not None and not isinstance(reward, RewardModel):
      raise UserError(
        "--reward: a policy, which scores nothing. Name a reward run."
      )
    without = [name for name, policy in policies if not _has_template(policy)]
    is_plain = is_plain or bool(without)
    if is_plain and system:
      why = f"{without[0]} has none" if without else "--plain uses none"
      raise UserError(
        f"--system={system!r}: a chat template writes it, and {why}. Leave it "
        "out."
      )
    speakers = [
      dataclasses.replace(
        _speaker(name, policy, config, system, is_plain),
        draws=1 if draws is None else draws[name],
      )
      for name, policy in policies
    ]
    talk = Talk(
      speakers, Dialogue(system, is_plain), _reader(reward, is_plain), **how
    )
    if without:
      talk.note(
        f"{without[0]} has no chat template: what you write is a text that is "
        "gone on with, as it is"
      )
    return talk

  def run(self) -> None:
    """Answers line after line until there are no more."""
    if self.is_terminal:
      self.note("Ctrl-D ends, Ctrl-C stops an answer, /help lists commands")
    try:
      for line in self._lines():
        if not self.hear(line):
          break
    finally:
      self._end_dialogue()

  def _lines(self) -> Iterator[str]:
    if not self.is_terminal:
      for line in sys.stdin:
        yield line.rstrip("\r\n")
      return
    with contextlib.suppress(ImportError):
      import readline  # noqa: F401  (arrow keys, earlier lines)
    while True:
      try:
        yield input("> ")
      except KeyboardInterrupt:
        sys.stdout.write("\n")
        self.note("Ctrl-D ends")
      except EOFError:
        sys.stdout.write("\n")
        return

  def hear(self, line: str) -> bool:
    """Answers a line, or obeys it; returns whether the talk goes on."""
    if not line.strip():
      return True
    if line.startswith("/") and not line.startswith("//"):
      command, _, rest = line.strip().partition(" ")
      try:
        return self._obey(command, rest.strip())
      except UserError as error:
        self.note(str(error))
        return True
    try:
      self.turn(line[1:] if line.startswith("//") else line)
    except UserError as error:
      self.note(str(error))
    if not self.is_one_dialogue:
      self._new()
    return True

  def turn(self, asked: str) -> None:
    """Draws and shows the answers of all speakers to a turn.

    Raises:
      UserError: the turn is too long, or a template refuses it.
    """
    before = self.dialogue.before(asked)
    prompts = [
      fitted(before, speaker.tokenizer, speaker.streamer.room)
      for speaker in self.speakers
    ]
    self.answers = []
    for number, speaker in enumerate(self.speakers):
      ids, is_cut = prompts[number]
      if len(self.speakers) > 1:
        self._write(f"[{number + 1}] ", BOLD)
        self._write(f"{speaker.name}\n", DIM)
      if is_cut:
        self.note("the dialogue is too long: its begin was left out")
      if speaker.draws > 1:
        self.answers.append(self._best(speaker, ids, before))
      else:
        self.answers.append(self._answer(speaker, ids))
    if self.reader is not None:
      self._show_rewards(before)
    if self.answers[0].text.strip():
      self.dialogue.turns.append((asked, self.answers[0].text))
    else:
      self.note("the answer is empty, so the turn is not kept")

  def _answer(self, speaker: Speaker, prompt: list[int]) -> retold.Said:
    """Draws and shows an answer."""
    key = streaming.key_of(self.seed, len(self.dialogue.turns))
    streamer, is_done = speaker.streamer, False
    shown = _pieces(speaker, prompt)
    with Stopping() as stopping:
      for token, is_end in streamer.tokens(prompt, key):
        is_done = is_end
        self._write(shown.add(token))
        if stopping.is_asked:
          break
    said, rest = shown.finish(has_ended=is_done)
    self._write(f"{rest}\n")
    if stopping.is_asked and not is_done:
      self.note("stopped")
    elif not is_done:
      self.note(f"cut after --max-new-tokens={streamer.config.max_new_tokens}")
    return said

  def _best(
    self, speaker: Speaker, prompt: list[int], before: Any
  ) -> retold.Said:
    """Draws several answers, and shows the one that the reward model prefers.

    The first is drawn with the key of a single one.
    """
    key = streaming.key_of(self.seed, len(self.dialogue.turns))
    drawn = []
    with Stopping() as stopping:
      for number in range(speaker.draws):
        of = key if number == 0 else jax.random.fold_in(key, number)
        shown, text, is_done = _pieces(speaker, prompt), "", False
        for token, is_end in speaker.streamer.tokens(prompt, of):
          text, is_done = text + shown.add(token), is_end
          if stopping.is_asked:
            break
        said, rest = shown.finish(has_ended=is_done)
        drawn.append((said, text + rest))
        if stopping.is_asked:
          break
    _, found = self._scores(before, [said for said, _ in drawn])
    best = max(range(len(drawn)), key=lambda i: found[i])
    said, text = drawn[best]
    self._write(f"{text}\n")
    self.note(f"the best of {len(drawn)}, number {best + 1}")
    return said

  def _scores(
    self, before: Any, answers: Sequence[retold.Said]
  ) -> tuple[list, Any]:
    """Returns how the reward model reads answers to a turn, and its scores."""
    asked = retold.asked(before, self.reader.tokenizer)
    told = [self.reader.told(asked, said) for said in answers]
    mesh = self.speakers[0].streamer.policy.mesh
    found = self.reader.scores(
      [row.ids for row in told], mesh, [row.answer for row in told]
    )
    return told, found

  def _show_rewards(self, before: Any) -> None:
    told, found = self._scores(before, self.answers)
    marks = [""] if len(found) == 1 else [f"[{i + 1}] " for i in range(2)]
    text = "  ".join(f"{m}{x:+.2f}" for m, x in zip(marks, found, strict=True))
    self._write(f"reward {text}\n", DIM)
    if any(row.is_cut for row in told):
      self.note("the reward model read a part only: its context is shorter")

  def _obey(self, command: str, rest: str) -> bool:
    """Obeys a command; returns whether the talk goes on."""
    if command == "/quit":
      return False
    if command == "/help":
      for name, meaning in COMMANDS.items():
        self.note(f"{name:8} {meaning}")
    elif command == "/reset":
      self._new()
    elif command == "/undo":
      if not self.dialogue.turns:
        raise UserError("there is no turn to take back.")
      self.dialogue.turns.pop()
      self.answers = []
    elif command == "/seed":
      if not rest.isdecimal():
        raise UserError(f"/seed {rest}: is a whole number, such as /seed 7.")
      check_seed(int(rest))
      self._new()
      self.seed = int(rest)
    elif command == "/save":
      self._save(rest or self.save)
    elif command == "/better":
      self._choose(rest)
    else:
      raise UserError(
        f"{command}: no such command.{nearest(command, list(COMMANDS))} /help "
        "lists them."
      )
    return True

  def _choose(self, which: str) -> None:
    """Goes on with one of two answers, and writes the comparison."""
    if len(self.answers) != 2 or not self.dialogue.turns:
      raise UserError("/better: wants two answers. Ask two policies first.")
    if which not in ("1", "2"):
      raise UserError(f"/better {which}: say 1 or 2.")
    texts, better = [said.text for said in self.answers], int(which) - 1
    record = self.dialogue.comparison(texts, better)
    asked, _ = self.dialogue.turns[-1]
    self.dialogue.turns[-1] = (asked, texts[better])
    if self.pairs:
      append(self.pairs, record)
    where = f"added to {self.pairs}" if self.pairs else "not kept: no --pairs"
    self.note(f"the dialogue goes on with [{which}]; the comparison is {where}")

  def _save(self, file: str) -> None:
    if not file:
      raise UserError("/save: name a file, /save talks.jsonl, or give --save.")
    record = self.dialogue.record()
    append(file, record)
    self._saved = record
    self.note(f"added to {file}")

  def _new(self) -> None:
    """Begins a dialogue; the old one is kept where --save says so."""
    self._end_dialogue()
    self.dialogue = dataclasses.replace(self.dialogue, turns=[])
    self.answers, self._saved = [], None

  def _end_dialogue(self) -> None:
    if self.save and self.dialogue.turns:
      record = self.dialogue.record()
      if record != self._saved:
        append(self.save, record)

  def note(self, text: str) -> None:
    """Says something that is no answer."""
    if self.is_terminal:
      self._write(f"{text}\n", DIM)
    else:
      print(text, file=sys.stderr, flush=True)

  def _write(self, text: str, style: str = "") -> None:
    """Writes to standard output, at once."""
    if sys.stdout.isatty():
      text = visible(text)
    if style and self.has_colours:
      text = f"{style}{text}{PLAIN}"
    sys.stdout.write(text)
    sys.stdout.flush()


def _pieces(speaker: Speaker, prompt: list[int]) -> pieces.Pieces:
  """Returns what makes text of the tokens of an answer."""
  streamer = speaker.streamer
  return pieces.Pieces(
    speaker.tokenizer,
    prompt,
    streamer.end["eos_ids"],
    streamer.config.stop_strings,
    speaker.around,
  )


def _has_template(policy: Policy) -> bool:
  """Says whether there is a chat template, or ChatML's tokens."""
  try:
    rendering.template_of(policy.base.tokenizer)
  except UserError:
    return False
  return True


def _speaker(
  name: str, policy: Policy, config: generate.Config, system: str, plain: bool
) -> Speaker:
  """Returns a policy that answers; its template is tried."""
  tokenizer, around = policy.base.tokenizer, ("", "")
  if not plain:
    try:
      streams.prompt(Dialogue(system).before("a"), tokenizer)
    except UserError as error:
      raise UserError(
        f"{name}: {error} Give --chat-template=FILE, or --plain."
      ) from error
    with contextlib.suppress(UserError):  # it cannot be trained with
      around = retold.around(tokenizer)
  return Speaker(name, streaming.Streamer(policy, config), around)


def _reader(reward: RewardModel | None, is_plain: bool) -> Reader | None:
  """Returns what scores answers, its template tried."""
  if reward is None:
    return None
  tokenizer = reward.base.tokenizer
  if not is_plain:
    probe = Prompt("--reward", Dialogue().before("a"))
    retold.check([probe], tokenizer, "--reward")
  return Reader("reward", *reward.scorer, tokenizer)
