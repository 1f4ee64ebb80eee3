"""What to look at in a rollout beside its reward, and when to cry out.

Limits of METHODS 19 on one rollout and on the last 20, and what monitors.py
makes of the signs of reward hacking. Each kind of alarm is printed once and
kept for the report; only the KL to the reference stops a run.

Left out: what needs a win rate or a task (capability drops); evaluate.py
measures the former after the run.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from rlhf_jax import distributed
from rlhf_jax.algorithms.policy_gradient import kl_control, shaping
from rlhf_jax.evaluation import diversity, monitors, text_signs
from rlhf_jax.rewards import texts as texts_lib
from rlhf_jax.types import FINISH_LENGTH, Samples

SAMPLES_SHOWN = 4  # rows of samples.jsonl a step
SIGNS_READ = 256  # answers of a rollout in which signs are looked for
PAIRED = 64  # answers of which each is compared with each other
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
  """Returns diversity and signs of a rollout's responses, where defined.

  rollout/distinct_2: unique bigrams over bigrams; absent without bigrams. Down
    is bad.
  rollout/duplicate_share: responses that repeat an earlier one; up is bad.
  """
  pairs = texts_lib.sample_texts(tokenizer, samples)
  texts = [response for _, response in pairs]
  found = {
    "rollout/distinct_2": diversity.distinct_n(texts, 2),
    "rollout/duplicate_share": diversity.duplicate_share(texts),
    **sign_metrics(pairs),
  }
  return {name: x for name, x in found.items() if not math.isnan(x)}


def sign_metrics(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
  """Returns signs of reward hacking in answers, on an even part of many.

  monitors.py says when they are an alarm.

  Metrics:
    rollout/list_share, rollout/bold_share, rollout/header_share: answers with
      Markdown of that kind. Up is bad where nothing asks for it.
    rollout/hedging_share: answers with a phrase that commits to nothing. Up is
      bad.
    rollout/refusal_share: answers that open by declining. Up is bad.
    rollout/sycophancy_share: answers that open with praise of the user or the
      question, or with agreement. Up is bad.
    rollout/repeated_share: mean over answers of the share of word 3-grams that
      occurred before in it. Up is bad.
    rollout/near_identical_share: answers nearly the same as one to another
      prompt. Absent with one prompt. Up is bad.

  Args:
    pairs: (prompt, answer) texts, not empty.
  """
  few = _evenly(pairs, SIGNS_READ)
  rates = text_signs.rates([answer for _, answer in few])
  rates["repeated"] = rates.pop("repetition")
  prompts, answers = zip(*_evenly(pairs, PAIRED), strict=True)
  rates["near_identical"] = diversity.near_identical_share(answers, prompts)
  return {
    f"rollout/{name}_share": rate
    for name, rate in rates.items()
    if not math.isnan(rate)
  }


def _evenly(rows: Sequence[Any], most: int) -> Sequence[Any]:
  """Returns at most so many of the rows, at even distances."""
  if len(rows) <= most:
    return rows
  return [rows[i * len(rows) // most] for i in range(most)]


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
  verb = "ends" if len(ends) == 1 else "end"
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
      f"only {names} {verb} an answer. Add it to generate.stop_tokens if the "
      "model ends its turns so."
    )
  return (
    f"only {names} {verb} an answer. Add another to generate.stop_tokens if "
    "the model has one, raise generate.max_new_tokens, or set "
    "shaping.missing_eos."
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
    facts = rung(facts, kind, sentence, step + 1, "policy")
  kl = row["rollout/kl_k1_sum"]
  facts["recent_kl"] = [*facts["recent_kl"], kl][-KL_WINDOW:]
  if kl_control.check_kl(kl, shape) == "halt":
    facts["halt"] = (
      f"stopped at step {step + 1}: KL to the reference {kl:.1f} nats is "
      f"above shaping.halt_nats={shape.halt_nats:g}"
    )
    print(f"\npolicy: {facts['halt']}")
  return facts


def rung(facts: dict, kind: str, sentence: str, step: int, phase: str) -> dict:
  """Returns facts with an alarm, printed, if it is the first of its kind.

  Args:
    facts: of the run, with "alarms".
    kind: of the alarm.
    sentence: for people.
    step: where it rings, from 1.
    phase: name in messages.
  """
  kinds = facts.get("alarm_kinds", [])
  if kind in kinds:
    return facts
  print(f"\n{phase}: warning at step {step}: {sentence}")
  return facts | {
    "alarm_kinds": [*kinds, kind],
    "alarms": [*facts["alarms"], [step, sentence]],
  }


def watched(settings: Any) -> tuple[str, ...]:
  """Returns the metrics that should not fall while the score rises.

  Reward models that only watch, what held-out prompts say, and judges whose
  weight is 0.

  Args:
    settings: of a pipeline that samples.
  """
  names = [f"eval/{name}" for name in settings.monitors]
  if settings.schedule.eval_every:
    names += ["heldout/score"]
    names += [f"heldout/{name}_score" for name in settings.monitors]
  names += [
    f"reward/component/{name}"
    for name, judge in settings.named_judges.items()
    if judge.weight == 0.0
  ]
  return tuple(names)


def monitored(
  step: int, facts: dict, row: dict, *, phase: str, names: Sequence[str]
) -> tuple[dict, dict]:
  """Returns facts with what monitors.py saw and rang, and the row with it.

  Args:
    step: steps done.
    facts: of the run, with "alarms".
    row: all metrics of the step.
    phase: name in messages.
    names: see `watched`.
  """
  state = facts.get("monitors", monitors.new_state())
  state = monitors.observe(state, row, names)
  facts = facts | {"monitors": state}
  for kind, sentence in monitors.ringing(state):
    facts = rung(facts, kind, sentence, step, phase)
  return facts, row | monitors.length_slope(state)


def observer(settings: Any, phase: str) -> Callable[..., tuple[dict, dict]]:
  """Returns `monitored` of a run, for loop.run_steps.

  Args:
    settings: of a pipeline that samples.
    phase: name in messages.
  """
  return functools.partial(monitored, phase=phase, names=watched(settings))


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
  if state == "warn" and kl < 0:
    return rung(facts, "negative kl", negative_kl(kl), step + 1, phase)
  if state == "warn":
    sentence = (
      f"KL to the start is {kl:.1f} nats, above {guards.warn_nats:g}: lower "
      "the learning rate, or stop here."
    )
    return rung(facts, "kl", sentence, step + 1, phase)
  return facts
