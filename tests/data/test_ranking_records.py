"""K judged answers: what a record says, and the pairs and rows it becomes."""

import dataclasses
import json

import numpy as np
import pytest

from rlhf_jax.data import (
  comparison_rows,
  dataset,
  formats,
  judged,
  look,
  ranking_parsers,
  rankings,
  records,
)
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.examples import Ranking
from rlhf_jax.data.sources import DataError
from rlhf_jax.programs import features
from rlhf_jax.schema import FieldError
from tests.letters import Letters

LETTERS = Letters()
THREE = {"prompt": "p", "answers": ["a", "bb", "ccc"]}
MESSAGES = [{"role": "user", "content": "hi"}]


def parse(**fields):
  return formats.FORMATS["ranking"]({**THREE, **fields}, "f:1")


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def spelt(data):
  """Returns the answers of each comparison as text, without the end token."""
  texts = []
  for members in data.pairs:
    rows = [data.rows[n] for n in members if n >= 0]
    texts.append([LETTERS.decode(row["tokens"])[1:] for row in rows])
  return texts


def test_a_ranking_keeps_all_that_was_said():
  fields = {
    "ranks": [2, 0, 0],
    "scores": {"helpful": [1, 4.5, None]},
    "objectives": {"harmless": [0, None, 1]},
    "strength": "slightly",
    "acceptable": [False, True, None],
    "annotator": "ann",
    "shown": [2, 0, 1],
    "policies": ["x", "y", "x"],
    "anything": {"else": 1},
  }
  found = parse(**fields)
  assert found == Ranking(
    "f:1",
    "p",
    ("a", "bb", "ccc"),
    ranks=(2, 0, 0),
    scores={"helpful": (1.0, 4.5, None)},
    objectives={"harmless": (0, None, 1)},
    strength="slightly",
    acceptable=(False, True, None),
  )
  assert found.fields == THREE | fields
  assert parse(scores=[3, 1, 2]).scores == {"": (3.0, 1.0, 2.0)}


def test_a_choice_is_a_ranking_of_one_above_the_others():
  assert parse(choice=1).ranks == (1, 0, 1)
  assert parse(choice=2, ranks=[2, 1, 0]).ranks == (2, 1, 0)
  none = parse(choice=None)
  assert (none.ranks, none.acceptable) == (None, (False, False, False))
  with pytest.raises(DataError, match="choice' is 0, and 'ranks'"):
    parse(choice=0, ranks=[2, 1, 0])


def test_answers_may_be_messages():
  answers = [
    [*MESSAGES, {"role": "assistant", "content": text}] for text in "ab"
  ]
  record = {"answers": answers, "ranks": [1, 0]}
  found = formats.FORMATS["ranking"](record, "f:1")
  assert (found.prompt, found.answers) == (MESSAGES, ("a", "b"))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"answers": ["a"], "ranks": [0]}, "has 1 of them; a ranking is of two"),
    ({"ranks": [0, 1]}, "'ranks' has 2 entries; .*each of the 3 answers"),
    ({"ranks": [0, 1, -1]}, "holds '-1'; a rank is a whole number"),
    ({"ranks": [0, 1, 1.5]}, "holds '1.5'; a rank"),
    ({"ranks": [0, 1, True]}, "holds 'True'; a rank"),
    ({"choice": 3}, "'choice' is '3'; .*0 to 2, or null"),
    ({"scores": [1, 2, "3"]}, "'scores' holds '3'; a score is"),
    ({"scores": {"x": [1, 2]}}, "'scores.x' has 2 entries"),
    ({"objectives": [0, 1, 2]}, "objective: ranks"),
    ({"ranks": [0, 1, 2], "strength": "much"}, "significantly, better"),
    ({"ranks": [0, 1, 2], "strength": -1}, "or a number >= 0"),
    ({"ranks": [0, 1, 2], "shown": [0, 1, 1]}, "each of 0 to 2 once"),
    ({"ranks": [0, 1, 2], "acceptable": [1, 0, 1]}, "true, false or null"),
  ],
)
def test_what_is_wrong_names_field_and_rule(fields, message):
  with pytest.raises(DataError, match=f"f:1: .*{message}"):
    parse(**fields)


