"""Mixtures of sources: shares, order, and what a run goes on with."""

import json

import numpy as np
import pytest

from rlhf_jax.data import batches, dataset, mixture
from rlhf_jax.data.dataset import Data
from rlhf_jax.data.sources import DataError
from rlhf_jax.schema import FieldError
from tests.letters import Letters

LETTERS = Letters()


def write(path, *records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def rows(name, count):
  return [{"prompt": f"{name}{i}", "response": "r"} for i in range(count)]


@pytest.fixture
def source(tmp_path):
  a = write(tmp_path / "a.jsonl", *rows("a", 8))
  b = write(tmp_path / "b.jsonl", *rows("b", 2))
  return f"{a},{b}"


def prompts(data):
  found, dropped = dataset.records(data, LETTERS)
  return [record.prompt for record in found], dropped


def test_times_follow_from_shares_and_sizes():
  assert mixture.times([8, 2], [1, 1]) == [0.625, 2.5]
  assert mixture.times([8, 2], [4, 1]) == [1.0, 1.0]


def test_weights_are_shares_of_a_pass(source):
  data = Data(source=source, format="demonstration", weights="1, 1")
  found, dropped = prompts(data)
  a, b = (name for name in source.split(","))
  assert sum(prompt[0] == "a" for prompt in found) == 5
  assert len({prompt for prompt in found if prompt[0] == "a"}) == 5
  assert sorted(p for p in found if p[0] == "b") == ["b0"] * 2 + ["b1"] * 3 or (
    sorted(p for p in found if p[0] == "b") == ["b0"] * 3 + ["b1"] * 2
  )
  assert dropped == {
    f"drawn from {a}, 0.62 times its 8": 5,
    f"drawn from {b}, 2.50 times its 2": 5,
  }


def test_repeats_say_how_often_each_is_read(source):
  data = Data(source=source, format="demonstration", repeats="0.5,3")
  found, _ = prompts(data)
  assert sorted(p for p in found if p[0] == "b") == ["b0"] * 3 + ["b1"] * 3
  assert len(found) == 4 + 6
  whole = Data(source=source, format="demonstration", repeats="1,1")
  plain = Data(source=source, format="demonstration")
  assert sorted(prompts(whole)[0]) == sorted(prompts(plain)[0])


def test_the_first_records_are_a_mixture_too(source):
  data = Data(source=source, format="demonstration", weights="1,1", limit=4)
  found, _ = prompts(data)
  assert [prompt[0] for prompt in found] == ["a", "b", "a", "b"]


def test_a_seed_draws_the_same_and_another_draws_others(source):
  def drawn(seed):
    return prompts(
      Data(
        source=source, format="demonstration", repeats="0.5,1", split_seed=seed
      )
    )[0]

  assert drawn(3) == drawn(3)
  assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_parts_may_have_formats_of_their_own(tmp_path, source):
  message = {"role": "user", "content": "hi"}
  answer = {"role": "assistant", "content": "ho"}
  talk = write(tmp_path / "m.jsonl", {"messages": [message, answer]})
  data = Data(
    source=f"{source},{talk}", format="demonstration,demonstration,messages"
  )
  found, _ = dataset.records(data, LETTERS)
  assert len(found) == 11 and found[-1].messages == [message, answer]
  pairs = write(
    tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}
  )
  odd = Data(source=f"{pairs},{talk}", format="comparison,messages")
  with pytest.raises(DataError, match="several kinds: Comparison .*p.jsonl"):
    dataset.records(odd, LETTERS)


def test_repeats_across_parts_are_left_out_before_shares(tmp_path):
  a = write(tmp_path / "a.jsonl", *rows("x", 4))
  b = write(tmp_path / "b.jsonl", *rows("x", 6))
  data = Data(
    source=f"{a},{b}",
    format="demonstration",
    duplicates="exact",
    weights="1,1",
  )
  found, dropped = prompts(data)
  assert dropped["repeat an earlier one"] == 4
  # three of the four of the first, and both of the second, one of them twice
  assert len(found) == 6 and {"x4", "x5"} < set(found)
  assert len(set(found)) == 5
  same = Data(
    source=f"{a},{a.replace('a.jsonl', 'c.jsonl')}",
    format="demonstration",
    duplicates="exact",
    weights="1,1",
  )
  write(tmp_path / "c.jsonl", *rows("x", 4))
  with pytest.raises(DataError, match="c.jsonl: no record is left of this par"):
    dataset.records(same, LETTERS)


def test_a_run_goes_on_where_it_was_and_notices_another_mixture(source):
  def loader(**settings):
    data = Data(source=source, format="demonstration", **settings)
    found, _ = dataset.demonstrations(data, LETTERS)
    return batches.make_loader(
      found,
      2,
      seed=0,
      collate=lambda rows: [row["tokens"].tolist() for row in rows],
    )

  whole = loader(weights="1,1")
  seen = [next(whole) for _ in range(3)]
  state = whole.get_state()
  later = [next(whole) for _ in range(9)]
  resumed = loader(weights="1,1")
  resumed.set_state(state)
  assert [next(resumed) for _ in range(9)] == later
  assert len(seen) == 3
  for other in ({"weights": "2,1"}, {"weights": "1,1", "split_seed": 1}):
    with pytest.raises(ValueError, match="^resume: the saved data position"):
      loader(**other).set_state(state)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"weights": "1"}, "weights='1': 1 numbers, and .* has 2 parts"),
    ({"weights": "1,x"}, "weights='1,x': must be numbers above 0"),
    ({"repeats": "1,0"}, "repeats='1,0': must be numbers above 0"),
    ({"repeats": "1,nan"}, "must be numbers above 0"),
    ({"weights": "1,1", "repeats": "1,1"}, "Set the other to ''"),
    ({"format": "prompt,prompt,prompt"}, "3 formats, and source=.* 2 parts"),
    ({"format": "prompt,odd"}, "format='odd'"),
    ({"weights": "1,1", "splits": "A:2", "split": "A"}, "with split='A'"),
  ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, words):
  with pytest.raises(FieldError, match=words):
    Data(source="a.jsonl,b.jsonl", **settings)


def test_sources_are_spread_evenly():
  found = mixture.draw([list("aaaa"), list("bb")], [1, 1], 0)
  assert "".join(record for _, record in found) == "abaaba"
  counts = np.bincount([number for number, _ in found])
  assert counts.tolist() == [4, 2]
