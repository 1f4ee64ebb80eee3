"""Answers with judged steps: layouts of records, where steps end in tokens."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import process
from rlhf_jax.data import formats, layout, look, records, steps
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.schema import UserError
from tests import tiny

RECORD = {
  "prompt": "What is 12 + 345? ",
  "steps": ["It is 357", "of course:\n", "12 and 345 make 357."],
  "labels": [1, False, 0.25],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("steps")
  tiny.tiny_tokenizer_json(folder)
  return load_tokenizer(folder)


@pytest.fixture(scope="module")
def table(tokenizer):
  return steps.table("\n", tokenizer, tokenizer.vocab_size + 5)


def loaded(tmp_path, tokenizer, table, rows, **changes):
  path = tmp_path / "steps.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = {"format": "steps", "max_length": 64} | changes
  return steps.load(Data(source=str(path), **settings), tokenizer, "\n", table)


def test_layouts():
  found = formats.FORMATS["steps"](RECORD, "f:1")
  assert found.labels == (1.0, 0.0, 0.25) and found.steps[0] == "It is 357"
  assert formats.guess(RECORD, "f:1") == "steps"
  prm = {
    "question": {"problem": "1+1?", "ground_truth_answer": "2"},
    "label": {
      "steps": [
        {
          "completions": [{"text": "no", "rating": -1}, {"text": "a"}],
          "human_completion": None,
          "chosen_completion": 1,
        },
        {
          "completions": [{"text": "bad", "rating": -1}],
          "human_completion": {"text": "by hand"},
          "chosen_completion": None,
        },
        {
          "completions": [{"text": "b", "rating": 0}],
          "chosen_completion": 0,
        },
        {
          "completions": [
            {"text": "odd", "rating": None},
            {"text": "c", "rating": -1},
          ],
          "chosen_completion": None,
        },
        {"completions": [{"text": "d", "rating": 1}], "chosen_completion": 0},
      ]
    },
  }
  found = formats.FORMATS["prm800k"](prm, "f:1")
  assert found.prompt == "1+1?\n"
  assert found.steps == ("a", "by hand", "b", "c")  # it ends with the error
  assert found.labels == (None, 1.0, 1.0, 0.0)
  assert formats.guess(prm, "f:1") == "prm800k"
  shepherd = {
    "input": "Janet has 3. Step 1: 3 - 1 = 2 ки\nStep 2: So 4. The answer ки",
    "label": "Janet has 3. Step 1: 3 - 1 = 2 +\nStep 2: So 4. The answer -",
    "task": "GSM8K",
  }
  found = formats.FORMATS["math_shepherd"](shepherd, "f:1")
  assert found.prompt == "Janet has 3. " and found.labels == (1.0, 0.0)
  assert found.steps == ("Step 1: 3 - 1 = 2", "Step 2: So 4. The answer")
  assert formats.guess(shepherd, "f:1") == "math_shepherd"


@pytest.mark.parametrize(
  "change, message",
  [
    ({"labels": [1, 0]}, "3 steps and 2 labels"),
    ({"labels": [1, 0, 2]}, "label 2 is 2; it is the probability"),
    ({"steps": ["a", "b", 3]}, "step 2 is '3'"),
    ({"steps": "a"}, "field 'steps' is a str"),
  ],
)
def test_wrong_records_are_named(change, message):
  with pytest.raises(DataError, match=f"f:1: {message}"):
    formats.FORMATS["steps"]({**RECORD, **change}, "f:1")


def test_what_teaches_nothing_is_refused():
  with pytest.raises(records.RefusedExample, match="no step has a label"):
    formats.FORMATS["steps"]({**RECORD, "labels": [None] * 3}, "f:1")
  wrong = {"input": "Step 1: a ки", "label": "Step 1: b +"}
  with pytest.raises(DataError, match="field 'label' is not field 'input'"):
    formats.FORMATS["math_shepherd"](wrong, "f:1")


@pytest.mark.parametrize("end_token", [True, False])
def test_labels_stand_at_the_ends_of_steps(
  tmp_path, tokenizer, table, end_token
):
  """At the delimiters, and at the last token that is read."""
  rows = [RECORD, {**RECORD, "labels": [None, 0, 1]}]
  found = loaded(tmp_path, tokenizer, table, rows, end_token=end_token)
  row = found.rows[0]
  places = np.flatnonzero(row["loss_mask"])
  prompt = len(tokenizer.encode(RECORD["prompt"]))
  parts = np.split(row["tokens"][prompt:], places[:-1] - prompt + 1)
  assert [tokenizer.decode(part) for part in parts] == [
    "It is 357\n",
    "of course:\n",
    "12 and 345 make 357.",
  ]
  assert (row["tokens"][-1] == tokenizer.eos_id) == end_token
  assert places[-1] == len(row["tokens"]) - 1
  np.testing.assert_array_equal(row["labels"][places], [1.0, 0.0, 0.25])
  np.testing.assert_array_equal(
    np.flatnonzero(found.rows[1]["loss_mask"]), places[1:]
  )


def test_a_delimiter_inside_is_counted_not_lost(tmp_path, tokenizer, table):
  rows = [RECORD, {**RECORD, "steps": ["a\nb", "c", "d"]}]
  rows.append({**RECORD, "steps": ["a", " ", "d"]})
  rows.append({**RECORD, "steps": ["a" * 90, "b", "c"]})
  found = loaded(tmp_path, tokenizer, table, rows)
  assert len(found.rows) == 1
  assert found.dropped[steps.INSIDE] == 2 and sum(found.dropped.values()) == 3


def test_the_command_shows_where_steps_end(tmp_path, tokenizer):
  path = tmp_path / "steps.jsonl"
  rows = [RECORD, {**RECORD, "steps": ["a\nb", "c", "d"]}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = look.take(Data(source=str(path), format="steps"), tokenizer)
  assert found.left_out[steps.INSIDE] == [f"{path}:2"]
  ((tokens, mask),) = found.items[0].rows.values()
  assert mask.sum() == 3 and len(mask) == len(tokens)


def test_samples_are_read_as_rows_are(tokenizer, table):
  """numpy on one row, the scan on a batch: the same, on random tokens."""
  rng = np.random.default_rng(0)
  line = tokenizer.encode("\n")[0]
  tokens = rng.integers(3, tokenizer.vocab_size, (64, 20))
  tokens[rng.random(tokens.shape) < 0.3] = line
  mask = np.zeros(tokens.shape, np.float32)
  for n, row in enumerate(mask):
    row[rng.integers(0, 9) : rng.integers(9, 21)] = n > 2
  found = process.step_ends(
    jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(table)
  )
  for row, own, ends in zip(tokens, mask, np.asarray(found), strict=True):
    np.testing.assert_array_equal(
      np.flatnonzero(ends), steps.ends(row, own, table)
    )


def test_longer_delimiters_in_whatever_tokens(tokenizer):
  """Two line breaks are one token or two, and stand behind other letters."""
  table = steps.table("\n\n", tokenizer, tokenizer.vocab_size)
  ids = np.asarray(tokenizer.encode("a cat\n\nsat\n on\n\n\nthe log\n\n"))
  places = steps.ends(ids, np.ones(len(ids)), table)
  starts = np.concatenate([[0], places[:-1] + 1])
  parts = [
    tokenizer.decode(ids[a : b + 1])
    for a, b in zip(starts, places, strict=True)
  ]
  assert [part.strip() for part in parts] == ["a cat", "sat\n on", "the log"]
  with pytest.raises(UserError, match="not 3 steps are found"):
    steps.table("e", tokenizer, tokenizer.vocab_size)


def test_labels_survive_packing(tmp_path, tokenizer, table):
  """Whichever way rows are shared, the same labels stand behind the same."""
  rng = np.random.default_rng(0)
  rows = [
    {
      "prompt": f"{n} ",
      "steps": [f"{n} {i}" for i in range(count)],
      "labels": rng.random(count).round(2).tolist(),
    }
    for n, count in enumerate(rng.integers(1, 6, 24))
  ]
  data = loaded(tmp_path, tokenizer, table, rows).rows

  def of_batch(batch):
    valid = np.asarray(batch.step_mask) > 0
    for row, mask, labels in zip(
      batch.tokens, valid, batch.labels, strict=True
    ):
      for place in np.flatnonzero(mask):
        text = tokenizer.decode(row[: place + 1], skip_special=True)
        lines = [x for x in text.replace("\n", " ").split() if x]
        yield " ".join(lines[-2:]), round(float(labels[place]), 2)

  alone = layout.choose(data, 8, mode="none")
  shared = layout.choose(data, 8, mode="batch")
  assert shared.counts and not alone.counts
  packed, _ = layout.pack_examples(data, 64)
  expected = sorted(of_batch(steps.collate(data, alone, 2)))
  assert len(expected) == sum(len(row["steps"]) for row in rows)
  for start in range(0, 24, 8):
    part = data[start : start + 8]
    assert sorted(of_batch(steps.collate(part, shared, 2))) == sorted(
      of_batch(steps.collate(part, alone, 2))
    )
  whole = steps.collate(packed, layout.Shape.of(packed), 2)
  assert whole.segment_ids is not None
  assert sorted(of_batch(whole)) == expected
