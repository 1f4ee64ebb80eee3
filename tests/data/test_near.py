"""Near repeats are found, counted and left out; known shares."""

import json

import numpy as np
import pytest

from rlhf_jax.data import dataset, near, overlap
from rlhf_jax.data.dataset import Data
from rlhf_jax.schema import FieldError
from tests.letters import Letters

LETTERS = Letters()
TEXT = " ".join(f"word{i}" for i in range(40))


def write(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def test_pieces_are_five_words_in_a_row_without_case_and_marks():
  assert len(near.pieces("a b c d e f g")) == 3
  plain = near.pieces("the cat sat on the mat today")
  assert np.array_equal(plain, near.pieces("The cat, sat  on the MAT: today!"))
  assert len(near.pieces("a b")) == len(near.pieces("?!")) == 1
  assert near.pieces("?!") != near.pieces("!!")
  assert near.pieces("") != near.pieces("0")
  assert len(near.pieces("一二三四五六七")) == 3  # no spaces between words


def test_the_share_of_pieces_is_that_of_the_sets():
  # 36 pieces each; one word in the middle is in five of them
  changed = TEXT.replace("word20", "other")
  found = near.share(near.pieces(TEXT), near.pieces(changed))
  assert found == pytest.approx(31 / 41)
  assert near.share(near.pieces(TEXT), near.pieces(TEXT)) == 1.0
  assert near.share(near.pieces(TEXT), near.pieces("nothing of it")) == 0.0


@pytest.mark.parametrize(
  ("least", "is_near"), [(31 / 41 - 1e-9, True), (31 / 41 + 1e-9, False)]
)
def test_the_share_decides_and_not_its_estimate(least, is_near):
  index = near.Index(least)
  assert index.find((TEXT,), "f:1") is None
  found = index.find((TEXT.replace("word20", "other"),), "f:2")
  assert found == ("f:1" if is_near else None)


def test_nearly_all_pairs_that_a_comparison_of_all_finds_are_found():
  rng = np.random.default_rng(0)
  texts = []
  for _ in range(60):
    words = rng.choice(2000, 80).astype(str)
    texts.append(" ".join(words))
    words[rng.integers(80, size=rng.integers(1, 4))] = "changed"
    texts.append(" ".join(words))
  pieces = [near.pieces(text) for text in texts]
  wanted = {
    i
    for i in range(len(texts))
    if any(near.share(pieces[i], pieces[j]) >= 0.8 for j in range(i))
  }
  index = near.Index(0.8)
  found = {
    i
    for i, text in enumerate(texts)
    if index.find((text,), f"f:{i}") is not None
  }
  assert 20 < len(wanted) < 60 and found <= wanted
  assert len(found) >= len(wanted) - 1


def near_pair(path):
  """Two comparisons of one prompt, a near repeat, and another prompt."""
  one = {"prompt": TEXT, "chosen": TEXT, "rejected": "no"}
  return write(
    path,
    one,
    one | {"chosen": "something else"},
    one | {"prompt": TEXT + " again", "chosen": TEXT + "!"},
    one | {"prompt": "else"},
    one,
  )


def test_answers_must_be_near_too(tmp_path):
  source = near_pair(tmp_path / "d.jsonl")
  found, _ = dataset.records(Data(source=source), LETTERS)
  assert overlap.nearly_repeated(found, 0.8) == [(f"{source}:3", f"{source}:1")]
  lines = overlap.repeated_lines(Data(source=source), found)
  assert lines == [
    f"1 of 5 records of {source} repeat an earlier one, {source}:5 that of "
    f"{source}:1",
    f"1 of 5 records of {source} nearly repeat an earlier one, {source}:3 "
    f"that of {source}:1",
  ]
  assert len(overlap.repeated_lines(Data(source=source, near=0.0), found)) == 1


@pytest.mark.parametrize(
  ("duplicates", "lines", "counts"),
  [
    ("keep", [1, 2, 3, 4, 5], {}),
    ("exact", [1, 2, 3, 4], {"repeat an earlier one": 1}),
    (
      "near",
      [1, 2, 4],
      {"repeat an earlier one": 1, "nearly repeat an earlier one": 1},
    ),
  ],
)
def test_repeats_are_left_out_and_counted(tmp_path, duplicates, lines, counts):
  source = near_pair(tmp_path / "d.jsonl")
  data = Data(source=source, duplicates=duplicates)
  found, dropped = dataset.records(data, LETTERS)
  assert [record.where for record in found] == [f"{source}:{n}" for n in lines]
  assert dropped == counts


def test_what_held_out_data_asks_is_said_and_left_out(tmp_path, capsys):
  train = write(
    tmp_path / "t.jsonl",
    {"prompt": TEXT, "response": "a"},
    {"prompt": "same", "response": "b"},
    {"prompt": "own", "response": "c"},
  )
  held = write(
    tmp_path / "h.jsonl",
    {"prompt": TEXT.upper() + "!", "chosen": "x", "rejected": "y"},
    {"prompt": " same ", "chosen": "x", "rejected": "y"},
  )
  data = Data(source=train, format="demonstration")
  overlap.say_shared("sft", data, Data(source=held), LETTERS)
  first, second = capsys.readouterr().out.splitlines()
  assert "1 of 2 held-out records" in first and f"{held}:2 that of" in first
  assert "records of " + held + " nearly ask what is trained on" in second
  assert f"{held}:1 that of {train}:1" in second
  left = Data(source=train, format="demonstration", exclude=held)
  found, dropped = dataset.records(left, LETTERS)
  assert [record.prompt for record in found] == ["own"]
  assert dropped == {f"ask what {held} asks": 2}
  overlap.say_shared("sft", left, Data(source=held), LETTERS)
  assert capsys.readouterr().out == ""
  exact = Data(source=train, format="demonstration", exclude=held, near=0.0)
  assert len(dataset.records(exact, LETTERS)[0]) == 2


@pytest.mark.parametrize("duplicates", ["exact", "near"])
def test_two_annotators_of_the_same_answers_do_not_repeat(
  tmp_path, capsys, duplicates
):
  item = {"prompt": "p", "answers": ["one", "two"], "ranks": [0, 1]}
  told = [{**item, "annotator": name} for name in ("anna", "ben", "anna")]
  data = Data(
    source=write(tmp_path / "t.jsonl", *told),
    format="ranking",
    duplicates=duplicates,
  )
  found, dropped = dataset.records(data, LETTERS)
  assert [x.fields["annotator"] for x in found] == ["anna", "ben"]
  assert sum(dropped.values()) == 1
  assert not overlap.nearly_repeated(found, 0.8)
  assert not overlap.repeated(found)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"near": 1.5}, "near=1.5: must be in"),
    ({"duplicates": "drop"}, "duplicates='drop'"),
    ({"duplicates": "near", "near": 0.0}, "near=0.0: nothing is near"),
  ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
  with pytest.raises(FieldError, match=words):
    Data(**settings)