def test_what_says_nothing_is_refused_and_counted(tmp_path):
  rows = [
    THREE | {"ranks": [0, 1, 2]},
    THREE | {"ranks": [None] * 3},
    THREE | {"skipped": True},
    THREE | {"answers": ["a", " "], "choice": 0},
  ]
  path = write(tmp_path / "r.jsonl", *rows)
  kept, refused = formats.load_and_refuse(path, "ranking")
  assert len(kept) == 1
  reasons = sorted(error.reason for error in refused)
  assert reasons == ["empty response", "no judgement", "skipped"]
  assert formats.guess(rows[0], "f:1") == "ranking"


def test_the_order_is_of_one_objective():
  both = parse(
    ranks=[0, 1, 2],
    scores={"long": [1, 2, 3], "kind": [5, 5, None]},
    objectives={"short": [0, 1, 1]},
  )
  assert rankings.order(both) == ("ranks", (0, 1, 2))
  assert rankings.order(both, "short") == ("objectives.short", (0, 1, 1))
  assert rankings.order(both, "long") == ("scores.long", (2, 1, 0))
  assert rankings.order(both, "kind") == ("scores.kind", (0, 0, None))
  assert rankings.order(both, "other") == ("", None)
  only = parse(scores={"long": [1, 2, 3]})
  assert rankings.order(only) == ("scores.long", (2, 1, 0))
  several = parse(scores={"long": [1, 2, 3]}, objectives={"short": [0, 1, 1]})
  assert rankings.order(several) == ("", None)
  with pytest.raises(FieldError, match="They have long, short: set data.obj"):
    rankings.check_objective([several], "")


def data_of(tmp_path, *rows, **settings):
  source = write(tmp_path / "r.jsonl", *rows)
  return Data(source=source, format="ranking", **settings)


FOUR = {
  "prompt": "p",
  "answers": ["a", "b", "c", "d"],
  "ranks": [1, 0, 1, None],
}
TWO = {"prompt": "q", "answers": ["x", "y"], "choice": 1, "strength": "better"}


def test_rankings_as_pairs(tmp_path):
  data = data_of(tmp_path, FOUR, TWO, rankings="pairs")
  found = dataset.comparisons(data, LETTERS, 0)
  assert spelt(found) == [["b", "a"], ["b", "c"], ["y", "x"]]
  assert found.labels.tolist() == [1.0, 1.0, 1.0]
  assert found.groups.tolist() == [[0], [0], [1]]
  assert found.strengths.tolist() == [None, None, "better"]
  assert len(found.rows) == 5  # each answer once, and not the unranked one
  assert found.dropped == {comparison_rows.TIED: 1}
  soft = data_of(tmp_path, FOUR, TWO, rankings="pairs", ties="soft")
  found = dataset.comparisons(soft, LETTERS, 0)
  assert spelt(found)[2] == ["a", "c"]
  assert found.labels.tolist() == [1.0, 1.0, 0.5, 1.0]


def test_rankings_as_ends_and_whole(tmp_path):
  data = data_of(tmp_path, FOUR, TWO, rankings="ends")
  assert spelt(dataset.comparisons(data, LETTERS, 0)) == [
    ["b", "c"],
    ["y", "x"],
  ]
  data = data_of(tmp_path, FOUR, TWO, rankings="whole")
  whole = dataset.comparisons(data, LETTERS, 0)
  assert spelt(whole) == [["b", "a", "c"], ["y", "x"]]
  assert whole.pairs[1].tolist() == [4, 3, -1]
  np.testing.assert_array_equal(
    whole.ranks, np.float32([[0, 1, 1], [0, 1, np.nan]])
  )
  as_pairs = comparison_rows.as_pairs(whole)
  assert spelt(as_pairs) == [["b", "a"], ["b", "c"], ["y", "x"]]
  assert as_pairs.groups.tolist() == [[0], [0], [1]]
  again = data_of(tmp_path, FOUR, TWO, rankings="pairs")
  assert spelt(as_pairs) == spelt(dataset.comparisons(again, LETTERS, 0))


