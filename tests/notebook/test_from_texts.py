"""Learning from texts and preferences in a notebook."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import lab
from rlhf_jax.algorithms import sft
from rlhf_jax.algorithms.preference import dpo, kto, orpo
from rlhf_jax.runs import loop
from tests.notebook.lab_runs import (
  ADAM,
  BAD,
  GOOD,
  LENGTH,
  PAIRS,
  PROMPTS,
  RUN,
  Run,
  assert_same,
  mean_score,
  sampled,
)


def test_sft_learns_conversations(policy):
  asked = [{"role": "user", "content": "a"}]
  conversations = [
    (PROMPTS[0], GOOD),
    {"prompt": PROMPTS[1], "response": GOOD},
    [*asked, {"role": "assistant", "content": GOOD}],
    (asked, GOOD),
  ]
  run = Run(lab.learner(policy, sft, sft.Config(), RUN), [policy])
  for _ in range(8):
    run.on(conversations)
  assert run.compiles[1:] == [0] * 7
  losses = [row["sft/loss"] for row in run.metrics]
  assert losses[-1] < losses[0] - 1.0
  assert mean_score(run.policies[-1]) > mean_score(policy) + 0.5


def test_pairs_raise_what_was_chosen(policy):
  learn = lab.learner(policy, dpo, dpo.Config(), RUN, length=LENGTH)
  run = Run(learn, [policy])
  for _ in range(6):
    run.on(PAIRS)
  assert run.compiles[1:] == [0] * 5
  margins = [row["preference/margin"] for row in run.metrics]
  assert abs(margins[0]) < 1e-5  # the policy is its own reference
  assert margins[-1] > 0.1


def test_a_method_without_reference_gets_none(policy):
  learn = lab.learner(policy, orpo, orpo.Config(), ADAM)
  batch = learn.collate(PAIRS, policy.base.tokenizer, 64)
  assert learn.complete(batch).reference_logprobs is None


def test_kto_gets_each_answer_and_a_mismatched_one(policy):
  answers = [(p, GOOD, True) for p in PROMPTS] + [(" a", BAD, 0)]
  tokenizer = policy.base.tokenizer
  learn = lab.learner(policy, kto, kto.Config(), ADAM, length=LENGTH)
  batch = learn.collate(answers, tokenizer, 64, length=LENGTH)
  assert batch.tokens.shape == (5, 2, LENGTH)
  assert batch.label.tolist() == [1, 1, 1, 1, 0]
  shown = [
    [tokenizer.decode(row[mask > 0]) for row, mask in zip(*pair, strict=True)]
    for pair in zip(batch.tokens, batch.valid_mask, strict=True)
  ]
  for (prompt, answer, _), (own, other) in zip(answers, shown, strict=True):
    assert own == prompt + answer
    assert other.startswith(prompt)


def test_a_reward_model_scores_texts_and_samples(policy, judge):
  scores = judge.score(PROMPTS, [GOOD] * 4 + [BAD] * 4)
  assert scores.shape == (8,)
  assert judge.score([" a"], [GOOD])[0] > judge.score([" a"], [BAD])[0] + 0.5
  samples, texts = sampled(policy, 50)
  found = judge.score(PROMPTS, texts)
  np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=1e-5)
  # A text that ends by itself is the same row of tokens either way.
  ended = np.asarray(samples.finish_reason) == 0
  assert ended.any()
  np.testing.assert_allclose(
    judge.score_samples(samples)[ended], found[ended], rtol=1e-4, atol=1e-4
  )


def test_a_loss_that_is_not_finite_changes_nothing(policy):
  """Of a method of one's own, which is anything with the functions of one."""

  def loss(logprobs, batch, config):
    losses, metrics = dpo.loss(logprobs, batch, config)
    return losses * jnp.nan, metrics

  broken = types.SimpleNamespace(Config=dpo.Config, loss=loss)
  learn = lab.learner(policy, broken, dpo.Config(), RUN, length=LENGTH)
  run = Run(learn, [policy]).on(PAIRS).on(PAIRS)
  assert_same(run.policies[-1].params, policy.params, rtol=0, atol=0)
  assert run.metrics[-1]["sys/skipped_updates"] == 1.0
  with pytest.raises(loop.NonFiniteError, match="3 updates in a row"):
    run.on(PAIRS)
