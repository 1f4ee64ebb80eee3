"""Verifiers on samples: which reference judges which row, what is right."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.rewards import texts, verifiers
from rlhf_jax.types import FINISH_EOS, Samples
from tests.letters import Letters

HAS_A = {"pattern": "a", "mode": "search"}


def judge_of(name, references, logged=(), **settings):
  return texts.Judge(
    verifiers.bind_parts(name, **settings),
    references,
    [{}] * len(references),
    Letters(),
    logged,
  )


def samples_of(*answers):
  """Returns samples behind a prompt of one token, each with its end token."""
  width = 2 + max(map(len, answers))
  tokens = np.full((len(answers), width), 2)
  mask = np.zeros((len(answers), width), np.float32)
  for row, text in enumerate(answers):
    tokens[row, 0] = ord("q")
    tokens[row, 1 : 1 + len(text)] = [ord(c) for c in text]
    mask[row, 1 : 2 + len(text)] = 1.0
  valid = mask.copy()
  valid[:, 0] = 1.0
  return Samples(
    tokens=jnp.asarray(tokens),
    valid_mask=jnp.asarray(valid),
    response_mask=jnp.asarray(mask),
    behaviour_logprobs=jnp.zeros_like(mask),
    finish_reason=jnp.full((len(answers),), FINISH_EOS),
  )


def test_trap_33_each_answer_is_judged_against_its_own_prompts_reference():
  """Prompts 2 and 0, two answers each; the reference of 1 is not read."""
  judge = judge_of("exact", ["ab", "c", "d"])
  scores, logged = judge(samples_of("d", "ab", "ab", "d"), jnp.array([2, 0]))
  np.testing.assert_array_equal(scores, [1, 0, 1, 0])
  assert scores.dtype == np.float32 and logged == {}


def test_parts_are_logged_under_their_names():
  parts = (
    {"verifier": "exact", "weight": 1.0},
    {"verifier": "pattern", "weight": -0.5, "settings": HAS_A},
  )
  judge = judge_of("sum", ["ab"], ("exact", "pattern"), parts=parts)
  scores, logged = judge(samples_of("ab", "a", "c"), jnp.array([0]))
  np.testing.assert_array_equal(scores, [0.5, -0.5, 0.0])
  assert sorted(logged) == ["component/exact", "component/pattern"]
  means = texts.component_means(logged | {"sum": scores})
  assert means == {
    "reward/component/exact": pytest.approx(1 / 3),
    "reward/component/pattern": pytest.approx(2 / 3),
  }


def test_an_answer_is_right_at_full_marks():
  """Penalties are no marks; rounding must not make a right answer wrong."""
  above = lambda name, **settings: texts.correct_above(  # noqa: E731
    texts.Verifier(name, settings).bound()
  )
  assert above("") is None
  assert 0.99 < above("exact") < 1.0
  parts = (
    {"verifier": "exact", "weight": 0.7},
    {"verifier": "pattern", "weight": 0.2, "settings": HAS_A},
    {"verifier": "pattern", "weight": -0.4, "settings": HAS_A},
  )
  assert 0.89 < above("sum", parts=parts) < np.float32(0.7) + np.float32(0.2)