def test_more_than_two_answers_are_refused_unasked(tmp_path):
  data = data_of(tmp_path, FOUR, TWO)
  with pytest.raises(FieldError, match=r"refuse': 1 of 2 .*up to 3.*'pairs'"):
    dataset.comparisons(data, LETTERS, 0)
  two = data_of(tmp_path, TWO)
  assert spelt(dataset.comparisons(two, LETTERS, 0)) == [["y", "x"]]
  assert judged.load(two, LETTERS, 0).labels.tolist() == [1.0, 0.0]


def test_a_batch_of_rankings_has_rows_that_are_not_there(tmp_path):
  rows = [FOUR | {"scores": [1, 5, 2, None]}, TWO]
  data = data_of(tmp_path, *rows, rankings="whole")
  found = dataset.comparisons(data, LETTERS, 0)
  batch = features.collate([1, 0], data=found, features=None, width=8, pad_id=2)
  assert batch.tokens.shape == (2, 3, 8)
  assert batch.loss_mask.sum(-1).tolist() == [[2, 2, 0], [2, 2, 2]]
  assert batch.valid_mask.sum(-1).tolist() == [[3, 3, 0], [3, 3, 3]]
  np.testing.assert_array_equal(
    batch.rank, np.float32([[0, 1, np.nan], [0, 1, 1]])
  )
  np.testing.assert_array_equal(
    batch.target, np.float32([[np.nan] * 3, [5, 1, 2]])
  )
  pooled = np.arange(len(found.rows), dtype=np.float32)[:, None]
  batch = features.collate(
    [1, 0], data=found, features=pooled, width=8, pad_id=2
  )
  assert batch.loss_mask[..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]
  assert batch.features[1, :, 0].tolist() == [1.0, 0.0, 2.0]


def test_what_nothing_reads_is_counted():
  read = rankings.Judgement(frozenset({"ranks", "strength"}), "ranks")
  scored = rankings.Judgement(frozenset({"scores", "ranks"}), "ranks", "scores")
  counts = rankings.unread([read, scored], {rankings.ORDER})
  assert counts == {"scores": 1, "strength": 1}
  assert rankings.unread([scored], {rankings.TARGET}) == {"ranks": 1}
  reads = {rankings.ORDER, rankings.STRENGTH}
  assert rankings.unread([read], reads) == {}


def test_a_comparison_has_margin_strength_and_fields(tmp_path):
  pair = {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": 7}
  rows = [pair | {"margin": 0.5}, pair | {"strength": "slightly"}, pair]
  path = write(tmp_path / "p.jsonl", *rows)
  found = formats.load(path, "comparison")
  assert [example.margin for example in found] == [0.5, None, None]
  assert [example.fields for example in found] == rows
  data = Data(source=path)
  made = dataset.comparisons(data, LETTERS, 0)
  assert made.strengths.tolist() == [0.5, "slightly", None]
  for bad in ("big", True, float("nan")):
    with pytest.raises(DataError, match="field 'margin' is"):
      formats.FORMATS["comparison"](pair | {"margin": bad}, "f:1")
  assert not records.judgements_beside(rows[0] | rows[1], "comparison")


def test_rankings_are_shown_best_first(tmp_path):
  data = data_of(tmp_path, FOUR, TWO, rankings="whole")
  found = look.take(data, LETTERS)
  said = "judgements beside the answers: ranks 2, strength 1"
  assert said in "\n".join(look.counts(found))
  (item, _) = found.items
  assert list(item.rows) == [
    "answer 1, rank 0",
    "answer 0, rank 1",
    "answer 2, rank 1",
  ]


def test_a_label_of_two_answers_is_the_pairs_label(tmp_path):
  two = {"prompt": "p", "answers": ["a", "bb"]}
  rows = [
    two | {"label": 0.75},
    two | {"label": 0.25, "ranks": [1, 0]},
    two | {"choice": 0},
    two | {"label": 0.5},
  ]
  source = write(tmp_path / "labels.jsonl", *rows)
  data = Data(source=source, format="ranking", max_length=8)
  found = dataset.comparisons(data, LETTERS, 0)
  assert found.labels.tolist() == [0.75, 0.75, 1.0]
  assert spelt(found) == [["a", "bb"], ["bb", "a"], ["a", "bb"]]
  whole = dataclasses.replace(data, rankings="whole")
  labels = dataset.comparisons(whole, LETTERS, 0).labels.tolist()
  assert labels == [0.75, 0.75, 1.0, 0.5]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"label": 0.5}, "there are 3"),
    ({"answers": ["a", "b"], "label": 1.5}, "is '1.5'"),
    ({"answers": ["a", "b"], "label": "x"}, "is 'x'"),
    ({"answers": ["a", "b"], "label": 0.9, "choice": 1}, "do not agree"),
    ({"answers": ["a", "b"], "label": 0.5, "choice": 1}, "do not agree"),
  ],
)
def test_a_label_that_cannot_be_is_named(fields, message):
  with pytest.raises(DataError, match=message):
    parse(**fields)


