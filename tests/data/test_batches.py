"""Padding, packing, and a loader that resumes and shards exactly."""

import json

import numpy as np
import pytest

from rlhf_jax.data import batches, encode
from rlhf_jax.data.formats import Comparison, Demonstration

PAD = 2  # also the end token (trap 1)


def row(*tokens, prompt=1):
  mask = [0.0] * prompt + [1.0] * (len(tokens) - prompt)
  return {
    "tokens": np.array(tokens, np.int32),
    "loss_mask": np.array(mask, np.float32),
  }


def test_trap_01_end_token_counts_though_it_is_the_padding():
  batch = batches.collate_tokens([row(5, 6, 2), row(7, 2)], 5, PAD)
  np.testing.assert_array_equal(
    batch.tokens, [[5, 6, 2, 2, 2], [7, 2, 2, 2, 2]]
  )
  np.testing.assert_array_equal(
    batch.valid_mask, [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
  )
  np.testing.assert_array_equal(
    batch.loss_mask, [[0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]
  )
  assert batch.tokens.dtype == np.int32
  assert batch.valid_mask.dtype == batch.loss_mask.dtype == np.float32
  assert batch.segment_ids is None and batch.positions is None


def test_trap_04_collating_adds_no_end_token():
  sampled = row(5, 6, 7, 8)  # cut at the length limit: no end token
  batch = batches.collate_tokens([sampled], 6, PAD)
  kept = batch.tokens[batch.valid_mask > 0]
  np.testing.assert_array_equal(kept, sampled["tokens"])
  assert batch.loss_mask.sum() == 3


def test_trap_05_ids_are_not_retokenised(tokenizer):
  ids = [tokenizer.encode(c)[0] for c in "the cat"]  # BPE would merge these
  assert tokenizer.encode(tokenizer.decode(ids)) != ids
  prompts = batches.collate_prompts([ids], PAD, 9)
  np.testing.assert_array_equal(prompts.tokens[0, -len(ids) :], ids)
  tokens = batches.collate_tokens([row(*ids)], 9, PAD)
  np.testing.assert_array_equal(tokens.tokens[0, : len(ids)], ids)


def test_lengths_are_bucketed_or_refused():
  assert [batches.bucket_length(n) for n in (1, 8, 9)] == [8, 8, 16]
  assert batches.bucket_length(9, 4) == 12
  assert batches.collate_tokens([row(*range(9))], None, PAD).tokens.shape == (
    1,
    16,
  )
  with pytest.raises(ValueError, match="row 1 has 3 tokens and length=2"):
    batches.collate_tokens([row(1, 2), row(1, 2, 3)], 2, PAD)
  with pytest.raises(ValueError, match="empty batch"):
    batches.collate_tokens([], 4, PAD)


def test_filled_rows_carry_no_loss():
  batch = batches.collate_tokens([row(5, 6, 2)], 4, PAD, rows=3)
  assert batch.tokens.shape == (3, 4)
  np.testing.assert_array_equal(batch.loss_mask.sum(axis=1), [2, 0, 0])
  assert (batch.valid_mask.sum(axis=1) == 3).all()
  with pytest.raises(ValueError, match="2 examples cannot fill rows=1"):
    batches.collate_tokens([row(5, 6)] * 2, 4, PAD, rows=1)


def test_comparisons_are_collated_with_masks_labels_and_weights(tokenizer):
  examples = [
    Comparison("f:1", "the cat", " sat", " sat on the mat"),
    Comparison("f:2", "the", " dog", " log", 0.0),
  ]
  encoded, _ = encode.encode_all(
    encode.encode_comparison, examples, tokenizer, 30
  )
  batch = batches.collate_preferences(encoded, 24, tokenizer.pad_id, rows=3)
  assert batch.tokens.shape == batch.loss_mask.shape == (3, 2, 24)
  np.testing.assert_array_equal(batch.label, np.float32([1, 0, 0]))
  np.testing.assert_array_equal(batch.weight, np.float32([1, 1, 0]))
  for n, example in enumerate(examples):
    for k, answer in enumerate((example.chosen, example.rejected)):
      valid, learned = batch.valid_mask[n, k] > 0, batch.loss_mask[n, k] > 0
      assert tokenizer.decode(batch.tokens[n, k][valid], False) == (
        example.prompt + answer + "<|im_end|>"
      )
      assert tokenizer.decode(batch.tokens[n, k][learned], False) == (
        answer + "<|im_end|>"
      )


def test_prompts_are_padded_on_the_left():
  batch = batches.collate_prompts([[5, 2], [6, 7, 8]], PAD, 4, index=[11, 3])
  np.testing.assert_array_equal(batch.tokens, [[2, 2, 5, 2], [2, 6, 7, 8]])
  np.testing.assert_array_equal(batch.valid_mask, [[0, 0, 1, 1], [0, 1, 1, 1]])
  np.testing.assert_array_equal(batch.index, [11, 3])
  assert batch.index.dtype == np.int32
  assert batches.collate_prompts([[5], [6]], PAD).tokens.shape == (2, 8)
  with pytest.raises(ValueError, match="prompt 1 .*3 tokens.*Shorten it"):
    batches.collate_prompts([[5], [6, 7, 8]], PAD, 2)
  with pytest.raises(ValueError, match="prompt 1 of the batch has no tokens"):
    batches.collate_prompts([[5], []], PAD, 2)
  with pytest.raises(ValueError, match="one number a prompt"):
    batches.collate_prompts([[5], [6]], PAD, 2, index=[1])


def take(loader, count):
  return [next(loader) for _ in range(count)]


def loader(count=7, batch=3, **changes):
  options = {"seed": 5, "collate": list} | changes
  return batches.make_loader(list(range(count)), batch, **options)


def test_every_epoch_is_a_new_permutation():
  stream = np.concatenate(take(loader(), 14))  # 42 = 6 epochs of 7
  epochs = [tuple(epoch) for epoch in stream.reshape(6, 7)]
  assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
  assert len(set(epochs)) == 6
  assert np.concatenate(take(loader(seed=6), 14)).tolist() != stream.tolist()
  plain = np.concatenate(take(loader(is_shuffled=False), 7))
  np.testing.assert_array_equal(plain, np.tile(np.arange(7), 3))


def test_epochs_end():
  assert [len(b) for b in loader(num_epochs=1)] == [3, 3]
  whole = list(loader(num_epochs=1, drops_remainder=False))
  assert [len(b) for b in whole] == [3, 3, 1]
  assert sorted(sum(whole, [])) == list(range(7))
  assert list(
    loader(2, 3, num_epochs=1, drops_remainder=False, is_shuffled=False)
  ) == [[0, 1]]


@pytest.mark.parametrize("shards", [2, 3, 6])
def test_host_shards_are_disjoint_and_together_complete(shards):
  whole = take(loader(13, 6), 9)
  parts = [
    take(loader(13, 6, shard_index=i, shard_count=shards), 9)
    for i in range(shards)
  ]
  for n, batch in enumerate(whole):
    assert sum((part[n] for part in parts), []) == batch


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_trap_23_resume_repeats_and_skips_nothing(stop):
  first = loader()
  take(first, stop)
  state = json.loads(json.dumps(first.get_state()))
  expected = take(first, 6)
  again = loader()
  take(again, 2)
  again.set_state(state)
  assert take(again, 6) == expected
  assert again.get_state() == first.get_state()


def test_other_contents_of_the_same_number_are_refused():
  rows = [
    {"tokens": np.arange(n + 2), "loss_mask": np.ones(n)} for n in range(6)
  ]
  settings = {"batch_size": 2, "seed": 0, "collate": list}
  state = batches.make_loader(rows, **settings).get_state()
  batches.make_loader([dict(r) for r in rows], **settings).set_state(state)
  other = [*rows[:5], rows[5] | {"tokens": rows[5]["tokens"][::-1]}]
  for changed in (other, rows[::-1]):
    again = batches.make_loader(changed, **settings)
    with pytest.raises(ValueError, match="as many examples, 6, with other"):
      again.set_state(state)
  numbers = batches.make_loader(np.arange(6), content=["a"], **settings)
  again = batches.make_loader(np.arange(6), content=["b"], **settings)
  with pytest.raises(ValueError, match="with other contents"):
    again.set_state(numbers.get_state())
  del state["data"]  # of a run before this was kept
  batches.make_loader(other, **settings).set_state(state)


def test_a_fingerprint_tells_contents_apart():
  parts = [
    ["a", "b"],
    ["ab"],
    [["a"], "b"],
    {"a": "b"},
    np.zeros(4, np.int32),
    np.zeros(4, np.float32),
    np.zeros((2, 2), np.int32),
    [0, 0, 0, 0],
    None,
    "None",
    "\ud800",
  ]
  assert len({batches.fingerprint(part) for part in parts}) == len(parts)
  one = {"a": 1, "b": [np.arange(3)]}
  again = {"b": (np.arange(3),), "a": 1}
  assert batches.fingerprint(one) == batches.fingerprint(again)


def test_state_of_other_data_is_refused():
  state = loader().get_state()
  for other in (loader(8), loader(batch=4), loader(seed=6)):
    with pytest.raises(ValueError, match="saved data position has"):
      other.set_state(state)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"count": 0}, "data set is empty"),
    ({"count": 2}, "2 examples do not fill one batch"),
    ({"batch": 0}, "batch_size=0"),
    ({"num_epochs": 0}, "num_epochs=0"),
    ({"shard_count": 2}, "Set batch_size to a multiple"),
    ({"shard_index": 3, "shard_count": 3}, "shard_index=3"),
    ({"shard_count": 3, "drops_remainder": False}, "drops_remainder=False"),
    ({"seed": -1}, "seed=-1"),
  ],
)
def test_loaders_that_cannot_work_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    loader(**change)


def test_loader_yields_batches(tokenizer):
  examples = [
    Demonstration(f"f:{n}", "the cat", " sat" * n) for n in range(1, 6)
  ]
  rows, dropped = encode.encode_all(
    encode.encode_demonstration, examples, tokenizer, 30
  )
  assert not dropped
  stream = batches.make_loader(
    rows,
    2,
    seed=0,
    collate=lambda part: batches.collate_tokens(part, 24, tokenizer.pad_id),
  )
  batch = next(stream)
  assert batch.tokens.shape == (2, 24)
  assert (batch.tokens[batch.loss_mask > 0] == tokenizer.eos_id).sum() == 2
