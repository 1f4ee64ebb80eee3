"""Where answers go that share their prompt: every token, once or with it."""

import numpy as np
import pytest

from rlhf_jax.algorithms.policy_gradient import groups_in_rows, packing
from rlhf_jax.types import Samples

PROMPT, NEW = 12, 10


def drawn(prompts, group, seed=0, prompt=PROMPT, new=NEW):
  """Returns samples of random prompts, padded left, and ragged answers."""
  rng = np.random.default_rng(seed)
  sizes = np.repeat(rng.integers(1, prompt + 1, prompts), group)
  answers = np.minimum(rng.geometric(2 / new, prompts * group), new)
  column = np.arange(prompt + new)
  response = (column >= prompt) & (column < prompt + answers[:, None])
  valid = (column >= prompt - sizes[:, None]) & (column < prompt) | response
  text = np.repeat(rng.integers(3, 90, (prompts, prompt)), group, axis=0)
  answer = rng.integers(3, 90, (prompts * group, new))
  return Samples(
    tokens=np.concatenate([text, answer], axis=1).astype(np.int32) * valid,
    valid_mask=valid.astype(np.float32),
    response_mask=response.astype(np.float32),
    behaviour_logprobs=np.zeros(valid.shape, np.float32),
    finish_reason=np.zeros(len(valid), np.int32),
  )


def shape_of(prompts, group, unit=1, prompt=PROMPT, new=NEW, **settings):
  config = packing.GroupConfig(**settings)
  groups = groups_in_rows.Groups(group, prompt)
  return packing.shape_of(
    config, prompts * group, prompt + new, new, unit, groups
  )


@pytest.mark.parametrize(("prompts", "group"), [(16, 4), (3, 7), (40, 2)])
def test_every_answer_reads_its_prompt_and_itself(prompts, group):
  samples = drawn(prompts, group)
  shape = shape_of(prompts, group, row_tokens=48, row_targets=22)
  layout = packing.plan(samples, shape)
  found = {
    name: np.asarray(getattr(layout, name))
    for name in ("cell", "place", "segment_ids", "branch_ids", "positions")
  }
  rows, width = found["cell"].shape
  response = np.asarray(packing.pack(samples.response_mask, layout))
  assert response.sum() == samples.response_mask.sum()  # each token once
  assert response.sum(axis=1).max() <= shape.targets and width == shape.tokens
  tokens = np.asarray(packing.pack(samples.tokens, layout)).reshape(-1)
  valid = samples.valid_mask > 0
  for n, place in enumerate(found["place"]):
    cells = place[valid[n]]
    np.testing.assert_array_equal(tokens[cells], samples.tokens[n, valid[n]])
    assert len(set(cells // width)) == 1
    positions = found["positions"].reshape(-1)[cells]
    np.testing.assert_array_equal(positions, np.arange(len(cells)))
    own = samples.response_mask[n, valid[n]] > 0
    branch = found["branch_ids"].reshape(-1)[cells]
    assert (branch[~own] == 0).all() and len(set(branch[own])) == 1
    assert branch[own].min() > 0
    assert len(set(found["segment_ids"].reshape(-1)[cells])) == 1
  stand = (found["segment_ids"] > 0).sum()
  assert stand < 0.8 * valid.sum()  # prompts stand less often than answers


def test_alike_full_rows_and_groups_whole_where_there_is_room():
  samples = drawn(32, 4, seed=1)
  shape = shape_of(32, 4, row_tokens=64)
  tight = packing.plan(samples, shape)
  rows = tight.cell.shape[0]
  wide = packing.plan(samples, shape, rows + 2 * shape.multiple)
  assert wide.cell.shape[0] == rows + 2 * shape.multiple
  filled = (np.asarray(wide.segment_ids) > 0).sum(axis=1)
  assert filled.min() > 0.6 * filled.mean()
  roomy = packing.plan(samples, shape_of(32, 4, row_tokens=200))
  segments = np.asarray(roomy.segment_ids).max(axis=1).sum()
  assert segments == 32  # no prompt stands twice


def test_what_fits_no_even_way_is_placed_one_by_one():
  """Every answer at its longest: a row has room for two."""
  groups = groups_in_rows.Sizes(np.full(3, 5), np.full((3, 4), 10))
  capacity = np.asarray([25, 20])
  bins, count = groups_in_rows.place(groups, capacity, range(1, 7))
  assert count == 6 and sorted(n for b in bins for p, _ in b for n in p) == [
    *range(12)
  ]
  assert groups_in_rows._one_by_one(groups, capacity) == [
    [((2 * n, 2 * n + 1), 5)] for n in range(6)
  ]
  assert groups_in_rows.spread(groups, capacity, 5) is None


def test_answers_to_several_prompts_are_no_group():
  samples = drawn(4, 2)
  shape = shape_of(4, 2, row_tokens=48)
  other = samples.replace(tokens=samples.tokens.copy())
  other.tokens[3, PROMPT - 1] += 1
  with pytest.raises(ValueError, match="samples 2 to 3 have several prompts"):
    packing.plan(other, shape)
  odd = Samples(**{name: x[:-1] for name, x in vars(samples).items()})
  with pytest.raises(ValueError, match="7 samples are not groups of 2"):
    packing.plan(odd, shape)


def test_room_for_answers_as_long_as_the_prompt():
  """Two answers at least, more to a long prompt, fewer where rows are few."""
  long = dict(new=300)
  assert shape_of(64, 4, **long) == packing.Shape(612, 600, 128, 8, 4)
  found = shape_of(64, 8, prompt=1000, **long)
  assert found == packing.Shape(2200, 1200, 128, 8, 8)
  assert shape_of(64, 4, new=80) == packing.Shape(252, 240, 128, 8, 4)
  assert shape_of(64, 2) == packing.Shape(32, 20, 64, 4, 2)
  assert shape_of(2, 4) == packing.Shape(22, 10, 8, 1, 4)
  assert shape_of(2, 4, unit=4) is None
  assert "4 to 64 rows, in steps of 4; 4 to a prompt share that too" in (
    packing.describe(shape_of(64, 4), 256)
  )
  with pytest.raises(ValueError, match="share_prompts='yes'"):
    packing.GroupConfig(share_prompts="yes")


@pytest.mark.parametrize(("unit", "least"), [(2, 0.72), (8, 0.62)])
def test_random_lengths_need_few_shapes(unit, least):
  shape = shape_of(32, 4, unit, prompt=64, new=64)
  usual, counts, fill = 0, [], []
  for seed in range(50):
    samples = drawn(32, 4, seed, prompt=64, new=64)
    layout = packing.plan(samples, shape, usual)
    usual = layout.cell.shape[0]
    assert usual % unit == 0 and usual <= shape.most
    counts.append(usual)
    fill.append(np.mean(np.asarray(layout.segment_ids) > 0))
  assert len(set(counts)) <= 2 and len(set(counts[10:])) == 1
  assert np.mean(fill) > least  # of rows of their own: 0.45
