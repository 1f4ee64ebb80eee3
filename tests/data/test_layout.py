"""Examples that share rows: nothing is lost, few shapes, less to compute."""

import jax
import numpy as np
import pytest

from rlhf_jax.data import batches, layout
from tests.data.test_batches import PAD, row


def ragged(count, longest=40, seed=0):
  """Returns rows of 4 to `longest` tokens, most of them short."""
  rng = np.random.default_rng(seed)
  sizes = 4 + ((longest - 3) * rng.random(count) ** 2).astype(int)
  sizes[0] = longest
  return [row(*rng.integers(3, 99, n), prompt=2) for n in sizes]


def test_t14_packing_keeps_every_target():
  random = np.random.default_rng(0)
  examples = [
    row(*random.integers(3, 99, random.integers(2, 14))) for _ in range(40)
  ]
  examples[0]["loss_mask"][0] = 1.0  # must not reach across a border
  rows, fill = layout.pack_examples(examples, 16)
  batch = batches.collate_tokens(rows, 16, PAD)
  assert fill == batch.valid_mask.mean() > 0.85
  assert examples[0]["loss_mask"][0] == 1.0  # not changed in place
  seen = []
  for tokens, mask, segments, positions in zip(
    batch.tokens,
    batch.loss_mask,
    batch.segment_ids,
    batch.positions,
    strict=True,
  ):
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
      assert mask[here][0] == 0.0 and (mask[here][1:] == 1.0).all()
      seen.append(tuple(tokens[here]))
    assert (mask[segments == 0] == 0).all()
  assert sorted(seen) == sorted(tuple(e["tokens"]) for e in examples)


def test_packing_is_first_fit_decreasing():
  examples = [row(*range(n)) for n in (3, 5, 4, 6, 2)]
  rows, fill = layout.pack_examples(examples, 10)
  assert [len(r["tokens"]) for r in rows] == [10, 10]
  assert [r["segment_ids"].max() for r in rows] == [2, 3]  # 6+4, 5+3+2
  assert fill == 1.0
  with pytest.raises(ValueError, match="row 3 has 6 tokens and length=5"):
    layout.pack_examples(examples, 5)


def segments_of(batch):
  """Returns the examples of a packed batch, as tuples of tokens."""
  found = []
  for tokens, segments in zip(batch.tokens, batch.segment_ids, strict=True):
    for segment in range(1, segments.max() + 1):
      found.append(tuple(tokens[segments == segment]))
  return sorted(found)


def test_a_batch_shares_rows_of_one_shape():
  rows = ragged(400)
  shape = layout.choose(rows, 16, unit=2)
  assert shape.is_packed and shape.counts[-1] == 16
  assert all(count % 2 == 0 for count in shape.counts)
  fills = []
  for start in range(0, 400, 16):
    examples = rows[start : start + 16]
    batch = layout.collate(examples, shape, PAD)
    assert batch.tokens.shape[1] == shape.length
    assert batch.tokens.shape[0] in shape.counts[:-1]
    assert segments_of(batch) == sorted(tuple(e["tokens"]) for e in examples)
    assert batch.loss_mask.sum() == sum(e["loss_mask"].sum() for e in examples)
    assert batch.loss_mask.sum(1).max() <= shape.targets
    fills.append(batch.valid_mask.mean())
  padded = np.mean([len(r["tokens"]) for r in rows]) / 40
  assert padded < 0.5 and np.mean(fills) > 1.5 * padded


def test_a_batch_that_needs_more_rows_has_a_row_an_example():
  rows = ragged(400)
  shape = layout.choose(rows, 16)
  longest = [rows[0]] * 16
  batch = layout.collate(longest, shape, PAD)
  assert batch.tokens.shape == (16, shape.length)
  assert segments_of(batch) == [tuple(rows[0]["tokens"])] * 16


def test_rows_of_one_length_are_left_alone():
  rows = [row(*range(30)) for _ in range(64)]
  assert layout.choose(rows, 16) == layout.Shape.of(rows)
  assert layout.choose(rows, 16, mode="batch").counts
  assert not layout.choose(ragged(400), 16, mode="none").counts
  assert layout.choose(ragged(400), 1).counts == ()


def test_what_is_said():
  rows = ragged(400)
  shape = layout.choose(rows, 16)
  said = layout.describe(rows, 16, shape)
  assert said.startswith(f"16 examples share {shape.counts[0]} rows of ")
  assert "(one a row: 4" in said
  padded = layout.Shape.of(rows)
  assert layout.describe(rows, 16, padded).startswith("16 rows of 40 tokens, 4")


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_take_parts_of_the_rows_that_all_share(hosts):
  rows = ragged(400)
  shape = layout.choose(rows, 16, unit=2)

  def stream(host):
    return batches.make_loader(
      rows,
      16,
      seed=3,
      collate=lambda examples: layout.collate(examples, shape, PAD),
      shares_rows=True,
      shard_index=host,
      shard_count=hosts,
    )

  whole = next(
    batches.make_loader(
      rows,
      16,
      seed=3,
      collate=lambda examples: layout.collate(examples, shape, PAD),
    )
  )
  parts = [next(stream(host)) for host in range(hosts)]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_the_order_of_examples_does_not_depend_on_the_layout():
  rows = ragged(64)
  shape = layout.choose(rows, 8)
  shared = batches.make_loader(
    rows,
    8,
    seed=1,
    collate=lambda examples: layout.collate(examples, shape, PAD),
    shares_rows=True,
  )
  alone = batches.make_loader(
    rows,
    8,
    seed=1,
    collate=lambda examples: batches.collate_tokens(examples, 40, PAD),
  )
  for _ in range(10):
    batch = next(alone)
    expected = sorted(
      tuple(tokens[valid > 0])
      for tokens, valid in zip(batch.tokens, batch.valid_mask, strict=True)
    )
    assert segments_of(next(shared)) == expected


def test_a_pass_over_all_rows_reads_every_target_once():
  rows = ragged(50)
  shape = layout.whole(rows)
  found, cells = {}, 0
  for members, batch in layout.in_order(rows, shape, 4, pad_id=0):
    assert batch.tokens.shape == (4, shape.length)
    assert batch.loss_mask.sum(1).max() <= shape.targets
    cells += batch.tokens.size
    for number, values in layout.by_example(members, batch, batch.tokens):
      assert number not in found
      found[number] = values
  assert sorted(found) == list(range(50))
  for number, values in found.items():
    kept = rows[number]["loss_mask"] > 0
    np.testing.assert_array_equal(values, rows[number]["tokens"][kept])
  padded = 52 * layout.Shape.of(rows).length
  assert cells < 0.75 * padded


def test_examples_that_all_begin_alike_do_not_make_one_row():
  """As where each starts with one token or template: attention is square."""
  rng = np.random.default_rng(0)
  rows = []
  for n in range(60):
    tokens = np.concatenate([[1, 2, 3], rng.integers(9, 99, 5 + n % 8)])
    rows.append({"tokens": tokens, "loss_mask": np.ones(len(tokens))})
  shape = layout.whole(rows, "auto")
  assert (shape.length, shape.has_branches) == (layout.ROOM, True)
  long = [
    {key: np.tile(value, 12) for key, value in row.items()} for row in rows
  ]
  assert layout.whole(long, "always").length <= 2 * layout.Shape.of(long).length
