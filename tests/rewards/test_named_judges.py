"""Which prompts several judges judge, and what is refused before sampling."""

import numpy as np
import pytest

from rlhf_jax.data.examples import Prompt
from rlhf_jax.rewards import combination, functions, named_judges, texts
from rlhf_jax.rewards.named_judges import Named
from rlhf_jax.schema import UserError

PROMPTS = [
  Prompt(where="f:1", prompt="p", fields={"kind": "a", "risky": True}),
  Prompt(where="f:2", prompt="q", fields={"kind": "b", "risky": False}),
  Prompt(where="f:3", prompt="r", fields={"kind": 3, "risky": 0}),
]
NAMED = {
  "one": Named(reward="x", kinds=("a", 3)),
  "two": Named(reward="y", kinds=("b",)),
  "all": Named(reward="z"),
}


def judged(named=NAMED, prompts=PROMPTS, *, is_whole=True):
  return named_judges.prompts_judged(prompts, named, "kind", is_whole=is_whole)


def test_a_field_of_the_prompt_says_who_judges_it():
  np.testing.assert_array_equal(judged(), [[1, 0, 1], [0, 1, 1], [1, 0, 1]])


@pytest.mark.parametrize(
  "named, prompts, message",
  [
    (
      {k: NAMED[k] for k in ("one",)},
      PROMPTS,
      "f:2: kind='b': no judge judges this kind",
    ),
    (NAMED, [Prompt(where="f:9", prompt="p")], "f:9: has no field 'kind'"),
    (NAMED, PROMPTS[:2], "judges.one.kinds: no prompt has kind='3'"),
  ],
)
def test_what_nobody_can_judge_is_refused(named, prompts, message):
  with pytest.raises(UserError, match=message):
    judged(named, prompts)


def test_held_out_prompts_may_lack_a_kind():
  found = judged(prompts=PROMPTS[:2], is_whole=False)
  np.testing.assert_array_equal(found, [[1, 0, 1], [0, 1, 1]])


def test_tags_are_truth_values():
  found = named_judges.prompts_tagged(PROMPTS, "risky")
  np.testing.assert_array_equal(found, [1, 0, 0])
  np.testing.assert_array_equal(
    named_judges.prompts_tagged(PROMPTS, ""), [0, 0, 0]
  )
  with pytest.raises(UserError, match="f:1: kind='a'.*must be true or false"):
    named_judges.prompts_tagged(PROMPTS, "kind")


class Words:
  """A tokenizer that is asked nothing."""

  eos_id = 0


def test_a_reference_is_needed_only_where_it_is_read():
  """The second prompt has none, and another judge judges it."""

  def same(texts, references):
    return [float(a == b) for a, b in zip(texts, references, strict=True)]

  parts = functions.bind(same, {}, "reward_fn")
  prompts = [
    Prompt(where="f:1", prompt="p", reference="x"),
    Prompt(where="f:2", prompt="q"),
  ]
  mine = np.array([True, False])
  found = texts.judge_of_some(parts, prompts, Words(), None, mine)
  assert found.references == ["x", None]
  with pytest.raises(UserError, match="f:2: has nothing to judge"):
    texts.judge_of_some(parts, prompts, Words(), None, np.array([True, True]))


def test_errors_are_over_prompts_not_answers():
  """Answers to a prompt that agree are one observation."""
  values = np.array([[1.0, 1.0], [3.0, 3.0], [np.nan, np.nan]])
  mean, error = combination.mean_and_error(values)
  assert mean == 2.0
  np.testing.assert_allclose(error, np.std([1, 3], ddof=1) / np.sqrt(2))
  assert combination.mean_and_error(values[2:]) == (None, None)
  assert combination.mean_and_error(values[:1]) == (1.0, None)
