"""What to look at in a rollout beside its reward, and when to cry out.

Limits of METHODS 19 on one rollout and on the last 20. Each kind of alarm is
printed once and kept for the report; only the KL to the reference stops a run.

Left out: what needs a win rate (length growing while it is flat, capability
drops); evaluate.py measures those after the run.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from rlhf_jax import distributed
from rlhf_jax.algorithms.policy_gradient import kl_control, shaping
from rlhf_jax.evaluation import diversity
from rlhf_jax.rewards import texts as texts_lib
from rlhf_jax.types import FINISH_LENGTH, Samples

SAMPLES_SHOWN = 4  # rows of samples.jsonl a step
KL_WINDOW = 20  # steps in which the KL should not double
RATIO_ERROR = 1e-3  # |ratio - 1| before any update; rounding is below 1e-4
ERRORS = 4  # standard errors below 0 that a mean k1 may be: a rollout of few
# answers is further below by chance alone than two, one time in fourteen
ROUNDING_NATS = 1e-3  # of an answer's log-probability: no KL below 0


@dataclasses.dataclass(frozen=True)
class Guards:
  """Where the KL to the start of the run is an alarm (METHODS 19)."""

  warn_nats: float = 15.0  # KL to the start per answer that is an alarm, once
  halt_nats: float = 20.0  # KL to the start per answer that stops the run
  # Taken off the score of an answer without an end, in units of the score,
  # before answers are compared: a judge that likes length teaches not to end.
  missing_eos_penalty: float = 0.0

  def __post_init__(self) -> None:
    self.limits()
    if not 0.0 <= self.missing_eos_penalty < math.inf:
      raise ValueError(
        f"missing_eos_penalty={self.missing_eos_penalty}: is taken off. Set it "
        ">= 0 and finite."
      )

  def limits(self) -> shaping.Config:
    """Returns what kl_control.check_kl reads."""
    return shaping.Config(warn_nats=self.warn_nats, halt_nats=self.halt_nats)


def text_metrics(tokenizer: Any, samples: Samples) -> dict[str, float]:
  """Returns diversity of a rollout's responses (down is bad), where defined.

  rollout/distinct_2: unique bigrams over bigrams; absent without bigrams. Down
    is bad.
  rollout/duplicate_share: responses that repeat an earlier one; up is bad.
  """
  texts = [
    response for _, response in texts_lib.sample_texts(tokenizer, samples)
  ]
  found = {
    "rollout/distinct_2": diversity.distinct_n(texts, 2),
    "rollout/duplicate_share": diversity.duplicate_share(texts),
  }
  return {name: x for name, x in found.items() if not math.isnan(x)}


def unended(tokenizer: Any, samples: Samples, ends: Sequence[int]) -> str:
  """Returns what to do about answers that were cut at the limit of tokens.

  Where most of them go on behind one control token, that is what the model ends
  its turns with, and a larger limit would not help.

  Args:
    tokenizer: of the policy.
    samples: of a rollout, on the host.
    ends: ids of the tokens that end an answer.
  """
  control = {i: text for text, i in tokenizer.special_tokens.items()}
  names = ", ".join(repr(control.get(i, i)) for i in ends)
  first, cut = collections.Counter(), 0
  for tokens, mask, reason in zip(
    samples.tokens, samples.response_mask, samples.finish_reason, strict=True
  ):
    answer = [int(i) for i in tokens[mask > 0]]
    if reason == FINISH_LENGTH and answer:
      cut += 1
      first.update([i for i in answer if i in control and i not in ends][:1])
  found, count = next(iter(first.most_common(1)), (None, 0))
  if 2 * count > cut:
    return (
      f"{count} of {cut} that were cut go on behind {control[found]!r}, and "
      f"only {names} end an answer. Add it to generate.stop_tokens if the "
      "model ends its turns so."
    )
  return (
    f"only {names} end an answer. Add another to generate.stop_tokens if the "
    "model has one, raise generate.max_new_tokens, or set shaping.missing_eos."
  )


def negative_kl(kl: float) -> str:
  """Returns the sentence of an alarm about a mean k1 that no KL can have."""
  return (
    f"mean k1 is {kl:.3f} nats, below 0 by more than four standard errors: "
    "sampler and trainer disagree on log-probabilities."
  )


def alarms(
  row: dict,
  past: dict,
  step: int,
  settings: shaping.Config,
  remedy: Callable[[], str],
) -> Iterator[tuple[str, str]]:
  """Yields (kind, sentence) about a rollout that looks wrong (METHODS 19).

  Args:
    row: metrics of this rollout.
    past: what `watch` remembers of the rollouts before.
    step: rollouts before this one.
    settings: limits of the KL.
    remedy: gives what to do about answers without an end; see `unended`.
  """
  first, kls = past["first"], past["recent_kl"]
  kl = row["rollout/kl_k1_sum"]
  state = kl_control.check_kl(
    kl, settings, ERRORS * row["rollout/kl_k1_standard_error"] + ROUNDING_NATS
  )
  if state == "warn" and kl > 0:
    yield (
      "kl",
      f"KL to the reference is {kl:.1f} nats, above {settings.warn_nats:g}: "
      "raise shaping.kl_coefficient or stop here.",
    )
  elif state == "warn":
    yield "negative kl", negative_kl(kl)
  if len(kls) == KL_WINDOW and kl > max(2 * kls[0], settings.kl_target):
    yield (
      "kl doubled",
      f"KL to the reference went from {kls[0]:.1f} to {kl:.1f} nats in "
      f"{KL_WINDOW} steps: lower the learning rate or raise "
      "shaping.kl_coefficient.",
    )
  error = row.get("ppo/first_ratio_error", 0.0)
  if error > RATIO_ERROR:
    yield (
      "ratio",
      f"the ratio before any update is off 1 by {error:.2g}: sampler and "
      "trainer compute different log-probabilities. This is a bug; do not "
      "trust the run.",
    )
  if row["rollout/eos_share"] < 0.5 and "eos" not in past["alarm_kinds"]:
    yield (
      "eos",
      f"only {row['rollout/eos_share']:.0%} of responses end by themselves: "
      f"{remedy()}",
    )
  if row["rollout/entropy"] < 0.1 * first["rollout/entropy"]:
    yield (
      "entropy",
      "entropy fell below a tenth of its start: the policy has collapsed.",
    )
  if row["rollout/duplicate_share"] > 0.5:
    yield "duplicates", "more than half of the responses repeat another one."
  if step >= 50 and row.get("ppo/explained_variance", 0.0) < 0.0:
    yield (
      "critic",
      "the critic explains less than a constant would after 50 steps.",
    )


def watch(
  facts: dict,
  row: dict,
  step: int,
  shape: shaping.Config,
  remedy: Callable[[], str],
) -> dict:
  """Returns facts with new alarms, and "halt" when the KL is out of hand.

  Args:
    facts: of the run, with "alarms".
    row, step, remedy: see `alarms`.
    shape: limits of the KL.
  """
  facts = dict(facts)
  facts.setdefault("first", {"rollout/entropy": row["rollout/entropy"]})
  facts.setdefault("recent_kl", [])
  facts.setdefault("alarm_kinds", [])
  for kind, sentence in alarms(row, facts, step, shape, remedy):
    if kind not in facts["alarm_kinds"]:
      facts["alarm_kinds"] = [*facts["alarm_kinds"], kind]
      facts["alarms"] = [*facts["alarms"], [step + 1, sentence]]
      print(f"\npolicy: warning at step {step + 1}: {sentence}")
  kl = row["rollout/kl_k1_sum"]
  facts["recent_kl"] = [*facts["recent_kl"], kl][-KL_WINDOW:]
  if kl_control.check_kl(kl, shape) == "halt":
    facts["halt"] = (
      f"stopped at step {step + 1}: KL to the reference {kl:.1f} nats is "
      f"above shaping.halt_nats={shape.halt_nats:g}"
    )
    print(f"\npolicy: {facts['halt']}")
  return facts


def shown(tokenizer: Any, samples: Samples, scores: dict) -> list[dict]:
  """Returns a few samples as rows of samples.jsonl."""
  samples, scores = distributed.fetch((samples, scores))
  few = jax.tree.map(lambda x: x[:SAMPLES_SHOWN], samples)
  return [
    {
      "prompt": prompt,
      "response": response,
      **{
        name: float(values[i])
        for name, values in scores.items()
        if not math.isnan(values[i])  # a judge of other prompts
      },
    }
    for i, (prompt, response) in enumerate(
      texts_lib.sample_texts(tokenizer, few)
    )
  ]


def guard(
  facts: dict, row: dict, step: int, guards: Guards, phase: str
) -> dict:
  """Returns facts with an alarm, and "halt" when the KL is out of hand.

  Args:
    facts: of the run, with "alarms".
    row: metrics of this step, from `report`.
    step: steps before this one.
    guards: limits.
    phase: name in messages.
  """
  kl = row["rollout/kl_k1_sum"]
  error = ERRORS * row["rollout/kl_k1_standard_error"] + ROUNDING_NATS
  state = kl_control.check_kl(kl, guards.limits(), error)
  if state == "halt":
    sentence = (
      f"stopped at step {step + 1}: KL to the start {kl:.1f} nats is above "
      f"guards.halt_nats={guards.halt_nats:g}"
    )
    print(f"\n{phase}: {sentence}")
    return facts | {"halt": sentence}
  if state == "warn" and not facts["alarms"]:
    sentence = (
      f"KL to the start is {kl:.1f} nats, above {guards.warn_nats:g}: lower "
      "the learning rate, or stop here."
    )
    if kl < 0:
      sentence = negative_kl(kl)
    print(f"\n{phase}: warning at step {step + 1}: {sentence}")
    return facts | {"alarms": [[step + 1, sentence]]}
  return facts