def test_whole_dialogues_against_each_other(tmp_path):
  """What they begin with alike is the prompt; the rest of each is judged."""
  first = [*MESSAGES, {"role": "assistant", "content": "a"}]
  more = {"role": "user", "content": "ok"}
  answers = [
    [*first, more, {"role": "assistant", "content": "yes"}],
    [*MESSAGES, {"role": "assistant", "content": "ab"}],
  ]
  record = {"answers": answers, "choice": 0}
  found = formats.FORMATS["ranking"](record, "f:1")
  assert found.prompt == MESSAGES
  assert found.answers == (answers[0][1:], answers[1][1:])
  apart = [[{"role": "user", "content": x}, answers[0][-1]] for x in "pq"]
  parted = formats.FORMATS["ranking"]({"answers": apart, "choice": 1}, "f:2")
  assert parted.prompt == [] and formats.prompt_key(parted) == "f:2"
  data = data_of(tmp_path, record)
  made = dataset.comparisons(data, LETTERS, 0)
  texts = [LETTERS.decode(row["tokens"]) for row in made.rows]
  alike = "\n\nHuman: hi\n\nAssistant: a"
  assert texts == [alike + "\n\nHuman: ok\n\nAssistant: yes", alike + "b"]
  for row, text in zip(made.rows, texts, strict=True):
    learned = row["loss_mask"] > 0
    assert LETTERS.decode(row["tokens"][learned]) == text[len(alike) :]
  with pytest.raises(DataError, match="the assistant's message is the last"):
    formats.FORMATS["ranking"]({"answers": [first[:1], first]}, "f:1")


def test_scores_of_binarised_pairs_are_kept(tmp_path):
  pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
  rows = [pair | {"score_chosen": 8.5, "score_rejected": 7}, pair]
  path = write(tmp_path / "p.jsonl", *rows)
  made = dataset.comparisons(Data(source=path), LETTERS, 0)
  np.testing.assert_array_equal(made.targets, [[8.5, 7.0], [np.nan, np.nan]])
  assert [j.target for j in made.judgements] == ["scores", ""]
  with pytest.raises(DataError, match="field 'score_chosen' is 'high'"):
    formats.FORMATS["comparison"](pair | {"score_chosen": "high"}, "f:1")


def test_a_strength_may_be_by_objective():
  """Each objective's reward model reads its own, and names the other."""
  record = {
    "prompt": "p",
    "answers": ["a", "b"],
    "objectives": {"good": [0, 1], "short": [1, 0]},
    "strength": {"good": "better", "short": None},
  }
  example = ranking_parsers.parse_ranking(record, "f:1")
  assert example.strength is None and example.strengths == {"good": "better"}
  assert "strength.good" in rankings.carried(example)
  judgement = rankings.Judgement(
    rankings.carried(example), "objectives.good", "", "strength.good"
  )
  reads = {rankings.ORDER, rankings.STRENGTH}
  assert rankings.unread([judgement], reads) == {"objectives.short": 1}
  with pytest.raises(DataError, match="field 'strength' is 'much'"):
    ranking_parsers.parse_ranking(record | {"strength": {"good": "much"}}, "f")
