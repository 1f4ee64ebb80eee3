"""What a chat endpoint sent, read: the texts, votes and probabilities in it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.rewards.ai.voices import FORM, JudgeGone, Reply
from rlhf_jax.schema import UserError


class Again(Exception):
  """May pass. seconds: that the endpoint asks to wait, or None."""

  def __init__(self, why: str, seconds: float | None = None):
    super().__init__(why)
    self.seconds = seconds


def read(found: Any, reader: Callable[[dict[str, Any]], Reply]) -> Reply:
  """Returns the reply that a JSON value is, with its cost.

  Raises:
    Again: it has not the form of the interface.
  """
  try:
    choice = found["choices"][0]
    if not isinstance(choice["message"], dict):
      raise TypeError
    reply = reader(choice)
    usage = found.get("usage") or {}
    spent = {
      ours: int(usage.get(theirs) or 0)
      for ours, theirs in (
        ("prompt_tokens", "prompt_tokens"),
        ("answer_tokens", "completion_tokens"),
      )
    }
  except UserError:
    raise
  except (LookupError, TypeError, ValueError, AttributeError):
    raise Again(f"a reply without the usual form: {str(found)[:60]}") from None
  return dataclasses.replace(reply, **spent)


def text(choice: dict[str, Any]) -> Reply:
  """Returns what was said, and whether it ended before the limit."""
  said = choice["message"]["content"]
  if not isinstance(said, str):
    return Reply(None, FORM)
  ended = choice.get("finish_reason") != "length"
  return Reply(said.strip(), has_ended=ended)


def said_label(choice: dict[str, Any], labels: Sequence[str]) -> Reply:
  """Returns the vote of an answer that is a label and nothing else.

  Brackets, stars and a last point around it do not count.
  """
  said = choice["message"]["content"]
  said = said.strip().strip("*").strip() if isinstance(said, str) else ""
  found = re.fullmatch(r"[(\[]?\s*(\w+)\s*[)\]]?[.:]?", said)
  if found is None or found[1] not in labels:
    return Reply(None, FORM)
  chosen = labels.index(found[1])
  return Reply([0.0 if i == chosen else -math.inf for i in range(len(labels))])


def alternatives(choice: dict[str, Any], labels: Sequence[str]) -> Reply:
  """Returns log-probabilities of the labels among the likeliest first tokens.

  A label that is none of them has at most the last one's probability, and gets
  that: the least that is known of the difference. So does "1" where "10" is no
  token and something else was drawn: its probability may be that of "10".

  Raises:
    UserError: there are no log-probabilities.
  """
  told = choice.get("logprobs")
  if not told or not told.get("content"):
    raise JudgeGone(
      "endpoint.reads='logprobs': the endpoint gives no log-probabilities. Set "
      "endpoint.reads='text': then a label that is said is a vote."
    )
  content = told["content"]
  found, least = _likely(content[0], labels)
  for label, longer in going_on(labels):
    if found[longer] or not found[label]:
      continue  # a token of its own, or neither is likely
    is_drawn = str(content[0].get("token", "")).strip() == label
    if not is_drawn:
      found[label] = 0.0
    elif len(content) > 1:
      rest = longer.removeprefix(label)
      after = min(_likely(content[1], (rest,))[0][rest], 1.0)
      found[longer] = found[label] * after
      found[label] *= 1.0 - after
  if not any(found.values()):
    return Reply(None, FORM)
  return Reply(
    [max(math.log(p), -1e3) if p else max(least, -1e3) for p in found.values()]
  )


def going_on(labels: Sequence[str]) -> list[tuple[str, str]]:
  """Returns (label, longer one that begins with it), such as ("1", "10")."""
  return [
    (label, other)
    for label in labels
    for other in labels
    if other != label and other.startswith(label)
  ]


def _likely(
  token: dict[str, Any], words: Sequence[str]
) -> tuple[dict[str, float], float]:
  """Returns the probability of words at a token, and the least one's log."""
  found = dict.fromkeys(words, 0.0)
  least = math.inf
  for top in token["top_logprobs"]:
    logprob = float(top["logprob"])
    if math.isnan(logprob):
      raise ValueError
    least = min(least, logprob)
    word = str(top["token"]).strip()
    if word in found:
      found[word] += math.exp(min(logprob, 0.0))
  return found, least
