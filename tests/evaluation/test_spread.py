"""Diversity within prompts and across them, at equal counts."""

import math

import numpy as np
import pytest

from rlhf_jax.evaluation import diversity, spread

# What a policy writes that heeds its prompt, and one that heeds none.
HEEDS = [[f"p{p} q{p} r{p}" for _ in range(4)] for p in range(8)]
SAME = [[f"a{g} b{g} c{g}" for g in range(4)] for _ in range(8)]


def test_a_policy_that_heeds_prompts_varies_across_them_only():
  facts = spread.facts(HEEDS)
  assert facts["per_prompt_distinct_2"] == pytest.approx(2 / 8)
  assert facts["across_prompts_distinct_2"] == 1.0
  assert facts["per_prompt_self_bleu"] == pytest.approx(1.0)
  assert facts["across_prompts_self_bleu"] == 0.0
  assert facts["per_prompt_jaccard_distance"] == 0.0
  assert facts["across_prompts_jaccard_distance"] == 1.0


def test_a_policy_that_heeds_none_varies_as_much_in_both():
  """Each set across prompts takes another answer of each: as within one."""
  facts = spread.facts(SAME)
  for name in spread.MEASURES:
    own, other = facts[f"per_prompt_{name}"], facts[f"across_prompts_{name}"]
    assert own == pytest.approx(other), name


def test_sets_across_prompts_use_each_answer_once():
  groups = [[f"{p} {g}" for g in range(3)] for p in range(6)]
  seen = []

  def note(texts):
    assert len({text.split()[0] for text in texts}) == 3  # of three prompts
    seen.extend(texts)
    return 0.0

  assert spread.across_prompts(note, groups) == 0.0
  assert sorted(seen) == sorted(text for group in groups for text in group)


def test_fewer_prompts_than_answers_leave_it_undefined():
  assert math.isnan(spread.across_prompts(lambda _: 1.0, HEEDS[:3]))


@pytest.mark.parametrize("groups", [[["a"]], [["a", "b"], ["c"]], []])
def test_uneven_groups_are_refused(groups):
  with pytest.raises(ValueError, match="as many answers"):
    spread.per_prompt(diversity.jaccard_distance, groups)


def test_embedding_distance_against_all_pairs():
  vectors = np.random.default_rng(0).normal(size=(7, 5))
  units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  pairs = [
    1.0 - units[i] @ units[j] for i in range(7) for j in range(7) if i != j
  ]
  assert spread.embedding_distance(vectors) == pytest.approx(np.mean(pairs))
  assert spread.embedding_distance(np.ones((3, 2))) == pytest.approx(0.0)
  assert spread.embedding_distance(np.array([[1.0], [-1.0]])) == 2.0
  # what says nothing is left out
  padded = np.concatenate([vectors, np.zeros((2, 5))])
  assert spread.embedding_distance(padded) == pytest.approx(np.mean(pairs))
  assert math.isnan(spread.embedding_distance(np.zeros((2, 3))))
  assert math.isnan(spread.embedding_distance(np.ones((1, 3))))


def test_embeddings_are_asked_once_for_each_text():
  asked = []

  def embed(texts):
    asked.extend(texts)
    return np.eye(len(texts))

  facts = spread.facts(HEEDS, embed)
  assert sorted(asked) == sorted({group[0] for group in HEEDS})
  assert facts["per_prompt_embedding_distance"] == pytest.approx(0.0)
  assert facts["across_prompts_embedding_distance"] == pytest.approx(1.0)
