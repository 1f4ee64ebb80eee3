"""A judge: pairs in both orders, scores, texts; cached, and all of it counted.

A pair is asked twice, each answer once as A, and its label comes from both
(algorithms/judgements.py). A reply out of form leaves no label: it is counted,
never guessed. The judge sees the prompt and the answers, and no score of any
reward model.

Zheng et al. 2023 (arXiv:2306.05685) on the biases of such judges; Bai et al.
2022 (arXiv:2212.08073) on labels by principles; Lee et al. 2023
(arXiv:2309.00267) on both orders and on scores.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.algorithms import judgements
from rlhf_jax.rewards.ai import questions
from rlhf_jax.rewards.ai.questions import RUBRIC, Messages, Question
from rlhf_jax.rewards.ai.reply_cache import Cache, key_of
from rlhf_jax.rewards.ai.voices import FORM, Reply, Saying, Voice
from rlhf_jax.schema import FieldError, check_choice, check_least

BOTH, FIRST = "both", "first"
TELL_SECONDS = 0.5  # between two calls of a progress line
_VALUES = [float(label) for label in questions.SCORE_LABELS]


@dataclasses.dataclass(frozen=True)
class Judging:
  """How a language model judges."""

  rubric: str = RUBRIC  # what is good, in words; where principles are drawn,
  # they stand in its place
  template: str = ""  # a text file that shows what is judged, with fields in
  # braces (rewards/ai/questions.py); "" for ours
  orders: str = BOTH  # of the answers of a pair; "first": half the cost, and
  # labels with the position bias of the judge in them
  reasoning: bool = False  # of a pair: it says why before it says which
  reasoning_tokens: int = 256  # of these reasons at most
  clamp: float = judgements.CLAMP  # labels after reasoning are in [clamp,
  # 1 - clamp]; 0 cuts nothing
  least_mass: float = 0.01  # labels of less probability together are out of
  # form: the judge means to say something else; 0 takes all
  batch_size: int = 16  # questions that a local model reads at a time
  cache: str = ""  # file of replies, which runs may share; "": in the workdir

  def __post_init__(self) -> None:
    check_choice("orders", self.orders, (BOTH, FIRST))
    check_least(self, reasoning_tokens=1, batch_size=1)
    if not 0.0 <= self.clamp <= 0.5:
      raise FieldError(f"clamp={self.clamp}: must be in [0, 0.5]; 0 cuts none.")
    if not 0.0 <= self.least_mass < 1.0:
      raise FieldError(f"least_mass={self.least_mass}: must be in [0, 1).")
    for name in ("reasoning_tokens", "clamp"):
      value, usual = getattr(self, name), type(self).__dict__[name]
      if value != usual and not self.reasoning:
        raise FieldError(
          f"{name}={value} with reasoning=False: nothing reads it. Leave it at "
          f"{usual}, or set reasoning=True."
        )


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two answers to a prompt, and the principles that they are compared by."""

  prompt: str
  answers: tuple[str, str]
  principles: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a judge said of a pair.

  label: probability that the first answer is better; None for a failure.
  first, swapped: logits of "A" over "B" in the two orders, the mean over
    principles; swapped is None where one order was asked. None for votes, too.
  votes: "A" or "B" in each order, of the first principle.
  mass: the probability of the labels, the mean of all questions.
  reasons: what was said before, by order.
  failure: one of voices.FAILURES, or "".
  """

  label: float | None
  first: float | None = None
  swapped: float | None = None
  votes: tuple[str, ...] = ()
  mass: float = 0.0
  reasons: tuple[str, ...] = ()
  failure: str = ""

  def logit(self, order: int) -> float:
    """Returns the logit of "A" in an order, 0 or 1; +-inf for a vote.

    Of an order that was not asked it is what leaves s that of the other.
    """
    if len(self.votes) <= order:
      return -self.logit(0)
    given = (self.first, self.swapped)[order]
    if given is not None:
      return given
    return {"A": math.inf, "B": -math.inf, "": 0.0}[self.votes[order]]


@dataclasses.dataclass(frozen=True)
class Mark:
  """What a judge said of an answer.

  score: in [-1, 1], None for a failure.
  mass: probability of the labels.
  failure: one of voices.FAILURES, or "".
  tokens: that it cost, of the question and the reply.
  """

  score: float | None
  mass: float = 0.0
  failure: str = ""
  tokens: int = 0


class Judge:
  """Asks a voice, through the cache."""

  def __init__(
    self,
    voice: Voice,
    settings: Judging,
    cache: Cache,
    seed: int = 0,
  ):
    """Makes a judge.

    Args:
      voice: who answers.
      settings: how.
      cache: of replies.
      seed: of what is sampled.
    """
    self.voice, self.settings = voice, settings
    self._cache, self._seed = cache, seed
    self._progress: Callable[[int], None] | None = None
    self._done, self._told_at = 0, 0.0
    self._used: dict[str, Reply] = {}
    self.asked = 0  # questions that were not in the cache

  @property
  def cost(self) -> dict[str, int]:
    """What all replies that were used cost, whoever asked first.

    calls, prompt_tokens, answer_tokens; paid_now: calls of this process.
    """
    used = self._used.values()
    return {
      "calls": len(used),
      "prompt_tokens": sum(reply.prompt_tokens for reply in used),
      "answer_tokens": sum(reply.answer_tokens for reply in used),
      "paid_now": self.asked,
    }

  def pairs(self, pairs: Sequence[Pair]) -> list[Verdict]:
    """Returns what it says of pairs, in their order."""
    template = questions.template(self.settings.template, "pairs")
    is_both = self.settings.orders == BOTH
    shown = [
      questions.pair(template, principle, pair.prompt, answers)
      for pair in pairs
      for principle in pair.principles
      for answers in [pair.answers, pair.answers[::-1]][: 1 + is_both]
    ]
    reasons = [Reply("")] * len(shown)
    if self.settings.reasoning:
      how = Saying(self.settings.reasoning_tokens, 0.0, self._seed)
      reasons = self.texts([questions.why(text) for text in shown], how)
    # Reasons that were not given leave nothing to decide after.
    is_fit = [
      not (self.settings.reasoning and (x.failure or not x.value))
      for x in reasons
    ]
    asked = [
      questions.which(text, x.value)
      for text, x, fit in zip(shown, reasons, is_fit, strict=True)
      if fit
    ]
    replies = iter(self.choices(asked))
    told = [
      next(replies) if fit else Reply(None, x.failure if x.failure else FORM)
      for x, fit in zip(reasons, is_fit, strict=True)
    ]
    result, place = [], 0
    for pair in pairs:
      end = place + len(pair.principles) * (1 + is_both)
      said = tuple(x.value or "" for x in reasons[place:end])
      verdict = self._verdict(told[place:end], is_both)
      if self.settings.reasoning:
        verdict = dataclasses.replace(verdict, reasons=said)
      result.append(verdict)
      place = end
    return result

  def _verdict(self, replies: Sequence[Reply], is_both: bool) -> Verdict:
    """Returns the verdict of a pair; replies: by principle, then order."""
    failure = next((x.failure for x in replies if x.failure), "")
    if failure:
      return Verdict(None, failure=failure)
    logprobs = np.array([x.value for x in replies], np.float64)
    z = (logprobs[:, 0] - logprobs[:, 1]).reshape(-1, 1 + is_both)
    first, swapped = z[:, 0], z[:, 1] if is_both else -z[:, 0]
    s, _ = judgements.unswapped(first, swapped)
    has_sizes = bool(np.all(np.isfinite(z)))
    clamp = self.settings.clamp if self.settings.reasoning else 0.0
    # Votes have no size: what is averaged is how many principles say so.
    label = np.mean(judgements.labels(s))
    if has_sizes:
      label = judgements.labels(np.mean(s))
    label = np.clip(label, clamp, 1.0 - clamp)
    return Verdict(
      float(label),
      float(np.mean(first)) if has_sizes else None,
      float(np.mean(swapped)) if has_sizes and is_both else None,
      tuple("A" if x > 0.0 else "B" if x < 0.0 else "" for x in z[0]),
      float(np.mean(judgements.masses(logprobs))),
    )

  def scores(
    self, prompts: Sequence[str], answers: Sequence[str], rubrics: Sequence[str]
  ) -> list[Mark]:
    """Returns what it gives to answers [N], by a rubric each."""
    template = questions.template(self.settings.template, "scores")
    replies = self.choices(
      [
        questions.how_good(template, rubric, prompt, answer)
        for prompt, answer, rubric in zip(
          prompts, answers, rubrics, strict=True
        )
      ]
    )
    return [_mark(reply) for reply in replies]

  def choices(self, asked: Sequence[Question]) -> list[Reply]:
    """Returns replies of labels; those with little probability are none."""
    keys = [
      key_of(
        voice=self.voice.identity,
        messages=x.messages,
        prefix=x.prefix + x.space,
        labels=x.labels,
      )
      for x in asked
    ]
    replies = self._all(keys, asked, self.voice.label_logprobs)
    return [self._in_form(reply) for reply in replies]

  def _in_form(self, reply: Reply) -> Reply:
    if reply.failure:
      return reply
    mass = float(judgements.masses([reply.value])[0])
    is_clear = math.isfinite(mass) and mass >= self.settings.least_mass
    if is_clear and mass > 0.0:
      return reply
    return dataclasses.replace(reply, value=None, failure=FORM)

  def texts(self, dialogues: Sequence[Messages], how: Saying) -> list[Reply]:
    """Returns a text that answers each dialogue."""
    keys = [
      key_of(
        voice=self.voice.identity,
        messages=messages,
        how=dataclasses.asdict(how),
      )
      for messages in dialogues
    ]
    return self._all(keys, dialogues, lambda part: self.voice.say(part, how))

  def _all(
    self, keys: Sequence[str], asked: Sequence[Any], ask: Callable[..., Any]
  ) -> list[Reply]:
    """Returns a reply a key: from the cache, or asked for once."""
    missing = {
      key: item
      for key, item in zip(keys, asked, strict=True)
      if key not in self._cache
    }
    self._told(len(keys) - len(missing))
    names = list(missing)
    for number, reply in ask(list(missing.values())) if missing else ():
      self._cache.add(names[number], reply)
      self.asked += 1
      self._told(1)
    found = {key: self._cache[key] for key in keys}
    self._used |= found
    return [found[key] for key in keys]

  def forget(self) -> None:
    """Forgets replies that are in no file, and what all of them cost."""
    self._used = {}
    self._cache.forget()

  def tell(self, progress: Callable[[int], None]) -> None:
    """Has a function told how many questions are answered, from now on."""
    self._progress, self._done = progress, 0

  def _told(self, count: int) -> None:
    self._done += count
    now = time.monotonic()
    if self._progress is not None and now - self._told_at > TELL_SECONDS:
      self._told_at = now  # replies come in bursts, which tell no pace
      self._progress(self._done)


def _mark(reply: Reply) -> Mark:
  tokens = reply.prompt_tokens + reply.answer_tokens
  if reply.failure:
    return Mark(None, failure=reply.failure, tokens=tokens)
  score = judgements.expected_scores([reply.value], _VALUES)[0]
  mass = judgements.masses([reply.value])[0]
  return Mark(float(score), float(mass), tokens=tokens)
