"""What to look at in a rollout beside its reward, and when to cry out.

The alarms and limits of METHODS 19. Each is printed once and kept for the
report; only the KL to the reference stops a run.
"""

from __future__ import annotations

from typing import Any

import jax

from rlhf_jax import distributed
from rlhf_jax.algorithms.policy_gradient import shaping
from rlhf_jax.evaluation import diversity
from rlhf_jax.pipelines import build
from rlhf_jax.types import Samples

SAMPLES_SHOWN = 4  # rows of samples.jsonl a step
ROUNDING_NATS = 1e-3  # of an answer's log-probability: no KL below 0


def text_metrics(tokenizer: Any, samples: Samples) -> dict[str, float]:
  """Returns diversity of a rollout's responses (down is bad).

  rollout/distinct2: unique bigrams over bigrams. rollout/dup_share: responses
  that occur more than once; up is bad.
  """
  texts = [response for _, response in build.sample_texts(tokenizer, samples)]
  return {
    "rollout/distinct2": diversity.distinct_n(texts, 2),
    "rollout/dup_share": diversity.duplicate_share(texts),
  }


def alarms(row: dict, first: dict, step: int, settings: shaping.Config):
  """Yields sentences about a rollout that looks wrong (METHODS 19)."""
  kl = row["rollout/kl_k1_sum"]
  state = shaping.check_kl(
    kl, settings, 2 * row["rollout/kl_k1_standard_error"] + ROUNDING_NATS
  )
  if state == "warn" and kl > 0:
    yield (
      f"KL to the reference is {kl:.1f} nats, above {settings.warn_nats:g}: "
      "raise shaping.kl_coefficient or stop here."
    )
  elif state == "warn":
    yield (
      f"mean k1 is {kl:.3f} nats, below 0 by more than two standard errors: "
      "sampler and trainer disagree."
    )
  if row["rollout/eos_share"] < 0.5:
    yield (
      f"only {row['rollout/eos_share']:.0%} of responses end by themselves: "
      "raise generate.max_new_tokens or set shaping.missing_eos."
    )
  if row["rollout/entropy"] < 0.1 * first["rollout/entropy"]:
    yield "entropy fell below a tenth of its start: the policy has collapsed."
  if row["rollout/dup_share"] > 0.5:
    yield "more than half of the responses are duplicates: collapse."
  if step >= 50 and row.get("ppo/explained_var", 0.0) < 0.0:
    yield "the critic explains less than a constant would after 50 steps."


def watch(facts: dict, row: dict, step: int, shape: shaping.Config) -> dict:
  """Returns facts with new alarms, and "halt" when the KL is out of hand."""
  facts = dict(facts)
  first = facts.setdefault("first", {"rollout/entropy": row["rollout/entropy"]})
  known = {text.split(":")[0].split(" is ")[0] for _, text in facts["alarms"]}
  for sentence in alarms(row, first, step, shape):
    if sentence.split(":")[0].split(" is ")[0] not in known:
      facts["alarms"] = [*facts["alarms"], [step + 1, sentence]]
      print(f"\npolicy: warning at step {step + 1}: {sentence}")
  kl = row["rollout/kl_k1_sum"]
  if shaping.check_kl(kl, shape) == "halt":
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
      **{name: float(values[i]) for name, values in scores.items()},
    }
    for i, (prompt, response) in enumerate(build.sample_texts(tokenizer, few))
  ]
