"""What the tests of the notebook share: how they sample, score and loop."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from rlhf_jax import startup
from rlhf_jax.algorithms.policy_gradient import (
  grpo,
)
from rlhf_jax.parallel import mesh as mesh_lib
from tests.pipelines import tiny_runs

PROMPTS = [" the cat", " a", " sat on", " is"]
HOW = {"num_samples": 4, "max_new_tokens": 6}
ONE = mesh_lib.Config(devices=1)
GRPO = grpo.Config(group_size=4)
GOOD, BAD = " cat cat on", " the and the"  # answers to learn, and to leave
PAIRS = [(prompt, GOOD, BAD) for prompt in PROMPTS]
LENGTH = 16
ADAM = optax.adam(1e-3)
# A large epsilon: rounding must not show as the sign of a gradient.
RUN = optax.adam(3e-2, eps=1e-3)


def scores_of(texts):
  return [float(text.count(tiny_runs.PLANTED)) for text in texts]


def sampled(policy, number, **how):
  return policy.sample(PROMPTS, jax.random.key(number), **(HOW | how))


def mean_score(policy):
  return np.mean(scores_of(sampled(policy, 99)[1]))


def assert_same(found, expected, **tolerance):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, **tolerance),
    jax.tree.map(np.asarray, found),
    jax.tree.map(np.asarray, expected),
  )


@dataclasses.dataclass
class Run:
  """What a loop left; compiles: programs compiled in each call of learn."""

  learn: object
  policies: list
  metrics: list = dataclasses.field(default_factory=list)
  compiles: list = dataclasses.field(default_factory=list)

  def on(self, *given):
    count = COUNTER.count
    policy, metrics = self.learn(self.policies[-1], *given)
    self.compiles.append(COUNTER.count - count)
    self.policies.append(policy)
    self.metrics.append(metrics)
    return self


COUNTER = startup.COMPILES


def on_samples(policy, learn, steps, **how):
  run = Run(learn, [policy])
  for step in range(steps):
    samples, texts = sampled(run.policies[-1], step, **how)
    run.on(samples, scores_of(texts))
  return run
